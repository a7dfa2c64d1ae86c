//! Master keys, data keys, and what is sealed under them. A master key comes from outside of the database and never enters it.
//! A data key is stored in `totp.data_keys`, wrapped by a master key.
//!
//! `sealing` uses `data_keys`, which, as `mac_keys`, uses `master_keys`, which uses `key_file`.
//!
//! Owns the key file and the keys that a backend keeps. Must never let a key out, except to seal or open a value.

mod data_keys;
mod key_file;
mod mac_keys;
mod master_keys;
mod sealing;

#[cfg(any(test, feature = "pg_test"))]
pub use data_keys::forget;
pub use data_keys::{
    cache_all, current_is_under_current_master, hold_current, hold_existing, is_loaded, replace_current, reread,
};
#[cfg(any(test, feature = "pg_test"))]
pub use key_file::FileRule;
pub use key_file::is_environment;
pub use mac_keys::{current as current_mac_key, find as find_mac_key};
pub use master_keys::{count, reads};
pub use sealing::{
    SecretContext, open_recovery_codes, open_secret, open_secret_at_hand, reseal_recovery_codes, reseal_secret,
    seal_recovery_codes, seal_secret,
};
