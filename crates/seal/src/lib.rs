//! Sealing: how secrets are stored so that a copy of the database is useless without the master key.
//!
//! Owns the master key file format, data keys and their wrapping, the sealed format, what it is bound to, and the MACs of the
//! audit trail.
//! Must never read a file, a clock, or a random generator: texts, keys, and nonces are arguments.
//!
//! Two layers of keys: a master key, which never enters the database, wraps data keys; a data key, which never leaves it
//! unwrapped, seals secrets. Each purpose has its own AES-256-GCM key (NIST SP 800-38D), derived by HKDF-SHA256 (RFC 5869).
//!
//! Nonces are random, so one data key may seal 2^32 times (NIST SP 800-38D section 8.3).

#![forbid(unsafe_code)]

pub mod context;
pub mod datakey;
pub mod envelope;
mod gcm;
pub mod ids;
pub mod keyfile;
pub mod mackey;
pub mod master;
mod subkey;
pub mod trail;

pub use context::Context;
pub use datakey::{DataKey, KeyId};
pub use envelope::{key_id, open, seal};
pub use gcm::{OpenError, SealError};
pub use ids::{IdRange, IdSet};
pub use keyfile::{KeyFileError, MasterKeys, Rule};
pub use mackey::MacKey;
pub use master::{Fingerprint, InvalidFingerprint, MasterKey};
