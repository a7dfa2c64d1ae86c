//! The ciphers of XML Encryption that are supported.
//!
//! Owns their names, and decryption under a given key. Must never check a MAC, nor decide when to decrypt.

use aes::cipher::block_padding::Iso10126;
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockSizeUser, KeyInit, KeyIvInit, consts::U16,
};
use aes::{Aes128, Aes192, Aes256};
use aes_kw::{AesKw, AesKwp};
use zeroize::Zeroizing;

use crate::problem::Problem;

/// Length of a block of AES, and of an initialization vector.
const BLOCK: usize = 16;

/// A cipher, with the length of its key in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cipher {
    mode: Mode,
    key_len: usize,
}

/// How a cipher is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// XML Encryption section 5.2.2: the initialization vector comes first. It does not notice a change.
    Cbc,
    /// XML Encryption section 5.6.3: key wrap. It does.
    KeyWrap,
}

impl Cipher {
    /// Reads the URI of an algorithm, of which the fragment counts.
    pub(crate) fn parse(uri: &str) -> Result<Cipher, Problem> {
        let name = fragment(uri);
        let known = [
            ("aes128-cbc", Mode::Cbc, 16),
            ("aes192-cbc", Mode::Cbc, 24),
            ("aes256-cbc", Mode::Cbc, 32),
            ("kw-aes128", Mode::KeyWrap, 16),
            ("kw-aes192", Mode::KeyWrap, 24),
            ("kw-aes256", Mode::KeyWrap, 32),
            ("kw-aes-128-pad", Mode::KeyWrap, 16),
            ("kw-aes-192-pad", Mode::KeyWrap, 24),
            ("kw-aes-256-pad", Mode::KeyWrap, 32),
        ];
        match known.into_iter().find(|(known, ..)| *known == name) {
            Some((_, mode, key_len)) => Ok(Cipher { mode, key_len }),
            None if name.contains("pbe") || name.contains("pbes2") => Err(Problem::DraftEncryption),
            None if name.contains("tripledes") || name.contains("3des") => Err(Problem::TripleDes),
            None if name.contains("camellia") => Err(Problem::Camellia),
            None if name.contains("rsa") => Err(Problem::Certificate),
            None => Err(Problem::Cipher),
        }
    }

    /// The length of its key in bytes.
    pub(crate) fn key_len(self) -> usize {
        self.key_len
    }

    /// Returns whether it notices a change without a MAC.
    pub(crate) fn checks_integrity(self) -> bool {
        self.mode == Mode::KeyWrap
    }

    /// Decrypts. `None` if the key has another length, or if what it gives has the wrong form.
    pub(crate) fn decrypt(self, key: &[u8], data: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        match (self.mode, key.len()) {
            (_, length) if length != self.key_len => None,
            (Mode::Cbc, 16) => cbc::<Aes128>(key, data),
            (Mode::Cbc, 24) => cbc::<Aes192>(key, data),
            (Mode::Cbc, _) => cbc::<Aes256>(key, data),
            (Mode::KeyWrap, 16) => unwrap::<Aes128>(key, data),
            (Mode::KeyWrap, 24) => unwrap::<Aes192>(key, data),
            (Mode::KeyWrap, _) => unwrap::<Aes256>(key, data),
        }
    }
}

/// Returns the name in the fragment of a URI, or in the whole of a text without one, in lower case.
pub(crate) fn fragment(uri: &str) -> String {
    uri.rsplit('#').next().unwrap_or(uri).trim_ascii().to_ascii_lowercase()
}

/// AES-CBC with the padding of XML Encryption, whose last byte is its length; the others are arbitrary.
fn cbc<C>(key: &[u8], data: &[u8]) -> Option<Zeroizing<Vec<u8>>>
where
    C: BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
{
    let (iv, encrypted) = data.split_at_checked(BLOCK)?;
    let mut buffer = Zeroizing::new(encrypted.to_vec());
    let decryptor = ::cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?;
    let length = decryptor.decrypt_padded::<Iso10126>(&mut buffer).ok()?.len();
    buffer.truncate(length);
    Some(buffer)
}

/// AES key wrap: RFC 3394, or RFC 5649 for what is no multiple of 8 bytes long. Programs use the second under the name of
/// the first. Their check values differ.
fn unwrap<C>(key: &[u8], data: &[u8]) -> Option<Zeroizing<Vec<u8>>>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
{
    let mut buffer = Zeroizing::new(vec![0; data.len()]);
    let plain = AesKw::<C>::new_from_slice(key).ok()?.unwrap_key(data, &mut buffer).map(<[u8]>::len);
    let length = match plain {
        Ok(length) => length,
        Err(_) => AesKwp::<C>::new_from_slice(key).ok()?.unwrap_key(data, &mut buffer).ok()?.len(),
    };
    buffer.truncate(length);
    Some(buffer)
}
