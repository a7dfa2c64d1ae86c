//! `totp_enroll`, `totp_reset`: a device gets a new secret. And the rules by which any secret is stored.
//!
//! Owns these rules: one writer per user, one pending secret per device, no secret twice, a maximum number of devices. Must
//! never forget a used step of a secret that comes back.

use otp::{OtpauthUri, Parameters, Secret, TimeStep};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::arguments::{self, labels};
use super::guard;
use super::secret_text::SecretText;
use crate::audit::{self, Event};
use crate::clock;
use crate::error::Error;
use crate::keyring::SecretContext;
use crate::removed::Removed;
use crate::store::attempts;
use crate::store::secrets::{self, Existing, Labels, NewSecret, Slot};
use crate::store::spi::Snapshot;
use crate::store::used_codes::UsedCode;
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, SecretId, UserId};
use crate::{inplace, keyring, random, replay_floor, settings};

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
    begin(user)?;
    store(user, device, &uri, &plan)?;
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
    if !attempts::lock(user)? {
        return Err(Error::NoSuchDevice.into());
    }
    let Labels { issuer, account_name: account, parameters } =
        secrets::labels(&Snapshot::latest(), user, device)?.ok_or(Error::NoSuchDevice)?;
    let uri = OtpauthUri { issuer, account, secret: generate(parameters)?, parameters };

    let plan = Plan { keep_current: false, confirmed: false, event: Event::Reset };
    store(user, device, &uri, &plan)?;
    Ok(shown(&uri))
}

/// Returns the one row that shows secret and URI.
fn shown(uri: &OtpauthUri) -> TableIterator<'static, (name!(secret, SecretText), name!(otpauth_uri, SecretText))> {
    TableIterator::once((SecretText(uri.secret.to_base32()), SecretText(uri.build())))
}

/// Generates a secret as long as the hash of the algorithm, as RFC 4226 section 4 recommends.
fn generate(parameters: Parameters) -> Result<Secret, Error> {
    random::secret_bytes(parameters.algorithm.secret_len()).map(Secret::from_bytes)
}

/// How a secret is stored.
pub struct Plan {
    /// The device keeps its active secret until the new one is confirmed.
    pub keep_current: bool,
    /// The new secret is active at once.
    pub confirmed: bool,
    pub event: Event,
}

/// Takes the locks of a writer: the data key, then the user.
pub fn begin(user: UserId) -> Result<(), Error> {
    keyring::hold_current()?;
    attempts::lock_or_insert(user)
}

/// Stores a secret for a device, with the user locked. One session at a time is here, so after concurrent calls only the
/// secret of the last one works.
pub fn store(user: UserId, device: DeviceName, uri: &OtpauthUri, plan: &Plan) -> Result<(), Error> {
    // Before the time is read, so that this secret is younger than the floor.
    replay_floor::current()?;
    let now = clock::now()?;
    let existing = secrets::of_user(&Snapshot::latest(), user)?;
    make_room(user, device, &existing, now)?;
    let of_device: Vec<_> = existing.iter().filter(|s| s.device() == device).collect();
    if of_device.iter().any(|s| s.disabled) {
        return Err(Error::DeviceDisabled);
    }
    let known = if plan.event == Event::Imported { find_known(user, device, uri)? } else { None };
    let confirmed = plan.confirmed || known.as_ref().is_some_and(|k| k.slot == Slot::Active);

    let mut past = Past { created_at: now, used: None };
    let mut removed = Removed::nothing();
    for old in &of_device {
        if let Some(known) = known.as_ref().filter(|k| k.secret_id == old.secret_id) {
            let used = secrets::take(user, old.secret_id)?;
            let step = translate(used.step, known.parameters, uri.parameters);
            past = Past { created_at: old.codes.created_at, used: Some(UsedCode { step, ..used }) };
        } else if old.slot == Slot::Pending || confirmed || !plan.keep_current {
            removed.add(secrets::delete(user, old.secret_id)?, old.codes, now)?;
        }
    }
    if plan.event == Event::Imported {
        past.forget_nothing(&Removed::of_user(user, now)?, uri.parameters);
    }
    let version = of_device.iter().map(|s| s.version).max().unwrap_or(0).saturating_add(1);
    insert(user, device, uri, &of_device, version, confirmed, past, now)?;
    let mut detail = removed.detail();
    match plan.event {
        Event::Enrolled => detail.push(("keep_current", plan.keep_current.to_string())),
        Event::Imported => {
            inplace::note_import();
            detail.push(("confirmed", confirmed.to_string()));
        }
        _ => {}
    }
    detail.push(("version", version.to_string()));
    audit::record_with(plan.event, now, Some(user), Some(device), &detail)
}

