//! `totp_import`: a device keeps the secret that it already has.
//!
//! Owns which of two sources of a parameter wins. Must never store a secret by other rules than `enroll.rs` does.

use otp::encoding::read_base32_only;
use otp::{OtpauthUri, ReadUri, Secret, SecretError};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::arguments::{self, labels};
use super::enroll::{self, Plan};
use super::guard;
use super::secret_text::SecretText;
use crate::audit::Event;
use crate::error::Error;
use crate::store::secrets::Slot;
use crate::user::{DeviceName, UserId};

/// Imports an existing secret. Returns its otpauth URI. For its symbol see `old_sql.rs`.
#[pg_extern(name = "totp_import", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
pub fn totp_import_v2(
    user_id: Option<&str>,
    secret: Option<&str>,
    account_name: default!(Option<&str>, "NULL"),
    issuer: default!(Option<&str>, "NULL"),
    device: default!(Option<&str>, "'default'"),
    algorithm: default!(Option<&str>, "'SHA1'"),
    digits: default!(Option<i32>, 6),
    period: default!(Option<i32>, 30),
    confirmed: default!(Option<bool>, false),
    allow_weak: default!(Option<bool>, false),
    encoding: default!(Option<&str>, "NULL"),
    drift: default!(Option<i32>, 0),
) -> Result<SecretText, ErrorReport> {
    guard::writable("totp_import")?;
    let user = UserId::new(user_id)?;
    let request = Import {
        secret,
        account_name,
        issuer,
        device,
        algorithm,
        digits,
        period,
        confirmed,
        allow_weak,
        encoding,
        drift,
    };
    Ok(import(user, &request).map_err(|error| error.of_user(user.as_str()))?)
}

/// The arguments of `totp_import`.
struct Import<'a> {
    secret: Option<&'a str>,
    account_name: Option<&'a str>,
    issuer: Option<&'a str>,
    device: Option<&'a str>,
    algorithm: Option<&'a str>,
    digits: Option<i32>,
    period: Option<i32>,
    confirmed: Option<bool>,
    allow_weak: Option<bool>,
    encoding: Option<&'a str>,
    drift: Option<i32>,
}

fn import(user: UserId, request: &Import) -> Result<SecretText, Error> {
    let device = DeviceName::new(request.device)?;
    let confirmed = request.confirmed.ok_or(Error::Null("confirmed"))?;
    let allow_weak = request.allow_weak.ok_or(Error::Null("allow_weak"))?;
    let drift = arguments::drift(request.drift)?;
    let uri = read_secret(user, request)?;
    uri.secret.check_length(allow_weak)?;

    let slot = if confirmed { Slot::Active } else { Slot::Pending };
    enroll::begin(user)?;
    enroll::store(user, device, &uri, &Plan { keep_current: true, slot, drift, event: Event::Imported })?;
    Ok(SecretText(uri.build()))
}

/// Reads the secret with its parameters and names. An otpauth URI has its own parameters. Names given as arguments win.
fn read_secret(user: UserId, request: &Import) -> Result<OtpauthUri, Error> {
    let secret = request.secret.ok_or(Error::Null("secret"))?;
    let parameters = arguments::parameters(request.algorithm, request.digits, request.period)?;
    if arguments::is_uri(secret, request.encoding) {
        if request.encoding.is_some() {
            return Err(Error::UriWithEncoding);
        }
        let read = ReadUri::parse(secret)?;
        let account = request.account_name.or(read.account.as_deref());
        let (issuer, account) = labels(user, account, request.issuer.or(read.issuer.as_deref()))?;
        Ok(OtpauthUri { issuer, account, secret: read.secret, parameters: read.parameters })
    } else {
        let secret = decode(secret, request.encoding)?;
        let (issuer, account) = labels(user, request.account_name, request.issuer)?;
        Ok(OtpauthUri { issuer, account, secret, parameters })
    }
}

/// Reads the bytes of a secret that is not in a URI. Without an encoding it must be base32 and nothing else: a secret that is
/// read wrongly is stored without an error, and none of its codes is ever right.
fn decode(secret: &str, encoding: Option<&str>) -> Result<Secret, Error> {
    match arguments::encoding(encoding)? {
        Some(encoding) => Ok(encoding.read(secret)?),
        None => read_base32_only(secret).map_err(|error| match error {
            SecretError::Symbol | SecretError::Incomplete | SecretError::Ambiguous => Error::EncodingNeeded(error),
            error => error.into(),
        }),
    }
}
