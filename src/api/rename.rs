//! `totp_rename_user`, `totp_rename_device`, `totp_move_device`: secrets get another user or another name.
//!
//! A secret is sealed again, since it is bound to its user and device. Its used step goes along.
//!
//! Owns what moves together. Must never make a used code good again.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use seal::KeyId;

use super::binding;
use super::guard;
use super::proof;
use crate::audit::{self, Event};
use crate::clock;
use crate::error::Error;
use crate::keyring;
use crate::keyring::SecretContext;
use crate::removed::Removed;
use crate::settings;
use crate::store::attempts;
use crate::store::secrets::{self, Existing, SealedSecret, Slot};
use crate::store::spi::Snapshot;
use crate::store::{recovery_codes, used_codes};
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, SecretId, UserId};

/// Moves everything of a user to another user id.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_rename_user(user_id: Option<&str>, new_user_id: Option<&str>) -> Result<i32, ErrorReport> {
    guard::writable("totp_rename_user")?;
    let old = UserId::new(user_id)?;
    let new = UserId::named("new_user_id", new_user_id)?;
    if old == new {
        return Err(Error::UserExists.into());
    }
    let key = keyring::hold_current()?;
    // Rows that change in place are deleted first and read afterward: a sign-in may change them after an earlier read.
    let counted = attempts::take(old)?.ok_or(Error::NoSuchDevice)?;
    if !attempts::insert(new, counted)? {
        return Err(Error::UserExists.into());
    }
    let now = clock::now()?;
    // The used codes of the old id count for the new id, and are kept for the old id, so that no import makes a code good
    // again. The secrets may have been at the new id before.
    let inherited = Removed::of_user(old, now)?;
    let (mut lost, before) = (inherited, Removed::of_user(new, now)?);
    let snapshot = Snapshot::latest();
    let found = secrets::sealed_of_user(&snapshot, old)?;
    let existing = secrets::of_user(&snapshot, old)?;
    let mut devices = Vec::new();
    for stored in &found {
        let secret = keyring::open_secret(&snapshot, old, stored)?;
        let sealed = keyring::seal_secret(&key, SecretContext::of(new, stored), &secret)?;
        let used = used_codes::take(old, stored.secret_id)?;
        let of_stored = existing.iter().find(|e| e.secret_id == stored.secret_id).ok_or(Error::RowsAltered)?;
        lost.add(used, of_stored.codes, now)?;
        used_codes::insert(new, &before.raise(used, stored.parameters.period))?;
        secrets::rename(old, stored.secret_id, new, stored.device(), key.id(), &sealed)?;
        devices.push(stored.device().as_str());
    }
    devices.sort_unstable();
    devices.dedup();
    if let Some(set) = recovery_codes::sealed(old)? {
        let hashes = keyring::open_recovery_codes(&snapshot, old, &set)?;
        let sealed = keyring::seal_recovery_codes(&key, new, set.set_id, set.count, &hashes)?;
        used_codes::insert(new, &used_codes::take(old, set.set_id)?)?;
        recovery_codes::rename(old, new, key.id(), &sealed)?;
    }
    audit::renamed(old, ("new_user_id", new), lost.detail(), now)?;
    audit::renamed(new, ("old_user_id", old), inherited.detail(), now)?;
    Ok(i32::try_from(devices.len()).unwrap_or(i32::MAX))
}

/// Gives a device another name. False if the proof is wrong. Only `totp.secrets` changes, so no sign-in waits.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_rename_device(
    user_id: Option<&str>,
    device: Option<&str>,
    new_device: Option<&str>,
    proof: default!(Option<&str>, "NULL"),
) -> Result<bool, ErrorReport> {
    guard::judging("totp_rename_device", || rename_device(user_id, device, new_device, proof))
}

/// Asks for the proof last, and renames after it.
fn rename_device(
    user_id: Option<&str>,
    device: Option<&str>,
    new_device: Option<&str>,
    proof: Option<&str>,
) -> Result<bool, Error> {
    let user = UserId::new(user_id)?;
    let (device, new_device) = (DeviceName::new(device)?, DeviceName::named("new_device", new_device)?);
    keyring::hold_existing()?;
    if !attempts::lock(user)? {
        return Err(Error::NoSuchDevice);
    }
    let existing = secrets::of_user(&Snapshot::latest(), user)?;
    let of_device: Vec<_> = existing.iter().filter(|s| s.device() == device).collect();
    if of_device.is_empty() {
        return Err(Error::NoSuchDevice);
    }
    if of_device.iter().any(|s| s.disabled) {
        return Err(Error::DeviceDisabled);
    }
    if existing.iter().any(|s| s.device() == new_device) {
        return Err(Error::DeviceExists);
    }
    // The support desk has staged it, and the user has nothing to prove themselves with.
    let is_of_desk = !binding::has_mfa(&existing) && of_device.iter().any(|s| s.slot == Slot::Pending);
    if is_of_desk && settings::require_proof() {
        return Err(Error::ProofRequired);
    }
    let sealed = seal_again(user, device, user, new_device, |_| true)?;
    if !proof::ask(user, &existing, proof)? {
        return Ok(false);
    }
    for moved in &sealed {
        secrets::rename(user, moved.secret_id, user, new_device, moved.key, &moved.sealed)?;
    }
    let detail = vec![("new_device", new_device.as_str().into())];
    audit::record_with(Event::Renamed, clock::now()?, Some(user), Some(device), &detail)?;
    Ok(true)
}

