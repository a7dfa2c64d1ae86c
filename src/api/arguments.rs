//! Arguments that several functions take, from SQL's types to the pure crates'.

use otp::{Algorithm, Digits, Parameters, Period};

use crate::error::Error;

/// Algorithm, digits and period of a secret.
pub fn parameters(algorithm: Option<&str>, digits: Option<i32>, period: Option<i32>) -> Result<Parameters, Error> {
    Ok(Parameters {
        algorithm: Algorithm::parse(algorithm.ok_or(Error::Null("algorithm"))?)?,
        digits: Digits::new(digits.ok_or(Error::Null("digits"))?)?,
        period: Period::new(period.ok_or(Error::Null("period"))?)?,
    })
}

/// Whether a secret to import comes as an otpauth URI.
pub fn is_otpauth_uri(secret: &str) -> bool {
    secret.trim_ascii_start().get(..8).is_some_and(|start| start.eq_ignore_ascii_case("otpauth:"))
}
