//! `totp.data_keys`, and the locks that keep a data key alive while something is sealed under it.
//!
//! The locks are PostgreSQL's object locks, tagged (table, key id), and not row locks: at REPEATABLE READ a row lock
//! raises 40001 if a rotation changed the row meanwhile, and no enrollment may fail because of a rotation.
//!
//! Owns the rows, and the locks. Must never have two current keys.

use pgrx::pg_sys;
use seal::KeyId;

use super::scan::SmallTable;
use super::spi::{Row, Snapshot, bytes, key_id, key_ids, statement, text, time};
use super::{shape, table_oid};
use crate::backend;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// What a data key is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Seals new secrets.
    Current,
    /// Opens secrets that a rotation has not moved yet.
    Retiring,
    /// Not a state: the row was altered. It is listed all the same, so that someone sees it.
    Unknown,
}

impl KeyState {
    /// The name as the table stores it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Retiring => "retiring",
            Self::Unknown => "unknown",
        }
    }

    fn from_stored(name: &str) -> Self {
        match name {
            "current" => Self::Current,
            "retiring" => Self::Retiring,
            _ => Self::Unknown,
        }
    }
}

/// A data key as it is stored: wrapped by the master key with that fingerprint.
pub struct StoredKey {
    pub id: KeyId,
    state: KeyState,
    pub master_key: String,
    pub wrapped: Vec<u8>,
}

/// A data key as `totp_keys()` lists it.
pub struct ListedKey {
    pub id: KeyId,
    pub state: KeyState,
    pub created_at: Timestamp,
    pub secrets: i64,
    pub master_key: String,
}

static TABLE: SmallTable = SmallTable { table: &shape::DATA_KEYS, select: &SELECT };

