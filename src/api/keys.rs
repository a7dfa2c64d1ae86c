//! `totp_keys`: the data keys and the master keys that wrap them.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guard;
use crate::keyring;
use crate::store::data_keys;
use crate::store::spi::Snapshot;

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
