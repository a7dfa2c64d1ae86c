//! `totp_rotate_key`, and functions in schema `totp` that are not for applications: the steps of `totp_rotate_key_online`,
//! and what a rotation calls for each row.
//!
//! Owns the order of a rotation: lock the keys, add one, move every row, destroy the old ones. Must never destroy a key that
//! something is sealed under.
//!
//! The one arrow of this library that runs upward is here: the UPDATE in `store/rotation.rs` calls `totp.reseal` for each row,
//! which is SQL that calls back into this file. So no plaintext is in SQL, and a rotation is one statement.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use crate::error::Error;
use crate::store::data_keys;
use crate::store::rotation;
use crate::store::spi::Snapshot;
use crate::{audit, clock, keyring};

/// Creates a data key under the current master key, moves every secret to it, and destroys the old keys, all in the
/// transaction of the caller. Returns the new key and the number of secrets moved.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_rotate_key() -> Result<TableIterator<'static, (name!(key_id, i32), name!(secrets, i64))>, ErrorReport> {
    guard::writable("totp_rotate_key")?;
    guard::read_committed("totp_rotate_key")?;
    keyring::reread()?;
    let old = data_keys::lock_all()?;
    if old.is_empty() {
        return Err(Error::NothingToRotate.into());
    }
    let key = keyring::replace_current()?;
    let secrets = rotation::move_all(key)?;
    data_keys::delete_retiring()?;
    let to = data_keys::find(&Snapshot::latest(), key)?.ok_or(Error::RowsAltered)?.master_key;
    audit::key_rotated(key, secrets, old.iter().map(|k| k.master_key.as_str()).collect(), &to, clock::now()?)?;
    Ok(TableIterator::once((key.get(), secrets)))
}

#[pg_schema]
mod totp {
    use pgrx::pg_sys::panic::ErrorReport;
    use pgrx::prelude::*;
    use seal::KeyId;

    use crate::api::guard;
    use crate::error::Error;
    use crate::keyring::SecretContext;
    use crate::store::data_keys::KeyState;
    use crate::store::rotation::{self, Batch};
    use crate::store::spi::Snapshot;
    use crate::store::{data_keys, secrets};
    use crate::user::{DeviceName, SecretId, UserId};
    use crate::{audit, clock, keyring};

    const CALLER: &str = "totp_rotate_key_online";

    fn check_rotation(batch_size: Option<i32>) -> Result<i32, Error> {
        guard::writable(CALLER)?;
        guard::read_committed(CALLER)?;
        batch_size.filter(|n| (1..=100_000).contains(n)).ok_or(Error::BatchSize)
    }

    /// Refuses every caller but the statement of a rotation, and every key but that of the rotation, whatever was granted. So
    /// nobody gets a sealed value that the table does not get.
    fn check_reseal(function: &'static str, key: KeyId) -> Result<(), Error> {
        guard::writable(function)?;
        if rotation::is_moving_to(key) { Ok(()) } else { Err(Error::RotationOnly(function)) }
    }

    /// First step: creates a new current data key, unless a rotation is half way. Returns how many secrets must be moved. The
    /// procedure commits after each step.
    #[pg_extern(security_definer, volatile, parallel_unsafe)]
    #[search_path(pg_catalog, pg_temp)]
    fn rotation_begin(batch_size: Option<i32>) -> Result<i64, ErrorReport> {
        check_rotation(batch_size)?;
        keyring::reread()?;
        data_keys::lock_set();
        let keys = data_keys::list(&Snapshot::latest())?;
        if keys.is_empty() {
            return Err(Error::NothingToRotate.into());
        }
        let half_way = keys.iter().any(|k| k.state == KeyState::Retiring);
        if !half_way || !keyring::current_is_under_current_master()? {
            keyring::replace_current()?;
        }
        Ok(rotation::remaining(&Snapshot::latest())?)
    }

