//! `totp_recovery_codes`, `totp_reset_recovery_codes`: a new set of recovery codes.
//!
//! Owns the way of a set from the generator to its table. Must never replace a set without a proof, except for the support
//! desk.

use otp::{RecoveryCode, RecoverySet};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use seal::KeyId;

use super::guard;
use super::proof;
use super::secret_text::SecretText;
use crate::audit;
use crate::clock;
use crate::error::Error;
use crate::store::attempts;
use crate::store::recovery_codes;
use crate::store::secrets::{self, Existing, Slot};
use crate::store::spi::Snapshot;
use crate::timestamp::Timestamp;
use crate::user::{SecretId, UserId};
use crate::{keyring, random};

/// Creates a set of recovery codes and returns it, this one time. The old set stops working. No row if the proof is wrong. For
/// its symbol see `old_sql.rs`.
#[pg_extern(name = "totp_recovery_codes", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
pub fn totp_recovery_codes_v2(
    user_id: Option<&str>,
    count: default!(Option<i32>, 10),
    proof: default!(Option<&str>, "NULL"),
) -> Result<SetOfIterator<'static, SecretText>, ErrorReport> {
    let ask = |user: UserId<'_>, existing: &[Existing]| {
        if existing.iter().any(|s| s.slot == Slot::Active) {
            proof::ask(user, existing, proof)
        } else {
            Err(Error::NoSuchDevice)
        }
    };
    guard::judging("totp_recovery_codes", || replace(user_id, count, ask))
}

/// Does the same for the support desk, without a proof, and also for a user whose devices wait for their first code.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_reset_recovery_codes(
    user_id: Option<&str>,
    count: default!(Option<i32>, 10),
) -> Result<SetOfIterator<'static, SecretText>, ErrorReport> {
    guard::writable("totp_reset_recovery_codes")?;
    Ok(replace_without_proof(user_id, count)?)
}

/// Replaces a set and asks for nothing.
pub fn replace_without_proof(
    user_id: Option<&str>,
    count: Option<i32>,
) -> Result<SetOfIterator<'static, SecretText>, Error> {
    replace(user_id, count, |_, _| Ok(true))
}

fn replace(
    user_id: Option<&str>,
    count: Option<i32>,
    is_allowed: impl FnOnce(UserId, &[Existing]) -> Result<bool, Error>,
) -> Result<SetOfIterator<'static, SecretText>, Error> {
    let user = UserId::new(user_id)?;
    let count = count.ok_or(Error::Null("count"))?;
    let count = u8::try_from(count).ok().filter(|c| (1..=20).contains(c)).ok_or(Error::RecoveryCount)?;
    keyring::hold_existing()?;
    if !attempts::lock(user)? {
        return Err(Error::NoSuchDevice);
    }
    let existing = secrets::of_user(&Snapshot::latest(), user)?;
    if existing.is_empty() {
        return Err(Error::NoSuchDevice);
    }
    let set = NewSet::create(user, count)?;
    if !is_allowed(user, &existing)? {
        return Ok(SetOfIterator::empty());
    }
    Ok(SetOfIterator::new(set.store(user, clock::now()?)?))
}

/// A set of recovery codes that is not stored yet.
pub struct NewSet {
    codes: Vec<RecoveryCode>,
    set_id: SecretId,
    key: KeyId,
    sealed: Vec<u8>,
}

impl NewSet {
    /// Creates a set of 1 to 20 codes, with the user locked.
    fn create(user: UserId, count: u8) -> Result<Self, Error> {
        let key = keyring::hold_current()?;
        let codes =
            (0..count).map(|_| random::bytes().map(RecoveryCode::from_random)).collect::<Result<Vec<_>, Error>>()?;
        let hashes = RecoverySet::from_codes(&codes).map_err(|_| Error::RecoveryCount)?.to_bytes();
        let set_id = secrets::next_id()?;
        let sealed = keyring::seal_recovery_codes(&key, user, set_id, count, &hashes)?;
        Ok(Self { codes, set_id, key: key.id(), sealed })
    }

    /// Creates a set, or none for 0 codes.
    pub fn create_some(user: UserId, count: u8) -> Result<Option<Self>, Error> {
        if count == 0 { Ok(None) } else { Self::create(user, count).map(Some) }
    }

    /// Replaces the user's set, and returns the codes to show.
    pub fn store(self, user: UserId, now: Timestamp) -> Result<Vec<SecretText>, Error> {
        let count = u8::try_from(self.codes.len()).map_err(|_| Error::RecoveryCount)?;
        recovery_codes::replace(user, self.set_id, count, self.key, &self.sealed, now)?;
        audit::record(audit::Event::RecoveryCodesCreated, now, Some(user), None)?;
        Ok(self.codes.into_iter().map(|code| SecretText(code.render())).collect())
    }
}
