//! Keys that seal the audit trail.
//!
//! Owns such a key, its wrapped form, and the two keys that are derived from it. Must never be stored unwrapped.
//!
//! Wrapped as a data key is, by another subkey of the master key: neither opens as the other.

use hmac::{Hmac, KeyInit};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::datakey::{self, KeyId};
use crate::gcm::{NONCE, OpenError, SealError};
use crate::master::MasterKey;
use crate::subkey;

/// A key of the trail. Wiped when dropped.
pub struct MacKey {
    /// In a box, so that moving it leaves no copy behind.
    key: Box<Zeroizing<[u8; 32]>>,
    pub(crate) rows: Hmac<Sha256>,
    pub(crate) seals: Hmac<Sha256>,
}

impl MacKey {
    /// Takes 32 bytes from a cryptographic generator.
    pub fn from_random(key: Zeroizing<[u8; 32]>) -> MacKey {
        MacKey {
            rows: keyed(&subkey::derive(&key, subkey::AUDIT_ROWS)),
            seals: keyed(&subkey::derive(&key, subkey::AUDIT_SEALS)),
            key: Box::new(key),
        }
    }

    /// Returns the stored form, bound to the number of the key and to the master key. The nonce must be random.
    ///
    /// # Errors
    /// None that 32 bytes can cause.
    pub fn wrap(&self, master: &MasterKey, id: KeyId, nonce: [u8; NONCE]) -> Result<Vec<u8>, SealError> {
        datakey::wrap(&master.mac_wrapping, master, id, nonce, &self.key)
    }

    /// Reads what [`MacKey::wrap`] wrote.
    ///
    /// # Errors
    /// [`OpenError`] if it is altered, has another number, or is under another master key.
    pub fn unwrap(master: &MasterKey, id: KeyId, wrapped: &[u8]) -> Result<MacKey, OpenError> {
        datakey::unwrap(&master.mac_wrapping, master, id, wrapped).map(MacKey::from_random)
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    let Ok(keyed) = Hmac::new_from_slice(key) else { unreachable!("RFC 2104 accepts keys of every length") };
    keyed
}
