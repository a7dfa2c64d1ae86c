//! `totp_health`: reports what is wrong, and what to do about it.
//!
//! There are two kinds of checks. Cheap ones read settings, files, PostgreSQL's catalogs, single rows, the end of the audit log
//! and samples: their cost does not depend on the number of users. Full ones read whole tables.
//!
//! Owns every sentence of the answer; `store` returns numbers, flags and names. One file per subject: `keys`, `rights`,
//! `server`, `rows`, `seals`,
//! `users`. Must never change anything, and must never show a user id that is not quoted.

mod check;
mod keys;
mod rights;
mod rows;
mod sample;
mod seals;
mod server;
mod users;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

pub use self::check::{Check, Status};
use super::guard;
use crate::clock;
use crate::error::Error;
use crate::store::health::{self, UnreadableTable};
use crate::timestamp::Timestamp;

/// Returns one row per check: `status` is ok, warn, or fail, and `detail` says what to do. For its symbol see `old_sql.rs`.
#[pg_extern(name = "totp_health", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_health_v2(
    full: default!(Option<bool>, false),
) -> Result<
    TableIterator<
        'static,
        (name!(check_name, String), name!(status, String), name!(detail, String), name!(full, bool)),
    >,
    ErrorReport,
> {
    guard::not_parallel("totp_health")?;
    let full = full.ok_or(Error::Null("full"))?;
    let rows = all(full)?;
    Ok(TableIterator::new(rows.into_iter().map(|(c, full)| (c.name, c.status.as_str().into(), c.detail, full))))
}

/// Runs the cheap checks, and then the full ones if they are wanted. Returns which is which.
pub fn all(full: bool) -> Result<Vec<(Check, bool)>, Error> {
    let mut checks: Vec<_> = cheap()?.into_iter().map(|check| (check, false)).collect();
    if full && health::unreadable_tables().is_empty() {
        checks.extend(of_all_rows()?.into_iter().map(|check| (check, true)));
    }
    Ok(checks)
}

/// Runs the cheap checks.
fn cheap() -> Result<Vec<Check>, Error> {
    counting(health::AUDIT_ROWS)
}

/// Runs the cheap checks for their statuses, and counts no more than these need.
pub fn statuses() -> Result<Vec<Check>, Error> {
    counting(users::REPLAYS)
}

/// Runs the cheap checks, and counts used codes until there are enough.
fn counting(enough_replays: i64) -> Result<Vec<Check>, Error> {
    let now = clock::now()?;
    let mut checks = of_server()?;
    let unreadable = health::unreadable_tables();
    if unreadable.is_empty() {
        checks.extend(of_some_rows(now, enough_replays)?);
    } else {
        report_unreadable(&mut checks, &unreadable);
    }
    Ok(checks)
}

/// Makes the checks that read settings, files, and PostgreSQL's catalogs.
fn of_server() -> Result<Vec<Check>, Error> {
    let mut checks = vec![keys::master_key(), keys::master_key_source(), server::test_clock()];
    checks.push(server::require_proof());
    checks.push(server::issuer()?);
    checks.extend(rights::checks()?);
    checks.extend(server::version()?);
    checks.extend(server::tables()?);
    checks.extend(server::settings_of_postgresql()?);
    checks.push(rights::open_to_public()?);
    Ok(checks)
}

/// Makes the checks that read some rows of the tables. Errors: XX001 if one cannot be read.
fn of_some_rows(now: Timestamp, enough_replays: i64) -> Result<Vec<Check>, Error> {
    let mut checks = keys::lost_master_keys()?;
    checks.push(keys::key_rotation(now)?);
    checks.extend(rows::floor(now)?);
    checks.extend(seals::checks(now)?);
    checks.extend(users::signs_of_an_attack(now, enough_replays)?);
    Ok(checks)
}

/// A subject, and the checks about it, at a time.
type Step = (&'static str, fn(Timestamp) -> Result<Vec<Check>, Error>);

const STEPS: [Step; 5] = [
    ("rows that belong together", rows::incomplete),
    ("times in the future", rows::future_times),
    ("recovery codes from before a restore", rows::old_recovery_codes),
    ("users in a lock", users::locks),
    ("users who need help", users::help),
];

/// Makes the checks that read all rows of the tables, with a notice before each step.
fn of_all_rows() -> Result<Vec<Check>, Error> {
    let mut checks = vec![];
    for (number, (subject, step)) in STEPS.iter().enumerate() {
        notice!("pg_totp: health check {} of {}: {subject}", number + 1, STEPS.len());
        checks.extend(step(clock::now()?)?);
    }
    Ok(checks)
}

/// Makes one row of each table that cannot be read, in place of one that found nothing wrong.
fn report_unreadable(checks: &mut Vec<Check>, tables: &[UnreadableTable]) {
    for table in tables {
        let name = format!("table_{}", table.name);
        checks.retain(|c| c.name != name || c.status == Status::Fail);
        if checks.iter().all(|c| c.name != name) {
            checks.push(Check::fail(&name, format!("table totp.{}: {}", table.name, why(table))));
        }
    }
}

fn why(table: &UnreadableTable) -> &'static str {
    if table.is_distributed {
        "it is distributed by Citus, so nothing is judged: restore it as a local table, as citus.md says"
    } else {
        "it is missing, or its columns have changed: restore it"
    }
}
