//! What must hold for every input of every parser.
//!
//! Each target takes any bytes, panics if a property does not hold, and returns whether the parser accepted the input.
//! Most compare the parser with a model of it: the same rule in other words, slow and plain.

#![forbid(unsafe_code)]

pub mod codes;
pub mod files;
pub mod keys;

/// A target: takes any bytes, returns whether the parser accepted them.
pub type Target = fn(&[u8]) -> bool;

/// Every target by its name, which is also the name of its corpus.
pub const TARGETS: [(&str, Target); 16] = [
    ("base32", codes::base32),
    ("code", codes::code),
    ("window", codes::window),
    ("uri", codes::uri),
    ("names", codes::names),
    ("encoding", codes::encoding),
    ("recovery_code", codes::recovery_code),
    ("recovery_set", codes::recovery_set),
    ("qr", codes::qr),
    ("sealed", keys::sealed),
    ("data_key", keys::data_key),
    ("key_file", keys::key_file),
    ("fingerprint", keys::fingerprint),
    ("pskc", files::pskc),
    ("csv", files::csv),
    ("google", files::google),
];
