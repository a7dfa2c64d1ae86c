//! `totp_enabled`, `totp_status`: what is known about a user. They work on a standby too.
//!
//! Owns the columns of `totp_status`. Must never return anything that is sealed.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use crate::store::secrets;
use crate::store::spi::Snapshot;
use crate::timestamp::Timestamp;
use crate::user::UserId;

/// Returns whether to ask this user for a code: a device was once confirmed, and is neither disabled nor removed.
#[pg_extern(security_definer, stable, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_enabled(user_id: Option<&str>) -> Result<bool, ErrorReport> {
    guard::not_parallel("totp_enabled")?;
    let Some(user) = UserId::to_find(user_id) else { return Ok(false) };
    Ok(secrets::is_enforced(&Snapshot::latest(), user)?)
}

/// Returns one row per secret of the user.
#[pg_extern(security_definer, stable, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_status(
    user_id: Option<&str>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(device, String),
            name!(state, String),
            name!(account_name, String),
            name!(issuer, Option<String>),
            name!(algorithm, String),
            name!(digits, i32),
            name!(period, i32),
            name!(version, i32),
            name!(created_at, Option<TimestampWithTimeZone>),
            name!(confirmed_at, Option<TimestampWithTimeZone>),
            name!(last_used_at, Option<TimestampWithTimeZone>),
            name!(uses, i64),
            name!(failures, i32),
            name!(locked_until, Option<TimestampWithTimeZone>),
            name!(recovery_codes_left, i32),
        ),
    >,
    ErrorReport,
> {
    guard::not_parallel("totp_status")?;
    let rows = match UserId::to_find(user_id) {
        Some(user) => secrets::list(&Snapshot::latest(), user)?,
        None => Vec::new(),
    };
    Ok(TableIterator::new(rows.into_iter().map(|r| {
        (
            r.device,
            r.state,
            r.account_name,
            r.issuer,
            r.algorithm,
            r.digits.into(),
            r.period.into(),
            r.version,
            r.created_at.to_sql(),
            r.confirmed_at.and_then(Timestamp::to_sql),
            r.used_at.to_sql_unless_never(),
            r.uses,
            i32::try_from(r.failures).unwrap_or(i32::MAX),
            r.locked_until.to_sql_unless_never(),
            r.recovery_codes_left,
        )
    })))
}
