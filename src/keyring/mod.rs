//! Master keys, data keys, and the cache of a backend.
//!
//! Owns the key file and the cache. A master key comes from outside of the database and never enters it. A data key is
//! stored in `totp.data_keys`, wrapped by a master key. Keys leave this module only as sealed or opened values.

mod key_file;

#[cfg(any(test, feature = "pg_test"))]
pub use key_file::FileRule;
pub use key_file::is_environment;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use otp::{Parameters, Secret};
use pgrx::pg_sys;
use seal::{Context, DataKey, Fingerprint, KeyId, MasterKey, MasterKeys};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::server_log::Line;
use crate::store::data_keys::{self, StoredKey};
use crate::store::secrets::SealedSecret;
use crate::store::spi::Snapshot;

/// Largest number of cached data keys. During a rotation there are two or three.
const MAX_CACHED: usize = 16;

/// The keys that this backend has read.
struct Cache {
    /// `PgReloadTime` when the master keys were read: another value means that the configuration was read again.
    read_at: i64,
    masters: Option<Rc<MasterKeys>>,
    data: Vec<CachedKey>,
}

struct CachedKey {
    id: i32,
    wrapped: Vec<u8>,
    key: Rc<DataKey>,
}

thread_local! {
    /// Counts how often a key was read from its table or file.
    static READS: Cell<u64> = const { Cell::new(0) };
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache { read_at: 0, masters: None, data: Vec::new() }) };
}

