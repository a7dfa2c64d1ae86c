//! The shared secret.
//!
//! Owns the bytes, their base32 form, and their length rule. Must never show them: no `Debug`, `Clone` or `Display`.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::base32;
use crate::separators::is_separator;

/// Longest text looked at, in bytes: 128 secret bytes are 205 symbols, the rest is room for separators.
pub(crate) const MAX_TEXT: usize = 1024;

/// A shared secret (K of RFC 4226 section 5.1). Wiped when dropped.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Shortest secret in bytes (RFC 4226 section 4, R6).
    pub const MIN_LEN: usize = 16;
    /// Shortest secret in bytes if weak ones are allowed: 80 bits, as older services use.
    pub const MIN_WEAK_LEN: usize = 10;
    /// Longest secret in bytes: one block of SHA-512.
    pub const MAX_LEN: usize = 128;

    /// Takes ownership of the bytes. Any length; see [`Secret::check_length`].
    pub fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Secret {
        Secret(bytes)
    }

    /// Copies the bytes. Any length; see [`Secret::check_length`].
    pub fn from_slice(bytes: &[u8]) -> Secret {
        Secret(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads base32 as people type it: any case; separators anywhere and padding at the end are ignored.
    ///
    /// Bits after the last whole byte are ignored, as Google Authenticator does: services that generate random characters
    /// instead of encoded bytes set them. A number of characters that no whole number of bytes has (1, 3, or 6 more than a
    /// multiple of 8) is refused: a character was lost.
    ///
    /// # Errors
    /// [`SecretError::Symbol`] for any other character, [`SecretError::Incomplete`] for such a number of characters,
    /// [`SecretError::TooShort`] for no character, [`SecretError::TooLong`] for more than 1024 bytes, separators included.
    pub fn from_base32(text: &str) -> Result<Secret, SecretError> {
        if text.len() > MAX_TEXT {
            return Err(SecretError::TooLong);
        }
        let symbols = base32::symbols(unpadded(text)).ok_or(SecretError::Symbol)?;
        match symbols.len() {
            0 => Err(SecretError::TooShort),
            n if matches!(n % 8, 1 | 3 | 6) => Err(SecretError::Incomplete),
            _ => Ok(Secret(base32::join(&symbols))),
        }
    }

    /// Returns upper-case base32 without padding, as authenticators accept it.
    pub fn to_base32(&self) -> Zeroizing<String> {
        base32::encode(&self.0)
    }

    /// Checks the length: 16 to 128 bytes, or at least 10 with `allow_weak`.
    ///
    /// # Errors
    /// [`SecretError::Weak`] for 10 to 15 bytes without `allow_weak`, [`SecretError::TooShort`] below 10,
    /// [`SecretError::TooLong`] above 128.
    pub fn check_length(&self, allow_weak: bool) -> Result<(), SecretError> {
        match self.0.len() {
            ..Self::MIN_WEAK_LEN => Err(SecretError::TooShort),
            Self::MIN_WEAK_LEN..Self::MIN_LEN if !allow_weak => Err(SecretError::Weak),
            Self::MIN_WEAK_LEN..=Self::MAX_LEN => Ok(()),
            _ => Err(SecretError::TooLong),
        }
    }

    /// Returns whether both are the same secret. Takes the same time for all bytes; lengths are not secret.
    pub fn same_as(&self, other: &Secret) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Removes the padding at the end of a text, and the separators around the padding.
pub(crate) fn unpadded(text: &str) -> &str {
    text.trim_end_matches(|c| c == '=' || is_separator(c))
}

/// A secret that cannot be read or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A character that is not base32.
    #[error("secret is not valid base32")]
    Symbol,
    /// A number of characters that no whole number of bytes has.
    #[error("secret is incomplete base32")]
    Incomplete,
    /// Base32 by chance: letters of both cases, or as many hexadecimal digits as a key has.
    #[error("secret is not surely base32")]
    Ambiguous,
    /// Not pairs of hexadecimal digits.
    #[error("secret is not valid hexadecimal")]
    Hex,
    /// Not base64.
    #[error("secret is not valid base64")]
    Base64,
    /// Fewer than 10 bytes.
    #[error("secret is too short")]
    TooShort,
    /// 10 to 15 bytes, if weak secrets are not allowed.
    #[error("secret is too weak")]
    Weak,
    /// More than 128 bytes.
    #[error("secret is too long")]
    TooLong,
}

impl SecretError {
    /// Returns the accepted range, as a sentence.
    pub const fn detail(&self) -> &'static str {
        match self {
            SecretError::Symbol => {
                "A secret consists of A to Z and 2 to 7. Case, white space, dashes, and padding do not matter."
            }
            SecretError::Ambiguous => {
                "Letters of both cases, or 32, 40, 64 or 128 hexadecimal digits, may be another encoding."
            }
            SecretError::Hex => {
                "It consists of pairs of 0 to 9 and A to F. Case, white space, and dashes do not matter."
            }
            SecretError::Base64 => {
                "It consists of A to Z, a to z, 0 to 9, + and /, or - and _ instead. White space and padding do not matter."
            }
            SecretError::Incomplete => "The base32 characters do not make whole bytes. One may be missing.",
            SecretError::TooShort | SecretError::TooLong => {
                "A secret must be 16 to 128 bytes long, or at least 10 bytes if weak secrets are allowed."
            }
            SecretError::Weak => {
                "A secret must be 16 to 128 bytes long. One of 10 to 15 bytes needs allow_weak => true."
            }
        }
    }
}
