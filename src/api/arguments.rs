//! Converts arguments that several functions take from SQL types to those of the pure crates.
//!
//! Owns the defaults that depend on settings. Must never accept what the pure crates refuse.

use otp::{Algorithm, Digits, Drift, Encoding, Parameters, Period};

use crate::error::Error;
use crate::settings;
use crate::user::UserId;

/// Reads algorithm, digits, and period of a secret.
pub fn parameters(algorithm: Option<&str>, digits: Option<i32>, period: Option<i32>) -> Result<Parameters, Error> {
    Ok(Parameters {
        algorithm: Algorithm::parse(algorithm.ok_or(Error::Null("algorithm"))?)?,
        digits: Digits::new(digits.ok_or(Error::Null("digits"))?)?,
        period: Period::new(period.ok_or(Error::Null("period"))?)?,
    })
}

/// Reads the encoding of a secret to import. NULL means that the caller does not know.
pub fn encoding(name: Option<&str>) -> Result<Option<Encoding>, Error> {
    Ok(name.map(Encoding::parse).transpose()?)
}

/// Reads the drift of a token to import. 0 means that the caller knows of none.
pub fn drift(steps: Option<i32>) -> Result<Option<Drift>, Error> {
    match steps.ok_or(Error::Null("drift"))? {
        0 => Ok(None),
        steps => Drift::of_steps(steps.into()).map(Some).ok_or(Error::Drift),
    }
}

/// Returns whether a secret to import is an otpauth URI, or another URI if nobody says what it is: then the error names the form,
/// and not an encoding.
pub fn is_uri(secret: &str, encoding: Option<&str>) -> bool {
    let is_otpauth = secret.trim_ascii_start().get(..8).is_some_and(|start| start.eq_ignore_ascii_case("otpauth:"));
    is_otpauth || (encoding.is_none() && secret.contains("://"))
}

/// Returns issuer and account name with their defaults. An empty issuer means none, whatever `totp.issuer` says.
pub fn labels(
    user: UserId,
    account_name: Option<&str>,
    issuer: Option<&str>,
) -> Result<(Option<String>, String), Error> {
    let account = account_name.unwrap_or(user.as_str());
    otp::check_account(account).map_err(|error| match account_name {
        Some(_) => Error::Name(error),
        None => Error::UserIdAsName(error),
    })?;
    let issuer = issuer.map(str::to_owned).or_else(settings::issuer).filter(|i| !i.is_empty());
    if let Some(issuer) = &issuer {
        otp::check_label(issuer)?;
    }
    Ok((issuer, account.to_owned()))
}
