//! The names of an otpauth URI: issuer and account, for display only.
//!
//! Owns their rule, and the cleaning of what a URI brings. Must never decide anything about a secret.

use percent_encoding::percent_decode_str;

/// Longest issuer or account name in bytes.
const MAX_NAME: usize = 256;

/// Checks that a text can be an issuer or an account name: 1 to 256 bytes, no colon, no control character.
///
/// # Errors
/// The [`NameError`] of the rule that it breaks.
pub fn check_label(label: &str) -> Result<(), NameError> {
    if label.is_empty() {
        Err(NameError::Empty)
    } else if label.len() > MAX_NAME {
        Err(NameError::TooLong)
    } else if label.contains(':') {
        Err(NameError::Colon)
    } else if label.contains(char::is_control) {
        Err(NameError::Control)
    } else {
        Ok(())
    }
}

/// Checks that a text can be an account name: a label that does not begin with a space, which readers of the URI drop.
///
/// # Errors
/// The [`NameError`] of the rule that it breaks.
pub fn check_account(account: &str) -> Result<(), NameError> {
    if account.starts_with(' ') { Err(NameError::LeadingSpace) } else { check_label(account) }
}

/// Makes an issuer of any text: drops control and bidirectional characters, turns a colon into a space, and cuts at 256
/// bytes. `None` if nothing is left. What it returns passes [`check_label`], and is not changed by a second cleaning.
pub fn clean_issuer(text: &str) -> Option<String> {
    clean(text.chars())
}

/// Makes an account name of any text: cleans it as an issuer, and drops spaces at its start. What it returns passes
/// [`check_account`].
pub fn clean_account(text: &str) -> Option<String> {
    clean(text.chars().filter(is_kept).skip_while(|c| matches!(c, ' ' | ':')))
}

fn clean(chars: impl Iterator<Item = char>) -> Option<String> {
    let mut name = String::new();
    for c in chars.filter(is_kept) {
        if name.len() + c.len_utf8() > MAX_NAME {
            break;
        }
        name.push(if c == ':' { ' ' } else { c });
    }
    Some(name).filter(|name| !name.is_empty())
}

/// Control characters have no glyph. Bidirectional ones show the rest of the page in another order.
fn is_kept(c: &char) -> bool {
    let is_bidirectional =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !is_bidirectional
}

/// Decodes percent-encoding (RFC 3986 section 2.1). Drops a `%` that two hexadecimal digits do not follow, and bytes that are
/// not UTF-8.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut pieces = text.split('%');
    bytes.extend_from_slice(pieces.next().unwrap_or("").as_bytes());
    for piece in pieces {
        if is_escape(piece) {
            bytes.extend(percent_decode_str(&["%", piece].concat()));
        } else {
            bytes.extend_from_slice(piece.as_bytes());
        }
    }
    bytes.utf8_chunks().map(|chunk| chunk.valid()).collect()
}

/// Returns whether what follows a `%` makes it an escape.
pub(crate) fn is_escape(rest: &str) -> bool {
    rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2
}

/// A name that is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// An empty name.
    #[error("account name or issuer is empty")]
    Empty,
    /// A name of more than 256 bytes.
    #[error("account name or issuer is too long")]
    TooLong,
    /// A colon in a name.
    #[error("account name or issuer contains a colon")]
    Colon,
    /// A control character in a name.
    #[error("account name or issuer contains a control character")]
    Control,
    /// A space at the start of an account name.
    #[error("account name begins with a space")]
    LeadingSpace,
}

impl NameError {
    /// Returns the rule, as a sentence.
    pub const fn detail(&self) -> &'static str {
        match self {
            NameError::Empty | NameError::TooLong | NameError::Colon | NameError::Control => {
                "An account name or issuer must be 1 to 256 bytes long, without a colon or a control character."
            }
            NameError::LeadingSpace => "Authenticators drop spaces at the start of an account name.",
        }
    }
}
