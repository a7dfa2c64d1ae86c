//! `totp_stats`, `totp_prune_audit`: the audit log for auditors and operators.
//!
//! Owns the limits of their intervals. Must never delete a row without a line in the server log.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use crate::audit;
use crate::clock;
use crate::error::Error;
use crate::store;
use crate::trail::sealing;

/// Counts audit rows of the given interval, by event: how many, of how many users, and the time of the last one.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_stats(
    since: default!(Option<Interval>, "'1 day'"),
) -> Result<
    TableIterator<
        'static,
        (name!(event, String), name!(count, i64), name!(users, i64), name!(last_at, Option<TimestampWithTimeZone>)),
    >,
    ErrorReport,
> {
    guard::not_parallel("totp_stats")?;
    let since = bounded(since.ok_or(Error::Null("since"))?)?;
    let rows = store::audit_log::stats(clock::now()?, since)?;
    Ok(TableIterator::new(rows.into_iter().map(|r| (r.event, r.count, r.users, r.last_at.to_sql()))))
}

/// Deletes audit rows older than the given interval; if there are seals, those of whole seals. Returns how many. For the
/// owner only.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_prune_audit(older_than: Option<Interval>, fcinfo: pg_sys::FunctionCallInfo) -> Result<i64, ErrorReport> {
    guard::writable("totp_prune_audit")?;
    // SAFETY: that of this call.
    unsafe { guard::owner(fcinfo, "totp_prune_audit") }?;
    let older_than = bounded(older_than.ok_or(Error::Null("older_than"))?)?;
    // A month has 28 to 31 days: if the signs of the fields differ, the current day decides whether the sum is positive.
    let fields = [older_than.months().into(), older_than.days().into(), older_than.micros()];
    if fields.iter().any(|field| *field < 0) || fields == [0; 3] {
        return Err(Error::Age.into());
    }
    let now = clock::now()?;
    let pruned = match sealing::prune(now, older_than)? {
        Some(rows) => rows,
        None => store::audit_log::prune(now, older_than)?,
    };
    audit::pruned(pruned);
    Ok(pruned)
}

/// Refuses a field of more than 1000 years, so that now minus the interval is a valid time. Fields that cancel out would
/// still overflow.
fn bounded(age: Interval) -> Result<Interval, Error> {
    const DAY: u64 = 86_400_000_000;
    let is_small = age.months().unsigned_abs() <= 12_000
        && age.days().unsigned_abs() <= 365_250
        && age.micros().unsigned_abs() <= 365_250 * DAY;
    if is_small { Ok(age) } else { Err(Error::Age) }
}
