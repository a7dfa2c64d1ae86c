//! The hash under the HMAC.
//!
//! Owns the three algorithms of RFC 6238 section 1.2 and their names. Must never compute anything.

use crate::parameter_error::ParameterError;

/// The hash under the HMAC of a code (RFC 6238 section 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC-SHA-1, the default of every authenticator.
    Sha1,
    /// HMAC-SHA-256.
    Sha256,
    /// HMAC-SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Algorithm; 3] = [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512];

    /// Reads a name in any case, in each spelling in use: `SHA1`, `SHA-1`, `HmacSHA1`, `HMAC-SHA1`, `HMAC-SHA-1`.
    ///
    /// # Errors
    /// [`ParameterError::Algorithm`] for every other name.
    pub fn parse(name: &str) -> Result<Algorithm, ParameterError> {
        Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.spellings().iter().any(|spelling| spelling.eq_ignore_ascii_case(name)))
            .ok_or(ParameterError::Algorithm)
    }

    /// The canonical name: the one stored and printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
            Algorithm::Sha512 => "SHA512",
        }
    }

    /// Length of a new secret in bytes: that of the hash (RFC 6238 section 5.1).
    pub const fn secret_len(self) -> usize {
        match self {
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// Every accepted name, the canonical one first.
    const fn spellings(self) -> [&'static str; 5] {
        match self {
            Algorithm::Sha1 => ["SHA1", "SHA-1", "HMACSHA1", "HMAC-SHA1", "HMAC-SHA-1"],
            Algorithm::Sha256 => ["SHA256", "SHA-256", "HMACSHA256", "HMAC-SHA256", "HMAC-SHA-256"],
            Algorithm::Sha512 => ["SHA512", "SHA-512", "HMACSHA512", "HMAC-SHA512", "HMAC-SHA-512"],
        }
    }
}
