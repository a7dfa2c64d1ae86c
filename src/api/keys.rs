//! `totp_keys`, `totp_forget_unreadable`: what a DBA asks about keys, and what can be done about a lost one.
//!
//! Owns the decision which secrets are lost. Must never remove one whose master key is loaded.

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
use crate::store::{attempts, audit_keys, data_keys, recovery_codes, secrets};
use crate::user::{DeviceName, UserId};

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
        (k.id.get(), k.state.as_str().into(), k.created_at.to_sql(), k.secrets, k.master_key, loaded)
    })))
}

/// Returns who must be notified. Not a user whose device keeps its active secret and has lost only the pending one.
fn to_enroll_again(lost: Vec<Lost>) -> Result<Vec<(String, Option<String>)>, Error> {
    let mut rows: Vec<_> = lost.into_iter().map(|l| (l.user_id, l.device)).collect();
    rows.dedup();
    let snapshot = Snapshot::latest();
    let mut found = Vec::new();
    for (user_id, device) in rows {
        let left = secrets::of_user(&snapshot, UserId::stored(&user_id))?;
        let signs_in =
            left.iter().any(|s| s.slot == secrets::Slot::Active && Some(s.device().as_str()) == device.as_deref());
        if !signs_in {
            found.push((user_id, device));
        }
    }
    Ok(found)
}

/// Removes what is sealed under a lost master key, and the keys of the trail that it wraps. Returns who must enroll again. A row with a NULL device means the
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
    let keys: Vec<_> = data_keys::lock_all()?.iter().filter(|k| k.master_key == fingerprint).map(|k| k.id).collect();
    let of_trail = audit_keys::all(&Snapshot::latest())?.iter().filter(|k| k.master_key == fingerprint).count();
    if keys.is_empty() && of_trail == 0 {
        return Err(Error::NoKeyOfMaster.into());
    }
    if keyring::is_loaded(fingerprint) {
        return Err(Error::MasterKeyLoaded.into());
    }
    let lost = rotation::sealed_under(&Snapshot::latest(), &keys)?;
    let now = clock::now()?;
    for Lost { user_id, device, secret_id, codes } in &lost {
        let user = UserId::stored(user_id);
        let device = device.as_deref().map(DeviceName::stored);
        attempts::lock(user)?;
        let mut removed = Removed::nothing();
        match codes {
            Some(codes) => removed.add(secrets::delete(user, *secret_id)?, *codes, now)?,
            None => recovery_codes::delete(user).map(drop)?,
        }
        audit::unreadable_forgotten(Some(user), device, fingerprint, removed.detail(), now)?;
    }
    if lost.is_empty() {
        audit::unreadable_forgotten(None, None, fingerprint, Removed::nothing().detail(), now)?;
    }
    data_keys::delete(&keys)?;
    if of_trail > 0 {
        audit_keys::delete(fingerprint)?;
    }
    Ok(TableIterator::new(to_enroll_again(lost)?))
}
