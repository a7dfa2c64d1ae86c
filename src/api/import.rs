//! `totp_import`: a device keeps the secret that it already has.
//!
//! Owns which of two sources of a parameter wins. Must never store a secret by other rules than `enroll.rs` does.

use otp::{OtpauthUri, Secret};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::arguments::{self, labels};
use super::enroll::{self, Plan};
use super::guard;
use super::secret_text::SecretText;
use crate::audit::Event;
use crate::error::Error;
use crate::user::{DeviceName, UserId};

/// Imports an existing secret. Returns its otpauth URI.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn totp_import(
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
) -> Result<SecretText, ErrorReport> {
    guard::writable("totp_import")?;
    let user = UserId::new(user_id)?;
    let request = Import { secret, account_name, issuer, device, algorithm, digits, period, confirmed, allow_weak };
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
}

fn import(user: UserId, request: &Import) -> Result<SecretText, Error> {
    let device = DeviceName::new(request.device)?;
    let confirmed = request.confirmed.ok_or(Error::Null("confirmed"))?;
    let allow_weak = request.allow_weak.ok_or(Error::Null("allow_weak"))?;
    let uri = read_secret(user, request)?;
    uri.secret.check_length(allow_weak)?;

    enroll::begin(user)?;
    enroll::store(user, device, &uri, &Plan { keep_current: true, confirmed, event: Event::Imported })?;
    Ok(SecretText(uri.build()))
}

/// Reads the secret with its parameters and names. An otpauth URI has its own parameters. Names given as arguments win.
fn read_secret(user: UserId, request: &Import) -> Result<OtpauthUri, Error> {
    let secret = request.secret.ok_or(Error::Null("secret"))?;
    let parameters = arguments::parameters(request.algorithm, request.digits, request.period)?;
    if arguments::is_otpauth_uri(secret) {
        let read = OtpauthUri::parse(secret)?;
        let account = request.account_name.unwrap_or(&read.account);
        let (issuer, account) = labels(user, Some(account), request.issuer.or(read.issuer.as_deref()))?;
        Ok(OtpauthUri { issuer, account, ..read })
    } else {
        let (issuer, account) = labels(user, request.account_name, request.issuer)?;
        Ok(OtpauthUri { issuer, account, secret: Secret::from_base32(secret)?, parameters })
    }
}
