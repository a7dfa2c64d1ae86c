//! Seals and opens secrets and sets of recovery codes.
//!
//! Owns what a sealed value is bound to. Must never open a value for another user, device, or set than it was sealed for.

use otp::{Parameters, Secret};
use seal::{Context, KeyId};
use zeroize::Zeroizing;

use super::data_keys::{HeldKey, cached, reread_after_reload, unwrapped};
use super::master_keys;
use crate::error::Error;
use crate::random;
use crate::store::data_keys;
use crate::store::recovery_codes::SealedSet;
use crate::store::secrets::SealedSecret;
use crate::store::spi::Snapshot;
use crate::user::{DeviceName, SecretId, UserId};

/// What a secret is bound to.
#[derive(Clone, Copy)]
pub struct SecretContext<'a> {
    pub user: UserId<'a>,
    pub device: DeviceName<'a>,
    pub secret_id: SecretId,
    pub parameters: Parameters,
}

impl<'a> SecretContext<'a> {
    /// Returns the context of a stored secret.
    pub fn of(user: UserId<'a>, stored: &'a SealedSecret) -> Self {
        Self { user, device: stored.device(), secret_id: stored.secret_id, parameters: stored.parameters }
    }

    fn bound(self) -> Context<'a> {
        Context::Secret {
            user_id: self.user.as_str(),
            device: self.device.as_str(),
            secret_id: self.secret_id.get(),
            algorithm: self.parameters.algorithm.as_str(),
            digits: self.parameters.digits.get(),
            period: self.parameters.period.get(),
        }
    }
}

fn context_of_set<'a>(user: UserId<'a>, set_id: SecretId, count: u8) -> Context<'a> {
    Context::RecoveryCodes { user_id: user.as_str(), set_id: set_id.get(), count }
}

/// Opens a stored secret. Looks for its data key under the snapshot that found the secret: a rotation that commits
/// meanwhile destroys the key, but not for that snapshot.
///
/// Errors: F0000 if its master key is not loaded, XX001 if its data key does not exist or the secret does not open.
pub fn open_secret(snapshot: &Snapshot, user: UserId, stored: &SealedSecret) -> Result<Secret, Error> {
    open(snapshot, &SecretContext::of(user, stored).bound(), &stored.sealed).map(Secret::from_bytes)
}

/// Opens a stored secret if this backend has its data key in memory. Reads nothing, waits for nothing, and raises nothing.
pub fn open_secret_at_hand(user: UserId, stored: &SealedSecret) -> Option<Secret> {
    let id = seal::key_id(&stored.sealed).ok()?;
    let context = SecretContext::of(user, stored);
    seal::open(&*cached(id)?, id, &context.bound(), &stored.sealed).ok().map(Secret::from_bytes)
}

/// Seals a secret.
pub fn seal_secret(key: &HeldKey, context: SecretContext, secret: &Secret) -> Result<Vec<u8>, Error> {
    seal(key, &context.bound(), secret.as_bytes())
}

/// Opens the hashes of a set of recovery codes. Errors as [`open_secret`].
pub fn open_recovery_codes(snapshot: &Snapshot, user: UserId, set: &SealedSet) -> Result<Zeroizing<Vec<u8>>, Error> {
    open(snapshot, &context_of_set(user, set.set_id, set.count), &set.sealed)
}

/// Seals the hashes of a set of recovery codes.
pub fn seal_recovery_codes(
    key: &HeldKey,
    user: UserId,
    set_id: SecretId,
    count: u8,
    hashes: &[u8],
) -> Result<Vec<u8>, Error> {
    seal(key, &context_of_set(user, set_id, count), hashes)
}

/// Opens a secret and seals it under another data key. Both keys are cached since [`super::cache_all`].
pub fn reseal_secret(to: KeyId, context: SecretContext, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    reseal(to, &context.bound(), sealed)
}

/// Does the same with a set of recovery codes.
pub fn reseal_recovery_codes(
    to: KeyId,
    user: UserId,
    set_id: SecretId,
    count: u8,
    sealed: &[u8],
) -> Result<Vec<u8>, Error> {
    reseal(to, &context_of_set(user, set_id, count), sealed)
}

fn reseal(to: KeyId, context: &Context, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let plaintext = open(&Snapshot::latest(), context, sealed)?;
    let key = cached(to).ok_or(Error::NoDataKey(to))?;
    seal::seal(&key, to, random::bytes()?, context, &plaintext).map_err(|_| Error::Internal("seal a value"))
}

fn seal(key: &HeldKey, context: &Context, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
    reread_after_reload();
    seal::seal(&*key.unwrapped()?, key.id(), random::bytes()?, context, plaintext)
        .map_err(|_| Error::Internal("seal a value"))
}

fn open(snapshot: &Snapshot, context: &Context, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let id = seal::key_id(sealed).map_err(|_| Error::DoesNotOpen)?;
    reread_after_reload();
    if let Some(key) = cached(id)
        && let Ok(plaintext) = seal::open(&key, id, context, sealed)
    {
        return Ok(plaintext);
    }
    master_keys::note_read();
    let stored = data_keys::find(snapshot, id)?.ok_or(Error::NoDataKey(id))?;
    seal::open(&*unwrapped(&stored)?, id, context, sealed).map_err(|_| Error::DoesNotOpen)
}
