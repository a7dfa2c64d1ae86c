//! HKDF-SHA256 (RFC 5869): one key per purpose from one key.
//!
//! Owns the derivation and the names of the purposes. Must never give two purposes the same key.

use hmac::digest::common::Key;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

/// Wrapping data keys under a master key.
pub(crate) const WRAP: &[u8] = b"pg_totp v1 wrap data key";
/// The fingerprint of a master key.
pub(crate) const FINGERPRINT: &[u8] = b"pg_totp v1 master key fingerprint";
/// Sealing secrets under a data key.
pub(crate) const SECRET: &[u8] = b"pg_totp v1 secret";
/// Sealing recovery code hashes under a data key.
pub(crate) const RECOVERY_CODES: &[u8] = b"pg_totp v1 recovery codes";

/// HKDF-SHA256 with no salt and an output of one block (RFC 5869 section 2, L = 32):
/// `PRK = HMAC(zeros, key)`, `output = HMAC(PRK, purpose | 0x01)`.
///
/// Written out because `hkdf::Hkdf::expand` returns an error that L = 32 cannot cause. A test compares both.
pub(crate) fn derive(key: &[u8; 32], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
    let pseudorandom = hmac(&[0; 32], &[key]);
    hmac(&pseudorandom, &[purpose, &[1]])
}

/// HMAC-SHA256 of a message in parts (RFC 2104).
fn hmac(key: &[u8; 32], message: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    // The key padded to one block (RFC 2104 section 2): that way of keying has no error.
    let mut block = Key::<Hmac<Sha256>>::default();
    block.iter_mut().zip(key).for_each(|(slot, byte)| *slot = *byte);
    let mut mac = Hmac::<Sha256>::new(&block);
    block.as_mut_slice().zeroize();
    message.iter().for_each(|part| mac.update(part));
    Zeroizing::new((*mac.finalize().as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use hkdf::Hkdf;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_library_derives_the_same(key in any::<[u8; 32]>(), purpose in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut expected = [0; 32];
            Hkdf::<Sha256>::new(None, &key).expand(&purpose, &mut expected).unwrap();
            prop_assert_eq!(*derive(&key, &purpose), expected);
        }
    }

    #[test]
    fn purposes_differ() {
        let purposes = [WRAP, FINGERPRINT, SECRET, RECOVERY_CODES];
        for (n, purpose) in purposes.into_iter().enumerate() {
            assert!(!purposes[..n].contains(&purpose));
        }
    }
}
