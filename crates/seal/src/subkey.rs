//! HKDF-SHA256 (RFC 5869): derives one key per purpose from one key.
//!
//! Owns the derivation and the names of the purposes. Must never give two purposes the same key.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Wrapping data keys under a master key.
pub(crate) const WRAP: &[u8] = b"pg_totp v1 wrap data key";
/// The fingerprint of a master key.
pub(crate) const FINGERPRINT: &[u8] = b"pg_totp v1 master key fingerprint";
/// Sealing secrets under a data key.
pub(crate) const SECRET: &[u8] = b"pg_totp v1 secret";
/// Sealing recovery code hashes under a data key.
pub(crate) const RECOVERY_CODES: &[u8] = b"pg_totp v1 recovery codes";

/// Wrapping keys of the audit trail under a master key.
pub(crate) const WRAP_MAC_KEY: &[u8] = b"pg_totp v1 wrap audit key";
/// The MAC over audit rows.
pub(crate) const AUDIT_ROWS: &[u8] = b"pg_totp v1 audit rows";
/// The MAC over seals of the audit trail.
pub(crate) const AUDIT_SEALS: &[u8] = b"pg_totp v1 audit seals";

/// HKDF-SHA256 with no salt and an output of one block (RFC 5869 section 2, L = 32).
pub(crate) fn derive(key: &[u8; 32], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut derived = Zeroizing::new([0; 32]);
    let Ok(()) = Hkdf::<Sha256>::new(None, key).expand(purpose, derived.as_mut_slice()) else {
        unreachable!("HKDF-SHA256 refuses only more than 255 blocks (RFC 5869 section 2.3)")
    };
    derived
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    /// RFC 5869 has no vector with an empty salt and 32 bytes: this one is HMAC(HMAC(zeros, key), purpose | 0x01),
    /// computed separately.
    #[test]
    fn one_block_of_hkdf() {
        assert_eq!(
            *derive(&[0x0b; 32], b"purpose"),
            hex!("a91633b5045e34a21acc75c1689d0a3539fbd0f43375c96cfab5fb7e85096df0")
        );
    }

    #[test]
    fn purposes_differ() {
        let purposes = [WRAP, FINGERPRINT, SECRET, RECOVERY_CODES, WRAP_MAC_KEY, AUDIT_ROWS, AUDIT_SEALS];
        for (n, purpose) in purposes.into_iter().enumerate() {
            assert!(!purposes[..n].contains(&purpose));
        }
    }
}
