//! Where a function may run, and who may call it. Checked before anything is judged.
//!
//! Owns these refusals. Must never trust the session user: SECURITY DEFINER code may run on its behalf.

use pgrx::pg_catalog::pg_proc::PgProc;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;

use crate::backend;
use crate::counters;
use crate::error::Error;
use crate::store;

/// Refuses a security-restricted operation, a standby, a read-only transaction, and parallel mode.
///
/// On a standby, in a read-only transaction, and in parallel mode nothing can be used up or counted.
pub fn writable(function: &'static str) -> Result<(), Error> {
    unrestricted(function)?;
    if backend::is_in_recovery() {
        return Err(Error::Standby(function));
    }
    if backend::is_read_only() {
        return Err(Error::ReadOnly(function));
    }
    not_parallel(function)
}

/// Runs a call that judges codes, where it may run, and adds what it has counted at its end.
pub fn judging<T>(function: &'static str, call: impl FnOnce() -> Result<T, Error>) -> Result<T, ErrorReport> {
    writable(function)?;
    let answer = call();
    counters::add_when_due();
    Ok(answer?)
}

/// Refuses a security-restricted operation: maintenance of a table, or a materialized view. There PostgreSQL runs the code of
/// an owner on behalf of another user, or of autovacuum. A guess there would be charged, and audited, in the name of someone
/// who did not ask for it.
fn unrestricted(function: &'static str) -> Result<(), Error> {
    if backend::is_restricted() { Err(Error::Restricted(function)) } else { Ok(()) }
}

/// Refuses everyone but the owner of the extension, the members of that role, and superusers.
///
/// # Safety
/// `fcinfo` is that of the running call.
pub unsafe fn owner(fcinfo: pg_sys::FunctionCallInfo, function: &'static str) -> Result<(), Error> {
    // SAFETY: promised by the caller.
    unsafe { knows_its_caller(fcinfo, function) }?;
    if store::owner::is_current_user()? { Ok(()) } else { Err(Error::OwnerOnly(function)) }
}

/// Refuses everyone but superusers.
///
/// # Safety
/// `fcinfo` is that of the running call.
pub unsafe fn superuser(fcinfo: pg_sys::FunctionCallInfo, function: &'static str) -> Result<(), Error> {
    // SAFETY: promised by the caller.
    unsafe { knows_its_caller(fcinfo, function) }?;
    if backend::is_superuser() { Ok(()) } else { Err(Error::SuperuserOnly) }
}

/// Refuses a function that is SECURITY DEFINER, as the SQL of 0.1.0 declares these. Its current user is always its owner, and
/// the session user does not show whose code calls it.
///
/// # Safety
/// `fcinfo` is that of the running call.
unsafe fn knows_its_caller(fcinfo: pg_sys::FunctionCallInfo, function: &'static str) -> Result<(), Error> {
    // SAFETY: promised by the caller; PostgreSQL fills in flinfo of every call that comes from SQL.
    let flinfo = unsafe { (*fcinfo).flinfo.as_ref() };
    match flinfo.and_then(|flinfo| PgProc::new(flinfo.fn_oid)) {
        Some(declared) if !declared.prosecdef() => Ok(()),
        _ => Err(Error::CallerUnknown(function)),
    }
}

/// Refuses REPEATABLE READ and SERIALIZABLE, where an UPDATE does not see rows that were committed later.
pub fn read_committed(function: &'static str) -> Result<(), Error> {
    if backend::is_read_committed() { Ok(()) } else { Err(Error::Isolation(function)) }
}

/// Refuses parallel mode, where no new snapshot can be taken.
pub fn not_parallel(function: &'static str) -> Result<(), Error> {
    if backend::is_parallel() { Err(Error::Parallel(function)) } else { Ok(()) }
}
