//! Every SQL statement of the extension, and the types of its rows. Nothing else speaks SPI.
//!
//! One file a table; `sign_in` holds the look-up of the hot path, which reads three.

pub mod attempts;
pub mod audit;
pub mod data_keys;
pub mod floor;
pub mod health;
pub mod recovery_codes;
pub mod rotation;
mod row;
mod scan;
pub mod secrets;
pub mod sign_in;
pub mod spi;
pub mod used_codes;

use std::ffi::CStr;

use pgrx::pg_sys;

/// The OID of a table in schema `totp`, or 0.
fn table_oid(name: &CStr) -> pg_sys::Oid {
    // SAFETY: look-ups in the system caches.
    unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::get_namespace_oid(c"totp".as_ptr(), true)) }
}

/// Locks a table in ROW EXCLUSIVE mode until the end of the transaction, so that nothing rewrites or moves its rows.
fn lock_table(name: &CStr) {
    // SAFETY: an OID that does not exist locks nothing; the statement that follows raises then.
    unsafe { pg_sys::LockRelationOid(table_oid(name), pg_sys::RowExclusiveLock as i32) }
}
