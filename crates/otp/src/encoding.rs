//! The text forms of a secret that other systems store.
//!
//! Owns the encodings, and the rule for what is surely base32. Must never guess: text that two encodings have is refused.

use data_encoding::{BASE64_NOPAD, Encoding as Alphabet, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

use crate::parameter_error::ParameterError;
use crate::secret::{MAX_TEXT, Secret, SecretError, unpadded};
use crate::separators::{is_blank, is_separator};

/// How the bytes of a secret are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 4648 section 6, as [`Secret::from_base32`] reads it.
    Base32,
    /// Hexadecimal digits of either case.
    Hex,
    /// RFC 4648 section 4 or 5, with or without padding.
    Base64,
    /// The bytes of the text itself.
    Raw,
}

impl Encoding {
    /// Reads a name in any case.
    ///
    /// # Errors
    /// [`ParameterError::Encoding`] for every name but `base32`, `hex`, `base64`, and `raw`.
    pub fn parse(name: &str) -> Result<Encoding, ParameterError> {
        let known = [
            ("base32", Encoding::Base32),
            ("hex", Encoding::Hex),
            ("base64", Encoding::Base64),
            ("raw", Encoding::Raw),
        ];
        let found = known.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, encoding)| encoding).ok_or(ParameterError::Encoding)
    }

    /// Reads a secret that is written so. The length of the secret is not checked; see [`Secret::check_length`].
    ///
    /// # Errors
    /// The [`SecretError`] of the encoding; [`SecretError::TooLong`] for more than 1024 bytes of text.
    pub fn read(self, text: &str) -> Result<Secret, SecretError> {
        if text.len() > MAX_TEXT {
            return Err(SecretError::TooLong);
        }
        match self {
            Encoding::Base32 => Secret::from_base32(text),
            Encoding::Hex => {
                let digits = kept(text.chars().filter(|c| !is_separator(*c)));
                decode(&HEXLOWER_PERMISSIVE, &digits).ok_or(SecretError::Hex)
            }
            Encoding::Base64 => {
                // Padding is looked for after white space, but a dash is a symbol: not `unpadded`.
                let symbols = text.trim_end_matches(|c| c == '=' || is_blank(c)).chars().filter(|c| !is_blank(*c));
                let symbols = kept(symbols.map(|c| match c {
                    '-' => '+',
                    '_' => '/',
                    c => c,
                }));
                decode(&BASE64_NOPAD, &symbols).ok_or(SecretError::Base64)
            }
            Encoding::Raw => Ok(Secret::from_slice(text.as_bytes())),
        }
    }
}

/// Reads base32 that is nothing else: a text of unknown origin. Raw text and hexadecimal digits are base32 by chance, and
/// then no code would ever be right.
///
/// # Errors
/// Those of [`Secret::from_base32`]; [`SecretError::Ambiguous`] for letters of both cases, and for 32, 40, 64, or 128
/// hexadecimal digits.
pub fn read_base32_only(text: &str) -> Result<Secret, SecretError> {
    let secret = Secret::from_base32(text)?;
    let symbols = || unpadded(text).chars().filter(|c| !is_separator(*c));
    let both_cases = symbols().any(|c| c.is_ascii_lowercase()) && symbols().any(|c| c.is_ascii_uppercase());
    let hexadecimal = symbols().all(|c| c.is_ascii_hexdigit()) && matches!(symbols().count(), 32 | 40 | 64 | 128);
    if both_cases || hexadecimal { Err(SecretError::Ambiguous) } else { Ok(secret) }
}

/// Copies characters of a text of at most [`MAX_TEXT`] bytes into a wiped buffer that does not grow.
fn kept(characters: impl Iterator<Item = char>) -> Zeroizing<String> {
    let mut kept = Zeroizing::new(String::with_capacity(MAX_TEXT));
    kept.extend(characters);
    kept
}

/// Decodes into a wiped buffer, also where the end of the text is wrong.
fn decode(alphabet: &Alphabet, text: &str) -> Option<Secret> {
    let mut bytes = Zeroizing::new(vec![0; alphabet.decode_len(text.len()).ok()?]);
    let length = alphabet.decode_mut(text.as_bytes(), &mut bytes).ok()?;
    bytes.truncate(length);
    Some(Secret::from_bytes(bytes))
}
