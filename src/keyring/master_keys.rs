//! The master keys that this backend has read, and when they are read again: after a reload, and when one is missing.
//!
//! Owns the list in memory. Must never drop keys that are in use because a later file is broken.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use seal::{Fingerprint, MasterKey, MasterKeys};

use super::key_file;
use crate::backend;
use crate::error::Error;
use crate::server_log::Line;

struct Loaded {
    keys: Option<Rc<MasterKeys>>,
    /// When the configuration was read last, as of that time.
    read_at: i64,
    /// Counts how often a key was missing that was there before.
    removals: u64,
}

thread_local! {
    static LOADED: RefCell<Loaded> = const { RefCell::new(Loaded { keys: None, read_at: 0, removals: 0 }) };
    /// Counts how often a key was read from its table or file.
    static READS: Cell<u64> = const { Cell::new(0) };
}

/// Notes that a key is read from outside of this backend.
pub fn note_read() {
    READS.set(READS.get().wrapping_add(1));
}

/// Returns how often this backend has read a key from outside of its memory. It may have waited there, so what it looked up
/// before is old.
pub fn reads() -> u64 {
    READS.get()
}

/// Returns a number that changes when a master key was removed. Then what it opened is no longer used.
pub fn removals() -> u64 {
    LOADED.with_borrow(|loaded| loaded.removals)
}

/// Returns how many master keys are loaded.
pub fn count() -> usize {
    LOADED.with_borrow(|loaded| loaded.keys.as_ref().map_or(0, |m| m.iter().count()))
}

/// Calls `f` with a master key. If it is not loaded, reads the file once more before the error.
pub fn with_master<R>(fingerprint: &Fingerprint, f: impl Fn(&MasterKey) -> R) -> Result<R, Error> {
    if let Some(key) = masters()?.find(fingerprint) {
        return Ok(f(key));
    }
    match key_file::read() {
        Ok(fresh) => {
            let fresh = Rc::new(fresh);
            remember(&fresh);
            fresh.find(fingerprint).map(f).ok_or(Error::MasterKeyNotLoaded(*fingerprint))
        }
        Err(error) => {
            note_ignored(&error);
            Err(Error::MasterKeyNotLoaded(*fingerprint))
        }
    }
}

/// Returns the master keys. Reads them at first use in a session and after every reload of the configuration.
pub fn masters() -> Result<Rc<MasterKeys>, Error> {
    reread_after_reload();
    if let Some(keys) = LOADED.with_borrow(|loaded| loaded.keys.clone()) {
        return Ok(keys);
    }
    let keys = Rc::new(key_file::read()?);
    remember(&keys);
    Ok(keys)
}

/// Reads the master keys now. A broken file is an error, even if keys are in use.
pub fn reread() -> Result<(), Error> {
    remember(&Rc::new(key_file::read()?));
    Ok(())
}

/// Reads the file again after a reload. If it is broken, the keys in use stay, and the server log has a line.
pub fn reread_after_reload() {
    let reloaded_at = backend::reloaded_at();
    if LOADED.with_borrow(|loaded| loaded.keys.is_none() || loaded.read_at == reloaded_at) {
        return;
    }
    note_read();
    match key_file::read() {
        Ok(keys) => remember(&Rc::new(keys)),
        Err(error) => {
            LOADED.with_borrow_mut(|loaded| loaded.read_at = reloaded_at);
            note_ignored(&error);
        }
    }
}

fn note_ignored(error: &Error) {
    let reason = error.detail().unwrap_or_else(|| error.to_string());
    Line::new("key_file_ignored").text("reason", &reason).write();
}

fn remember(keys: &Rc<MasterKeys>) {
    LOADED.with_borrow_mut(|loaded| {
        if loaded.keys.as_ref().is_some_and(|old| old.iter().any(|k| keys.find(&k.fingerprint()).is_none())) {
            loaded.removals = loaded.removals.wrapping_add(1);
        }
        loaded.keys = Some(Rc::clone(keys));
        loaded.read_at = backend::reloaded_at();
    });
}

/// Forgets every key.
#[cfg(any(test, feature = "pg_test"))]
pub fn forget() {
    LOADED.with_borrow_mut(|loaded| loaded.keys = None);
}
