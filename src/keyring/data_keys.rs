//! The data keys: the one that seals now, the ones that opened values need, and their cache in this backend.
//!
//! Owns the cache, and the wrapping under master keys. Must never use, or keep, a key after its
//! master key is seen to be gone.

use std::cell::RefCell;
use std::rc::Rc;

use seal::{DataKey, Fingerprint, KeyId};

use super::{mac_keys, master_keys};
use crate::error::Error;
use crate::store::data_keys::{self, StoredKey};
use crate::store::spi::Snapshot;
use crate::{clock, random};

/// Largest number of cached data keys. During a rotation there are two or three.
const MAX_CACHED: usize = 16;

struct Cache {
    keys: Vec<CachedKey>,
    /// [`master_keys::removals`] when the keys were opened.
    removals: u64,
}

struct CachedKey {
    id: KeyId,
    wrapped: Vec<u8>,
    key: Rc<DataKey>,
}

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache { keys: Vec::new(), removals: 0 }) };
}

/// A data key that seals, and that no rotation destroys before the end of the transaction. It was read from its table in this
/// call: a cached one may be another, after DROP and CREATE EXTENSION.
pub struct HeldKey(StoredKey);

impl HeldKey {
    /// Its number.
    pub fn id(&self) -> KeyId {
        self.0.id
    }

    /// Opens it. Errors as [`unwrapped`].
    pub fn unwrapped(&self) -> Result<Rc<DataKey>, Error> {
        unwrapped(&self.0)
    }
}

/// Returns the data key that seals new secrets, and holds it until the end of the transaction, so that no rotation destroys
/// it meanwhile. The first call ever creates it.
///
/// Every function that writes rows of a user calls this, or [`hold_existing`], before it takes any row lock: the lock order
/// of `lib.rs`.
pub fn hold_current() -> Result<HeldKey, Error> {
    loop {
        let Some(key) = data_keys::current(&Snapshot::latest())? else {
            create_first()?;
            continue;
        };
        if data_keys::is_locked_shared(key.id) {
            return Ok(HeldKey(key));
        }
        data_keys::lock_shared(key.id);
        // It may have been replaced while we waited.
        if data_keys::current(&Snapshot::latest())?.is_some_and(|k| k.id == key.id) {
            return Ok(HeldKey(key));
        }
        data_keys::unlock_shared(key.id);
    }
}

/// Does the same for a function that seals nothing. If there is no data key there is nothing to change, so none is
/// created.
pub fn hold_existing() -> Result<(), Error> {
    match data_keys::current(&Snapshot::latest())? {
        Some(_) => hold_current().map(drop),
        None => Ok(()),
    }
}

fn create_first() -> Result<(), Error> {
    data_keys::lock_set();
    if data_keys::current(&Snapshot::latest())?.is_none() {
        create()?;
    }
    Ok(())
}

/// Creates a new current data key, wrapped by the current master key, which wraps the keys of the audit trail from now on
/// too. The old one retires. The caller holds the set.
///
/// Errors: as [`unwrapped`], if a key in use cannot be opened: its secrets could not be moved.
pub fn replace_current() -> Result<KeyId, Error> {
    cache_all()?;
    data_keys::retire_current()?;
    let id = create()?;
    mac_keys::rewrap()?;
    cache_all()?;
    Ok(id)
}

/// Reads every data key from its table into the cache, which a rotation needs.
///
/// Errors: F0000 if one is wrapped by a master key that is not loaded.
pub fn cache_all() -> Result<(), Error> {
    let all = data_keys::all(&Snapshot::latest())?;
    with_cache(|keys| keys.retain(|k| all.iter().any(|stored| stored.id == k.id)));
    for stored in all {
        unwrapped(&stored)?;
    }
    Ok(())
}

/// Returns whether the current data key is wrapped by the first master key of the file.
pub fn current_is_under_current_master() -> Result<bool, Error> {
    let current = data_keys::current(&Snapshot::latest())?;
    let master = master_keys::masters()?.current().fingerprint().to_string();
    Ok(current.is_some_and(|k| k.master_key == master))
}

