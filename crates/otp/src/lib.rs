//! One-time codes: everything about them that is arithmetic.
//!
//! Owns secrets and their text forms, codes, time steps, the window, the lockout policy, the judgment of one attempt,
//! recovery codes, the otpauth URI, and its QR code.
//! Must never read a clock, generate randomness, do I/O, or depend on PostgreSQL: time, random bytes and keys are arguments.
//!
//! Sources: RFC 2104 (HMAC), RFC 4226 (HOTP), RFC 6238 (TOTP), RFC 4648 (base32), RFC 3986 (URI), and the Key URI format
//! of Google Authenticator (<https://github.com/google/google-authenticator/wiki/Key-Uri-Format>).
//!
//! Errors have constant messages. No error holds any part of its input.
//!
//! Modules import each other by path, never through this file and never in a circle.

#![forbid(unsafe_code)]

pub mod algorithm;
mod base32;
pub mod code;
pub mod drift;
pub mod encoding;
mod hotp;
pub mod judge;
pub mod lockout;
pub mod names;
mod parameter_error;
pub mod parameters;
pub mod qr;
pub mod recovery;
pub mod secret;
mod separators;
pub mod step;
pub mod totp;
pub mod uri;

pub use algorithm::Algorithm;
pub use code::{Code, Malformed};
pub use drift::Drift;
pub use encoding::Encoding;
pub use judge::{Guess, Judgement, Verdict, judge, judge_guess};
pub use lockout::{Counter, Policy};
pub use names::{NameError, check_account, check_label, clean_account, clean_issuer};
pub use parameter_error::ParameterError;
pub use parameters::{Digits, Parameters, Period};
pub use qr::QrError;
pub use recovery::{RecoveryCode, RecoverySet, UsedMask};
pub use secret::{Secret, SecretError};
pub use step::{TimeStep, Window};
pub use totp::{code_at_step, matching_pair, matching_step};
pub use uri::{OtpauthUri, ReadUri, UriError};
