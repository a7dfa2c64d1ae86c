//! The parameters of a secret: algorithm, digits, period.
//!
//! Owns the accepted ranges of digits and period. Must never hold a value outside its range.

use crate::algorithm::Algorithm;
use crate::parameter_error::ParameterError;

/// Number of digits of a code: 6, 7 or 8 (RFC 4226 section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits(u8);

impl Digits {
    /// Six digits, the default.
    pub const SIX: Digits = Digits(6);

    /// # Errors
    /// [`ParameterError::Digits`] outside 6 to 8.
    pub const fn new(digits: i32) -> Result<Digits, ParameterError> {
        match digits {
            6 => Ok(Digits(6)),
            7 => Ok(Digits(7)),
            8 => Ok(Digits(8)),
            _ => Err(ParameterError::Digits),
        }
    }

    /// The number, 6 to 8.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Length of a time step in seconds: 15 to 120 (X of RFC 6238 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(u16);

impl Period {
    /// 30 seconds, the default of RFC 6238 section 5.2.
    pub const THIRTY: Period = Period(30);

    /// The longest one.
    pub const LONGEST: Period = Period(120);

    /// # Errors
    /// [`ParameterError::Period`] outside 15 to 120 seconds.
    pub const fn new(seconds: i32) -> Result<Period, ParameterError> {
        match seconds {
            15..=120 => Ok(Period(seconds as u16)),
            _ => Err(ParameterError::Period),
        }
    }

    /// The length in seconds, 15 to 120.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The parameters of a secret. Stored per secret, so that a changed default breaks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The hash under the HMAC.
    pub algorithm: Algorithm,
    /// Number of digits of a code.
    pub digits: Digits,
    /// Length of a time step.
    pub period: Period,
}

impl Default for Parameters {
    /// SHA1, 6 digits, 30 seconds: the defaults of an otpauth URI (Key URI format).
    fn default() -> Parameters {
        Parameters { algorithm: Algorithm::Sha1, digits: Digits::SIX, period: Period::THIRTY }
    }
}