statement!(reads SELECT(), c"SELECT key_id, state, master_key, wrapped FROM totp.data_keys");
statement!(reads NEXT_ID(), c"SELECT pg_catalog.nextval('totp.key_ids')::integer");
statement!(writes INSERT(INT4OID, BYTEAOID, TEXTOID, TIMESTAMPTZOID), c"
INSERT INTO totp.data_keys (key_id, state, wrapped, master_key, created_at) VALUES ($1, 'current', $2, $3, $4)");
statement!(writes RETIRE(), c"UPDATE totp.data_keys SET state = 'retiring' WHERE state = 'current'");
// NOT EXISTS is not used here: it may become a join that hashes every secret.
statement!(writes DELETE_RETIRING(), c"
DELETE FROM totp.data_keys k
 WHERE state = 'retiring'
   AND (SELECT s.key_id FROM totp.secrets s WHERE s.key_id = k.key_id LIMIT 1) IS NULL
   AND (SELECT r.key_id FROM totp.recovery_codes r WHERE r.key_id = k.key_id LIMIT 1) IS NULL");
statement!(writes DELETE(INT4ARRAYOID), c"DELETE FROM totp.data_keys WHERE key_id = ANY ($1)");
// The first row at or after the number of the key: to look for that number alone, PostgreSQL may scan the table.
statement!(probes IN_USE(TEXTOID), c"
SELECT EXISTS (SELECT FROM totp.data_keys k
                WHERE k.master_key = $1
                  AND k.key_id IN ((SELECT s.key_id FROM totp.secrets s
                                     WHERE s.key_id >= k.key_id ORDER BY s.key_id LIMIT 1),
                                   (SELECT r.key_id FROM totp.recovery_codes r
                                     WHERE r.key_id >= k.key_id ORDER BY r.key_id LIMIT 1)))");
statement!(reads LIST(), c"
SELECT k.key_id, k.state, k.created_at, k.master_key,
       (SELECT pg_catalog.count(*) FROM totp.secrets s WHERE s.key_id = k.key_id)
  FROM totp.data_keys k
 ORDER BY k.key_id");

fn stored(row: &Row) -> Result<StoredKey, Error> {
    Ok(StoredKey {
        id: row.key_id(1)?,
        state: KeyState::from_stored(row.text(2)?),
        master_key: row.must(3)?,
        wrapped: row.must(4)?,
    })
}

/// Returns the key that seals new secrets, if there is one.
pub fn current(snapshot: &Snapshot) -> Result<Option<StoredKey>, Error> {
    Ok(all(snapshot)?.into_iter().find(|key| key.state == KeyState::Current))
}

/// Returns one key.
pub fn find(snapshot: &Snapshot, id: KeyId) -> Result<Option<StoredKey>, Error> {
    Ok(all(snapshot)?.into_iter().find(|key| key.id == id))
}

/// Returns a key id that was never used before.
pub fn next_id(snapshot: &Snapshot) -> Result<KeyId, Error> {
    NEXT_ID.with(|s| s.first(snapshot, &[], |row| row.key_id(1)))?.ok_or(Error::RowsAltered)
}

/// Stores a key as the current one.
pub fn insert(id: KeyId, wrapped: &[u8], master_key: &str, at: Timestamp) -> Result<(), Error> {
    INSERT.with(|s| s.change_one(&[key_id(id), bytes(wrapped), text(master_key), time(at)]))
}

/// Makes the current key a retiring one, if there is one.
pub fn retire_current() -> Result<(), Error> {
    RETIRE.with(|s| s.count(&[])).map(drop)
}

/// Destroys the retiring keys that seal nothing.
pub fn delete_retiring() -> Result<(), Error> {
    DELETE_RETIRING.with(|s| s.count(&[])).map(drop)
}

/// Destroys keys, whatever their state.
pub fn delete(ids: &[KeyId]) -> Result<(), Error> {
    DELETE.with(|s| s.count(&[key_ids(ids)])).map(drop)
}

/// Returns all keys as they are stored.
pub fn all(snapshot: &Snapshot) -> Result<Vec<StoredKey>, Error> {
    TABLE.rows(snapshot, stored)
}

/// Returns whether something is sealed under a data key that this master key wraps.
pub fn is_in_use(master_key: &str) -> Result<bool, Error> {
    IN_USE.with(|s| s.first(&Snapshot::latest(), &[text(master_key)], |row| row.must(1)))?.ok_or(Error::RowsAltered)
}

/// Lists all keys, oldest first.
pub fn list(snapshot: &Snapshot) -> Result<Vec<ListedKey>, Error> {
    LIST.with(|s| {
        s.rows(snapshot, &[], |row| {
            Ok(ListedKey {
                id: row.key_id(1)?,
                state: KeyState::from_stored(row.text(2)?),
                created_at: row.time(3)?,
                master_key: row.must(4)?,
                secrets: row.must(5)?,
            })
        })
    })
}

/// The object that represents the set of data keys. Sessions that add or destroy a key hold it.
const SET: KeyId = KeyId::new(0);

/// Keeps a key from being destroyed until the end of the transaction.
pub fn lock_shared(id: KeyId) {
    lock(id, pg_sys::ShareLock);
}

/// Returns whether this transaction keeps a key from being destroyed.
pub fn is_locked_shared(id: KeyId) -> bool {
    backend::holds_object(table_oid(c"data_keys"), object(id), pg_sys::ShareLock)
}

/// Releases a key that is no longer current.
pub fn unlock_shared(id: KeyId) {
    backend::unlock_object(table_oid(c"data_keys"), object(id), pg_sys::ShareLock);
}

/// Lets one session at a time add or destroy keys. Call it before the lock of any key.
pub fn lock_set() {
    lock(SET, pg_sys::ExclusiveLock);
}

/// Waits for every session that writes under a key, and blocks new ones until the end of the transaction.
pub fn lock_exclusive(id: KeyId) {
    lock(id, pg_sys::ExclusiveLock);
}

/// Locks every data key, so that no session writes under one. Returns the keys, which no longer change.
pub fn lock_all() -> Result<Vec<ListedKey>, Error> {
    lock_set();
    let keys = list(&Snapshot::latest())?;
    for key in &keys {
        lock_exclusive(key.id);
    }
    Ok(keys)
}

fn lock(id: KeyId, mode: u32) {
    // Nothing else uses the table's own OID as class.
    backend::lock_object(table_oid(c"data_keys"), object(id), mode);
}

fn object(id: KeyId) -> pg_sys::Oid {
    pg_sys::Oid::from(id.get().cast_unsigned())
}
