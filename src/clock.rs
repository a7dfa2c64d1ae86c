//! The clock: `clock_timestamp()` at the call, or the fixed time of `totp.clock`. Never `now()`, which does not change
//! during a transaction.
//!
//! Owns which of two clocks counts. Must never return the start of the transaction.

use std::ffi::CStr;

use crate::backend;
use crate::error::Error;
use crate::settings;
use crate::timestamp::Timestamp;

/// Returns the current time.
pub fn now() -> Result<Timestamp, Error> {
    match settings::clock() {
        None => Ok(Timestamp(backend::clock_time())),
        Some(text) => fixed(&text),
    }
}

fn fixed(text: &CStr) -> Result<Timestamp, Error> {
    backend::read_time(text).filter(|v| *v != i64::MIN && *v != i64::MAX).map(Timestamp).ok_or(Error::Clock)
}
