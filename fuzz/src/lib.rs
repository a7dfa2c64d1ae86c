//! What must hold for every input of every parser.
//!
//! Each target takes any bytes, panics where a property does not hold, and says whether the parser accepted the input.
//! Most compare the parser with a model of it: the same rule in other words, slow and plain.

#![forbid(unsafe_code)]

pub mod codes;
pub mod keys;

/// A target: any bytes in; whether the parser accepted them out.
pub type Target = fn(&[u8]) -> bool;

/// Every target by its name, which is that of its corpus too.
pub const TARGETS: [(&str, Target); 11] = [
    ("base32", codes::base32),
    ("code", codes::code),
    ("window", codes::window),
    ("uri", codes::uri),
    ("recovery_code", codes::recovery_code),
    ("recovery_set", codes::recovery_set),
    ("qr", codes::qr),
    ("sealed", keys::sealed),
    ("data_key", keys::data_key),
    ("key_file", keys::key_file),
    ("fingerprint", keys::fingerprint),
];