/// Moves a device with its state to another user, for the support desk: a token from stock to its owner. False if there is no
/// such device.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_move_device(
    user_id: Option<&str>,
    device: Option<&str>,
    new_user_id: Option<&str>,
    new_device: Option<&str>,
) -> Result<bool, ErrorReport> {
    guard::writable("totp_move_device")?;
    let from = Place { user: UserId::new(user_id)?, device: DeviceName::new(device)? };
    let to = Place {
        user: UserId::named("new_user_id", new_user_id)?,
        device: DeviceName::named("new_device", new_device)?,
    };
    keyring::hold_current()?;
    if !attempts::lock(from.user)? {
        return Ok(false);
    }
    let existing = secrets::of_user(&Snapshot::latest(), from.user)?;
    let is_approved = |s: &&Existing| s.device() == from.device && s.slot != Slot::Proposed;
    if !existing.iter().any(|s| is_approved(&s)) {
        return Ok(false);
    }
    attempts::lock_or_insert(to.user)?;
    move_device(&from, &to, &existing)?;
    Ok(true)
}

/// A device of a user.
struct Place<'a> {
    user: UserId<'a>,
    device: DeviceName<'a>,
}

/// Moves the approved secrets of a device, with both users locked. What nobody has approved is removed.
fn move_device(from: &Place, to: &Place, existing: &[Existing]) -> Result<(), Error> {
    let now = clock::now()?;
    let of_new_owner = secrets::of_user(&Snapshot::latest(), to.user)?;
    let (in_the_way, taken): (Vec<_>, Vec<_>) =
        of_new_owner.iter().filter(|s| s.device() == to.device).partition(|s| s.slot == Slot::Proposed);
    if !taken.is_empty() {
        return Err(Error::DeviceExists);
    }
    in_the_way.iter().try_for_each(|staged| binding::remove(to.user, staged, now))?;
    let is_same_user = from.user == to.user;
    if !is_same_user {
        binding::make_room(to.user, to.device, &of_new_owner, now)?;
        refuse_second_copy(from, to)?;
    }
    let before = Removed::of_user(to.user, now)?;
    let (mut lost, mut activated) = (Removed::nothing(), None);
    for moved in seal_again(from.user, from.device, to.user, to.device, |slot| slot != Slot::Proposed)? {
        let of_moved = existing.iter().find(|e| e.secret_id == moved.secret_id).ok_or(Error::RowsAltered)?;
        if !is_same_user {
            let used = used_codes::take(from.user, moved.secret_id)?;
            lost.add(used, of_moved.codes, now)?;
            used_codes::insert(to.user, &before.raise(used, of_moved.codes.period))?;
        }
        secrets::rename(from.user, moved.secret_id, to.user, to.device, moved.key, &moved.sealed)?;
        activated = activated.or(of_moved.enforced_since.map(|_| moved.secret_id));
    }
    for staged in existing.iter().filter(|s| s.device() == from.device && s.slot == Slot::Proposed) {
        lost.add(secrets::delete(from.user, staged.secret_id)?, staged.codes, now)?;
    }
    audit_move(from, ("new_user_id", "new_device"), to, lost, now)?;
    audit_move(to, ("old_user_id", "old_device"), from, Removed::nothing(), now)?;
    match activated.filter(|_| !is_same_user && !binding::has_mfa(&of_new_owner)) {
        Some(activated) => binding::forget_earlier(to.user, activated, now),
        None => Ok(()),
    }
}

/// Records one side of a move.
fn audit_move(
    of: &Place,
    (user_name, device_name): (&'static str, &'static str),
    other: &Place,
    removed: Removed,
    now: Timestamp,
) -> Result<(), Error> {
    let mut detail = removed.detail();
    detail.push((user_name, other.user.as_str().into()));
    detail.push((device_name, other.device.as_str().into()));
    audit::record_with(Event::Moved, now, Some(of.user), Some(of.device), &detail)
}

/// Refuses a secret that the new owner has at another device: each code would count twice.
fn refuse_second_copy(from: &Place, to: &Place) -> Result<(), Error> {
    let snapshot = Snapshot::latest();
    let theirs = secrets::sealed_of_user(&snapshot, to.user)?;
    for moved in secrets::sealed_of_user(&snapshot, from.user)?.iter().filter(|s| s.device() == from.device) {
        let secret = keyring::open_secret(&snapshot, from.user, moved)?;
        for stored in &theirs {
            let other = keyring::open_secret(&snapshot, to.user, stored)?;
            let algorithm = moved.parameters.algorithm;
            let is_alike = stored.parameters.algorithm == algorithm && secret.same_codes_as(&other, algorithm);
            if is_alike || secret.same_as(&other) {
                return Err(Error::SecretOfOtherDevice);
            }
        }
    }
    Ok(())
}

/// A secret that is sealed for its new place.
struct Moved {
    secret_id: SecretId,
    key: KeyId,
    sealed: Vec<u8>,
}

/// Seals the secrets of a device again, for another place.
fn seal_again(
    user: UserId,
    device: DeviceName,
    new_user: UserId,
    new_device: DeviceName,
    is_meant: impl Fn(Slot) -> bool,
) -> Result<Vec<Moved>, Error> {
    let key = keyring::hold_current()?;
    let snapshot = Snapshot::latest();
    let stored = secrets::sealed_of_user(&snapshot, user)?;
    let of_device = stored.iter().filter(|s| s.device() == device && is_meant(s.slot));
    of_device
        .map(|stored: &SealedSecret| {
            let secret = keyring::open_secret(&snapshot, user, stored)?;
            let context = SecretContext { device: new_device, ..SecretContext::of(new_user, stored) };
            let sealed = keyring::seal_secret(&key, context, &secret)?;
            Ok(Moved { secret_id: stored.secret_id, key: key.id(), sealed })
        })
        .collect()
}
