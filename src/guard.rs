//! Where a function may run. Asked before anything is judged.

use pgrx::pg_sys;

use crate::error::Error;

/// Refuses a standby, a read-only transaction and parallel mode: nothing could be used up or counted there.
pub fn writable(function: &'static str) -> Result<(), Error> {
    // SAFETY: reads of backend state.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            return Err(Error::Standby(function));
        }
        if pg_sys::XactReadOnly {
            return Err(Error::ReadOnly(function));
        }
    }
    not_parallel(function)
}

/// Refuses REPEATABLE READ and SERIALIZABLE, where rows that come late could not be seen by an UPDATE.
pub fn read_committed(function: &'static str) -> Result<(), Error> {
    // SAFETY: a read of backend state.
    if unsafe { pg_sys::XactIsoLevel } > pg_sys::XACT_READ_COMMITTED as i32 {
        return Err(Error::Isolation(function));
    }
    Ok(())
}

/// Refuses parallel mode, where no new snapshot can be taken.
pub fn not_parallel(function: &'static str) -> Result<(), Error> {
    // SAFETY: a read of backend state.
    if unsafe { pg_sys::IsInParallelMode() } { Err(Error::Parallel(function)) } else { Ok(()) }
}
