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
