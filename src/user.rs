//! The names of what is stored: user ids and device names, text of 1 to 256 bytes that is compared byte by byte, and the
//! numbers of secrets.
//!
//! Owns their limits. Must never change a name: what was enrolled as one text is not found under another.

use crate::error::Error;

const MAX_BYTES: usize = 256;

/// The id of a user in the application.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserId<'a>(&'a str);

impl<'a> UserId<'a> {
    /// Errors: 22023 for NULL, empty, or more than 256 bytes.
    pub fn new(value: Option<&'a str>) -> Result<Self, Error> {
        Self::named("user_id", value)
    }

    /// Does the same for an argument of another name.
    pub fn named(argument: &'static str, value: Option<&'a str>) -> Result<Self, Error> {
        bounded(argument, value).map(Self)
    }

    /// Returns the id in a look-up, where no id is an error: what cannot be the id of a user is found nowhere.
    pub fn to_find(value: Option<&'a str>) -> Option<Self> {
        value.map(Self)
    }

    /// Takes an id from a table.
    pub const fn stored(value: &'a str) -> Self {
        Self(value)
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// The name of one authenticator of one user.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceName<'a>(&'a str);

impl<'a> DeviceName<'a> {
    /// Errors: 22023 for NULL, empty, or more than 256 bytes.
    pub fn new(value: Option<&'a str>) -> Result<Self, Error> {
        Self::named("device", value)
    }

    /// Does the same for an argument of another name.
    pub fn named(argument: &'static str, value: Option<&'a str>) -> Result<Self, Error> {
        bounded(argument, value).map(Self)
    }

    /// Reads an argument that may be NULL, which means all devices.
    pub fn optional(value: Option<&'a str>) -> Result<Option<Self>, Error> {
        value.map(|device| Self::new(Some(device))).transpose()
    }

    /// Takes a name from a table.
    pub const fn stored(value: &'a str) -> Self {
        Self(value)
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// The number of a secret or of a set of recovery codes. One sequence numbers both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretId(i64);

impl SecretId {
    /// Any number.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

fn bounded<'a>(argument: &'static str, value: Option<&'a str>) -> Result<&'a str, Error> {
    match value {
        None => Err(Error::Null(argument)),
        Some(text) if text.is_empty() || text.len() > MAX_BYTES => Err(Error::NameLength(argument)),
        Some(text) => Ok(text),
    }
}
