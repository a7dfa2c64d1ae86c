//! Master keys.
//!
//! Owns one master key and its fingerprint. Must never keep the key's bytes: only what is derived from them.

use std::fmt;

use zeroize::Zeroizing;

use crate::gcm::Cipher;
use crate::subkey;

/// A master key: wraps data keys, and keys of the audit trail. Wiped when dropped.
pub struct MasterKey {
    pub(crate) wrapping: Cipher,
    pub(crate) mac_wrapping: Cipher,
    fingerprint: Fingerprint,
}

impl MasterKey {
    /// Takes 32 bytes. [`crate::keyfile`] checks whether they are too regular.
    pub fn from_bytes(key: Zeroizing<[u8; 32]>) -> MasterKey {
        let [a, b, c, d, e, f, g, h, ..] = *subkey::derive(&key, subkey::FINGERPRINT);
        MasterKey {
            wrapping: Cipher::new(&subkey::derive(&key, subkey::WRAP)),
            mac_wrapping: Cipher::new(&subkey::derive(&key, subkey::WRAP_MAC_KEY)),
            fingerprint: Fingerprint([a, b, c, d, e, f, g, h]),
        }
    }

    /// Returns the name of the key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

/// The name of a master key: the first 8 bytes of a keyed hash. It distinguishes keys and reveals nothing about them.
///
/// Displayed as 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 8]);

impl Fingerprint {
    /// Reads 16 hexadecimal digits of either case.
    ///
    /// # Errors
    /// [`InvalidFingerprint`] for anything else.
    pub fn parse(text: &str) -> Result<Fingerprint, InvalidFingerprint> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidFingerprint)?;
        Ok(Fingerprint(bytes))
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Not 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid master key fingerprint")]
pub struct InvalidFingerprint;
