//! `totp.attempts`: failures and locks of each user, changed in place.
//!
//! The row is also the lock of its user: all writers of rows of a user hold it, so they run one after the other. Sign-ins do
//! not lock it: a row lock does not prevent a change in place.
//!
//! Owns the rows, and the lock of a user. Must never clear a counter.

use otp::Counter;
use pgrx::pg_sys;

use super::scan::{OpenTable, UserTable};
use super::shape;
use super::spi::{self, Snapshot, int8, statement};
use crate::error::Error;
use crate::inplace::{self, InPlace, RowAddress, Words};
use crate::timestamp::Timestamp;
use crate::user::UserId;

/// The columns that change in place. `-infinity` means never.
#[derive(Clone, Copy)]
pub struct Attempts {
    pub codes: Counter,
    pub recovery: Counter,
    pub last_failed_at: Timestamp,
}

impl Attempts {
    const CLEAR: Self = Self { codes: Counter::CLEAR, recovery: Counter::CLEAR, last_failed_at: Timestamp::NEVER };
}

impl InPlace for Attempts {
    const TABLE: &'static str = shape::ATTEMPTS.name();
    const COLUMNS: [&'static str; 5] = shape::ATTEMPTS.words();

    fn from_words([locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures]: Words) -> Self {
        Self {
            codes: counter(failures, Timestamp(locked_until)),
            recovery: counter(recovery_failures, Timestamp(recovery_locked_until)),
            last_failed_at: Timestamp(last_failed_at),
        }
    }

    fn to_words(self) -> Words {
        [
            self.codes.locked_until,
            self.recovery.locked_until,
            self.last_failed_at.0,
            i64::from(self.codes.failures),
            i64::from(self.recovery.failures),
        ]
    }
}

/// Reads a counter as the table stores it.
pub fn counter(failures: i64, locked_until: Timestamp) -> Counter {
    Counter { failures: failures.clamp(0, i64::from(i32::MAX)) as i32, locked_until: locked_until.0 }
}

static TABLE: UserTable = UserTable { table: &shape::ATTEMPTS, select: &SELECT };

statement!(writes INSERT(TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID), c"
INSERT INTO totp.attempts (user_id, locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING");
statement!(reads SELECT(TEXTOID), c"
SELECT locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures, user_id, tableoid, ctid, xmin
  FROM totp.attempts
 WHERE user_id = $1");
statement!(writes TAKE(TEXTOID), c"DELETE FROM totp.attempts WHERE user_id = $1 RETURNING tableoid, ctid, xmin");
statement!(writes LOCK(TEXTOID), c"SELECT FROM totp.attempts WHERE user_id = $1 FOR NO KEY UPDATE");

/// Makes sure that the user has a row, and locks it until the end of the transaction. Rows that are read under a new
/// snapshot after this do not change.
pub fn lock_or_insert(user: UserId) -> Result<(), Error> {
    // A row that this transaction inserts is locked by that: others wait for the end of the transaction.
    if find(user)?.is_none() && insert(user, Attempts::CLEAR)? {
        return Ok(());
    }
    while !lock(user)? {
        insert(user, Attempts::CLEAR)?;
        pgrx::check_for_interrupts!();
    }
    Ok(())
}

/// Locks the user's row until the end of the transaction. False if there is none.
pub fn lock(user: UserId) -> Result<bool, Error> {
    Ok(LOCK.with(|s| s.count(&[spi::user(user)]))? > 0)
}

/// Removes the row. Call it before anything else of the user is removed, so that no secret is without its row.
/// False if there was none.
pub fn delete(user: UserId) -> Result<bool, Error> {
    let deleted = TAKE.with(|s| s.count(&[spi::user(user)]))? == 1;
    inplace::note_delete();
    Ok(deleted)
}

/// A user's row as a snapshot sees it, and where it is. The page decides later, not these values.
pub struct Seen {
    pub address: RowAddress,
    pub attempts: Attempts,
}

/// Where a user's row is, as long as this value lives.
pub struct Found {
    pub address: RowAddress,
    _snapshot: Snapshot,
}

/// Opens the table to change rows in place. Errors: XX001 if it is altered.
pub fn open() -> Result<OpenTable, Error> {
    TABLE.open(pg_sys::RowExclusiveLock)
}

/// Returns where the user's row is, and its contents. Errors: XX001 if there are two, which is possible without the primary
/// key: a lock in one of them would not be seen.
pub fn read(table: &OpenTable, user: UserId, snapshot: &Snapshot) -> Result<Option<Seen>, Error> {
    let mut rows = table
        .rows_of(user, snapshot, |address, row| Ok(Seen { address, attempts: Attempts::from_words(row.words()?) }))?;
    let found = rows.pop();
    if rows.is_empty() { Ok(found) } else { Err(Error::RowsAltered) }
}

/// Returns where the user's row is.
pub fn find(user: UserId) -> Result<Option<Found>, Error> {
    let table = open()?;
    let snapshot = Snapshot::latest();
    Ok(read(&table, user, &snapshot)?.map(|seen| Found { address: seen.address, _snapshot: snapshot }))
}

/// Removes the row and returns its last contents.
pub fn take(user: UserId) -> Result<Option<Attempts>, Error> {
    let snapshot = Snapshot::latest();
    let taken = TAKE.with(|s| s.first(&snapshot, &[spi::user(user)], |row| row.address(1)))?;
    taken.map(|address| inplace::take_for_copy(&address)).transpose()
}

/// Adds a row. False if the user already has one.
pub fn insert(user: UserId, attempts: Attempts) -> Result<bool, Error> {
    let [locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures] = attempts.to_words();
    let args = [
        spi::user(user),
        int8(locked_until),
        int8(recovery_locked_until),
        int8(last_failed_at),
        int8(failures),
        int8(recovery_failures),
    ];
    Ok(INSERT.with(|s| s.count(&args))? == 1)
}
