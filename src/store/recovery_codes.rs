//! `totp.recovery_codes`: the current set of recovery codes of a user, as sealed hashes.

use super::attempts::{self, Attempts};
use super::row::Row;
use super::spi::{Snapshot, bytes, int4, int8, statement, text};
use super::used_codes::{self, UsedCode};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::inplace::RowAddress;

/// A set of recovery codes, for one attempt.
pub struct LookUp {
    pub attempts: RowAddress,
    pub seen: Attempts,
    used: Option<RowAddress>,
    pub set_id: i64,
    pub count: u8,
    pub sealed: Vec<u8>,
    /// The own transaction made the set.
    pub is_own: bool,
    /// A device of the user is disabled, and no other one signs in: one that was never confirmed does not count.
    pub disabled: bool,
    /// Keeps the rows where they were found, and the data key that opens them.
    pub snapshot: Snapshot,
}

impl LookUp {
    /// Where its used codes are kept.
    ///
    /// Errors, which matter to a code of this set alone: XX001 if the row is missing; 55000 if the own transaction made a
    /// copy of it.
    pub fn used(&self) -> Result<RowAddress, Error> {
        match self.used {
            None => Err(Error::RowsAltered),
            Some(address) if address.is_own() && !self.is_own => Err(Error::OwnCopy),
            Some(address) => Ok(address),
        }
    }
}

statement!(reads LOOK_UP(TEXTOID), c"
SELECT r.set_id, r.count, r.sealed,
       (SELECT pg_catalog.count(s.disabled_at) > 0
               AND pg_catalog.count(*) FILTER (WHERE s.disabled_at IS NULL AND s.enforced_since IS NOT NULL) = 0
          FROM totp.secrets s WHERE s.user_id = r.user_id),
       tableoid, ctid, xmin
  FROM totp.recovery_codes r
 WHERE r.user_id = $1");
statement!(writes INSERT(TEXTOID, INT8OID, INT4OID, INT4OID, BYTEAOID, TIMESTAMPTZOID), c"
INSERT INTO totp.recovery_codes (user_id, set_id, count, key_id, sealed, created_at) VALUES ($1, $2, $3, $4, $5, $6)");
statement!(writes DELETE(TEXTOID), c"DELETE FROM totp.recovery_codes WHERE user_id = $1");
statement!(reads SEALED(TEXTOID), c"SELECT set_id, count, sealed FROM totp.recovery_codes WHERE user_id = $1");
statement!(writes RENAME(TEXTOID, TEXTOID, INT4OID, BYTEAOID), c"
UPDATE totp.recovery_codes SET user_id = $2, key_id = $3, sealed = $4 WHERE user_id = $1");

/// Looks up a user's set. `None` where there is none.
///
/// Errors: XX001 if the set is without its row in `totp.attempts`.
pub fn look_up(user_id: &str) -> Result<Option<LookUp>, Error> {
    let (attempts, used_codes) = (attempts::open()?, used_codes::open()?);
    let snapshot = Snapshot::latest();
    let set = LOOK_UP.with(|s| {
        s.first(&snapshot, &[text(user_id)], |row| {
            Ok((row.must(1)?, read_count(row, 2)?, row.must(3)?, row.must(4)?, row.address(5)?.is_own()))
        })
    })?;
    let Some((set_id, count, sealed, disabled, is_own)) = set else { return Ok(None) };
    let (attempts, seen) = attempts::read(&attempts, user_id, &snapshot)?.ok_or(Error::RowsAltered)?;
    let used = used_codes.rows_of(user_id, &snapshot, used_codes::read)?;
    let used = used_codes::only_of(set_id, &used).map(|(address, _)| address);
    Ok(Some(LookUp { attempts, seen, used, set_id, count, sealed, is_own, disabled, snapshot }))
}

fn read_count(row: &Row, column: i32) -> Result<u8, Error> {
    u8::try_from(row.must::<i16>(column)?).map_err(|_| Error::RowsAltered)
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
    if let Some((old, ..)) = sealed(user_id)? {
        used_codes::delete(user_id, old)?;
        DELETE.with(|s| s.change_one(&[text(user_id)]))?;
    }
    Ok(())
}

/// Set id, count and sealed hashes of a user.
pub fn sealed(user_id: &str) -> Result<Option<(i64, u8, Vec<u8>)>, Error> {
    SEALED.with(|s| {
        s.first(&Snapshot::latest(), &[text(user_id)], |row| Ok((row.must(1)?, read_count(row, 2)?, row.must(3)?)))
    })
}

/// Moves the set to another user id, sealed anew for it.
pub fn rename(user_id: &str, new_user_id: &str, key_id: i32, sealed: &[u8]) -> Result<(), Error> {
    RENAME.with(|s| s.change_one(&[text(user_id), text(new_user_id), int4(key_id), bytes(sealed)]))
}
