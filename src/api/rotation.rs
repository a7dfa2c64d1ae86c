//! Functions in schema `totp`: the steps of `totp_rotate_key_online`, and the functions that a rotation calls for each row.
//! Not for applications.

use pgrx::prelude::*;

#[pg_schema]
mod totp {
    use pgrx::pg_sys::panic::ErrorReport;
    use pgrx::prelude::*;
    use seal::KeyId;

    use crate::api::guard;
    use crate::error::Error;
    use crate::store::rotation::{self, Batch};
    use crate::store::spi::Snapshot;
    use crate::store::{data_keys, secrets};
    use crate::{audit, clock, keyring};

    const CALLER: &str = "totp_rotate_key_online";

    fn check_rotation(batch_size: Option<i32>) -> Result<i32, Error> {
        guard::writable(CALLER)?;
        guard::read_committed(CALLER)?;
        batch_size.filter(|n| (1..=100_000).contains(n)).ok_or(Error::BatchSize)
    }

    /// Refuses every caller but the statement of a rotation, and every key but that of the rotation, whatever was granted. So
    /// nobody gets a sealed value that the table does not get.
    fn check_reseal(function: &'static str, key_id: i32) -> Result<(), Error> {
        guard::writable(function)?;
        if rotation::is_moving_to(key_id) { Ok(()) } else { Err(Error::RotationOnly(function)) }
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
        let half_way = keys.iter().any(|k| k.state == "retiring");
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
        let key = keyring::hold_current()?;
        keyring::cache_all()?;
        let Batch { users, last_user } = rotation::lock_batch(key.get(), after_user.unwrap_or(""), batch_size)?;
        let moved = rotation::move_users(key.get(), &users)?;
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
        let retiring: Vec<i32> = keys.iter().filter(|k| k.state == "retiring").map(|k| k.id).collect();
        // Another rotation may have ended this one.
        if retiring.is_empty() {
            return Ok(true);
        }
        retiring.iter().for_each(|id| data_keys::lock_exclusive(*id));
        if rotation::is_anything_under(&Snapshot::latest(), &retiring)? {
            return Ok(false);
        }
        data_keys::delete(&retiring)?;
        if let Some(current) = data_keys::list(&Snapshot::latest())?.into_iter().find(|k| k.state == "current") {
            audit::key_rotated(current.id, current.secrets, clock::now()?)?;
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
        check_reseal("reseal", key_id)?;
        let parameters = secrets::parameters(algorithm, digits, period)?;
        let context = keyring::secret_context(user_id, device, secret_id, parameters);
        Ok(keyring::reseal(KeyId::new(key_id), &context, sealed).map_err(|error| error.of_user(user_id))?)
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
        check_reseal("reseal_recovery_codes", key_id)?;
        let count = u8::try_from(count).map_err(|_| Error::RowsAltered)?;
        let context = seal::Context::RecoveryCodes { user_id, set_id, count };
        Ok(keyring::reseal(KeyId::new(key_id), &context, sealed).map_err(|error| error.of_user(user_id))?)
    }
}
