//! `totp_enroll`: a new secret for a device.

use otp::{OtpauthUri, Parameters, Secret};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::arguments;
use crate::audit::{self, Event};
use crate::clock::{self, Timestamp};
use crate::error::Error;
use crate::names::{DeviceName, UserId};
use crate::store::attempts;
use crate::store::secrets::{self, Existing, NewSecret, Slot};
use crate::store::spi::Snapshot;
use crate::{guard, keyring, settings};

/// Makes a new secret for a device and shows it, this one time. It is pending until its first good code; an active
/// secret of the device keeps working until then, unless `keep_current` is false.
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
) -> Result<TableIterator<'static, (name!(secret, String), name!(otpauth_uri, String))>, ErrorReport> {
    guard::writable("totp_enroll")?;
    let user = UserId::new(user_id)?;
    let device = DeviceName::new(device)?;
    let keep_current = keep_current.ok_or(Error::Null("keep_current"))?;
    let parameters = arguments::parameters(algorithm, digits, period)?;
    let (issuer, account) = labels(user, account_name, issuer)?;
    let uri = OtpauthUri { issuer, account, secret: generate(parameters)?, parameters };

    enroll(user, device, &uri, keep_current)?;
    Ok(TableIterator::once((uri.secret.to_base32().to_string(), uri.build().to_string())))
}

/// Issuer and account name with their defaults. An empty issuer means none, whatever `totp.issuer` says.
fn labels(user: UserId, account_name: Option<&str>, issuer: Option<&str>) -> Result<(Option<String>, String), Error> {
    let account = account_name.unwrap_or(user.as_str());
    otp::check_label(account)?;
    let issuer = issuer.map(str::to_owned).or_else(settings::issuer).filter(|i| !i.is_empty());
    if let Some(issuer) = &issuer {
        otp::check_label(issuer)?;
    }
    Ok((issuer, account.to_owned()))
}

/// A secret as long as the algorithm's hash, as RFC 4226 section 4 recommends.
fn generate(parameters: Parameters) -> Result<Secret, Error> {
    let mut bytes = Zeroizing::new(vec![0; parameters.algorithm.secret_len()]);
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(Secret::from_bytes(bytes))
}

/// Stores a pending secret. Of concurrent calls for one device the last to commit stays; every other secret is dead.
fn enroll(user: UserId, device: DeviceName, uri: &OtpauthUri, keep_current: bool) -> Result<(), Error> {
    let key = keyring::hold_current()?;
    attempts::lock_or_insert(user.as_str())?;
    let now = clock::now()?;
    let existing = secrets::of_user(&Snapshot::latest(), user.as_str())?;
    make_room(user, device, &existing, now)?;

    let of_device: Vec<_> = existing.iter().filter(|s| s.device == device.as_str()).collect();
    if of_device.iter().any(|s| s.disabled) {
        return Err(Error::DeviceDisabled);
    }
    for old in &of_device {
        if old.slot == Slot::Pending || !keep_current {
            secrets::delete(user.as_str(), old.secret_id)?;
        }
    }
    let secret_id = secrets::next_id(&Snapshot::latest())?;
    let context = seal::Context::Secret {
        user_id: user.as_str(),
        device: device.as_str(),
        secret_id,
        algorithm: uri.parameters.algorithm.as_str(),
        digits: uri.parameters.digits.get(),
        period: uri.parameters.period.get(),
    };
    secrets::insert(&NewSecret {
        user_id: user.as_str(),
        device: device.as_str(),
        slot: Slot::Pending,
        secret_id,
        version: of_device.iter().map(|s| s.version).max().unwrap_or(0).saturating_add(1),
        key_id: key.get(),
        sealed: &keyring::seal(key, &context, uri.secret.as_bytes())?,
        parameters: uri.parameters,
        issuer: uri.issuer.as_deref(),
        account_name: &uri.account,
        created_at: now,
        enforced_since: of_device.iter().find_map(|s| s.enforced_since),
        expires_at: Some(Timestamp(now.0.saturating_add(settings::enrollment_ttl()))),
    })?;
    audit::record(Event::Enrolled, now, Some(user.as_str()), Some(device.as_str()))
}

/// Refuses one device too many. Devices that were never confirmed and whose secret has expired make room.
fn make_room(user: UserId, device: DeviceName, existing: &[Existing], now: Timestamp) -> Result<(), Error> {
    let mut others: Vec<_> = existing.iter().filter(|s| s.device != device.as_str()).collect();
    others.dedup_by(|a, b| a.device == b.device);
    let mut count = others.len();
    for abandoned in others.iter().filter(|s| s.is_abandoned(now)) {
        if count < settings::max_devices() {
            break;
        }
        secrets::delete(user.as_str(), abandoned.secret_id)?;
        count -= 1;
    }
    if count < settings::max_devices() { Ok(()) } else { Err(Error::TooManyDevices) }
}