/// Returns the data key that seals new secrets, and holds it until the end of the transaction, so that no rotation destroys
/// it meanwhile. The first call ever creates it.
///
/// Every function that writes rows of a user calls this before it takes any row lock. So it cannot deadlock with a rotation,
/// which locks the data keys first.
pub fn hold_current() -> Result<KeyId, Error> {
    loop {
        let Some(key) = data_keys::current(&Snapshot::latest())? else {
            create_first()?;
            continue;
        };
        data_keys::lock_shared(key.id);
        // It may have been replaced while we waited.
        if data_keys::current(&Snapshot::latest())?.is_some_and(|k| k.id == key.id) {
            return Ok(KeyId::new(key.id));
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

/// Creates a new current data key, wrapped by the current master key. The old one retires. The caller holds the set.
///
/// Errors: as [`open_secret`], if a key in use cannot be opened: its secrets could not be moved.
pub fn replace_current() -> Result<KeyId, Error> {
    cache_all()?;
    data_keys::retire_current()?;
    let id = create()?;
    cache_all()?;
    Ok(id)
}

/// Reads every data key from its table into the cache, which [`reseal`] needs.
///
/// Errors: F0000 if one is wrapped by a master key that is not loaded.
pub fn cache_all() -> Result<(), Error> {
    let all = data_keys::all(&Snapshot::latest())?;
    CACHE.with_borrow_mut(|c| c.data.retain(|k| all.iter().any(|stored| stored.id == k.id)));
    for stored in all {
        unwrapped(&stored)?;
    }
    Ok(())
}

/// Returns whether the current data key is wrapped by the first master key of the file.
pub fn current_is_under_current_master() -> Result<bool, Error> {
    let current = data_keys::current(&Snapshot::latest())?;
    let master = masters()?.current().fingerprint().to_string();
    Ok(current.is_some_and(|k| k.master_key == master))
}

/// Makes a data key, wrapped by the current master key, and stores it as the current one.
fn create() -> Result<KeyId, Error> {
    let masters = masters()?;
    let master = masters.current();
    let id = data_keys::next_id(&Snapshot::latest())?;
    let key = DataKey::from_random(random_key()?);
    let wrapped = key.wrap(master, KeyId::new(id), random()?).map_err(|_| Error::Internal("wrap a data key"))?;
    data_keys::insert(id, &wrapped, &master.fingerprint().to_string(), crate::clock::now()?)?;
    Ok(KeyId::new(id))
}

/// Opens a stored secret. Looks for its data key under the snapshot that found the secret: a rotation that commits
/// meanwhile destroys the key, but not for that snapshot.
///
/// Errors: F0000 if its master key is not loaded, XX001 if its data key does not exist or the secret does not open.
pub fn open_secret(snapshot: &Snapshot, user_id: &str, stored: &SealedSecret) -> Result<Secret, Error> {
    let context = secret_context(user_id, &stored.device, stored.secret_id, stored.parameters);
    open(snapshot, &context, &stored.sealed).map(Secret::from_bytes)
}

/// Seals a secret under a data key that the caller holds.
pub fn seal_secret(
    key: KeyId,
    user_id: &str,
    device: &str,
    secret_id: i64,
    parameters: Parameters,
    secret: &Secret,
) -> Result<Vec<u8>, Error> {
    seal(key, &secret_context(user_id, device, secret_id, parameters), secret.as_bytes())
}

/// Opens the hashes of a set of recovery codes. Errors as [`open_secret`].
pub fn open_recovery_codes(
    snapshot: &Snapshot,
    user_id: &str,
    set_id: i64,
    count: u8,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    open(snapshot, &Context::RecoveryCodes { user_id, set_id, count }, sealed)
}

/// Seals the hashes of a set of recovery codes under a data key that the caller holds.
pub fn seal_recovery_codes(key: KeyId, user_id: &str, set_id: i64, count: u8, hashes: &[u8]) -> Result<Vec<u8>, Error> {
    seal(key, &Context::RecoveryCodes { user_id, set_id, count }, hashes)
}

/// Opens a value and seals it under another data key. Both keys are in the cache since [`cache_all`].
pub fn reseal(to: KeyId, context: &Context, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let plaintext = open(&Snapshot::latest(), context, sealed)?;
    let key = cached(to.get()).ok_or(Error::NoDataKey(to.get()))?;
    seal::seal(&key, to, random()?, context, &plaintext).map_err(|_| Error::Internal("seal a value"))
}

/// Returns the context that a secret is bound to.
pub fn secret_context<'a>(user_id: &'a str, device: &'a str, secret_id: i64, parameters: Parameters) -> Context<'a> {
    Context::Secret {
        user_id,
        device,
        secret_id,
        algorithm: parameters.algorithm.as_str(),
        digits: parameters.digits.get(),
        period: parameters.period.get(),
    }
}

fn seal(id: KeyId, context: &Context, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
    // Read from the table, never only from the cache: after DROP and CREATE EXTENSION an id may name another key.
    let stored = data_keys::find(&Snapshot::latest(), id.get())?.ok_or(Error::NoDataKey(id.get()))?;
    let key = unwrapped(&stored)?;
    seal::seal(&key, id, random()?, context, plaintext).map_err(|_| Error::Internal("seal a value"))
}

fn open(snapshot: &Snapshot, context: &Context, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let id = seal::key_id(sealed).map_err(|_| Error::DoesNotOpen)?;
    reread_after_reload()?;
    if let Some(key) = cached(id.get())
        && let Ok(plaintext) = seal::open(&key, id, context, sealed)
    {
        return Ok(plaintext);
    }
    note_read();
    let stored = data_keys::find(snapshot, id.get())?.ok_or(Error::NoDataKey(id.get()))?;
    seal::open(&*unwrapped(&stored)?, id, context, sealed).map_err(|_| Error::DoesNotOpen)
}

fn note_read() {
    READS.set(READS.get().wrapping_add(1));
}

/// Returns how often this backend has read a key from outside its cache. It may have waited there, so earlier reads are old.
pub fn reads() -> u64 {
    READS.get()
}

/// Returns how many master keys are loaded.
pub fn count() -> usize {
    CACHE.with_borrow(|c| c.masters.as_ref().map_or(0, |m| m.iter().count()))
}

/// Returns whether the master key with a stored fingerprint is loaded. Never raises.
pub fn is_loaded(fingerprint: &str) -> bool {
    Fingerprint::parse(fingerprint).is_ok_and(|f| with_master(&f, |_| ()).is_ok())
}

fn cached(id: i32) -> Option<Rc<DataKey>> {
    CACHE.with_borrow(|c| c.data.iter().find(|k| k.id == id).map(|k| Rc::clone(&k.key)))
}

/// Opens a stored data key, and caches it.
fn unwrapped(stored: &StoredKey) -> Result<Rc<DataKey>, Error> {
    let known = CACHE.with_borrow(|c| {
        c.data.iter().find(|k| k.id == stored.id && k.wrapped == stored.wrapped).map(|k| Rc::clone(&k.key))
    });
    if let Some(key) = known {
        return Ok(key);
    }
    let fingerprint = Fingerprint::parse(&stored.master_key).map_err(|_| Error::RowsAltered)?;
    let id = KeyId::new(stored.id);
    let key = with_master(&fingerprint, |master| DataKey::unwrap(master, id, &stored.wrapped))?
        .map_err(|_| Error::DoesNotOpen)?;
    let key = Rc::new(key);
    CACHE.with_borrow_mut(|c| {
        c.data.retain(|k| k.id != stored.id);
        // A backend that sees many rotations keeps the newest keys.
        if c.data.len() >= MAX_CACHED {
            c.data.remove(0);
        }
        c.data.push(CachedKey { id: stored.id, wrapped: stored.wrapped.clone(), key: Rc::clone(&key) });
    });
    Ok(key)
}

/// Calls `f` with a master key. If it is not loaded, reads the file once more before the error.
fn with_master<R>(fingerprint: &Fingerprint, f: impl Fn(&MasterKey) -> R) -> Result<R, Error> {
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
fn masters() -> Result<Rc<MasterKeys>, Error> {
    reread_after_reload()?;
    if let Some(keys) = CACHE.with_borrow(|c| c.masters.clone()) {
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
fn reread_after_reload() -> Result<(), Error> {
    // SAFETY: a read of backend state.
    let reloaded = unsafe { pg_sys::PgReloadTime };
    if CACHE.with_borrow(|c| c.masters.is_none() || c.read_at == reloaded) {
        return Ok(());
    }
    note_read();
    match key_file::read() {
        Ok(keys) => remember(&Rc::new(keys)),
        Err(error) => {
            CACHE.with_borrow_mut(|c| c.read_at = reloaded);
            note_ignored(&error);
        }
    }
    Ok(())
}

fn note_ignored(error: &Error) {
    let reason = error.detail().unwrap_or_else(|| error.to_string());
    Line::new("key_file_ignored").text("reason", &reason).write();
}

fn remember(keys: &Rc<MasterKeys>) {
    CACHE.with_borrow_mut(|c| {
        // A key that was removed from the file is no longer used, nor are the data keys that it opened.
        if c.masters.as_ref().is_some_and(|old| old.iter().any(|k| keys.find(&k.fingerprint()).is_none())) {
            c.data.clear();
        }
        c.masters = Some(Rc::clone(keys));
        // SAFETY: a read of backend state.
        c.read_at = unsafe { pg_sys::PgReloadTime };
    });
}

/// Forgets every key, so that the backend is like a new session.
#[cfg(any(test, feature = "pg_test"))]
pub fn forget() {
    CACHE.with_borrow_mut(|c| {
        c.masters = None;
        c.data.clear();
    });
}

/// Returns random bytes from the operating system. A generator in user space would not be reseeded in a forked backend.
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

fn random_key() -> Result<Zeroizing<[u8; 32]>, Error> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *key).map_err(|_| Error::Random)?;
    Ok(key)
}
