//! The checks about keys.
//!
//! Owns their sentences. Must never show a key, only the fingerprint of a master key.

use pgrx::pg_sys::panic::ErrorReport;

use super::check::{Check, Status, counted};
use crate::error::Error;
use crate::keyring;
use crate::store::data_keys::{self, ListedKey};
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

/// Fails for each data key whose master key is not loaded: what is sealed under it cannot be opened.
pub fn lost_master_keys() -> Result<Vec<Check>, Error> {
    const NAME: &str = "lost_master_key";
    let mut keys = data_keys::list(&Snapshot::latest())?;
    keys.retain(|key| !keyring::is_loaded(&key.master_key));
    if keys.is_empty() {
        return Ok(vec![Check::ok(NAME, "every data key can be opened; nothing to do")]);
    }
    // Without any master key, the file is broken: that says nothing about the key.
    let may_be_forgotten = |master_key: &str| {
        let mut of_master = keys.iter().filter(|key| key.master_key == master_key);
        keyring::count() > 0 && of_master.all(|key| key.secrets == 0 && key.recovery_sets == 0)
    };
    Ok(keys.iter().map(|key| Check::fail(NAME, lost(key, may_be_forgotten(&key.master_key)))).collect())
}

/// Does the same, but counts nothing.
pub fn is_master_key_lost() -> Result<Check, Error> {
    let keys = data_keys::all(&Snapshot::latest())?;
    let is_lost = keys.iter().any(|key| !keyring::is_loaded(&key.master_key));
    Ok(Check::new("lost_master_key", if is_lost { Status::Fail } else { Status::Ok }, ""))
}

fn lost(key: &ListedKey, may_be_forgotten: bool) -> String {
    let master_key = &key.master_key;
    if may_be_forgotten {
        return format!(
            "nothing is sealed under master key {master_key}, which is not loaded: if it was thrown away, \
             SELECT * FROM totp_forget_unreadable('{master_key}'); if not, add it to the key file again"
        );
    }
    format!(
        "{} and {} are sealed under master key {master_key}, which is not loaded: add it to the key file again",
        counted(key.secrets, "secret", "secrets"),
        counted(key.recovery_sets, "set of recovery codes", "sets of recovery codes"),
    )
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
