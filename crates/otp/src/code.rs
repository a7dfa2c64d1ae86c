//! One-time codes.
//!
//! Owns the digits: reads a candidate, computes a code, compares both. Must never allocate, except to render.

use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::base32::is_white_space;
use crate::keyed::Keyed;
use crate::{Algorithm, Digits, Secret, TimeStep};

/// Longest text looked at, in bytes. A code has 8; the rest is room for white space.
const MAX_TEXT: usize = 256;

/// A code: 6 to 8 ASCII digits, leading zeros included. Wiped when dropped.
pub struct Code {
    /// ASCII digits from the left, then zero bytes, which are not digits.
    digits: Zeroizing<[u8; 8]>,
    len: u8,
}

impl Code {
    /// Reads a candidate: ASCII white space is ignored anywhere, then 6 to 8 ASCII digits are expected.
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
        for byte in text.bytes().filter(|byte| !is_white_space(*byte)) {
            match slots.next() {
                Some(slot) if byte.is_ascii_digit() => *slot = byte,
                _ => return Err(Malformed),
            }
            len += 1;
        }
        if len < 6 { Err(Malformed) } else { Ok(Code { digits, len }) }
    }

    /// Dynamic truncation (RFC 4226 section 5.3): four bytes from the offset in the low four bits of the last byte,
    /// without the top bit, modulo a power of ten.
    pub(crate) fn truncate(mac: &[u8], digits: Digits) -> Code {
        let offset = mac.last().map_or(0, |last| usize::from(last & 0x0f));
        // Offset and four bytes end at byte 19; the shortest MAC has 20.
        let word = mac.iter().skip(offset).take(4).fold(0, |word, byte| word << 8 | u32::from(*byte));
        let mut rest = word & 0x7fff_ffff;
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

/// Computes the code of one step (RFC 4226 section 5.3, RFC 6238 section 4.2). Defined for every step, also negative ones.
pub fn code_at_step(secret: &Secret, algorithm: Algorithm, digits: Digits, step: TimeStep) -> Code {
    match algorithm {
        Algorithm::Sha1 => Keyed::<Sha1>::new(secret).code(digits, step),
        Algorithm::Sha256 => Keyed::<Sha256>::new(secret).code(digits, step),
        Algorithm::Sha512 => Keyed::<Sha512>::new(secret).code(digits, step),
    }
}

/// Text that cannot be a code, whatever the secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed code")]
pub struct Malformed;