/// Makes a data key, wrapped by the current master key, and stores it as the current one.
fn create() -> Result<KeyId, Error> {
    let masters = master_keys::masters()?;
    let master = masters.current();
    let id = data_keys::next_id(&Snapshot::latest())?;
    let key = DataKey::from_random(random::key()?);
    let wrapped = key.wrap(master, id, random::bytes()?).map_err(|_| Error::Internal("wrap a data key"))?;
    data_keys::insert(id, &wrapped, &master.fingerprint().to_string(), clock::now()?)?;
    Ok(id)
}

/// Returns a data key that this backend has opened before.
pub fn cached(id: KeyId) -> Option<Rc<DataKey>> {
    with_cache(|keys| keys.iter().find(|k| k.id == id).map(|k| Rc::clone(&k.key)))
}

/// Opens a stored data key, and caches it.
///
/// Errors: F0000 if its master key is not loaded, XX001 if it does not open.
pub fn unwrapped(stored: &StoredKey) -> Result<Rc<DataKey>, Error> {
    let is_this = |k: &&CachedKey| k.id == stored.id && k.wrapped == stored.wrapped;
    if let Some(key) = with_cache(|keys| keys.iter().find(is_this).map(|k| Rc::clone(&k.key))) {
        return Ok(key);
    }
    let fingerprint = Fingerprint::parse(&stored.master_key).map_err(|_| Error::RowsAltered)?;
    let key = master_keys::with_master(&fingerprint, |master| DataKey::unwrap(master, stored.id, &stored.wrapped))
        .map_err(if_unused)?
        .map_err(|_| Error::DoesNotOpen)?;
    let key = Rc::new(key);
    with_cache(|keys| {
        keys.retain(|k| k.id != stored.id);
        // A backend that sees many rotations keeps the newest keys.
        if keys.len() >= MAX_CACHED {
            keys.remove(0);
        }
        keys.push(CachedKey { id: stored.id, wrapped: stored.wrapped.clone(), key: Rc::clone(&key) });
    });
    Ok(key)
}

/// Names another way out if nothing is sealed under a master key that is not loaded.
fn if_unused(error: Error) -> Error {
    match error {
        Error::MasterKeyNotLoaded(key) if !data_keys::is_in_use(&key.to_string()).unwrap_or(true) => {
            Error::UnusedMasterKeyNotLoaded(key)
        }
        other => other,
    }
}

/// Reads the master keys now. A broken file is an error, even if keys are in use.
pub fn reread() -> Result<(), Error> {
    let read = master_keys::reread();
    drop_removed();
    read
}

/// Reads the master keys again if the configuration was.
pub fn reread_after_reload() {
    master_keys::reread_after_reload();
    drop_removed();
}

/// Returns whether the master key with a stored fingerprint is loaded. Never raises.
pub fn is_loaded(fingerprint: &str) -> bool {
    let is_loaded = Fingerprint::parse(fingerprint).is_ok_and(|f| master_keys::with_master(&f, |_| ()).is_ok());
    drop_removed();
    is_loaded
}

/// Wipes what was opened by a master key that is gone, now and not at the next use.
fn drop_removed() {
    with_cache(|_| ());
}

/// Calls `f` with the cached keys, of which none was opened by a master key that is gone.
fn with_cache<R>(f: impl FnOnce(&mut Vec<CachedKey>) -> R) -> R {
    CACHE.with_borrow_mut(|cache| {
        let removals = master_keys::removals();
        if cache.removals != removals {
            cache.keys.clear();
            cache.removals = removals;
        }
        f(&mut cache.keys)
    })
}

/// Forgets every key, so that the backend is like a new session.
#[cfg(any(test, feature = "pg_test"))]
pub fn forget() {
    master_keys::forget();
    with_cache(Vec::clear);
}
