//! Every SQL statement of the extension, and the types of its rows. Nothing else uses SPI.
//!
//! One file per table, and besides `sign_in`, the look-up of the hot path; `list`; `rotation`; `audit_rows`; `owner`; and `health` with
//! `health_rights` and `health_settings`. They use `spi`, or `scan` and `insert` if a plan costs too much; `spi` and `scan`
//! return a `row`. `shape` knows the columns of the tables, and `citus` which of them are elsewhere.
//!
//! Owns every statement that the library runs. Must never call a function of `api`, except in the place that `lib.rs` names.

pub mod attempts;
pub mod audit_keys;
pub mod audit_log;
pub mod audit_rows;
pub mod audit_seals;
mod audited_hour;
mod citus;
pub mod counters;
pub mod data_keys;
pub mod floor;
pub mod health;
pub mod health_rights;
pub mod health_settings;
mod insert;
pub mod list;
pub mod metrics;
pub mod owner;
mod parts;
pub mod recovery_codes;
pub mod relcache;
pub mod rotation;
mod row;
mod scan;
pub mod secrets;
mod shape;
pub mod sign_in;
pub mod spi;
pub mod status;
pub mod used_codes;

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::backend;
use crate::error::Error;

/// Returns the OID of a table in schema `totp`, or 0.
fn table_oid(name: &CStr) -> pg_sys::Oid {
    backend::table_oid(c"totp", name)
}

/// Returns the next number of a sequence in schema `totp`. Errors: XX001 if it is missing.
fn next_number(name: &CStr) -> Result<i64, Error> {
    match table_oid(name) {
        pg_sys::InvalidOid => Err(Error::RowsAltered),
        sequence => backend::next_number(sequence).ok_or(Error::RowsAltered),
    }
}
