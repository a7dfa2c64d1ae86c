//! Data keys.
//!
//! Owns a data key, its wrapped form, and its key schedules. Must never be stored unwrapped.
//!
//! Wrapped: `version(1) | nonce(12) | ciphertext(32) | tag(16)`, 61 bytes, under a master key.

use zeroize::Zeroizing;

use crate::gcm::{Cipher, NONCE, OpenError, SealError, TAG};
use crate::master::MasterKey;
use crate::subkey;

/// First byte of a wrapped data key.
const VERSION: u8 = 1;

/// Bytes of a wrapped data key.
const WRAPPED: usize = 1 + NONCE + 32 + TAG;

/// The number of a data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(i32);

impl KeyId {
    /// Any number.
    pub const fn new(id: i32) -> KeyId {
        KeyId(id)
    }

    /// The number.
    pub const fn get(self) -> i32 {
        self.0
    }
}

/// A data key with a ready cipher per purpose. Wiped when dropped.
pub struct DataKey {
    /// In a box, so that moving it leaves no copy behind.
    key: Box<Zeroizing<[u8; 32]>>,
    pub(crate) secret: Cipher,
    pub(crate) recovery_codes: Cipher,
}

impl DataKey {
    /// Takes 32 bytes from a cryptographic generator.
    pub fn from_random(key: Zeroizing<[u8; 32]>) -> DataKey {
        DataKey {
            secret: Cipher::new(&subkey::derive(&key, subkey::SECRET)),
            recovery_codes: Cipher::new(&subkey::derive(&key, subkey::RECOVERY_CODES)),
            key: Box::new(key),
        }
    }

    /// Returns the stored form, bound to the number of the key and to the master key. The nonce must be random.
    ///
    /// # Errors
    /// None that 32 bytes can cause.
    pub fn wrap(&self, master: &MasterKey, id: KeyId, nonce: [u8; NONCE]) -> Result<Vec<u8>, SealError> {
        wrap(&master.wrapping, master, id, nonce, &self.key)
    }

    /// Reads what [`DataKey::wrap`] wrote.
    ///
    /// # Errors
    /// [`OpenError`] if it is altered, has another number, or is under another master key.
    pub fn unwrap(master: &MasterKey, id: KeyId, wrapped: &[u8]) -> Result<DataKey, OpenError> {
        unwrap(&master.wrapping, master, id, wrapped).map(DataKey::from_random)
    }
}

/// Wraps a key, by a subkey of the master key.
pub(crate) fn wrap(
    wrapping: &Cipher,
    master: &MasterKey,
    id: KeyId,
    nonce: [u8; NONCE],
    key: &[u8; 32],
) -> Result<Vec<u8>, SealError> {
    let mut wrapped = Vec::with_capacity(WRAPPED);
    wrapped.push(VERSION);
    wrapping.seal(nonce, &associated_data(master, id), key, &mut wrapped)?;
    Ok(wrapped)
}

/// Reads what [`wrap`] wrote.
pub(crate) fn unwrap(
    wrapping: &Cipher,
    master: &MasterKey,
    id: KeyId,
    wrapped: &[u8],
) -> Result<Zeroizing<[u8; 32]>, OpenError> {
    let (VERSION, body) = wrapped.split_first().map(|(version, body)| (*version, body)).ok_or(OpenError)? else {
        return Err(OpenError);
    };
    let opened = wrapping.open(&associated_data(master, id), body)?;
    let mut key = Zeroizing::new([0; 32]);
    if opened.len() != key.len() {
        return Err(OpenError);
    }
    key.copy_from_slice(&opened);
    Ok(key)
}

/// Returns what a wrapped key is bound to: `version(1) | key id(4, big endian) | fingerprint(8)`. All fields have a fixed width.
fn associated_data(master: &MasterKey, id: KeyId) -> Vec<u8> {
    [&[VERSION], id.get().to_be_bytes().as_slice(), master.fingerprint().as_bytes()].concat()
}
