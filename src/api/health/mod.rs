//! `totp_health`: reports what is wrong, and what to do about it.
//!
//! Owns every sentence of the answer; `store` returns numbers, flags and names. One file per subject: `keys`, `rights`,
//! `server`, `rows`, `seals`,
//! `users`. Must never change anything, and must never show a user id that is not quoted.

mod check;
mod keys;
mod rights;
mod rows;
mod seals;
mod server;
mod users;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use self::check::{Check, Status};
use super::guard;
use crate::clock;
use crate::error::Error;
use crate::store::health;
use crate::timestamp::Timestamp;

/// Returns one row per check: `status` is ok, warn, or fail, and `detail` says what to do.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_health() -> Result<
    TableIterator<'static, (name!(check_name, String), name!(status, String), name!(detail, String))>,
    ErrorReport,
> {
    guard::not_parallel("totp_health")?;
    let now = clock::now()?;
    let mut checks = of_server()?;
    let unreadable = health::unreadable_tables();
    if unreadable.is_empty() {
        checks.extend(of_rows(now)?);
    } else {
        report_unreadable(&mut checks, &unreadable);
    }
    Ok(TableIterator::new(checks.into_iter().map(|c| (c.name, c.status.as_str().into(), c.detail))))
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

/// Makes the checks that read the tables. Errors: XX001 if one cannot be read.
fn of_rows(now: Timestamp) -> Result<Vec<Check>, Error> {
    let mut checks = keys::lost_master_keys()?;
    checks.extend(rows::incomplete()?);
    checks.push(keys::key_rotation(now)?);
    checks.extend(rows::clock(now)?);
    checks.push(rows::recovery_after_restore()?);
    checks.extend(seals::checks(now)?);
    checks.extend(users::checks(now)?);
    Ok(checks)
}

/// Makes one row of each table that cannot be read, in place of one that found nothing wrong.
fn report_unreadable(checks: &mut Vec<Check>, tables: &[&str]) {
    for table in tables {
        let name = format!("table_{table}");
        checks.retain(|c| c.name != name || c.status == Status::Fail);
        if checks.iter().all(|c| c.name != name) {
            let detail = format!("table totp.{table}: it is missing, or its columns have changed: restore it");
            checks.push(Check::fail(&name, detail));
        }
    }
}
