//! `totp_code_at`: the code of a secret at a time, for administrators and tests.

use otp::{Secret, TimeStep};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::arguments;
use crate::clock::Timestamp;
use crate::error::Error;

/// The code that an authenticator with this secret shows at that time. RFC 6238 section 4.
#[pg_extern(immutable, parallel_safe)]
fn totp_code_at(
    secret: Option<&str>,
    at: Option<TimestampWithTimeZone>,
    algorithm: default!(Option<&str>, "'SHA1'"),
    digits: default!(Option<i32>, 6),
    period: default!(Option<i32>, 30),
) -> Result<String, ErrorReport> {
    let parameters = arguments::parameters(algorithm, digits, period)?;
    let secret = Secret::from_base32(secret.ok_or(Error::Null("secret"))?).map_err(Error::from)?;
    let at = Timestamp::from_sql(at.ok_or(Error::Null("at"))?).ok_or(Error::TimeRange)?;
    let step = TimeStep::at(at.unix_seconds(), parameters.period);
    Ok(otp::code_at_step(&secret, parameters.algorithm, parameters.digits, step).render().to_string())
}
