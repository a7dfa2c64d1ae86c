//! `totp_disable`, `totp_enable`, `totp_remove`, `totp_unenroll`, `totp_unlock`: the life of a device after its enrollment.
//!
//! Owns what happens to everything of a user. Must never lose a used step: a removal leaves it in the audit
//! log.

use std::collections::BTreeMap;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::binding;
use super::guard;
use super::proof;
use crate::audit::{self, Event};
use crate::clock;
use crate::error::Error;
use crate::inplace::{self, Outcome, Target};
use crate::keyring;
use crate::removed::Removed;
use crate::store::attempts::{self, Attempts};
use crate::store::recovery_codes;
use crate::store::secrets::{self, Existing, Slot};
use crate::store::spi::Snapshot;
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
    audit_removed(user, &devices)?;
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

/// Removes a device of a user, or turns MFA off if `device` is NULL or the last one. For the user's own page: false if the
/// proof is wrong, or if a user without MFA has only what the support desk has staged.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_unenroll(
    user_id: Option<&str>,
    proof: Option<&str>,
    device: default!(Option<&str>, "NULL"),
) -> Result<bool, ErrorReport> {
    guard::judging("totp_unenroll", || unenroll(user_id, proof, device))
}

/// Asks for the proof last, and removes after it.
fn unenroll(user_id: Option<&str>, proof: Option<&str>, device: Option<&str>) -> Result<bool, Error> {
    let user = UserId::new(user_id)?;
    let device = DeviceName::optional(device)?;
    keyring::hold_existing()?;
    if !attempts::lock(user)? {
        return Err(Error::NoSuchDevice);
    }
    let existing = secrets::of_user(&Snapshot::latest(), user)?;
    if !existing.iter().any(|s| device.is_none_or(|device| s.device() == device)) {
        return Err(Error::NoSuchDevice);
    }
    if !proof::ask(user, &existing, proof)? {
        return Ok(false);
    }
    let devices = if !binding::has_mfa(&existing) {
        remove_proposed(user, device, &existing)?
    } else {
        match device.filter(|device| existing.iter().any(|s| s.device() != *device && s.is_enforced())) {
            Some(device) => remove_device(user, device)?,
            None => remove_user(user)?,
        }
    };
    audit_removed(user, &devices)?;
    Ok(!devices.is_empty())
}

/// Removes what a user without MFA has staged. What the support desk has staged stays.
fn remove_proposed(user: UserId, device: Option<DeviceName>, existing: &[Existing]) -> Result<RemovedDevices, Error> {
    let now = clock::now()?;
    let mut devices = RemovedDevices::new();
    let is_meant = |s: &&Existing| s.slot == Slot::Proposed && device.is_none_or(|device| s.device() == device);
    for secret in existing.iter().filter(is_meant) {
        let used = secrets::delete(user, secret.secret_id)?;
        devices.entry(secret.device().as_str().into()).or_insert(Removed::nothing()).add(used, secret.codes, now)?;
    }
    Ok(devices)
}

/// Records the removal of each device.
fn audit_removed(user: UserId, devices: &RemovedDevices) -> Result<(), Error> {
    let now = clock::now()?;
    devices.iter().try_for_each(|(device, removed)| {
        audit::record_with(Event::Removed, now, Some(user), Some(DeviceName::stored(device)), &removed.detail())
    })
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
