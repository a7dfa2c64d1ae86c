//! User ids and device names: text of 1 to 256 bytes, compared byte by byte.

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
        bounded("device", value).map(Self)
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
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
