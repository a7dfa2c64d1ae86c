//! The checks about the server: settings, the version, and the tables as PostgreSQL's catalog describes them.
//!
//! Owns their sentences. Must never read a row of a table in schema `totp`: an altered table must not end these checks.

use super::check::{Check, Status, listed, quoted};
use crate::error::Error;
use crate::inplace::InPlace;
use crate::settings;
use crate::store::counters::Counts;
use crate::store::health::{self, Fault, InPlaceTable};
use crate::store::health_settings::{self, Place};

/// The version of the library.
const LIBRARY: &str = env!("CARGO_PKG_VERSION");

pub fn test_clock() -> Check {
    match settings::clock() {
        Some(_) => Check::fail("test_clock", "totp.clock is set and time stands still: reset it"),
        None => Check::ok("test_clock", "totp.clock is not set; nothing to do"),
    }
}

pub fn require_proof() -> Check {
    const NAME: &str = "require_proof";
    if settings::require_proof() {
        Check::ok(NAME, "totp.require_proof is on; nothing to do")
    } else {
        let detail =
            "totp.require_proof is off: a role with the capability enroll can sign in as every user; set it to on";
        Check::warn(NAME, detail)
    }
}

/// Checks the values of `totp.issuer` that were set before the library could refuse them.
pub fn issuer() -> Result<Check, Error> {
    const NAME: &str = "issuer";
    let mut bad = health_settings::issuers()?;
    bad.retain(|found| !settings::is_issuer(&found.value));
    if bad.is_empty() {
        return Ok(Check::ok(NAME, "totp.issuer is valid wherever it is set; nothing to do"));
    }
    let detail = format!(
        "totp.issuer is not valid {}, so sessions ignore it: set an issuer of at most 256 bytes, without a colon or a \
         control character",
        listed(bad.iter().map(|found| place(&found.place)))
    );
    Ok(Check::warn(NAME, detail))
}

fn place(place: &Place) -> String {
    match place {
        Place::File => "in the configuration file".into(),
        Place::Catalog { role: Some(role), database: Some(database) } => {
            format!("for role {} in database {}", quoted(role), quoted(database))
        }
        Place::Catalog { role: Some(role), database: None } => format!("for role {}", quoted(role)),
        Place::Catalog { role: None, database: Some(database) } => format!("for database {}", quoted(database)),
        Place::Catalog { role: None, database: None } => "for all roles".into(),
    }
}

pub fn version() -> Result<Option<Check>, Error> {
    const NAME: &str = "version";
    Ok(health::version()?.map(|sql| {
        if sql == LIBRARY {
            return Check::ok(NAME, format!("{sql}; nothing to do"));
        }
        let detail = format!(
            "the SQL has version {sql}, the library of this session has version {LIBRARY}: \
             run ALTER EXTENSION pg_totp UPDATE, and end sessions that are older than the files"
        );
        Check::warn(NAME, detail)
    }))
}

/// Returns one row of each table that changes in place.
pub fn tables() -> Result<impl Iterator<Item = Check>, Error> {
    Ok(health::in_place_tables()?.into_iter().map(table))
}

fn table(table: InPlaceTable) -> Check {
    let name = format!("table_{}", table.name);
    if table.faults.is_empty() {
        return Check::ok(&name, "changes in place as it should; nothing to do");
    }
    let mut faults: Vec<_> =
        table.faults.iter().map(|found| format!("table totp.{}: {}", table.name, fault(table.name, found))).collect();
    faults.sort();
    // Sign-ins do without the counters.
    let status = if table.name == Counts::TABLE { Status::Warn } else { Status::Fail };
    Check::new(&name, status, faults.join("; "))
}

fn fault(table: &str, fault: &Fault) -> String {
    match fault {
        Fault::Missing => "it is missing".into(),
        Fault::Storage => "it is not a logged table of access method heap".into(),
        Fault::Columns => "its first five columns have changed".into(),
        Fault::Index(name) => format!("index {name} is on a column that changes in place: drop it"),
        Fault::Trigger(name) => format!("trigger {name} would not see its changes: drop it"),
        Fault::Publication(name) => {
            format!("publication {name} would not see its changes: ALTER PUBLICATION {name} DROP TABLE totp.{table}")
        }
        Fault::PublicationOfSchema(name) => {
            format!("publication {name} would not see its changes: ALTER PUBLICATION {name} DROP TABLES IN SCHEMA totp")
        }
        Fault::PublicationOfAllTables(name) => format!(
            "publication {name} would not see its changes: it is FOR ALL TABLES, so replace it by one of your tables or \
             schemas, without totp, as standby-and-failover.md says"
        ),
        Fault::Subscription(name) => format!(
            "subscription {name} writes to it, and gets no changes in place: on the publisher, publish without schema totp; \
             then ALTER SUBSCRIPTION {name} SET PUBLICATION or REFRESH PUBLICATION"
        ),
        Fault::ReplicaIdentity(name) => format!(
            "REPACK (CONCURRENTLY) would lose its changes, so it is not changed: ALTER TABLE {name} REPLICA IDENTITY NOTHING"
        ),
    }
}

/// Checks the settings of PostgreSQL.
pub fn settings_of_postgresql() -> Result<[Check; 2], Error> {
    let found = health_settings::server_settings()?;
    Ok([wal_consistency_checking(found.checks_generic_wal), log_parameters(found.logs_parameters)])
}

fn wal_consistency_checking(is_on: bool) -> Check {
    const NAME: &str = "wal_consistency_checking";
    if is_on {
        Check::fail(NAME, "it would abort crash recovery and stop standbys: remove generic and all from it")
    } else {
        Check::ok(NAME, "off for generic WAL; nothing to do")
    }
}

fn log_parameters(are_logged: bool) -> Check {
    const NAME: &str = "log_parameters";
    if are_logged {
        let detail = "the server log may show codes that are sent as parameters: \
                      set log_parameter_max_length and log_parameter_max_length_on_error to 0";
        Check::warn(NAME, detail)
    } else {
        Check::ok(NAME, "the server log shows no parameters; nothing to do")
    }
}
