//! `totp_enroll`, `totp_reset`, `totp_import`: how a device comes to a secret.

use otp::{OtpauthUri, Parameters, Secret, TimeStep};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::arguments;
use super::shown::Shown;
use crate::audit::{self, Event};
use crate::clock::{self, Timestamp};
use crate::error::Error;
use crate::names::{DeviceName, UserId};
use crate::store::attempts;
use crate::store::secrets::{self, Existing, NewSecret, Slot};
use crate::store::spi::Snapshot;
use crate::store::used_codes::UsedCode;
use crate::{floor, guard, keyring, settings};

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
) -> Result<TableIterator<'static, (name!(secret, Shown), name!(otpauth_uri, Shown))>, ErrorReport> {
    guard::writable("totp_enroll")?;
    let user = UserId::new(user_id)?;
    let device = DeviceName::new(device)?;
    let keep_current = keep_current.ok_or(Error::Null("keep_current"))?;
    let parameters = arguments::parameters(algorithm, digits, period)?;
    let (issuer, account) = labels(user, account_name, issuer)?;
    let uri = OtpauthUri { issuer, account, secret: generate(parameters)?, parameters };

    let plan = Plan { keep_current, confirmed: false, event: Event::Enrolled };
    begin(user)?;
    store(user, device, &uri, &plan)?;
    Ok(shown(&uri))
}

/// After a compromise: the device's secrets die now, and it gets a new one with the same names and parameters.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_reset(
    user_id: Option<&str>,
    device: default!(Option<&str>, "'default'"),
) -> Result<TableIterator<'static, (name!(secret, Shown), name!(otpauth_uri, Shown))>, ErrorReport> {
    guard::writable("totp_reset")?;
    let user = UserId::new(user_id)?;
    let device = DeviceName::new(device)?;
    keyring::hold_current()?;
    if !attempts::lock(user.as_str())? {
        return Err(Error::NoSuchDevice.into());
    }
    let (issuer, account, parameters) =
        secrets::labels(&Snapshot::latest(), user.as_str(), device.as_str())?.ok_or(Error::NoSuchDevice)?;
    let uri = OtpauthUri { issuer, account, secret: generate(parameters)?, parameters };

    let plan = Plan { keep_current: false, confirmed: false, event: Event::Reset };
    store(user, device, &uri, &plan)?;
    Ok(shown(&uri))
}

/// Brings a secret from elsewhere along. Returns its otpauth URI.
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
) -> Result<Shown, ErrorReport> {
    guard::writable("totp_import")?;
    let user = UserId::new(user_id)?;
    let device = DeviceName::new(device)?;
    let secret = secret.ok_or(Error::Null("secret"))?;
    let confirmed = confirmed.ok_or(Error::Null("confirmed"))?;
    let allow_weak = allow_weak.ok_or(Error::Null("allow_weak"))?;
    let parameters = arguments::parameters(algorithm, digits, period)?;
    let uri = if arguments::is_otpauth_uri(secret) {
        let brought = OtpauthUri::parse(secret).map_err(Error::from)?;
        let account = account_name.unwrap_or(&brought.account);
        let (issuer, account) = labels(user, Some(account), issuer.or(brought.issuer.as_deref()))?;
        OtpauthUri { issuer, account, ..brought }
    } else {
        let (issuer, account) = labels(user, account_name, issuer)?;
        OtpauthUri { issuer, account, secret: Secret::from_base32(secret).map_err(Error::from)?, parameters }
    };
    uri.secret.check_length(allow_weak).map_err(Error::from)?;

    begin(user)?;
    let plan = Plan { keep_current: true, confirmed, event: Event::Imported };
    store(user, device, &uri, &plan)?;
    Ok(Shown(uri.build()))
}

/// How a secret is stored.
struct Plan {
    /// The device's active secret stays until the new one is confirmed.
    keep_current: bool,
    /// The new secret is active at once.
    confirmed: bool,
    event: Event,
}

/// Secret and URI, for the one row in which they are shown.
fn shown(uri: &OtpauthUri) -> TableIterator<'static, (name!(secret, Shown), name!(otpauth_uri, Shown))> {
    TableIterator::once((Shown(uri.secret.to_base32()), Shown(uri.build())))
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

