//! `totp_qr_svg`, `totp_qr_png`, `totp_qr_text`: an otpauth URI as a QR code.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;

/// Draws it as an SVG document.
#[pg_extern(immutable, parallel_safe)]
fn totp_qr_svg(uri: Option<&str>) -> Result<String, ErrorReport> {
    Ok(otp::qr::svg(uri.ok_or(Error::Null("uri"))?).map_err(Error::from)?)
}

/// Draws it as a PNG file, each module `scale` pixels wide.
#[pg_extern(immutable, parallel_safe)]
fn totp_qr_png(uri: Option<&str>, scale: default!(Option<i32>, 8)) -> Result<Vec<u8>, ErrorReport> {
    let scale = scale.ok_or(Error::Null("scale"))?;
    Ok(otp::qr::png(uri.ok_or(Error::Null("uri"))?, scale).map_err(Error::from)?)
}

/// Draws it as text of Unicode half blocks, for a terminal.
#[pg_extern(immutable, parallel_safe)]
fn totp_qr_text(uri: Option<&str>) -> Result<String, ErrorReport> {
    Ok(otp::qr::text(uri.ok_or(Error::Null("uri"))?).map_err(Error::from)?)
}
