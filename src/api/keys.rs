//! `totp_keys`, `totp_rotate_key`, the steps of `totp_rotate_key_online`, `totp_forget_unreadable`: what a DBA does to
//! keys.
//!
//! A rotation locks the data keys before any row. Whoever writes rows of a user holds the current data key first, so
//! neither waits for the other in a circle. Sign-ins hold none of these locks.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use seal::KeyId;

use crate::audit;
use crate::clock;
use crate::error::Error;
use crate::store::rotation::{self, Batch};
use crate::store::spi::Snapshot;
use crate::store::{attempts, data_keys, recovery_codes, secrets};
use crate::{guard, keyring};

/// One row per data key, with the fingerprint of the master key that wraps it.
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

/// Makes a new data key under the current master key, moves every secret to it, and destroys the old ones: all in the
/// caller's transaction. Returns the new key and the number of secrets moved.
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
    finish(key, secrets)?;
    Ok(TableIterator::once((key.get(), secrets)))
}

/// First step of an online rotation: a new current data key, unless one is only half way. Returns how many secrets are
/// to be moved. The procedure commits after each step.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_rotation_begin() -> Result<i64, ErrorReport> {
    guard::writable("totp_rotate_key_online")?;
    guard::read_committed("totp_rotate_key_online")?;
    keyring::reread()?;
    data_keys::lock_set();
    let keys = data_keys::list(&Snapshot::latest())?;
    if keys.is_empty() {
        return Err(Error::NothingToRotate.into());
    }
    let half_way = keys.iter().any(|k| k.state == "retiring");
    if !half_way || !keyring::current_is_under_current_master()? {
        keyring::replace_current()?;
    }
    Ok(rotation::remaining(&Snapshot::latest())?)
}

/// One batch of an online rotation: moves the secrets of up to `batch_size` users after `after_user`, leaving out those
/// whom another session is just writing. Returns how many were moved and the last user; NULL at the end of the table.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_rotation_step(
    after_user: Option<&str>,
    batch_size: Option<i32>,
) -> Result<TableIterator<'static, (name!(moved, i64), name!(last_user, Option<String>))>, ErrorReport> {
    guard::writable("totp_rotate_key_online")?;
    guard::read_committed("totp_rotate_key_online")?;
    let batch_size = batch_size.filter(|n| (1..=100_000).contains(n)).ok_or(Error::BatchSize)?;
    let key = keyring::hold_current()?;
    keyring::cache_all()?;
    let Batch { users, last_user } = rotation::lock_batch(after_user.unwrap_or(""), batch_size)?;
    let moved = rotation::move_users(key.get(), &users)?;
    Ok(TableIterator::once((moved, last_user)))
}

/// Last step of an online rotation: waits for whoever still writes under an old key, moves what is left, and destroys
/// the old keys. Returns the number of secrets that it moved.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_rotation_end(moved: Option<i64>) -> Result<i64, ErrorReport> {
    guard::writable("totp_rotate_key_online")?;
    guard::read_committed("totp_rotate_key_online")?;
    data_keys::lock_set();
    let key = keyring::hold_current()?;
    keyring::cache_all()?;
    let mut retiring = false;
    for old in data_keys::list(&Snapshot::latest())?.iter().filter(|k| k.state == "retiring") {
        data_keys::lock_exclusive(old.id);
        retiring = true;
    }
    // Another rotation may have ended this one.
    if !retiring {
        return Ok(0);
    }
    let rest = rotation::move_all(key.get())?;
    finish(key, moved.unwrap_or(0).saturating_add(rest))?;
    Ok(rest)
}

/// Locks every data key, so that no session writes under one. Returns them; they do not change any more.
fn lock_all_keys() -> Result<Vec<data_keys::ListedKey>, Error> {
    data_keys::lock_set();
    let keys = data_keys::list(&Snapshot::latest())?;
    for key in &keys {
        data_keys::lock_exclusive(key.id);
    }
    Ok(keys)
}

/// Destroys the keys that nothing is sealed under any more, and notes the rotation.
fn finish(key: KeyId, secrets: i64) -> Result<(), Error> {
    data_keys::delete_retiring()?;
    audit::key_rotated(key.get(), secrets, clock::now()?)
}

/// Removes what is sealed under a master key that is lost for good, and says who must enrol again. A row with a NULL
/// device stands for the recovery codes of a user.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_forget_unreadable(
    master_key: Option<&str>,
) -> Result<TableIterator<'static, (name!(user_id, String), name!(device, Option<String>))>, ErrorReport> {
    guard::writable("totp_forget_unreadable")?;
    guard::read_committed("totp_forget_unreadable")?;
    let fingerprint = master_key.ok_or(Error::Null("master_key"))?;
    keyring::reread()?;
    let keys: Vec<i32> = lock_all_keys()?.iter().filter(|k| k.master_key == fingerprint).map(|k| k.id).collect();
    if keys.is_empty() || keyring::is_loaded(fingerprint) {
        return Err(Error::NotForgettable.into());
    }
    let lost = rotation::sealed_under(&Snapshot::latest(), &keys)?;
    let now = clock::now()?;
    for (user_id, device, secret_id) in &lost {
        attempts::lock(user_id)?;
        match device {
            Some(_) => drop(secrets::delete(user_id, *secret_id)?),
            None => recovery_codes::delete(user_id)?,
        }
        audit::unreadable_forgotten(user_id, device.as_deref(), fingerprint, now)?;
    }
    data_keys::delete(&keys)?;
    let mut rows: Vec<_> = lost.into_iter().map(|(user_id, device, _)| (user_id, device)).collect();
    rows.dedup();
    Ok(TableIterator::new(rows))
}
