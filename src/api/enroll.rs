//! `totp_enroll`, `totp_reset`: a device gets a new secret.

use otp::{OtpauthUri, Parameters, Secret};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::arguments::{self, labels};
use super::guard;
use super::secret_text::SecretText;
use crate::audit::Event;
use crate::enrollment::{self, Plan};
use crate::error::Error;
use crate::keyring;
use crate::store::attempts;
use crate::store::secrets;
use crate::store::spi::Snapshot;
use crate::user::{DeviceName, UserId};

/// Creates a secret for a device and returns it, this one time. It is pending until its first good code. An active
/// secret of the device works until then, unless `keep_current` is false.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn totp_enroll(
    user_id: Option<&str>,
    account_name: default!(Option<&str>, "NULL"),
    issuer: default!(Option<&str>, "NULL"),
    device: default!(Option<&str>, "'default'"),
    algorithm: default!(Option<&str>, "'SHA1'"),
    digits: default!(Option<i32>, 6),
    period: default!(Option<i32>, 30),
    keep_current: default!(Option<bool>, true),
) -> Result<TableIterator<'static, (name!(secret, SecretText), name!(otpauth_uri, SecretText))>, ErrorReport> {
    guard::writable("totp_enroll")?;
    let user = UserId::new(user_id)?;
    let device = DeviceName::new(device)?;
    let keep_current = keep_current.ok_or(Error::Null("keep_current"))?;
    let parameters = arguments::parameters(algorithm, digits, period)?;
    let (issuer, account) = labels(user, account_name, issuer)?;
    let uri = OtpauthUri { issuer, account, secret: generate(parameters)?, parameters };

    let plan = Plan { keep_current, confirmed: false, event: Event::Enrolled };
    enrollment::begin(user)?;
    enrollment::store(user, device, &uri, &plan)?;
    Ok(shown(&uri))
}

/// Replaces a compromised secret. The old secrets of the device stop working now, and it gets a new one with the same names
/// and parameters.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_reset(
    user_id: Option<&str>,
    device: default!(Option<&str>, "'default'"),
) -> Result<TableIterator<'static, (name!(secret, SecretText), name!(otpauth_uri, SecretText))>, ErrorReport> {
    guard::writable("totp_reset")?;
    let user = UserId::new(user_id)?;
    let device = DeviceName::new(device)?;
    keyring::hold_existing()?;
    if !attempts::lock(user.as_str())? {
        return Err(Error::NoSuchDevice.into());
    }
    let (issuer, account, parameters) =
        secrets::labels(&Snapshot::latest(), user.as_str(), device.as_str())?.ok_or(Error::NoSuchDevice)?;
    let uri = OtpauthUri { issuer, account, secret: generate(parameters)?, parameters };

    let plan = Plan { keep_current: false, confirmed: false, event: Event::Reset };
    enrollment::store(user, device, &uri, &plan)?;
    Ok(shown(&uri))
}

/// Returns the one row that shows secret and URI.
fn shown(uri: &OtpauthUri) -> TableIterator<'static, (name!(secret, SecretText), name!(otpauth_uri, SecretText))> {
    TableIterator::once((SecretText(uri.secret.to_base32()), SecretText(uri.build())))
}

/// Generates a secret as long as the hash of the algorithm, as RFC 4226 section 4 recommends.
fn generate(parameters: Parameters) -> Result<Secret, Error> {
    let mut bytes = Zeroizing::new(vec![0; parameters.algorithm.secret_len()]);
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(Secret::from_bytes(bytes))
}
