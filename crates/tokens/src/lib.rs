//! Files of hardware tokens: what a vendor, another system, or an authenticator app gives.
//!
//! Owns three formats: PSKC (RFC 6030, and drafts of it where they are alike), CSV in the column orders of OATH, Entra, and
//! Yubico, and the links of an export of Google Authenticator. A token that is not read has a [`Problem`] and stops no other.
//! Must never read a clock, generate randomness, do I/O, or depend on PostgreSQL: documents and keys are arguments.
//!
//! Sources: RFC 6030 (PSKC), XML Encryption (<https://www.w3.org/TR/xmlenc-core/>), RFC 3394 and RFC 5649 (AES key wrap),
//! RFC 8018 (PBKDF2), RFC 2104 (HMAC), RFC 4180 (CSV), Protocol Buffers (<https://protobuf.dev/programming-guides/encoding/>).
//!
//! Every cost is linear in the length of a document, and a document is bounded. Errors and problems have constant texts: none
//! holds any part of its input.
//!
//! Modules import each other by path, never through this file and never in a circle.

#![forbid(unsafe_code)]

mod base64;
mod cipher;
mod columns;
mod csv;
mod date;
mod encryption;
mod error;
mod format;
mod google;
mod problem;
mod protobuf;
mod pskc;
mod token;
mod xml;

pub use encryption::{Keys, MAX_ITERATIONS};
pub use error::ReadError;
pub use format::{Format, MAX_DOCUMENT, read};
pub use problem::Problem;
pub use token::{MAX_TOKENS, Token};
