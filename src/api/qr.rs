//! `totp_qr_svg`, `totp_qr_png`, `totp_qr_text`, `totp_code_at`: pure functions of their arguments.
//!
//! Owns nothing. Must never read a table, a setting, or the clock.

use otp::{Secret, TimeStep};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::arguments;
use super::secret_text::SecretText;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// Draws it as an SVG document.
#[pg_extern(immutable, strict, parallel_safe)]
fn totp_qr_svg(uri: Option<&str>) -> Result<String, ErrorReport> {
    Ok(otp::qr::svg(uri.ok_or(Error::Null("uri"))?).map_err(Error::from)?)
}

/// Draws it as a PNG file, each module `scale` pixels wide.
#[pg_extern(immutable, strict, parallel_safe)]
fn totp_qr_png(uri: Option<&str>, scale: default!(Option<i32>, 8)) -> Result<Vec<u8>, ErrorReport> {
    let scale = scale.ok_or(Error::Null("scale"))?;
    Ok(otp::qr::png(uri.ok_or(Error::Null("uri"))?, scale).map_err(Error::from)?)
}

/// Draws it as text of Unicode half blocks, for a terminal.
#[pg_extern(immutable, strict, parallel_safe)]
fn totp_qr_text(uri: Option<&str>) -> Result<String, ErrorReport> {
    Ok(otp::qr::text(uri.ok_or(Error::Null("uri"))?).map_err(Error::from)?)
}

/// Returns the code that an authenticator with this secret shows at that time (RFC 6238 section 4).
#[pg_extern(immutable, strict, parallel_safe)]
fn totp_code_at(
    secret: Option<&str>,
    at: Option<TimestampWithTimeZone>,
    algorithm: default!(Option<&str>, "'SHA1'"),
    digits: default!(Option<i32>, 6),
    period: default!(Option<i32>, 30),
) -> Result<SecretText, ErrorReport> {
    let parameters = arguments::parameters(algorithm, digits, period)?;
    let secret = Secret::from_base32(secret.ok_or(Error::Null("secret"))?).map_err(Error::from)?;
    let at = Timestamp::from_sql(at.ok_or(Error::Null("at"))?).ok_or(Error::TimeRange)?;
    let step = TimeStep::at(at.unix_seconds(), parameters.period);
    Ok(SecretText(otp::code_at_step(&secret, parameters.algorithm, parameters.digits, step).render()))
}
