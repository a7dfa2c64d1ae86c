//! The error of a parameter outside its range.
//!
//! Owns what is said about each range. Must never decide whether a value is inside it: the type of the parameter does.

/// A parameter outside its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Not the name of an algorithm.
    #[error("invalid algorithm")]
    Algorithm,
    /// Not a number of digits.
    #[error("invalid number of digits")]
    Digits,
    /// Not a period.
    #[error("invalid period")]
    Period,
    /// Not a window.
    #[error("invalid window")]
    Window,
    /// Not the name of an encoding.
    #[error("invalid encoding")]
    Encoding,
}

impl ParameterError {
    /// Returns the accepted range, as a sentence.
    pub const fn detail(&self) -> &'static str {
        match self {
            ParameterError::Algorithm => "The algorithm must be SHA1, SHA256, or SHA512.",
            ParameterError::Digits => "Digits must be 6, 7, or 8.",
            ParameterError::Period => "The period must be 15 to 120 seconds.",
            ParameterError::Window => "The window must be 0, 1, or 2 steps.",
            ParameterError::Encoding => "The encoding must be base32, hex, base64, or raw.",
        }
    }
}
