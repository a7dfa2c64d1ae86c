//! `totp_enroll`, `totp_reset`: a device gets a new secret. And the rules by which any secret is stored.
//!
//! Owns these rules: one writer per user, one secret per device and slot, no secret twice. Must never forget a used step of a
//! secret that comes back, nor let `totp_enroll` replace what the support desk has staged.

use otp::{Drift, OtpauthUri, Parameters, Period, Secret};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::arguments::{self, labels};
use super::binding;
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
/// secret of the device works until then, unless `keep_current` is false. For its symbol see `old_sql.rs`.
#[pg_extern(name = "totp_enroll", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn totp_enroll_v2(
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
    let asked = Asked { account_name, issuer, algorithm, digits, period, keep_current };
    Ok(enroll(user_id, device, &asked, Slot::Proposed)?)
}

/// The other arguments of `totp_enroll`.
pub struct Asked<'a> {
    pub account_name: Option<&'a str>,
    pub issuer: Option<&'a str>,
    pub algorithm: Option<&'a str>,
    pub digits: Option<i32>,
    pub period: Option<i32>,
    pub keep_current: Option<bool>,
}

/// Stages a new secret in a slot.
pub fn enroll(user_id: Option<&str>, device: Option<&str>, asked: &Asked, slot: Slot) -> Result<Shown, Error> {
    let user = UserId::new(user_id)?;
    let device = DeviceName::new(device)?;
    let keep_current = asked.keep_current.ok_or(Error::Null("keep_current"))?;
    let parameters = arguments::parameters(asked.algorithm, asked.digits, asked.period)?;
    let (issuer, account) = labels(user, asked.account_name, asked.issuer)?;
    let uri = OtpauthUri { issuer, account, secret: generate(parameters)?, parameters };

    begin(user)?;
    store(user, device, &uri, &Plan { keep_current, slot, drift: None, event: Event::Enrolled })?;
    Ok(shown(&uri))
}

/// The one row that shows secret and URI.
pub type Shown = TableIterator<'static, (name!(secret, SecretText), name!(otpauth_uri, SecretText))>;

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

    let plan = Plan { keep_current: false, slot: Slot::Pending, drift: None, event: Event::Reset };
    store(user, device, &uri, &plan)?;
    Ok(shown(&uri))
}

fn shown(uri: &OtpauthUri) -> Shown {
    TableIterator::once((SecretText(uri.secret.to_base32()), SecretText(uri.build())))
}

/// Generates a secret as long as the hash of the algorithm, as RFC 4226 section 4 recommends.
fn generate(parameters: Parameters) -> Result<Secret, Error> {
    random::secret_bytes(parameters.algorithm.secret_len()).map(Secret::from_bytes)
}

/// How a secret is stored.
pub struct Plan {
    /// The device keeps its other secrets until the new one is confirmed.
    pub keep_current: bool,
    /// An active secret counts at once, and ends the others of the device.
    pub slot: Slot,
    /// How far the token has drifted, if it is known. Else what is known of the same secret stays.
    pub drift: Option<Drift>,
    pub event: Event,
}

impl Plan {
    /// Returns what is done for this user: without a proof, nothing ends an active secret before the new one is confirmed,
    /// nor what the support desk has staged.
    ///
    /// Errors: 42501 if that was asked for.
    fn without_proof(&self, existing: &[Existing]) -> Result<bool, Error> {
        if self.keep_current || self.slot != Slot::Proposed || !settings::require_proof() {
            return Ok(self.keep_current);
        }
        let is_active = existing.iter().any(|s| s.slot == Slot::Active);
        if is_active { Err(Error::ReplacementNeedsProof) } else { Ok(true) }
    }
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
    let floor_at = replay_floor::current()?;
    let now = clock::now()?;
    let existing = secrets::of_user(&Snapshot::latest(), user)?;
    let of_device: Vec<_> = existing.iter().filter(|s| s.device() == device).collect();
    if of_device.iter().any(|s| s.disabled) {
        return Err(Error::DeviceDisabled);
    }
    let keep_current = plan.without_proof(&existing)?;
    match plan.slot {
        Slot::Proposed => binding::make_room_for_proposed(user, device, &existing, now)?,
        _ => binding::make_room(user, device, &existing, now)?,
    }
    let may_be_known = plan.event == Event::Imported && !existing.is_empty();
    let known = if may_be_known { find_known(user, device, uri)? } else { None };
    let was_active = known.as_ref().is_some_and(|k| k.slot == Slot::Active);
    let slot = if was_active { Slot::Active } else { plan.slot };