    /// Second step: moves what up to `batch_size` users after `after_user` have under an old key. Users that another session
    /// is writing are left for the next round. If the batch has no other users, it waits for one of them.
    /// Returns how many secrets were moved, and the last user, or NULL at the end of the table.
    #[pg_extern(security_definer, volatile, parallel_unsafe)]
    #[search_path(pg_catalog, pg_temp)]
    fn rotation_step(
        after_user: Option<&str>,
        batch_size: Option<i32>,
    ) -> Result<TableIterator<'static, (name!(moved, i64), name!(last_user, Option<String>))>, ErrorReport> {
        let batch_size = check_rotation(batch_size)?;
        data_keys::lock_set();
        let key = keyring::hold_current()?.id();
        keyring::cache_all()?;
        let Batch { users, last_user } = rotation::lock_batch(key, after_user.unwrap_or(""), batch_size)?;
        let moved = rotation::move_users(key, &users)?;
        Ok(TableIterator::once((moved, last_user)))
    }

    /// Last step: waits for sessions that still write under an old key, and destroys the old keys. False if something is
    /// still under one of them: then another round of batches comes first.
    #[pg_extern(security_definer, volatile, parallel_unsafe)]
    #[search_path(pg_catalog, pg_temp)]
    fn rotation_end() -> Result<bool, ErrorReport> {
        check_rotation(Some(1))?;
        data_keys::lock_set();
        let keys = data_keys::list(&Snapshot::latest())?;
        let (retiring, from): (Vec<_>, Vec<_>) =
            keys.iter().filter(|k| k.state == KeyState::Retiring).map(|k| (k.id, k.master_key.as_str())).unzip();
        // Another rotation may have ended this one.
        if retiring.is_empty() {
            return Ok(true);
        }
        retiring.iter().for_each(|id| data_keys::lock_exclusive(*id));
        if rotation::is_anything_under(&Snapshot::latest(), &retiring)? {
            return Ok(false);
        }
        data_keys::delete(&retiring)?;
        if let Some(current) = data_keys::list(&Snapshot::latest())?.into_iter().find(|k| k.state == KeyState::Current)
        {
            audit::key_rotated(current.id, current.secrets, from, &current.master_key, clock::now()?)?;
        }
        Ok(true)
    }

    /// Opens a secret and seals it under another data key, which the rotation holds.
    #[pg_extern(volatile, parallel_unsafe)]
    #[allow(clippy::too_many_arguments)]
    fn reseal(
        user_id: &str,
        device: &str,
        secret_id: i64,
        algorithm: &str,
        digits: i16,
        period: i16,
        sealed: &[u8],
        key_id: i32,
    ) -> Result<Vec<u8>, ErrorReport> {
        let key = KeyId::new(key_id);
        check_reseal("reseal", key)?;
        let parameters = secrets::parameters(algorithm, digits, period)?;
        let (user, device) = (UserId::stored(user_id), DeviceName::stored(device));
        let context = SecretContext { user, device, secret_id: SecretId::new(secret_id), parameters };
        Ok(keyring::reseal_secret(key, context, sealed).map_err(|error| error.of_user(user_id))?)
    }

    /// Opens a set of recovery codes and seals it under another data key, which the rotation holds.
    #[pg_extern(volatile, parallel_unsafe)]
    fn reseal_recovery_codes(
        user_id: &str,
        set_id: i64,
        count: i16,
        sealed: &[u8],
        key_id: i32,
    ) -> Result<Vec<u8>, ErrorReport> {
        let key = KeyId::new(key_id);
        check_reseal("reseal_recovery_codes", key)?;
        let count = u8::try_from(count).map_err(|_| Error::RowsAltered)?;
        let user = UserId::stored(user_id);
        Ok(keyring::reseal_recovery_codes(key, user, SecretId::new(set_id), count, sealed)
            .map_err(|error| error.of_user(user_id))?)
    }
}
