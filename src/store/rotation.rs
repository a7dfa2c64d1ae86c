//! The statements of a key rotation.
//!
//! Owns the statements that move what is sealed. Must never see it opened: `totp.reseal` does that, and calls back into `api`.

use std::cell::Cell;

use pgrx::IntoDatum;
use seal::KeyId;

use super::attempts;
use super::secrets::{Codes, read_codes};
use super::spi::{Snapshot, int4, key_id, key_ids, statement, text};
use crate::error::Error;
use crate::user::{SecretId, UserId};

thread_local! {
    /// The data key to which this backend is moving values now.
    static MOVING_TO: Cell<Option<KeyId>> = const { Cell::new(None) };
}

/// While this value lives, `totp.reseal` and `totp.reseal_recovery_codes` may be called for its data key. An error that
/// unwinds drops it too.
struct Moving(Option<KeyId>);

impl Moving {
    fn to(key: KeyId) -> Self {
        Self(MOVING_TO.replace(Some(key)))
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        MOVING_TO.set(self.0);
    }
}

/// Returns whether a statement of a rotation to that data key is running.
pub fn is_moving_to(key: KeyId) -> bool {
    MOVING_TO.get() == Some(key)
}

/// The users of one batch, locked.
pub struct Batch {
    pub users: Vec<String>,
    /// Where the next batch continues; `None` at the end of the table.
    pub last_user: Option<String>,
}