/// Takes the locks of a writer: the data key, then the user.
fn begin(user: UserId) -> Result<(), Error> {
    keyring::hold_current()?;
    attempts::lock_or_insert(user.as_str())
}

/// Stores a secret for a device, with the user locked: one session at a time is here, so of concurrent calls the last
/// to commit stays and every other secret is dead.
fn store(user: UserId, device: DeviceName, uri: &OtpauthUri, plan: &Plan) -> Result<(), Error> {
    // Before the time is taken: this secret is younger than the floor.
    floor::current()?;
    let now = clock::now()?;
    let existing = secrets::of_user(&Snapshot::latest(), user.as_str())?;
    make_room(user, device, &existing, now)?;
    let of_device: Vec<_> = existing.iter().filter(|s| s.device == device.as_str()).collect();
    if of_device.iter().any(|s| s.disabled) {
        return Err(Error::DeviceDisabled);
    }
    let known = if plan.event == Event::Imported { find_known(user, device, uri)? } else { None };
    let confirmed = plan.confirmed || known.as_ref().is_some_and(|k| k.slot == Slot::Active);

    let mut carried = None;
    for old in &of_device {
        let is_known = known.as_ref().is_some_and(|k| k.secret_id == old.secret_id);
        if is_known || old.slot == Slot::Pending || confirmed || !plan.keep_current {
            let used = secrets::delete(user.as_str(), old.secret_id)?;
            if is_known {
                carried = Some(used);
            }
        }
    }
    if let (Some(known), Some(used)) = (&known, &mut carried) {
        used.step = translate(used.step, known.parameters, uri.parameters);
    }
    insert(user, device, uri, &of_device, confirmed, carried, now)?;
    audit::record(plan.event, now, Some(user.as_str()), Some(device.as_str()))
}

fn insert(
    user: UserId,
    device: DeviceName,
    uri: &OtpauthUri,
    of_device: &[&Existing],
    confirmed: bool,
    carried: Option<UsedCode>,
    now: Timestamp,
) -> Result<(), Error> {
    let key = keyring::hold_current()?;
    let secret_id = secrets::next_id(&Snapshot::latest())?;
    let enforced_since = of_device.iter().find_map(|s| s.enforced_since);
    secrets::insert(&NewSecret {
        user_id: user.as_str(),
        device: device.as_str(),
        slot: if confirmed { Slot::Active } else { Slot::Pending },
        secret_id,
        version: of_device.iter().map(|s| s.version).max().unwrap_or(0).saturating_add(1),
        key_id: key.get(),
        sealed: &keyring::seal_secret(key, user.as_str(), device.as_str(), secret_id, uri.parameters, &uri.secret)?,
        parameters: uri.parameters,
        issuer: uri.issuer.as_deref(),
        account_name: &uri.account,
        created_at: now,
        enforced_since: enforced_since.or(confirmed.then_some(now.0)),
        expires_at: (!confirmed).then(|| Timestamp(now.0.saturating_add(settings::enrollment_ttl()))),
        used: carried,
    })
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

/// A secret of the user that is the one to be imported.
struct Known {
    secret_id: i64,
    slot: Slot,
    parameters: Parameters,
}

/// Whether the device has this very secret already: then its used step is kept.
///
/// Errors: 22023 where another device of the user has it, since each code would count twice.
fn find_known(user: UserId, device: DeviceName, uri: &OtpauthUri) -> Result<Option<Known>, Error> {
    let mut known = None;
    let snapshot = Snapshot::latest();
    for stored in secrets::sealed_of_user(&snapshot, user.as_str())? {
        if keyring::open_secret(&snapshot, user.as_str(), &stored)?.same_as(&uri.secret) {
            if stored.device != device.as_str() {
                return Err(Error::SecretOfOtherDevice);
            }
            // Of two equal ones of the device, the active one comes first.
            known =
                known.or(Some(Known { secret_id: stored.secret_id, slot: stored.slot, parameters: stored.parameters }));
        }
    }
    Ok(known)
}

/// The used step in time steps of another length: the one in which the used step ends.
fn translate(used: TimeStep, old: Parameters, new: Parameters) -> TimeStep {
    if used == TimeStep::NONE { used } else { TimeStep::at(used.end(old.period).saturating_sub(1), new.period) }
}
