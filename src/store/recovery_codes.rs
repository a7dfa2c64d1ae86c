//! `totp.recovery_codes`: the current set of recovery codes of a user, as sealed hashes.

use super::attempts::Attempts;
use super::lock_table;
use super::spi::{Snapshot, bytes, int4, int8, statement, text};
use super::used_codes::{self, UsedCode};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::inplace::{InPlace, RowAddress};

/// A set of recovery codes, for one attempt.
pub struct LookUp {
    pub attempts: RowAddress,
    pub seen: Attempts,
    pub used: RowAddress,
    pub set_id: i64,
    pub count: u8,
    pub sealed: Vec<u8>,
    /// Every device of the user is disabled.
    pub disabled: bool,
    /// Keeps the rows where they were found, and the data key that opens them.
    pub snapshot: Snapshot,
}

statement!(reads LOOK_UP(TEXTOID), c"
SELECT a.tableoid, a.ctid, a.xmin, a.locked_until, a.recovery_locked_until, a.last_failed_at, a.failures,
       a.recovery_failures,
       u.tableoid, u.ctid, u.xmin,
       r.set_id, r.count, r.sealed,
       (SELECT pg_catalog.count(*) > 0 AND pg_catalog.count(*) = pg_catalog.count(s.disabled_at)
          FROM totp.secrets s WHERE s.user_id = r.user_id)
  FROM totp.recovery_codes r
  LEFT JOIN totp.attempts a ON a.user_id = r.user_id
  LEFT JOIN totp.used_codes u ON u.user_id = r.user_id AND u.secret_id = r.set_id
 WHERE r.user_id = $1");
statement!(reads SET_ID(TEXTOID), c"SELECT set_id FROM totp.recovery_codes WHERE user_id = $1");
statement!(writes INSERT(TEXTOID, INT8OID, INT4OID, INT4OID, BYTEAOID, TIMESTAMPTZOID), c"
INSERT INTO totp.recovery_codes (user_id, set_id, count, key_id, sealed, created_at) VALUES ($1, $2, $3, $4, $5, $6)");
statement!(writes DELETE(TEXTOID), c"DELETE FROM totp.recovery_codes WHERE user_id = $1");
statement!(reads SEALED(TEXTOID), c"SELECT set_id, count, sealed FROM totp.recovery_codes WHERE user_id = $1");
statement!(writes RENAME(TEXTOID, TEXTOID, INT4OID, BYTEAOID), c"
UPDATE totp.recovery_codes SET user_id = $2, key_id = $3, sealed = $4 WHERE user_id = $1");

/// Looks up a user's set. `None` where there is none.
pub fn look_up(user_id: &str) -> Result<Option<LookUp>, Error> {
    lock_table(c"attempts");
    lock_table(c"used_codes");
    let snapshot = Snapshot::latest();
    let found = LOOK_UP.with(|s| {
        s.first(&snapshot, &[text(user_id)], |row| {
            let words = [row.word(4)?, row.word(5)?, row.word(6)?, row.word(7)?, row.word(8)?];
            let count = u8::try_from(row.must::<i16>(13)?).map_err(|_| Error::RowsAltered)?;
            Ok((
                row.address(1)?,
                Attempts::from_words(words),
                row.address(9)?,
                row.must(12)?,
                count,
                row.must(14)?,
                row.must(15)?,
            ))
        })
    })?;
    Ok(found.map(|(attempts, seen, used, set_id, count, sealed, disabled)| LookUp {
        attempts,
        seen,
        used,
        set_id,
        count,
        sealed,
        disabled,
        snapshot,
    }))
}

/// Replaces the user's set. The old one dies with its row of used codes.
pub fn replace(user_id: &str, set_id: i64, count: u8, key_id: i32, sealed: &[u8], at: Timestamp) -> Result<(), Error> {
    delete(user_id)?;
    used_codes::insert(user_id, &UsedCode::none(set_id))?;
    INSERT.with(|s| {
        s.change_one(&[text(user_id), int8(set_id), int4(count.into()), int4(key_id), bytes(sealed), int8(at.0)])
    })
}

/// Removes the user's set, if there is one.
pub fn delete(user_id: &str) -> Result<(), Error> {
    let old = SET_ID.with(|s| s.first(&Snapshot::latest(), &[text(user_id)], |row| row.must(1)))?;
    if let Some(old) = old {
        used_codes::delete(user_id, old)?;
        DELETE.with(|s| s.change_one(&[text(user_id)]))?;
    }
    Ok(())
}

/// Set id, count and sealed hashes of a user.
pub fn sealed(user_id: &str) -> Result<Option<(i64, u8, Vec<u8>)>, Error> {
    SEALED.with(|s| {
        s.first(&Snapshot::latest(), &[text(user_id)], |row| {
            let count = u8::try_from(row.must::<i16>(2)?).map_err(|_| Error::RowsAltered)?;
            Ok((row.must(1)?, count, row.must(3)?))
        })
    })
}

/// Moves the set to another user id, sealed anew for it.
pub fn rename(user_id: &str, new_user_id: &str, key_id: i32, sealed: &[u8]) -> Result<(), Error> {
    RENAME.with(|s| s.change_one(&[text(user_id), text(new_user_id), int4(key_id), bytes(sealed)]))
}
