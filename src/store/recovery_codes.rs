//! `totp.recovery_codes`: the current set of recovery codes of a user, as sealed hashes.
//!
//! Owns the rows. Must never write a hash that is not sealed.

use pgrx::pg_sys;
use seal::KeyId;

use super::attempts::{self, Attempts, Seen};
use super::row::Row;
use super::scan::UserTable;
use super::shape;
use super::spi::{self, Snapshot, bytes, int4, key_id, secret_id, statement, time};
use super::used_codes::{self, UsedCode};
use crate::error::Error;
use crate::inplace::RowAddress;
use crate::timestamp::Timestamp;
use crate::user::{SecretId, UserId};

/// A set of recovery codes, for one attempt.
pub struct LookUp {
    pub attempts: RowAddress,
    pub seen: Attempts,
    used: Option<RowAddress>,
    pub set: SealedSet,
    /// This transaction created the set.
    pub is_own: bool,
    /// A device of the user is disabled, and no other one can sign in. One that was never confirmed does not count.
    pub disabled: bool,
    /// Keeps the rows where they were found, and the data key that opens them.
    pub snapshot: Snapshot,
}

/// A stored set: the hashes of its codes, sealed.
pub struct SealedSet {
    pub set_id: SecretId,
    pub count: u8,
    pub sealed: Vec<u8>,
}

impl LookUp {
    /// Returns where its used codes are stored.
    ///
    /// Errors, which matter only to a code of this set: XX001 if the row is missing; 55000 if this transaction made a copy of
    /// it.
    pub fn used(&self) -> Result<RowAddress, Error> {
        match self.used {
            None => Err(Error::RowsAltered),
            Some(address) if address.is_own() && !self.is_own => Err(Error::OwnCopy),
            Some(address) => Ok(address),
        }
    }
}

static TABLE: UserTable = UserTable { table: &shape::RECOVERY_CODES, select: &SELECT };

statement!(reads LOOK_UP(TEXTOID), c"
SELECT r.set_id, r.count, r.sealed,
       (SELECT pg_catalog.count(s.disabled_at) > 0
               AND pg_catalog.count(*) FILTER (WHERE s.disabled_at IS NULL AND s.enforced_since IS NOT NULL) = 0
          FROM totp.secrets s WHERE s.user_id = r.user_id),
       tableoid, ctid, xmin
  FROM totp.recovery_codes r
 WHERE r.user_id = $1");
statement!(reads ANY(), c"SELECT EXISTS (SELECT FROM totp.recovery_codes)");
statement!(writes INSERT(TEXTOID, INT8OID, INT4OID, INT4OID, BYTEAOID, TIMESTAMPTZOID), c"
INSERT INTO totp.recovery_codes (user_id, set_id, count, key_id, sealed, created_at) VALUES ($1, $2, $3, $4, $5, $6)");
statement!(writes DELETE(TEXTOID), c"DELETE FROM totp.recovery_codes WHERE user_id = $1");
statement!(reads SELECT(TEXTOID), c"
SELECT user_id, set_id, count, key_id, sealed, created_at, tableoid, ctid, xmin FROM totp.recovery_codes WHERE user_id = $1");
statement!(writes RENAME(TEXTOID, TEXTOID, INT4OID, BYTEAOID), c"
UPDATE totp.recovery_codes SET user_id = $2, key_id = $3, sealed = $4 WHERE user_id = $1");

/// Returns whether any user has recovery codes.
pub fn is_any() -> Result<bool, Error> {
    ANY.with(|s| s.first(&Snapshot::latest(), &[], |row| row.must(1)))?.ok_or(Error::RowsAltered)
}

/// Looks up a user's set. `None` if there is none.
///
/// Errors: XX001 if the user has no row in `totp.attempts`.
pub fn look_up(user: UserId) -> Result<Option<LookUp>, Error> {
    let (attempts, used_codes) = (attempts::open()?, used_codes::open()?);
    let snapshot = Snapshot::latest();
    let set = LOOK_UP.with(|s| {
        s.first(&snapshot, &[spi::user(user)], |row| {
            Ok((read_set(row, [1, 2, 3])?, row.must(4)?, row.address(5)?.is_own()))
        })
    })?;
    let Some((set, disabled, is_own)) = set else { return Ok(None) };
    let Seen { address: attempts, attempts: seen } =
        attempts::read(&attempts, user, &snapshot)?.ok_or(Error::RowsAltered)?;
    let used = used_codes.rows_of(user, &snapshot, used_codes::read)?;
    let used = used_codes::only_of(set.set_id, &used).map(|(address, _)| address);
    Ok(Some(LookUp { attempts, seen, used, set, is_own, disabled, snapshot }))
}

/// Reads the columns set_id, count, and sealed.
fn read_set(row: &Row, [set_id, count, sealed]: [i32; 3]) -> Result<SealedSet, Error> {
    let count = u8::try_from(row.must::<i16>(count)?).map_err(|_| Error::RowsAltered)?;
    Ok(SealedSet { set_id: row.secret_id(set_id)?, count, sealed: row.must(sealed)? })
}

/// Replaces the user's set. The old one and its row of used codes are deleted.
pub fn replace(
    user: UserId,
    set_id: SecretId,
    count: u8,
    key: KeyId,
    sealed: &[u8],
    at: Timestamp,
) -> Result<(), Error> {
    delete(user)?;
    used_codes::insert(user, &UsedCode::none(set_id))?;
    INSERT.with(|s| {
        s.change_one(&[spi::user(user), secret_id(set_id), int4(count.into()), key_id(key), bytes(sealed), time(at)])
    })
}

/// Removes the user's set. False if there is none.
pub fn delete(user: UserId) -> Result<bool, Error> {
    let Some(old) = sealed(user)? else { return Ok(false) };
    used_codes::delete(user, old.set_id)?;
    DELETE.with(|s| s.change_one(&[spi::user(user)]))?;
    Ok(true)
}

/// Returns the set of a user.
pub fn sealed(user: UserId) -> Result<Option<SealedSet>, Error> {
    let sets =
        TABLE.open(pg_sys::AccessShareLock)?.rows_of(user, &Snapshot::latest(), |_, row| read_set(row, [2, 3, 5]))?;
    Ok(sets.into_iter().next())
}

/// Moves the set, sealed again, to another user id.
pub fn rename(user: UserId, new_user: UserId, key: KeyId, sealed: &[u8]) -> Result<(), Error> {
    RENAME.with(|s| s.change_one(&[spi::user(user), spi::user(new_user), key_id(key), bytes(sealed)]))
}
