//! AES-256-GCM (NIST SP 800-38D) with a 12-byte nonce and a 16-byte tag.
//!
//! Owns the cipher: `nonce | ciphertext | tag` under a key and associated data. Must never return a plaintext with a wrong tag,
//! nor say what is wrong.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::Zeroizing;

/// Bytes of a nonce.
pub(crate) const NONCE: usize = 12;
/// Bytes of a tag.
pub(crate) const TAG: usize = 16;

/// A ready key schedule. In a box, so that moving it leaves no copy behind. Wiped when dropped.
pub(crate) struct Cipher(Box<Aes256Gcm>);

impl Cipher {
    pub(crate) fn new(key: &[u8; 32]) -> Cipher {
        Cipher(Box::new(Aes256Gcm::new(key.into())))
    }

    /// Appends `nonce | ciphertext | tag` to `out`, which holds the header of the plaintext, if it has one.
    ///
    /// # Errors
    /// [`SealError`] for more than 2^36 - 32 bytes (NIST SP 800-38D section 5.2.1.1).
    pub(crate) fn seal(
        &self,
        nonce: [u8; NONCE],
        aad: &[u8],
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        // Allocates everything at once: growing would leave plaintext behind.
        out.reserve_exact(NONCE + plaintext.len() + TAG);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let body = out.get_mut(start..).ok_or(SealError)?;
        let tag = self.0.encrypt_inout_detached(&nonce.into(), aad, body.into()).map_err(|_| SealError)?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Returns the plaintext of `nonce | ciphertext | tag`.
    ///
    /// # Errors
    /// [`OpenError`] if it is too short or the tag is wrong.
    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>().ok_or(OpenError)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG>().ok_or(OpenError)?;
        let mut text = Zeroizing::new(ciphertext.to_vec());
        self.0
            .decrypt_inout_detached(nonce.into(), aad, text.as_mut_slice().into(), tag.into())
            .map_err(|_| OpenError)?;
        Ok(text)
    }
}

/// The plaintext is too long to seal: more than 64 GiB, or a bound text of more than 4 GiB. PostgreSQL holds no such value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("data is too long to seal")]
pub struct SealError;

/// Sealed data does not open: it is altered, moved, or under another key. The error does not say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sealed data does not open")]
pub struct OpenError;

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    #[test]
    fn the_key_schedule_is_wiped() {
        fn is_wiped<T: ZeroizeOnDrop>() {}
        is_wiped::<Aes256Gcm>();
    }

    /// Every vector of the form that is used here: 12-byte nonce, 256-bit key, 128-bit tag.
    #[test]
    fn wycheproof_aes_gcm() {
        let file = include_str!("../tests/vectors/wycheproof/aes_gcm_test.json");
        let file: serde_json::Value = serde_json::from_str(file).unwrap();
        let groups = file["testGroups"].as_array().unwrap().iter();
        let ours = groups.filter(|group| group["ivSize"] == 96 && group["keySize"] == 256 && group["tagSize"] == 128);
        let (mut checked, mut valid) = (0, 0);
        for test in ours.flat_map(|group| group["tests"].as_array().unwrap()) {
            let bytes = |name: &str| hex::decode(test[name].as_str().unwrap()).unwrap();
            let cipher = Cipher::new(bytes("key").as_slice().try_into().unwrap());
            let sealed = [bytes("iv"), bytes("ct"), bytes("tag")].concat();
            let opened = cipher.open(&bytes("aad"), &sealed).map(|text| text.to_vec());
            checked += 1;
            if test["result"] == "valid" {
                valid += 1;
                let mut out = Vec::new();
                let nonce = bytes("iv").try_into().unwrap();
                cipher.seal(nonce, &bytes("aad"), &bytes("msg"), &mut out).unwrap();
                assert_eq!((opened, out), (Ok(bytes("msg")), sealed), "test {}", test["tcId"]);
            } else {
                assert_eq!(opened, Err(OpenError), "test {}", test["tcId"]);
            }
        }
        assert_eq!((checked, valid), (66, 39));
    }
}
