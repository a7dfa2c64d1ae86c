//! `totp_acknowledge_restore`: the owner has dealt with the recovery codes from before a failover or restore.
//!
//! Owns the end of the warning `recovery_after_restore` of `totp_health`. Must never move the floor.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use crate::audit;
use crate::clock;
use crate::replay_floor;

/// Ends the warning about recovery codes from before a failover or restore. False if there is none.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_acknowledge_restore(fcinfo: pg_sys::FunctionCallInfo) -> Result<bool, ErrorReport> {
    guard::writable("totp_acknowledge_restore")?;
    // SAFETY: that of this call.
    unsafe { guard::owner(fcinfo, "totp_acknowledge_restore") }?;
    let now = clock::now()?;
    let acknowledged = replay_floor::acknowledge()?;
    if let Some(floor_at) = acknowledged {
        audit::restore_acknowledged(floor_at, now)?;
    }
    Ok(acknowledged.is_some())
}