/// The past of a secret that was here before: when it was created, which the floor needs, and its used step.
struct Past {
    created_at: Timestamp,
    used: Option<UsedCode>,
}

impl Past {
    /// Adds the used steps of removed secrets: it may be one that was removed shortly before.
    fn forget_nothing(&mut self, removed: &Removed, parameters: Parameters) {
        self.used = Some(removed.raise(self.used.unwrap_or(UsedCode::none(SecretId::new(0))), parameters.period));
    }
}

#[allow(clippy::too_many_arguments)]
fn insert(
    user: UserId,
    device: DeviceName,
    uri: &OtpauthUri,
    of_device: &[&Existing],
    version: i32,
    confirmed: bool,
    past: Past,
    now: Timestamp,
) -> Result<(), Error> {
    let key = keyring::hold_current()?;
    let secret_id = secrets::next_id(&Snapshot::latest())?;
    let context = SecretContext { user, device, secret_id, parameters: uri.parameters };
    let enforced_since = of_device.iter().find_map(|s| s.enforced_since);
    secrets::insert(&NewSecret {
        user,
        device,
        slot: if confirmed { Slot::Active } else { Slot::Pending },
        secret_id,
        version,
        key_id: key,
        sealed: &keyring::seal_secret(key, context, &uri.secret)?,
        parameters: uri.parameters,
        issuer: uri.issuer.as_deref(),
        account_name: &uri.account,
        created_at: past.created_at,
        confirmed_at: confirmed.then_some(now),
        enforced_since: enforced_since.or(confirmed.then_some(now)),
        expires_at: (!confirmed).then(|| Timestamp(now.0.saturating_add(settings::enrollment_ttl()))),
        used: past.used,
    })
}

/// Refuses one device too many. Removes devices that were never confirmed and whose secret has expired if their place is
/// needed.
fn make_room(user: UserId, device: DeviceName, existing: &[Existing], now: Timestamp) -> Result<(), Error> {
    let mut others: Vec<_> = existing.iter().filter(|s| s.device() != device).collect();
    others.dedup_by(|a, b| a.device() == b.device());
    let mut count = others.len();
    for abandoned in others.iter().filter(|s| s.is_abandoned(now)) {
        if count < settings::max_devices() {
            break;
        }
        // Its first code may have been used in a transaction that was rolled back.
        let mut removed = Removed::nothing();
        removed.add(secrets::delete(user, abandoned.secret_id)?, abandoned.codes, now)?;
        audit::record_with(Event::Removed, now, Some(user), Some(abandoned.device()), &removed.detail())?;
        count -= 1;
    }
    if count < settings::max_devices() { Ok(()) } else { Err(Error::TooManyDevices) }
}

/// A secret of the user that is the same as the imported one.
struct Known {
    secret_id: SecretId,
    slot: Slot,
    parameters: Parameters,
}

/// Finds the imported secret at the device: then its used step is kept.
///
/// Errors: 22023 if another device of the user has it, since each code would count twice.
fn find_known(user: UserId, device: DeviceName, uri: &OtpauthUri) -> Result<Option<Known>, Error> {
    let mut known = None;
    let snapshot = Snapshot::latest();
    for stored in secrets::sealed_of_user(&snapshot, user)? {
        let secret = keyring::open_secret(&snapshot, user, &stored)?;
        let algorithm = stored.parameters.algorithm;
        let same_codes = algorithm == uri.parameters.algorithm && secret.same_codes_as(&uri.secret, algorithm);
        if same_codes || secret.same_as(&uri.secret) {
            if stored.device() != device {
                return Err(Error::SecretOfOtherDevice);
            }
            // Of two equal ones of the device, the active one comes first.
            known =
                known.or(Some(Known { secret_id: stored.secret_id, slot: stored.slot, parameters: stored.parameters }));
        }
    }
    Ok(known)
}

/// Converts a used step to a period of another length: the step in which the used one ends.
fn translate(used: TimeStep, old: Parameters, new: Parameters) -> TimeStep {
    if used == TimeStep::NONE { used } else { TimeStep::at(used.end(old.period).saturating_sub(1), new.period) }
}
