//! `totp_disable`, `totp_enable`, `totp_remove`, `totp_unlock`, `totp_rename_user`: the functions of a support desk.
//!
//! Owns what happens to everything of a user. Must never lose a used step: a removal leaves it in the audit
//! log.

use std::collections::BTreeMap;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use crate::audit::{self, Event};
use crate::clock;
use crate::error::Error;
use crate::inplace::{self, Outcome, Target};
use crate::keyring;
use crate::keyring::SecretContext;
use crate::removed::Removed;
use crate::store::attempts::{self, Attempts};
use crate::store::spi::Snapshot;
use crate::store::{recovery_codes, secrets, used_codes};
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, UserId};

/// Disables a device of a user, or all devices if `device` is NULL. Returns how many devices changed.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_disable(user_id: Option<&str>, device: default!(Option<&str>, "NULL")) -> Result<i32, ErrorReport> {
    guard::writable("totp_disable")?;
    let now = clock::now()?;
    Ok(set_disabled(user_id, device, Some(now), Event::Disabled)?)
}

/// Enables a device of a user, or all devices if `device` is NULL, in the state it had. Returns how many devices changed.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_enable(user_id: Option<&str>, device: default!(Option<&str>, "NULL")) -> Result<i32, ErrorReport> {
    guard::writable("totp_enable")?;
    Ok(set_disabled(user_id, device, None, Event::Enabled)?)
}

fn set_disabled(
    user_id: Option<&str>,
    device: Option<&str>,
    disabled_at: Option<Timestamp>,
    event: Event,
) -> Result<i32, Error> {
    let user = UserId::new(user_id)?;
    let device = DeviceName::optional(device)?;
    keyring::hold_existing()?;
    if !attempts::lock(user)? {
        return Ok(0);
    }
    let devices = secrets::set_disabled(user, device, disabled_at)?;
    audit_each(event, user, &devices)
}

/// Removes a device of a user, or everything of the user if `device` is NULL. Returns how many devices were removed.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_remove(user_id: Option<&str>, device: default!(Option<&str>, "NULL")) -> Result<i32, ErrorReport> {
    guard::writable("totp_remove")?;
    let user = UserId::new(user_id)?;
    let device = DeviceName::optional(device)?;
    keyring::hold_existing()?;
    let devices = match device {
        None => remove_user(user)?,
        Some(device) => remove_device(user, device)?,
    };
    for (device, removed) in &devices {
        audit::record_with(
            Event::Removed,
            clock::now()?,
            Some(user),
            Some(DeviceName::stored(device)),
            &removed.detail(),
        )?;
    }
    Ok(i32::try_from(devices.len()).unwrap_or(i32::MAX))
}

/// Removed devices, each with the used codes of its secrets.
type RemovedDevices = BTreeMap<String, Removed>;

/// Removes everything of a user. The attempts row comes first: a concurrent enrollment holds it or waits for us, so it leaves
/// nothing behind. The removal is audited even if there was no device: failures, locks, and recovery codes are removed too.
fn remove_user(user: UserId) -> Result<RemovedDevices, Error> {
    while !attempts::delete(user)? {
        // An enrollment may have committed since the delete looked: then there is a row to delete now. If the row was
        // deleted by hand, it is inserted again, so that the rest of the user is removed too.
        let nothing_left =
            secrets::of_user(&Snapshot::latest(), user)?.is_empty() && recovery_codes::sealed(user)?.is_none();
        if nothing_left {
            return Ok(RemovedDevices::new());
        }
        attempts::lock_or_insert(user)?;
        pgrx::check_for_interrupts!();
    }
    let now = clock::now()?;
    audit::record(Event::Removed, now, Some(user), None)?;
    let existing = secrets::of_user(&Snapshot::latest(), user)?;
    recovery_codes::delete(user)?;
    let used = secrets::delete_all(user)?;
    let mut devices = RemovedDevices::new();
    for secret in existing {
        let removed = devices.entry(secret.device().as_str().into()).or_insert(Removed::nothing());
        for used in used.iter().filter(|used| used.secret_id == secret.secret_id) {
            removed.add(*used, secret.codes, now)?;
        }
    }
    Ok(devices)
}

/// Removes a device. The attempts row and the recovery codes stay: removing a device clears no failures.
fn remove_device(user: UserId, device: DeviceName) -> Result<RemovedDevices, Error> {
    let mut devices = RemovedDevices::new();
    if !attempts::lock(user)? {
        return Ok(devices);
    }
    let now = clock::now()?;
    for secret in secrets::of_user(&Snapshot::latest(), user)? {
        if secret.device() == device {
            let used = secrets::delete(user, secret.secret_id)?;
            devices.entry(secret.device().as_str().into()).or_insert(Removed::nothing()).add(
                used,
                secret.codes,
                now,
            )?;
        }
    }
    Ok(devices)
}

fn audit_each(event: Event, user: UserId, devices: &[String]) -> Result<i32, Error> {
    let now = clock::now()?;
    for device in devices {
        audit::record(event, now, Some(user), Some(DeviceName::stored(device)))?;
    }
    Ok(i32::try_from(devices.len()).unwrap_or(i32::MAX))
}

/// Clears failures and locks of a user, but never the used step. False if there was nothing to clear.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_unlock(user_id: Option<&str>) -> Result<bool, ErrorReport> {
    guard::writable("totp_unlock")?;
    let user = UserId::new(user_id)?;
    loop {
        let Some(found) = attempts::find(user)? else { return Ok(false) };
        let outcome = inplace::change_one(Target::open(&found.address)?, |row: &mut Attempts| {
            row.codes = otp::Counter::CLEAR;
            row.recovery = otp::Counter::CLEAR;
        })?;
        match outcome {
            Outcome::LookAgain => continue,
            Outcome::Decided((), None) => return Ok(false),
            Outcome::Decided((), Some(lsn)) => {
                lsn.make_durable();
                audit::unlocked(user, clock::now()?)?;
                return Ok(true);
            }
        }
    }
}

/// Moves everything of a user to another user id. Secrets are sealed again, since they are bound to their user.
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
        let sealed = keyring::seal_secret(key, SecretContext::of(new, stored), &secret)?;
        let used = used_codes::take(old, stored.secret_id)?;
        let of_stored = existing.iter().find(|e| e.secret_id == stored.secret_id).ok_or(Error::RowsAltered)?;
        lost.add(used, of_stored.codes, now)?;
        used_codes::insert(new, &before.raise(used, stored.parameters.period))?;
        secrets::rename(old, stored.secret_id, new, key, &sealed)?;
        devices.push(stored.device().as_str());
    }
    devices.sort_unstable();
    devices.dedup();
    if let Some(set) = recovery_codes::sealed(old)? {
        let hashes = keyring::open_recovery_codes(&snapshot, old, &set)?;
        let sealed = keyring::seal_recovery_codes(key, new, set.set_id, set.count, &hashes)?;
        used_codes::insert(new, &used_codes::take(old, set.set_id)?)?;
        recovery_codes::rename(old, new, key, &sealed)?;
    }
    audit::renamed(old, ("new_user_id", new), lost.detail(), now)?;
    audit::renamed(new, ("old_user_id", old), inherited.detail(), now)?;
    Ok(i32::try_from(devices.len()).unwrap_or(i32::MAX))
}