    let mut past = Past { created_at: now, used: None };
    let mut removed = Removed::nothing();
    for old in &of_device {
        if let Some(known) = known.as_ref().filter(|k| k.secret_id == old.secret_id) {
            let used = secrets::take(user, old.secret_id)?;
            // What may have been used in lost WAL was used under the old drift, which the import may change.
            let floor = replay_floor::step(floor_at, old.codes.created_at, now, known.period, used.drift());
            let used = UsedCode { step: used.step.max(floor.unwrap_or(used.step)), ..used };
            let used = used.in_period(known.period, uri.parameters.period);
            past = Past { created_at: old.codes.created_at, used: Some(used) };
        } else if old.slot == slot || slot == Slot::Active || !keep_current {
            removed.add(secrets::delete(user, old.secret_id)?, old.codes, now)?;
        }
    }
    if plan.event == Event::Imported {
        past.forget_nothing(&Removed::of_user(user, now)?, uri.parameters);
        past.set_drift(plan.drift);
    }
    let version = of_device.iter().map(|s| s.version).max().unwrap_or(0).saturating_add(1);
    let secret_id = insert(user, device, uri, &of_device, version, slot, past, now)?;
    let mut detail = removed.detail();
    match plan.event {
        Event::Enrolled => detail.push(("keep_current", keep_current.into())),
        Event::Imported => {
            inplace::note_import();
            detail.push(("confirmed", (slot == Slot::Active).into()));
        }
        _ => {}
    }
    detail.push(("version", version.into()));
    audit::record_with(plan.event, now, Some(user), Some(device), &detail)?;
    if slot == Slot::Active && !binding::has_mfa(&existing) {
        binding::forget_earlier(user, secret_id, now)?;
    }
    Ok(())
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

    /// Sets the drift of the token, if the caller knows it.
    fn set_drift(&mut self, drift: Option<Drift>) {
        if let (Some(used), Some(drift)) = (&mut self.used, drift) {
            *used = used.with_drift(drift);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn insert(
    user: UserId,
    device: DeviceName,
    uri: &OtpauthUri,
    of_device: &[&Existing],
    version: i32,
    slot: Slot,
    past: Past,
    now: Timestamp,
) -> Result<SecretId, Error> {
    let confirmed = slot == Slot::Active;
    let key = keyring::hold_current()?;
    let secret_id = secrets::next_id()?;
    let context = SecretContext { user, device, secret_id, parameters: uri.parameters };
    let enforced_since = of_device.iter().find_map(|s| s.enforced_since);
    secrets::insert(&NewSecret {
        user,
        device,
        slot,
        secret_id,
        version,
        key_id: key.id(),
        sealed: &keyring::seal_secret(&key, context, &uri.secret)?,
        parameters: uri.parameters,
        issuer: uri.issuer.as_deref(),
        account_name: &uri.account,
        created_at: past.created_at,
        confirmed_at: confirmed.then_some(now),
        enforced_since: enforced_since.or(confirmed.then_some(now)),
        expires_at: (!confirmed).then(|| Timestamp(now.0.saturating_add(settings::enrollment_ttl()))),
        used: past.used,
    })?;
    Ok(secret_id)
}

/// A secret of the user that is the same as the imported one.
struct Known {
    secret_id: SecretId,
    slot: Slot,
    period: Period,
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
            known = known.or(Some(Known {
                secret_id: stored.secret_id,
                slot: stored.slot,
                period: stored.parameters.period,
            }));
        }
    }
    Ok(known)
}
