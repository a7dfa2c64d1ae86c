//! The text of a master key file, and of the environment variable that can replace it.
//!
//! Owns the format and its rules. Must never open a file, nor repeat any part of a key in an error.

use zeroize::Zeroizing;

use crate::master::{Fingerprint, MasterKey};

/// The master keys in use. There is at least one.
pub struct MasterKeys {
    current: MasterKey,
    older: Vec<MasterKey>,
}

impl MasterKeys {
    /// Reads a key file: one key of 64 hexadecimal characters per line, the current key first. `#` begins a comment that runs to
    /// the end of the line. White space around a key, blank lines, and CR before LF do not matter.
    ///
    /// # Errors
    /// [`KeyFileError`] with the first line that breaks a [`Rule`].
    pub fn from_file_text(text: &str) -> Result<MasterKeys, KeyFileError> {
        MasterKeys::collect(lines(text))
    }

    /// Reads the environment variable: the same text, but a comma ends a key too.
    ///
    /// # Errors
    /// [`KeyFileError`] with the first line that breaks a [`Rule`].
    pub fn from_env_text(text: &str) -> Result<MasterKeys, KeyFileError> {
        MasterKeys::collect(lines(text).flat_map(|(line, keys)| keys.split(',').map(move |key| (line, key))))
    }

    /// Returns the key that wraps new data keys.
    pub fn current(&self) -> &MasterKey {
        &self.current
    }

    /// Returns the key of that name.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<&MasterKey> {
        self.iter().find(|key| key.fingerprint() == *fingerprint)
    }

    /// Iterates over every key, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = &MasterKey> {
        std::iter::once(&self.current).chain(&self.older)
    }

    /// Reads the keys among numbered texts, without blank ones.
    fn collect<'a>(texts: impl Iterator<Item = (usize, &'a str)>) -> Result<MasterKeys, KeyFileError> {
        let mut keys: Option<MasterKeys> = None;
        for (line, text) in texts.map(|(line, text)| (line, text.trim_ascii())).filter(|(_, text)| !text.is_empty()) {
            let key = read_key(text).map_err(|rule| KeyFileError { line, rule })?;
            match &mut keys {
                None => keys = Some(MasterKeys { current: key, older: Vec::new() }),
                Some(keys) if keys.find(&key.fingerprint()).is_some() => {
                    return Err(KeyFileError { line, rule: Rule::Duplicate });
                }
                Some(keys) => keys.older.push(key),
            }
        }
        keys.ok_or(KeyFileError { line: 0, rule: Rule::NoKey })
    }
}

/// Numbers the lines from 1, and removes their comments.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).map(|(number, line)| (number, line.split_once('#').map_or(line, |(key, _)| key)))
}

/// Reads one key.
fn read_key(text: &str) -> Result<MasterKey, Rule> {
    if !text.is_ascii() {
        return Err(Rule::NotAscii);
    }
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text, bytes.as_mut_slice()).map_err(|_| Rule::Form)?;
    let first = text.bytes().next();
    if text.bytes().all(|digit| first.is_some_and(|first| digit.eq_ignore_ascii_case(&first))) {
        return Err(Rule::RepeatedDigit);
    }
    Ok(MasterKey::from_bytes(bytes))
}

/// The rule that a line breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// There is no key.
    NoKey,
    /// A character outside ASCII.
    NotAscii,
    /// Another length, or another character.
    Form,
    /// The same digit 64 times.
    RepeatedDigit,
    /// A key that is on an earlier line too.
    Duplicate,
}

impl Rule {
    /// Returns the rule as a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rule::NoKey => "There must be at least one key.",
            Rule::NotAscii => "A key must be ASCII text.",
            Rule::Form => "A key must be exactly 64 hexadecimal characters.",
            Rule::RepeatedDigit => "A key must not be one digit repeated.",
            Rule::Duplicate => "A key must not appear twice.",
        }
    }
}

/// A key file that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {}", .rule.as_str())]
pub struct KeyFileError {
    /// The line, from 1 on; 0 for [`Rule::NoKey`], which no line breaks.
    pub line: usize,
    /// The rule that it breaks.
    pub rule: Rule,
}
