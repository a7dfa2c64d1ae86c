//! `totp_remove`: what an administrator does to devices.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::audit::{self, Event};
use crate::clock;
use crate::error::Error;
use crate::names::{DeviceName, UserId};
use crate::store::spi::Snapshot;
use crate::store::{attempts, secrets};
use crate::{guard, keyring};

/// Removes a device of a user, or with NULL everything of the user. Returns how many devices are gone.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_remove(user_id: Option<&str>, device: default!(Option<&str>, "NULL")) -> Result<i32, ErrorReport> {
    guard::writable("totp_remove")?;
    let user = UserId::new(user_id)?;
    keyring::hold_current()?;
    let devices = match device {
        None => remove_user(user)?,
        Some(name) => remove_device(user, DeviceName::new(Some(name))?)?,
    };
    let now = clock::now()?;
    for device in &devices {
        audit::record(Event::Removed, now, Some(user.as_str()), Some(device))?;
    }
    Ok(i32::try_from(devices.len()).unwrap_or(i32::MAX))
}

/// The attempts row goes first: an enrolment that runs now holds it or waits for us, so it leaves nothing behind.
fn remove_user(user: UserId) -> Result<Vec<String>, Error> {
    attempts::delete(user.as_str())?;
    let mut devices: Vec<_> =
        secrets::of_user(&Snapshot::latest(), user.as_str())?.into_iter().map(|s| s.device).collect();
    devices.dedup();
    secrets::delete_all(user.as_str())?;
    Ok(devices)
}

/// The attempts row stays: removing a device clears no failures.
fn remove_device(user: UserId, device: DeviceName) -> Result<Vec<String>, Error> {
    if !attempts::lock(user.as_str())? {
        return Ok(Vec::new());
    }
    let mut devices = Vec::new();
    for secret in secrets::of_user(&Snapshot::latest(), user.as_str())? {
        if secret.device == device.as_str() {
            secrets::delete(user.as_str(), secret.secret_id)?;
            devices.push(secret.device);
        }
    }
    devices.dedup();
    Ok(devices)
}
