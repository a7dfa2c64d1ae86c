//! `totp_keys`, `totp_rotate_key`, `totp_forget_unreadable`: how a DBA manages keys.
//!
//! A rotation locks the data keys before any row. Writers hold the current data key before any row lock, so they cannot
//! deadlock with a rotation. Sign-ins hold none of these locks.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use crate::audit;
use crate::clock;
use crate::error::Error;
use crate::keyring;
use crate::removed::Removed;
use crate::store::rotation::{self, Lost};
use crate::store::spi::Snapshot;
use crate::store::{attempts, data_keys, recovery_codes, secrets};

/// Returns one row per data key, with the fingerprint of the master key that wraps it.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_keys() -> Result<
    TableIterator<
        'static,
        (
            name!(key_id, i32),
            name!(state, String),
            name!(created_at, Option<TimestampWithTimeZone>),
            name!(secrets, i64),
            name!(master_key, String),
            name!(master_key_loaded, bool),
        ),
    >,
    ErrorReport,
> {
    guard::not_parallel("totp_keys")?;
    let keys = data_keys::list(&Snapshot::latest())?;
    Ok(TableIterator::new(keys.into_iter().map(|k| {
        let loaded = keyring::is_loaded(&k.master_key);
        (k.id, k.state, k.created_at.to_sql(), k.secrets, k.master_key, loaded)
    })))
}

/// Creates a data key under the current master key, moves every secret to it, and destroys the old keys, all in the
/// transaction of the caller. Returns the new key and the number of secrets moved.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_rotate_key() -> Result<TableIterator<'static, (name!(key_id, i32), name!(secrets, i64))>, ErrorReport> {
    guard::writable("totp_rotate_key")?;
    guard::read_committed("totp_rotate_key")?;
    keyring::reread()?;
    let old = lock_all_keys()?;
    if old.is_empty() {
        return Err(Error::NothingToRotate.into());
    }
    let key = keyring::replace_current()?;
    let secrets = rotation::move_all(key.get())?;
    data_keys::delete_retiring()?;
    audit::key_rotated(key.get(), secrets, clock::now()?)?;
    Ok(TableIterator::once((key.get(), secrets)))
}

/// Locks every data key, so that no session writes under one. Returns the keys, which no longer change.
fn lock_all_keys() -> Result<Vec<data_keys::ListedKey>, Error> {
    data_keys::lock_set();
    let keys = data_keys::list(&Snapshot::latest())?;
    for key in &keys {
        data_keys::lock_exclusive(key.id);
    }
    Ok(keys)
}

/// Returns who must be notified. Not a user whose device keeps its active secret and has lost only the pending one.
fn to_enroll_again(lost: Vec<Lost>) -> Result<Vec<(String, Option<String>)>, Error> {
    let mut rows: Vec<_> = lost.into_iter().map(|l| (l.user_id, l.device)).collect();
    rows.dedup();
    let snapshot = Snapshot::latest();
    let mut found = Vec::new();
    for (user_id, device) in rows {
        let left = secrets::of_user(&snapshot, &user_id)?;
        let signs_in = left.iter().any(|s| s.slot == secrets::Slot::Active && Some(&s.device) == device.as_ref());
        if !signs_in {
            found.push((user_id, device));
        }
    }
    Ok(found)
}

/// Removes what is sealed under a lost master key, and returns who must enroll again. A row with a NULL device means the
/// recovery codes of a user.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_forget_unreadable(
    master_key: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<TableIterator<'static, (name!(user_id, String), name!(device, Option<String>))>, ErrorReport> {
    guard::writable("totp_forget_unreadable")?;
    // SAFETY: that of this call.
    unsafe { guard::owner(fcinfo, "totp_forget_unreadable") }?;
    guard::read_committed("totp_forget_unreadable")?;
    let fingerprint = master_key.ok_or(Error::Null("master_key"))?;
    keyring::reread()?;
    let keys: Vec<i32> = lock_all_keys()?.iter().filter(|k| k.master_key == fingerprint).map(|k| k.id).collect();
    if keys.is_empty() {
        return Err(Error::NoKeyOfMaster.into());
    }
    if keyring::is_loaded(fingerprint) {
        return Err(Error::MasterKeyLoaded.into());
    }
    let lost = rotation::sealed_under(&Snapshot::latest(), &keys)?;
    let now = clock::now()?;
    for Lost { user_id, device, secret_id, codes } in &lost {
        attempts::lock(user_id)?;
        let mut removed = Removed::nothing();
        match codes {
            Some(codes) => removed.add(secrets::delete(user_id, *secret_id)?, *codes, now)?,
            None => recovery_codes::delete(user_id)?,
        }
        audit::unreadable_forgotten(Some(user_id), device.as_deref(), fingerprint, &removed, now)?;
    }
    if lost.is_empty() {
        audit::unreadable_forgotten(None, None, fingerprint, &Removed::nothing(), now)?;
    }
    data_keys::delete(&keys)?;
    Ok(TableIterator::new(to_enroll_again(lost)?))
}
