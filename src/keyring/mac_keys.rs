//! The keys of the audit trail: the one that seals now, and older ones that verify.
//!
//! Owns their wrapping under master keys. Must never keep a key in memory after the call that needed it.

use seal::{Fingerprint, KeyId, MacKey};

use super::master_keys;
use crate::error::Error;
use crate::store::audit_keys::{self, StoredMacKey};
use crate::store::data_keys;
use crate::store::spi::Snapshot;
use crate::{clock, random};

/// Returns the key that seals now. Creates one if there is none, or if a rotation has made a data key since. The caller holds
/// the lock of seals.
///
/// Errors: F0000 if its master key is not loaded.
pub fn current() -> Result<(KeyId, MacKey), Error> {
    let newest_data_key = data_keys::current(&Snapshot::latest())?.map(|key| key.id);
    match audit_keys::all(&Snapshot::latest())?.pop() {
        // One sequence numbers both.
        Some(newest) if newest_data_key.is_none_or(|data_key| data_key < newest.id) => Ok((newest.id, open(&newest)?)),
        _ => create(),
    }
}

fn create() -> Result<(KeyId, MacKey), Error> {
    // Under the master key of the file as it is now: a rotation may be about to wrap all keys by it.
    master_keys::reread()?;
    let id = data_keys::next_id(&Snapshot::latest())?;
    let key = MacKey::from_random(random::key()?);
    audit_keys::insert(&wrapped(&key, id)?, clock::now()?)?;
    Ok((id, key))
}

/// Returns the key with that number, if it was not forgotten.
///
/// Errors: F0000 if its master key is not loaded, XX001 if it does not open.
pub fn find(snapshot: &Snapshot, id: KeyId) -> Result<Option<MacKey>, Error> {
    audit_keys::find(snapshot, id)?.map(|stored| open(&stored)).transpose()
}

fn open(stored: &StoredMacKey) -> Result<MacKey, Error> {
    let fingerprint = Fingerprint::parse(&stored.master_key).map_err(|_| Error::RowsAltered)?;
    master_keys::with_master(&fingerprint, |master| MacKey::unwrap(master, stored.id, &stored.wrapped))?
        .map_err(|_| Error::DoesNotOpen)
}

/// Wraps all keys by the current master key, so that an older one can be thrown away. Those that do not open stay as they are.
pub fn rewrap() -> Result<(), Error> {
    let current = master_keys::masters()?.current().fingerprint().to_string();
    for stored in audit_keys::all(&Snapshot::latest())?.iter().filter(|key| key.master_key != current) {
        if let Ok(key) = open(stored) {
            audit_keys::wrap(&wrapped(&key, stored.id)?)?;
        }
    }
    Ok(())
}

fn wrapped(key: &MacKey, id: KeyId) -> Result<StoredMacKey, Error> {
    let masters = master_keys::masters()?;
    let master = masters.current();
    let wrapped =
        key.wrap(master, id, random::bytes()?).map_err(|_| Error::Internal("wrap a key of the audit trail"))?;
    Ok(StoredMacKey { id, wrapped, master_key: master.fingerprint().to_string() })
}
