//! `totp_read_tokens`: what a file of hardware tokens has. `totp_import` stores it.
//!
//! Owns the shape of the rows. Must never read a table, nor store anything.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{IntoDatum, pg_extern, pg_sys};
use tokens::{Format, Keys, Token};

use super::rows::give;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// Reads a PSKC document, a CSV, or an export of Google Authenticator. A token that cannot be imported has a problem.
#[pg_extern(sql = r#"
CREATE FUNCTION totp_read_tokens(
  document text, format text DEFAULT 'pskc', key bytea DEFAULT NULL, password text DEFAULT NULL
) RETURNS TABLE (serial text, manufacturer text, model text, user_id text, secret text, algorithm text, digits integer,
                 period integer, drift integer, expires_at timestamptz, problem text)
IMMUTABLE PARALLEL SAFE
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn totp_read_tokens(
    document: Option<&str>,
    format: Option<&str>,
    key: Option<&[u8]>,
    password: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<(), ErrorReport> {
    let document = document.ok_or(Error::Null("document"))?;
    let format = Format::parse(format.ok_or(Error::Null("format"))?).map_err(Error::from)?;
    let mut between = || {
        pgrx::check_for_interrupts!();
    };
    let tokens = tokens::read(format, document, &Keys { key, password }, &mut between).map_err(Error::from)?;
    // SAFETY: the columns are those of the SQL above.
    Ok(unsafe { give(fcinfo, tokens.into_iter().map(columns)) }?)
}

/// Makes a row. Our copy of the secret is wiped when the token is dropped.
fn columns(token: Token) -> [Option<pg_sys::Datum>; 11] {
    pgrx::check_for_interrupts!();
    // Without a secret there is nothing that they say of it.
    let parameters = token.parameters.filter(|_| token.secret.is_some());
    [
        token.serial.into_datum(),
        token.manufacturer.into_datum(),
        token.model.into_datum(),
        token.user_id.into_datum(),
        token.secret.as_ref().and_then(|secret| secret.to_base32().as_str().into_datum()),
        parameters.and_then(|parameters| parameters.algorithm.as_str().into_datum()),
        parameters.and_then(|parameters| i32::from(parameters.digits.get()).into_datum()),
        parameters.and_then(|parameters| i32::from(parameters.period.get()).into_datum()),
        parameters.and(token.drift.into_datum()),
        token.expires_at.and_then(|seconds| Timestamp::from_unix_seconds(seconds).to_sql().into_datum()),
        token.problem.and_then(|problem| problem.as_str().into_datum()),
    ]
}
