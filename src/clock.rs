//! The clock: `clock_timestamp()` at the call, or the fixed time of `totp.clock`. Never `now()`, which does not change
//! during a transaction.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::error::Error;
use crate::settings;
use crate::timestamp::Timestamp;

/// Returns the current time.
pub fn now() -> Result<Timestamp, Error> {
    match settings::clock() {
        None => {
            // SAFETY: reads the system's clock.
            Ok(Timestamp(unsafe { pg_sys::GetCurrentTimestamp() }))
        }
        Some(text) => fixed(&text),
    }
}

fn fixed(text: &CStr) -> Result<Timestamp, Error> {
    // SAFETY: timestamptz_in takes a C string, an unused type OID and a type modifier; it raises 22007 for bad text.
    let value = unsafe {
        pgrx::direct_function_call::<i64>(
            pg_sys::timestamptz_in,
            &[Some(pg_sys::Datum::from(text.as_ptr())), Some(pg_sys::Datum::from(0)), Some(pg_sys::Datum::from(-1))],
        )
    };
    value.filter(|v| *v != i64::MIN && *v != i64::MAX).map(Timestamp).ok_or(Error::Clock)
}
