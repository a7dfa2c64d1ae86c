//! `totp_enabled`, `totp_status`: what is known about a user. They work on a standby too.
//!
//! Owns the columns of `totp_status`. Must never return anything that is sealed.

use otp::Counter;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::clock;
use crate::settings;
use crate::store::spi::Snapshot;
use crate::store::status;
use crate::timestamp::Timestamp;
use crate::user::UserId;

/// Returns whether to ask this user for a code: a device was once confirmed, and is neither disabled nor removed.
#[pg_extern(security_definer, stable, parallel_restricted, cost = 800)]
#[search_path(pg_catalog, pg_temp)]
fn totp_enabled(user_id: Option<&str>) -> Result<bool, ErrorReport> {
    let Some(user) = UserId::to_find(user_id) else { return Ok(false) };
    Ok(status::is_enforced(&Snapshot::to_read(), user)?)
}

/// Returns one row per secret of the user. For its symbol see `old_sql.rs`.
#[pg_extern(name = "totp_status", security_definer, stable, parallel_restricted, cost = 4000)]
#[search_path(pg_catalog, pg_temp)]
fn totp_status_v2(
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
            name!(locked, bool),
            name!(recovery_failures, i32),
            name!(recovery_locked, bool),
            name!(recovery_locked_until, Option<TimestampWithTimeZone>),
            name!(approved, bool),
            name!(drift, i32),
        ),
    >,
    ErrorReport,
> {
    let (now, policy) = (clock::now()?, settings::lockout());
    let rows = match UserId::to_find(user_id) {
        Some(user) => status::list(&Snapshot::to_read(), user)?,
        None => Vec::new(),
    };
    let locked_until = move |counter: Counter| counter.retry_at(now.0).and_then(|at| Timestamp(at).to_sql());
    Ok(TableIterator::new(rows.into_iter().map(move |r| {
        let (codes, recovery) = (r.codes.believed(&policy, now.0), r.recovery.believed(&policy, now.0));
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
            r.used_at.to_sql(),
            r.uses,
            codes.failures,
            locked_until(codes),
            r.recovery_codes_left,
            codes.is_locked(now.0),
            recovery.failures,
            recovery.is_locked(now.0),
            locked_until(recovery),
            r.approved,
            r.drift.steps() as i32,
        )
    })))
}
