//! `totp.audit_keys`: keys of the trail, wrapped by master keys.
//!
//! Owns the rows. Must never delete the key of a seal whose master key is loaded.

use pgrx::pg_sys;
use seal::KeyId;

use super::row::Row;
use super::spi::{Snapshot, bytes, key_id, statement, text, time};
use super::table_oid;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// A key as it is stored: wrapped by the master key with that fingerprint.
pub struct StoredMacKey {
    pub id: KeyId,
    pub wrapped: Vec<u8>,
    pub master_key: String,
}

statement!(reads ALL(), c"SELECT key_id, wrapped, master_key FROM totp.audit_keys ORDER BY key_id");
statement!(reads FIND(INT4OID), c"SELECT key_id, wrapped, master_key FROM totp.audit_keys WHERE key_id = $1");
statement!(writes INSERT(INT4OID, BYTEAOID, TEXTOID, TIMESTAMPTZOID), c"
INSERT INTO totp.audit_keys (key_id, wrapped, master_key, created_at) VALUES ($1, $2, $3, $4)");
statement!(writes WRAP(INT4OID, BYTEAOID, TEXTOID), c"
UPDATE totp.audit_keys SET wrapped = $2, master_key = $3 WHERE key_id = $1");
statement!(writes DELETE(TEXTOID), c"DELETE FROM totp.audit_keys WHERE master_key = $1");

fn stored(row: &Row) -> Result<StoredMacKey, Error> {
    Ok(StoredMacKey { id: row.key_id(1)?, wrapped: row.must(2)?, master_key: row.must(3)? })
}

/// Returns all keys, oldest first. There are none before ALTER EXTENSION UPDATE, where the table does not exist.
pub fn all(snapshot: &Snapshot) -> Result<Vec<StoredMacKey>, Error> {
    if table_oid(c"audit_keys") == pg_sys::InvalidOid {
        return Ok(vec![]);
    }
    ALL.with(|s| s.rows(snapshot, &[], stored))
}

/// Returns one key.
pub fn find(snapshot: &Snapshot, id: KeyId) -> Result<Option<StoredMacKey>, Error> {
    FIND.with(|s| s.first(snapshot, &[key_id(id)], stored))
}

/// Stores a key.
pub fn insert(key: &StoredMacKey, at: Timestamp) -> Result<(), Error> {
    INSERT.with(|s| s.change_one(&[key_id(key.id), bytes(&key.wrapped), text(&key.master_key), time(at)]))
}

/// Stores a key as another master key wraps it.
pub fn wrap(key: &StoredMacKey) -> Result<(), Error> {
    WRAP.with(|s| s.change_one(&[key_id(key.id), bytes(&key.wrapped), text(&key.master_key)]))
}

/// Deletes the keys that a master key wraps. Returns how many.
pub fn delete(master_key: &str) -> Result<u64, Error> {
    DELETE.with(|s| s.count(&[text(master_key)]))
}
