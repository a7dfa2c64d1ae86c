//! One-time codes: everything about them that is arithmetic.
//!
//! Owns secrets and their base32 form, codes, time steps, the window, the lockout policy, the judgment of one attempt,
//! recovery codes, the otpauth URI, and its QR code.
//! Must never read a clock, generate randomness, do I/O, or depend on PostgreSQL: time, random bytes and keys are arguments.
//!
//! Sources: RFC 2104 (HMAC), RFC 4226 (HOTP), RFC 6238 (TOTP), RFC 4648 (base32), RFC 3986 (URI), and the Key URI format
//! of Google Authenticator (<https://github.com/google/google-authenticator/wiki/Key-Uri-Format>).
//!
//! Errors have constant messages. No error holds any part of its input.

#![forbid(unsafe_code)]

pub mod algorithm;
mod base32;
pub mod code;
pub mod judge;
mod keyed;
pub mod lockout;
pub mod parameters;
pub mod qr;
pub mod recovery;
pub mod secret;
pub mod step;
pub mod uri;
pub mod window;

pub use algorithm::Algorithm;
pub use code::{Code, Malformed, code_at_step};
pub use judge::{Guess, Judgement, Verdict, judge, judge_guess};
pub use lockout::{Counter, Policy};
pub use parameters::{Digits, ParameterError, Parameters, Period};
pub use qr::QrError;
pub use recovery::{RecoveryCode, RecoverySet, UsedMask};
pub use secret::{Secret, SecretError};
pub use step::{TimeStep, Window};
pub use uri::{OtpauthUri, UriError, check_account, check_label};
pub use window::matching_step;