// totp.reseal and totp.reseal_recovery_codes are functions of this library (api/rotation.rs). They open a value and seal
// it under another key, with no plaintext in SQL.
statement!(writes MOVE_SECRETS(INT4OID), c"
UPDATE totp.secrets
   SET sealed = totp.reseal(user_id, device, secret_id, algorithm, digits, period, sealed, $1), key_id = $1
 WHERE key_id <> $1");
statement!(writes MOVE_RECOVERY_CODES(INT4OID), c"
UPDATE totp.recovery_codes
   SET sealed = totp.reseal_recovery_codes(user_id, set_id, count, sealed, $1), key_id = $1
 WHERE key_id <> $1");
statement!(writes MOVE_SECRETS_OF(INT4OID, TEXTARRAYOID), c"
UPDATE totp.secrets
   SET sealed = totp.reseal(user_id, device, secret_id, algorithm, digits, period, sealed, $1), key_id = $1
 WHERE key_id <> $1 AND user_id = ANY ($2)");
statement!(writes MOVE_RECOVERY_CODES_OF(INT4OID, TEXTARRAYOID), c"
UPDATE totp.recovery_codes
   SET sealed = totp.reseal_recovery_codes(user_id, set_id, count, sealed, $1), key_id = $1
 WHERE key_id <> $1 AND user_id = ANY ($2)");
statement!(reads REMAINING(), c"
SELECT pg_catalog.count(*)
  FROM totp.secrets WHERE key_id = ANY (ARRAY(SELECT key_id FROM totp.data_keys WHERE state = 'retiring'))");
// Two statements, each an index scan in the order of its primary key that ends after a batch.
statement!(reads NEXT_WITH_SECRETS(TEXTOID, INT4OID, INT4OID), c"
SELECT user_id FROM totp.secrets WHERE user_id > $1 AND key_id <> $2 ORDER BY user_id LIMIT $3");
statement!(reads NEXT_WITH_RECOVERY_CODES(TEXTOID, INT4OID, INT4OID), c"
SELECT user_id FROM totp.recovery_codes WHERE user_id > $1 AND key_id <> $2 ORDER BY user_id LIMIT $3");
statement!(writes LOCK_USERS(TEXTARRAYOID), c"
SELECT user_id FROM totp.attempts WHERE user_id = ANY ($1) ORDER BY user_id FOR NO KEY UPDATE SKIP LOCKED");
statement!(reads ANYTHING_UNDER(INT4ARRAYOID), c"
SELECT EXISTS (SELECT FROM totp.secrets WHERE key_id = ANY ($1))
    OR EXISTS (SELECT FROM totp.recovery_codes WHERE key_id = ANY ($1))");
statement!(reads SEALED_UNDER(INT4ARRAYOID), c"
SELECT user_id, device, secret_id, created_at, period FROM totp.secrets WHERE key_id = ANY ($1)
UNION ALL
SELECT user_id, NULL, set_id, NULL, NULL FROM totp.recovery_codes WHERE key_id = ANY ($1)
ORDER BY 1, 2");

/// Returns whether anything is sealed under one of these keys.
pub fn is_anything_under(snapshot: &Snapshot, keys: &[KeyId]) -> Result<bool, Error> {
    let keys = [key_ids(keys)];
    ANYTHING_UNDER.with(|s| s.first(snapshot, &keys, |row| row.must(1)))?.ok_or(Error::RowsAltered)
}

/// Moves everything to a key. Returns the number of secrets, without sets of recovery codes.
pub fn move_all(key: KeyId) -> Result<i64, Error> {
    let _moving = Moving::to(key);
    MOVE_RECOVERY_CODES.with(|s| s.count(&[key_id(key)]))?;
    Ok(MOVE_SECRETS.with(|s| s.count(&[key_id(key)]))?.cast_signed())
}

/// Moves everything of users whose rows are locked. Returns the number of secrets.
pub fn move_users(key: KeyId, users: &[String]) -> Result<i64, Error> {
    let args = || [key_id(key), users.to_vec().into_datum()];
    let _moving = Moving::to(key);
    MOVE_RECOVERY_CODES_OF.with(|s| s.count(&args()))?;
    Ok(MOVE_SECRETS_OF.with(|s| s.count(&args()))?.cast_signed())
}

/// Returns the number of secrets that are still under an old key.
pub fn remaining(snapshot: &Snapshot) -> Result<i64, Error> {
    REMAINING.with(|s| s.first(snapshot, &[], |row| row.must(1)))?.ok_or(Error::RowsAltered)
}

/// Locks the next users with something under an old key, and skips users that another session holds. If all are held, waits
/// for the first of them.
pub fn lock_batch(key: KeyId, after_user: &str, size: i32) -> Result<Batch, Error> {
    let next = next_users(key, after_user, size)?;
    let last_user = next.last().cloned();
    let first = next.first().cloned();
    let users: Vec<String> =
        LOCK_USERS.with(|s| s.rows(&Snapshot::latest(), &[next.into_datum()], |row| row.must(1)))?;
    match first {
        Some(first) if users.is_empty() => {
            // All are held, or have no row: wait for one, while this session holds no other.
            attempts::lock(UserId::stored(&first))?;
            Ok(Batch { users: vec![first.clone()], last_user: Some(first) })
        }
        _ => Ok(Batch { users, last_user }),
    }
}

/// Returns up to `size` users after `after_user` who have something under another key, in order.
fn next_users(key: KeyId, after_user: &str, size: i32) -> Result<Vec<String>, Error> {
    let snapshot = Snapshot::latest();
    let args = || [text(after_user), key_id(key), int4(size)];
    let mut users: Vec<String> = NEXT_WITH_SECRETS.with(|s| s.rows(&snapshot, &args(), |row| row.must(1)))?;
    let others: Vec<String> = NEXT_WITH_RECOVERY_CODES.with(|s| s.rows(&snapshot, &args(), |row| row.must(1)))?;
    // A list of full length does not include users after its last one.
    let is_cut = |list: &Vec<String>| list.len() == size as usize;
    let end = [&users, &others].into_iter().filter(|l| is_cut(l)).filter_map(|l| l.last()).min().cloned();
    users.extend(others);
    users.sort_unstable();
    users.dedup();
    users.retain(|user| end.as_ref().is_none_or(|end| user <= end));
    Ok(users)
}

/// A secret that cannot be opened. Without a device and codes it is a set of recovery codes.
pub struct Lost {
    pub user_id: String,
    pub device: Option<String>,
    pub secret_id: SecretId,
    pub codes: Option<Codes>,
}

/// Returns what is sealed under these keys, ordered by user and device.
pub fn sealed_under(snapshot: &Snapshot, keys: &[KeyId]) -> Result<Vec<Lost>, Error> {
    SEALED_UNDER.with(|s| {
        s.rows(snapshot, &[key_ids(keys)], |row| {
            let device = row.get(2);
            let codes = device.as_ref().map(|_: &String| read_codes(row, 4, 5)).transpose()?;
            Ok(Lost { user_id: row.must(1)?, device, secret_id: row.secret_id(3)?, codes })
        })
    })
}
