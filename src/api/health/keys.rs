//! The checks about keys.
//!
//! Owns their sentences. Must never show a key, only the fingerprint of a master key.

use pgrx::pg_sys::panic::ErrorReport;

use super::check::Check;
use crate::error::Error;
use crate::keyring;
use crate::store::data_keys;
use crate::store::health;
use crate::store::spi::Snapshot;
use crate::timestamp::Timestamp;

pub fn master_key() -> Check {
    match keyring::reread() {
        Ok(()) => Check::ok("master_key", format!("{} loaded; nothing to do", keyring::count())),
        Err(error) => {
            let report = ErrorReport::from(error);
            let sentences: Vec<_> = [report.detail(), report.hint()].into_iter().flatten().collect();
            Check::fail("master_key", format!("{}: {}", report.message(), sentences.join(" ")))
        }
    }
}

pub fn master_key_source() -> Check {
    const NAME: &str = "master_key_source";
    if keyring::is_environment() {
        Check::warn(NAME, "from the environment, which more people can read than a file: set totp.key_file")
    } else {
        Check::ok(NAME, "from the file that totp.key_file names; nothing to do")
    }
}

/// Fails for each master key that wraps a data key and is not loaded: what is sealed under it cannot be opened.
pub fn lost_master_keys() -> Result<Vec<Check>, Error> {
    const NAME: &str = "lost_master_key";
    let mut lost: Vec<_> = data_keys::all(&Snapshot::latest())?.into_iter().map(|key| key.master_key).collect();
    lost.retain(|master_key| !keyring::is_loaded(master_key));
    lost.sort();
    lost.dedup();
    if lost.is_empty() {
        return Ok(vec![Check::ok(NAME, "every data key can be opened; nothing to do")]);
    }
    lost.iter().map(|master_key| Ok(Check::fail(NAME, lost_master_key(master_key)?))).collect()
}

fn lost_master_key(master_key: &str) -> Result<String, Error> {
    // Without any master key, the file is broken: that says nothing about the key.
    if keyring::count() > 0 && !data_keys::is_in_use(master_key)? {
        return Ok(format!(
            "nothing is sealed under master key {master_key}, which is not loaded: if it was thrown away, \
             SELECT * FROM totp_forget_unreadable('{master_key}'); if not, add it to the key file again"
        ));
    }
    Ok(format!(
        "what is sealed under master key {master_key}, which is not loaded, cannot be opened: add it to the key file again; \
         SELECT * FROM totp_keys() counts the secrets"
    ))
}

pub fn key_rotation(now: Timestamp) -> Result<Check, Error> {
    const NAME: &str = "key_rotation";
    let keys = health::data_keys(now)?;
    Ok(if keys.is_rotation_half_way {
        Check::warn(NAME, "a rotation is half way: CALL totp_rotate_key_online()")
    } else if keys.is_older_than_a_year {
        Check::warn(NAME, "the data key is more than a year old: SELECT totp_rotate_key()")
    } else {
        Check::ok(NAME, "no data key is older than a year; nothing to do")
    })
}
