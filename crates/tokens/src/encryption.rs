//! Encrypted values of a document.
//!
//! Owns the key, the derivation of it, and the order: the MAC is checked before anything is decrypted but its own key.
//! Must never tell a wrong padding from a wrong MAC, nor decrypt a value that nothing protects against a change.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use crate::cipher::{Cipher, fragment};
use crate::error::ReadError;
use crate::problem::Problem;

/// Most iterations of PBKDF2 that are done. PostgreSQL cannot cancel them.
pub const MAX_ITERATIONS: u32 = 2_000_000;
/// Shortest key of a MAC in bytes: a document could be made so that it decrypts to an empty one.
const MIN_MAC_KEY: usize = 16;

/// What the caller has to decrypt with.
pub struct Keys<'a> {
    /// The key itself.
    pub key: Option<&'a [u8]>,
    /// The password that the key is derived from.
    pub password: Option<&'a str>,
}

/// Why a value is not there: a problem of one token, or an error of the document.
pub(crate) enum Stop {
    Token(Problem),
    Document(ReadError),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Stop {
        Stop::Token(problem)
    }
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Stop {
        Stop::Document(error)
    }
}

/// A hash under HMAC.
#[derive(Clone, Copy)]
pub(crate) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// Reads the URI of an HMAC, of which the fragment counts.
    pub(crate) fn parse(uri: &str) -> Option<Hash> {
        match fragment(uri).replace("sha-", "sha").as_str() {
            "hmac-sha1" => Some(Hash::Sha1),
            "hmac-sha224" => Some(Hash::Sha224),
            "hmac-sha256" => Some(Hash::Sha256),
            "hmac-sha384" => Some(Hash::Sha384),
            "hmac-sha512" => Some(Hash::Sha512),
            _ => None,
        }
    }

    /// Returns whether the MAC is that of the data. Takes the same time for every MAC.
    fn verify(self, key: &[u8], data: &[u8], mac: &[u8]) -> bool {
        fn verify<M: Mac + KeyInit>(key: &[u8], data: &[u8], mac: &[u8]) -> bool {
            <M as KeyInit>::new_from_slice(key).is_ok_and(|hmac| hmac.chain_update(data).verify_slice(mac).is_ok())
        }
        match self {
            Hash::Sha1 => verify::<Hmac<Sha1>>(key, data, mac),
            Hash::Sha224 => verify::<Hmac<Sha224>>(key, data, mac),
            Hash::Sha256 => verify::<Hmac<Sha256>>(key, data, mac),
            Hash::Sha384 => verify::<Hmac<Sha384>>(key, data, mac),
            Hash::Sha512 => verify::<Hmac<Sha512>>(key, data, mac),
        }
    }
}

/// A derivation of a key from a password: PBKDF2, RFC 8018 section 5.2.
pub(crate) struct Derivation {
    pub hash: Hash,
    pub salt: Vec<u8>,
    pub iterations: u32,
    pub key_len: usize,
}

impl Derivation {
    fn derive(&self, password: &str) -> Result<Zeroizing<Vec<u8>>, ReadError> {
        if self.iterations > MAX_ITERATIONS {
            return Err(ReadError::Iterations);
        }
        if !matches!(self.key_len, 16 | 24 | 32) || self.iterations == 0 {
            return Err(ReadError::Derivation);
        }
        let mut key = Zeroizing::new(vec![0; self.key_len]);
        let (password, salt, rounds) = (password.as_bytes(), self.salt.as_slice(), self.iterations);
        match self.hash {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, rounds, &mut key),
            Hash::Sha224 => pbkdf2::pbkdf2_hmac::<Sha224>(password, salt, rounds, &mut key),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, rounds, &mut key),
            Hash::Sha384 => pbkdf2::pbkdf2_hmac::<Sha384>(password, salt, rounds, &mut key),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, rounds, &mut key),
        }
        Ok(key)
    }
}

/// Where the key of a document comes from.
pub(crate) enum Source {
    /// The caller has it.
    Shared,
    /// The caller has a password. The parameters may be missing or unknown.
    Derived(Option<Derivation>),
    /// From nowhere that is supported.
    Unsupported(Problem),
}

