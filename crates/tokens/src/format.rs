//! The formats of a document.
//!
//! Owns their names, and the length of a document. Must never guess a format.

use crate::csv;
use crate::encryption::Keys;
use crate::error::ReadError;
use crate::google;
use crate::pskc;
use crate::token::{Token, Tokens};

/// Longest document in bytes.
pub const MAX_DOCUMENT: usize = 16 * 1024 * 1024;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Portable Symmetric Key Container, RFC 6030.
    Pskc,
    /// Rows of columns.
    Csv,
    /// Links of an export of Google Authenticator, one per line.
    Google,
}

impl Format {
    /// Reads a name in any case.
    ///
    /// # Errors
    /// [`ReadError::Format`] for every name but `pskc`, `csv`, and `google`.
    pub fn parse(name: &str) -> Result<Format, ReadError> {
        let known = [("pskc", Format::Pskc), ("csv", Format::Csv), ("google", Format::Google)];
        let found = known.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, format)| format).ok_or(ReadError::Format)
    }
}

/// Reads every token of a document, in its order. Calls `between` before each, so that a caller can stop by unwinding.
///
/// # Errors
/// [`ReadError`] if the document as a whole cannot be read. A token that cannot be read has a problem instead.
pub fn read(format: Format, document: &str, keys: &Keys, between: &mut dyn FnMut()) -> Result<Vec<Token>, ReadError> {
    if document.len() > MAX_DOCUMENT {
        return Err(ReadError::TooLarge);
    }
    let document = document.strip_prefix('\u{feff}').unwrap_or(document);
    let mut tokens = Tokens::new(between);
    match format {
        Format::Pskc => pskc::read(document, keys, &mut tokens),
        Format::Csv => csv::read(document, &mut tokens),
        Format::Google => google::read(document, &mut tokens),
    }?;
    Ok(tokens.finish())
}
