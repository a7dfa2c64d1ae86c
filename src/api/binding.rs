//! What makes a secret count: its first code, and for a user who has MFA a proof besides.
//!
//! A user has MFA if any secret was ever confirmed, disabled or not. Who can only enroll stages secrets for anyone. So such a
//! secret, which nobody has approved, is no candidate at a sign-in of a user who has MFA, and counts only with a proof.
//!
//! Owns the activation of a secret. Must never change a row without the lock of the user.

use crate::audit::{self, Event};
use crate::error::Error;
use crate::removed::Removed;
use crate::settings;
use crate::store::recovery_codes;
use crate::store::secrets::{self, Existing, SealedSecret, Slot};
use crate::store::spi::Snapshot;
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, SecretId, UserId};

/// Who vouched for a secret that becomes active. For the audit log.
#[derive(Clone, Copy)]
pub enum Proof {
    /// A code of an active device.
    Code,
    RecoveryCode,
    /// Nobody: the user had no MFA.
    Nothing,
    /// The support desk, which staged it.
    Desk,
}

impl Proof {
    /// Returns what vouches for a secret that becomes active by its code alone.
    pub fn of_none(slot: Slot) -> Self {
        if slot == Slot::Pending { Self::Desk } else { Self::Nothing }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::RecoveryCode => "recovery_code",
            Self::Nothing => "none",
            Self::Desk => "desk",
        }
    }
}

/// Returns whether a secret of the user was ever confirmed.
pub fn has_mfa(existing: &[Existing]) -> bool {
    existing.iter().any(|s| s.enforced_since.is_some())
}

/// Returns whether a secret in this slot counts only with a proof.
pub fn needs_proof(slot: Slot, has_mfa: bool) -> bool {
    slot == Slot::Proposed && has_mfa && settings::require_proof()
}

/// Makes room for a device that will count. Removes devices that were never confirmed and whose secret has expired if their
/// place is needed. Proposed secrets take no place.
///
/// Errors: 54000 if the user has too many devices.
pub fn make_room(user: UserId, device: DeviceName, existing: &[Existing], now: Timestamp) -> Result<(), Error> {
    let mut others: Vec<_> = existing.iter().filter(|s| s.device() != device && s.slot != Slot::Proposed).collect();
    others.dedup_by(|a, b| a.device() == b.device());
    let mut count = others.len();
    for abandoned in others.iter().filter(|s| s.is_abandoned(now)) {
        if count < settings::max_devices() {
            break;
        }
        remove(user, abandoned, now)?;
        count -= 1;
    }
    if count < settings::max_devices() { Ok(()) } else { Err(Error::TooManyDevices) }
}

/// Makes room for a proposed secret: a user has at most `totp.max_devices`, and the oldest one of another device goes. But if
/// the active secrets are lost, those that were staged to replace them stay: they alone show that the user has MFA.
pub fn make_room_for_proposed(
    user: UserId,
    device: DeviceName,
    existing: &[Existing],
    now: Timestamp,
) -> Result<(), Error> {
    let mut others: Vec<_> = existing.iter().filter(|s| s.device() != device && s.slot == Slot::Proposed).collect();
    others.sort_by_key(|s| (s.codes.created_at, s.secret_id));
    let too_many = (others.len() + 1).saturating_sub(settings::max_devices());
    let is_shown_by_others = existing.iter().any(|s| s.enforced_since.is_some() && s.slot != Slot::Proposed);
    others.retain(|s| s.enforced_since.is_none() || is_shown_by_others);
    others.iter().take(too_many).try_for_each(|oldest| remove(user, oldest, now))
}

/// Makes a secret the active one of its device. If it is the first one of the user, forgets what was staged before.
pub fn activate(user: UserId, secret: &SealedSecret, proof: Proof, had_mfa: bool, now: Timestamp) -> Result<(), Error> {
    let mut removed = Removed::nothing();
    if let Some(old) = secrets::activate(user, secret.device(), secret.secret_id, now)? {
        removed.add(old.used, old.codes, now)?;
    }
    let mut detail = removed.detail();
    detail.push(("proof", proof.as_str().into()));
    audit::record_with(Event::Confirmed, now, Some(user), Some(secret.device()), &detail)?;
    if had_mfa { Ok(()) } else { forget_earlier(user, secret.secret_id, now) }
}

/// Removes what anyone may have staged for a user who has just got MFA: secrets that nobody approved, and recovery codes.
pub fn forget_earlier(user: UserId, activated: SecretId, now: Timestamp) -> Result<(), Error> {
    for staged in secrets::of_user(&Snapshot::latest(), user)? {
        if staged.slot == Slot::Proposed && staged.secret_id != activated {
            remove(user, &staged, now)?;
        }
    }
    if recovery_codes::delete(user)? {
        audit::record(Event::RecoveryCodesRemoved, now, Some(user), None)?;
    }
    Ok(())
}

/// Removes a secret that was not confirmed. Its first code may have been used in a transaction that was rolled back.
pub fn remove(user: UserId, secret: &Existing, now: Timestamp) -> Result<(), Error> {
    let mut removed = Removed::nothing();
    removed.add(secrets::delete(user, secret.secret_id)?, secret.codes, now)?;
    audit::record_with(Event::Removed, now, Some(user), Some(secret.device()), &removed.detail())
}
