//! One-time codes.
//!
//! Owns the digits: reads them, takes them from a number, compares them. Must never allocate, except to render.

use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::parameters::Digits;
use crate::separators::is_separator;

/// Longest text looked at, in bytes. A code has 8; the rest is room for separators.
const MAX_TEXT: usize = 256;

/// A code: 6 to 8 ASCII digits, leading zeros included. Wiped when dropped.
pub struct Code {
    /// ASCII digits from the left, then zero bytes, which are not digits.
    digits: Zeroizing<[u8; 8]>,
    len: u8,
}

impl Code {
    /// Reads a candidate: 6 to 8 ASCII digits. White space, dashes and format characters of Unicode are ignored anywhere.
    ///
    /// # Errors
    /// [`Malformed`] for everything else, and for more than 256 bytes.
    pub fn parse(text: &str) -> Result<Code, Malformed> {
        if text.len() > MAX_TEXT {
            return Err(Malformed);
        }
        let mut digits = Zeroizing::new([0; 8]);
        let mut slots = digits.iter_mut();
        let mut len = 0;
        for c in text.chars().filter(|c| !is_separator(*c)) {
            match slots.next() {
                Some(slot) if c.is_ascii_digit() => *slot = c as u8,
                _ => return Err(Malformed),
            }
            len += 1;
        }
        if len < 6 { Err(Malformed) } else { Ok(Code { digits, len }) }
    }

    /// Takes the last digits of a number (RFC 4226 section 5.3: modulo a power of ten).
    pub(crate) fn from_number(number: u32, digits: Digits) -> Code {
        let mut rest = number;
        let mut code = Code { digits: Zeroizing::new([0; 8]), len: digits.get() };
        for slot in code.digits.iter_mut().take(usize::from(digits.get())).rev() {
            *slot = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        code
    }

    /// Number of digits, 6 to 8.
    #[allow(clippy::len_without_is_empty, reason = "a code is never empty")]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Returns whether the code has that many digits.
    pub fn has(&self, digits: Digits) -> bool {
        self.len == digits.get()
    }

    /// Returns the digits as text.
    pub fn render(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.digits.len()));
        text.extend(self.digits.iter().take(self.len()).map(|digit| char::from(*digit)));
        text
    }
}

impl ConstantTimeEq for Code {
    /// Compares all eight places, whatever they contain. Codes of other lengths differ: a zero byte is not a digit.
    fn ct_eq(&self, other: &Code) -> Choice {
        self.digits.ct_eq(other.digits.as_ref())
    }
}

/// Text that cannot be a code, whatever the secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed code")]
pub struct Malformed;
