//! `totp_health`: reports what is wrong, and what to do about it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{guard, health_rights};
use crate::clock;
use crate::error::Error;
use crate::store::data_keys;
use crate::store::health::{self, Check};
use crate::store::spi::Snapshot;
use crate::timestamp::Timestamp;
use crate::{keyring, server_log, settings};

/// Returns one row per check: `status` is ok, warn, or fail, and `detail` says what to do.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_health() -> Result<
    TableIterator<'static, (name!(check_name, String), name!(status, String), name!(detail, String))>,
    ErrorReport,
> {
    guard::not_parallel("totp_health")?;
    let now = clock::now()?;
    let mut checks = vec![master_key(), key_source(), test_clock()];
    checks.push(writers()?);
    checks.extend(health_rights::checks()?);
    checks.extend(health::of_catalog()?);
    let altered = health::altered_tables();
    if altered.is_empty() {
        checks.extend(sealed_under()?);
        checks.extend(health::of_rows(now)?);
        name_users_near_a_lock(&mut checks, now)?;
    } else {
        // The contents are not read. Each altered table has one row, instead of one that found nothing wrong.
        checks.retain(|c| c.status == "fail" || altered.iter().all(|a| a.name != c.name));
        let new: Vec<_> = altered.into_iter().filter(|a| checks.iter().all(|c| c.name != a.name)).collect();
        checks.extend(new);
    }
    Ok(TableIterator::new(checks.into_iter().map(|c| (c.name, c.status, c.detail))))
}

pub(super) fn check(name: &str, status: &str, detail: String) -> Check {
    Check { name: name.into(), status: status.into(), detail }
}

fn master_key() -> Check {
    match keyring::reread() {
        Ok(()) => check("master_key", "ok", format!("{} loaded; nothing to do", keyring::count())),
        Err(error) => {
            let report = ErrorReport::from(error);
            let sentences: Vec<_> = [report.detail(), report.hint()].into_iter().flatten().collect();
            check("master_key", "fail", format!("{}: {}", report.message(), sentences.join(" ")))
        }
    }
}

fn key_source() -> Check {
    if keyring::is_environment() {
        let detail = "from the environment, which more people can read than a file: set totp.key_file";
        check("master_key_source", "warn", detail.into())
    } else {
        check("master_key_source", "ok", "from the file that totp.key_file names; nothing to do".into())
    }
}

fn test_clock() -> Check {
    match settings::clock() {
        Some(_) => check("test_clock", "fail", "totp.clock is set and time stands still: reset it".into()),
        None => check("test_clock", "ok", "totp.clock is not set; nothing to do".into()),
    }
}

fn writers() -> Result<Check, Error> {
    let roles = health::writers_of_all_data()?;
    if roles.is_empty() {
        return Ok(check("write_all_data", "ok", "no role is in pg_write_all_data; nothing to do".into()));
    }
    let detail = format!("{} can change every table, totp.audit_log too: revoke pg_write_all_data", quoted(&roles));
    Ok(check("write_all_data", "warn", detail))
}

fn name_users_near_a_lock(checks: &mut [Check], now: Timestamp) -> Result<(), Error> {
    let users = health::users_near_a_lock(now)?;
    if let (false, Some(check)) = (users.is_empty(), checks.iter_mut().find(|c| c.name == "locked_users")) {
        check.detail.push_str("; the last of them ");
        check.detail.push_str(&quoted(&users));
    }
    Ok(())
}

/// Puts a number before its noun.
fn counted(number: i64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Quotes names as the server log does, so that no name looks like another one or like a part of the sentence.
fn quoted(names: &[String]) -> String {
    names.iter().map(|name| server_log::quoted(name)).collect::<Vec<_>>().join(", ")
}

/// Fails for each data key whose master key is not loaded: what is sealed under it cannot be opened.
fn sealed_under() -> Result<Vec<Check>, Error> {
    let lost: Vec<_> = data_keys::list(&Snapshot::latest())?
        .into_iter()
        .filter(|k| !keyring::is_loaded(&k.master_key))
        .map(|k| {
            let detail = format!(
                "{} and {} are sealed under master key {}, which is not loaded: add it to the key file again",
                counted(k.secrets, "secret", "secrets"),
                counted(k.recovery_sets, "set of recovery codes", "sets of recovery codes"),
                k.master_key
            );
            check("lost_master_key", "fail", detail)
        })
        .collect();
    if lost.is_empty() {
        return Ok(vec![check("lost_master_key", "ok", "every data key can be opened; nothing to do".into())]);
    }
    Ok(lost)
}
