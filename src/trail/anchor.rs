//! The anchor: the line in the server log that names a seal, and its use in a verification.
//!
//! Owns the form of the line. Must never take a text for one that is not.

use crate::error::Error;
use crate::server_log::Line;
use crate::store::audit_seals::StoredSeal;

/// What a line says.
pub struct Anchor {
    pub seal_id: i64,
    pub last_id: i64,
    pub row_count: i64,
    mac: Vec<u8>,
}

/// Writes the line of a seal that is committed.
pub fn write(seal: &StoredSeal) {
    let line = Line::new("audit_sealed").number("seal", seal.seal_id).number("last", seal.last_id);
    line.number("rows", seal.row_count).hex("mac", &seal.mac).write();
}

impl Anchor {
    /// Reads a line, or its part `seal=… last=… rows=… mac=…`.
    ///
    /// Errors: 22023 for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let start = text.find("seal=").ok_or(Error::Anchor)?;
        let words: Vec<_> = text.get(start..).unwrap_or_default().split_whitespace().collect();
        let [seal_id, last_id, row_count, mac] = words[..] else { return Err(Error::Anchor) };
        Ok(Self {
            seal_id: number(seal_id, "seal=")?,
            last_id: number(last_id, "last=")?,
            row_count: number(row_count, "rows=")?,
            mac: mac.strip_prefix("mac=").and_then(bytes).ok_or(Error::Anchor)?,
        })
    }

    /// Returns whether it names this seal. Both are in the open, so this need not take the same time for all bytes.
    pub fn is_of(&self, seal: &StoredSeal) -> bool {
        (self.seal_id, self.last_id, self.row_count) == (seal.seal_id, seal.last_id, seal.row_count)
            && self.mac == seal.mac
    }
}

fn number(word: &str, name: &str) -> Result<i64, Error> {
    let digits = word.strip_prefix(name).ok_or(Error::Anchor)?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number).ok_or(Error::Anchor)
}

/// Reads 64 hexadecimal digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let is_hex = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.as_bytes().chunks(2).map(byte).collect::<Option<_>>().filter(|_| is_hex)
}