/// The MAC method of a document.
pub(crate) struct MacMethod {
    pub hash: Hash,
    /// Its key, encrypted. `None`: it is the key of the document.
    pub key: Option<Encrypted>,
}

/// A value that is encrypted.
pub(crate) struct Encrypted {
    pub cipher: Result<Cipher, Problem>,
    pub data: Zeroizing<Vec<u8>>,
}

/// How a document is encrypted, and what was seen when values of it were opened.
pub(crate) struct Encryption<'a> {
    keys: &'a Keys<'a>,
    source: Source,
    mac: Result<MacMethod, Problem>,
    key: Option<Zeroizing<Vec<u8>>>,
    mac_key: Option<Option<Zeroizing<Vec<u8>>>>,
    matched: bool,
    failed: bool,
}

impl<'a> Encryption<'a> {
    /// Begins, without any work: a document may have encrypted values only in tokens that are not supported.
    pub(crate) fn new(keys: &'a Keys<'a>, source: Source, mac: Result<MacMethod, Problem>) -> Encryption<'a> {
        Encryption { keys, source, mac, key: None, mac_key: None, matched: false, failed: false }
    }

    /// Opens a value: checks its MAC, then decrypts it.
    pub(crate) fn open(&mut self, value: &Encrypted, mac: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, Stop> {
        if let Source::Unsupported(problem) = self.source {
            return Err(problem.into());
        }
        let cipher = value.cipher?;
        if mac.is_none() && !cipher.checks_integrity() {
            return Err(Problem::NoMac.into());
        }
        self.find_key(cipher)?;
        if let Some(mac) = mac {
            let is_right = self.verify(&value.data, mac)?;
            self.saw(is_right)?;
        }
        let plain = self.key.as_ref().and_then(|key| cipher.decrypt(key, &value.data));
        if cipher.checks_integrity() {
            self.saw(plain.is_some())?;
        }
        plain.ok_or(Problem::Decryption.into())
    }

    /// Fails if every check failed: not one token was changed, but the key is wrong.
    pub(crate) fn finish(&self) -> Result<(), ReadError> {
        if self.failed && !self.matched { Err(ReadError::WrongKey) } else { Ok(()) }
    }

    fn saw(&mut self, is_right: bool) -> Result<(), Problem> {
        self.matched |= is_right;
        self.failed |= !is_right;
        if is_right { Ok(()) } else { Err(Problem::Mac) }
    }

    /// Finds the key of the document once.
    fn find_key(&mut self, cipher: Cipher) -> Result<(), ReadError> {
        if self.key.is_none() {
            self.key = Some(match (self.keys.key, self.keys.password, &self.source) {
                (Some(key), ..) => Zeroizing::new(key.to_vec()),
                (None, _, Source::Derived(None)) => return Err(ReadError::Derivation),
                (None, Some(password), Source::Derived(Some(derivation))) => derivation.derive(password)?,
                (None, None, Source::Derived(Some(_))) => return Err(ReadError::PasswordNeeded),
                (None, ..) => return Err(ReadError::KeyNeeded),
            });
        }
        let length = self.key.as_ref().map_or(0, |key| key.len());
        if length == cipher.key_len() { Ok(()) } else { Err(ReadError::KeyLength) }
    }

    /// Checks a MAC over an encrypted value. A key of the MAC that does not decrypt is a MAC that is wrong.
    fn verify(&mut self, data: &[u8], mac: &[u8]) -> Result<bool, Stop> {
        let method = self.mac.as_ref().map_err(|problem| *problem)?;
        let Some(key) = &self.key else { return Ok(false) };
        let Some(encrypted) = &method.key else { return Ok(method.hash.verify(key, data, mac)) };
        let cipher = encrypted.cipher?;
        if key.len() != cipher.key_len() {
            return Err(ReadError::KeyLength.into());
        }
        let mac_key = self
            .mac_key
            .get_or_insert_with(|| cipher.decrypt(key, &encrypted.data).filter(|key| key.len() >= MIN_MAC_KEY));
        Ok(mac_key.as_ref().is_some_and(|mac_key| method.hash.verify(mac_key, data, mac)))
    }
}
