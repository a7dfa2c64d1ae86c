//! A row of `totp_health`, and the words that all checks share.
//!
//! Owns how numbers and names stand in a sentence. Must never read anything.

use std::fmt::Display;

use crate::server_log;

/// Largest number of names in a detail.
const NAMED: usize = 10;

/// A row of `totp_health`.
pub struct Check {
    pub name: String,
    pub status: Status,
    /// Says what is wrong and what to do about it.
    pub detail: String,
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// To be looked at today.
    Warn,
    /// To be looked at now.
    Fail,
}

impl Check {
    /// Makes a row with status ok.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, detail)
    }

    /// Makes a row with status warn.
    pub fn warn(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Warn, detail)
    }

    /// Makes a row with status fail.
    pub fn fail(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Fail, detail)
    }

    /// Makes a row.
    pub fn new(name: &str, status: Status, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status, detail: detail.into() }
    }
}

impl Status {
    /// Returns `ok` or `warn`.
    pub fn warn_if(is_wrong: bool) -> Self {
        if is_wrong { Self::Warn } else { Self::Ok }
    }

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// Chooses the words for one or for another number of things.
pub fn of<'a>(number: i64, one: &'a str, many: &'a str) -> &'a str {
    if number == 1 { one } else { many }
}

/// Puts a number before the words for it.
pub fn counted(number: i64, one: &str, many: &str) -> String {
    format!("{number} {}", of(number, one, many))
}

/// Quotes a name as the server log does, so that it does not look like another name or like a part of the sentence.
pub fn quoted(name: impl AsRef<str>) -> String {
    server_log::quoted(name.as_ref())
}

/// Lists the first few names, and says how many more there are.
pub fn listed(names: impl ExactSizeIterator<Item = impl Display>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut text = names.take(NAMED).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
