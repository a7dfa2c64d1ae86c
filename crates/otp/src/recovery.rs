//! Recovery codes: the look-up secrets of NIST SP 800-63B-4 section 3.1.2.
//!
//! Owns their text form, their hashes, and the mask of the used ones. Must never keep a code: only its hash is stored.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::base32;
use crate::code::Malformed;

/// Symbols of a code: 120 bits, five per symbol.
const SYMBOLS: usize = 24;

/// Symbols of a group of the text form.
const GROUP: usize = 6;

/// Longest text looked at, in bytes. The text form has 27; the rest is room for separators.
const MAX_TEXT: usize = 256;

/// Hashed before the code, so that the hash means nothing anywhere else.
const DOMAIN: &[u8] = b"pg_totp recovery code v1\0";

/// A recovery code: 120 random bits. Wiped when dropped.
pub struct RecoveryCode(Zeroizing<[u8; 15]>);

impl RecoveryCode {
    /// Takes 15 bytes from a cryptographic generator.
    pub fn from_random(bytes: [u8; 15]) -> RecoveryCode {
        RecoveryCode(Zeroizing::new(bytes))
    }

    /// Returns four groups of six base32 characters: `XXXXXX-XXXXXX-XXXXXX-XXXXXX`.
    pub fn render(&self) -> Zeroizing<String> {
        let symbols = base32::encode(self.0.as_slice());
        let mut text = Zeroizing::new(String::with_capacity(SYMBOLS + SYMBOLS / GROUP));
        for (place, symbol) in symbols.chars().enumerate() {
            if place > 0 && place % GROUP == 0 {
                text.push('-');
            }
            text.push(symbol);
        }
        text
    }

    /// Reads the text form. Case, and white space, dashes and format characters of Unicode do not matter.
    ///
    /// # Errors
    /// [`Malformed`] for anything but 24 base32 characters, and for more than 256 bytes.
    pub fn parse(text: &str) -> Result<RecoveryCode, Malformed> {
        if text.len() > MAX_TEXT {
            return Err(Malformed);
        }
        let symbols = base32::symbols(text).ok_or(Malformed)?;
        if symbols.len() != SYMBOLS {
            return Err(Malformed);
        }
        let mut bytes = Zeroizing::new([0; 15]);
        bytes.iter_mut().zip(base32::join(&symbols).iter()).for_each(|(slot, byte)| *slot = *byte);
        Ok(RecoveryCode(bytes))
    }

    /// Computes SHA-256 of a domain prefix and the code. It needs no salt and no slow hash: the code has 120 random bits.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new_with_prefix(DOMAIN).chain_update(self.0.as_slice()).finalize().into()
    }
}

/// The hashes of 1 to 20 recovery codes, in the order in which they were shown.
pub struct RecoverySet(Vec<[u8; 32]>);

impl RecoverySet {
    /// Most codes of a set.
    pub const MAX_CODES: usize = 20;

    /// Hashes the codes.
    ///
    /// # Errors
    /// [`InvalidRecoverySet`] unless there are 1 to 20.
    pub fn from_codes(codes: &[RecoveryCode]) -> Result<RecoverySet, InvalidRecoverySet> {
        match codes.len() {
            1..=Self::MAX_CODES => Ok(RecoverySet(codes.iter().map(RecoveryCode::hash).collect())),
            _ => Err(InvalidRecoverySet),
        }
    }

    /// Returns the hashes one after the other, 32 bytes each.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// Reads what [`RecoverySet::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`InvalidRecoverySet`] unless these are 1 to 20 hashes.
    pub fn from_bytes(bytes: &[u8]) -> Result<RecoverySet, InvalidRecoverySet> {
        let (hashes, rest) = bytes.as_chunks();
        match hashes.len() {
            1..=Self::MAX_CODES if rest.is_empty() => Ok(RecoverySet(hashes.to_vec())),
            _ => Err(InvalidRecoverySet),
        }
    }

    /// Number of codes, 1 to 20.
    #[allow(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the place of a code in the set, from 0. Compares all hashes in constant time.
    pub fn find(&self, code: &RecoveryCode) -> Option<u8> {
        let hash = code.hash();
        let (mut place, mut found) = (0, Choice::from(0));
        for (candidate, entry) in (0u8..).zip(&self.0) {
            let equal = entry.ct_eq(&hash);
            place.conditional_assign(&candidate, equal);
            found |= equal;
        }
        bool::from(found).then_some(place)
    }
}

/// Which codes of a set are used: bit n stands for the code at place n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedMask(i32);

impl UsedMask {
    /// No code is used.
    pub const NONE: UsedMask = UsedMask(0);

    /// Any mask, as it was stored.
    pub const fn new(mask: i32) -> UsedMask {
        UsedMask(mask)
    }

    /// The mask, to store.
    pub const fn get(self) -> i32 {
        self.0
    }

    /// Returns whether the code at this place is used. A place that no set has counts as used.
    pub const fn is_used(self, place: u8) -> bool {
        match bit(place) {
            Some(bit) => self.0 & bit != 0,
            None => true,
        }
    }

    /// Returns the mask after the code at this place is used.
    pub const fn with_used(self, place: u8) -> UsedMask {
        match bit(place) {
            Some(bit) => UsedMask(self.0 | bit),
            None => self,
        }
    }

    /// Counts the codes left of a set of `count`.
    pub fn left(self, count: u8) -> u8 {
        (0..count).map(|place| u8::from(!self.is_used(place))).sum()
    }
}

/// The bit of a place.
const fn bit(place: u8) -> Option<i32> {
    if (place as usize) < RecoverySet::MAX_CODES { Some(1 << place) } else { None }
}

/// Not 1 to 20 recovery codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid number of recovery codes")]
pub struct InvalidRecoverySet;

impl InvalidRecoverySet {
    /// Returns the accepted range, as a sentence.
    pub const fn detail(&self) -> &'static str {
        "A set has 1 to 20 recovery codes."
    }
}
