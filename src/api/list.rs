//! `totp_list`: the devices of many users, page by page, for the support desk. It works on a standby too.
//!
//! Owns the bounds of a page. Must never return anything that is sealed.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::clock;
use crate::error::Error;
use crate::settings;
use crate::store::list;
use crate::store::spi::Snapshot;
use crate::timestamp::Timestamp;

/// Largest number of users in a page.
const MAX_USERS: i32 = 10_000;

/// Returns one row per secret of the next users, in the order of the bytes of their ids.
#[pg_extern(security_definer, stable, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
fn totp_list(
    after: default!(Option<&str>, "NULL"),
    max: default!(Option<i32>, 100),
    prefix: default!(Option<&str>, "''"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(user_id, String),
            name!(device, String),
            name!(state, String),
            name!(account_name, String),
            name!(issuer, Option<String>),
            name!(created_at, Option<TimestampWithTimeZone>),
            name!(confirmed_at, Option<TimestampWithTimeZone>),
            name!(last_used_at, Option<TimestampWithTimeZone>),
            name!(uses, Option<i64>),
            name!(failures, Option<i32>),
            name!(locked, Option<bool>),
            name!(locked_until, Option<TimestampWithTimeZone>),
            name!(recovery_codes_left, i32),
        ),
    >,
    ErrorReport,
> {
    let max = max.ok_or(Error::Null("max"))?;
    if !(1..=MAX_USERS).contains(&max) {
        return Err(Error::PageSize.into());
    }
    let prefix = prefix.ok_or(Error::Null("prefix"))?;
    let (now, policy) = (clock::now()?, settings::lockout());
    // Every id is longer than the empty one.
    let rows = list::page(&Snapshot::to_read(), after.unwrap_or(""), max, prefix)?;
    Ok(TableIterator::new(rows.into_iter().map(move |r| {
        let codes = r.codes.map(|codes| codes.believed(&policy, now.0));
        (
            r.user_id,
            r.device,
            r.state,
            r.account_name,
            r.issuer,
            r.created_at.to_sql(),
            r.confirmed_at.and_then(Timestamp::to_sql),
            r.used_at.and_then(Timestamp::to_sql),
            r.uses,
            codes.map(|codes| codes.failures),
            codes.map(|codes| codes.is_locked(now.0)),
            codes.and_then(|codes| codes.retry_at(now.0)).and_then(|at| Timestamp(at).to_sql()),
            r.recovery_codes_left,
        )
    })))
}
