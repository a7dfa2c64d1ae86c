//! `totp.attempts`: failures and locks of each user, changed in place.
//!
//! The row is also the lock of its user: whoever writes rows of a user holds it, so that writers of one user come one
//! after the other. Sign-ins do not lock it: a row lock does not keep a row from being changed in place.

use otp::Counter;

use super::spi::{Snapshot, statement, text};
use crate::error::Error;
use crate::inplace::{InPlace, Words};

/// The columns that change in place. Times are microseconds as in `timestamptz`; `-infinity` means never.
#[derive(Clone, Copy)]
pub struct Attempts {
    pub codes: Counter,
    pub recovery: Counter,
    pub last_failed_at: i64,
}

impl InPlace for Attempts {
    const TABLE: &'static str = "attempts";

    fn from_words([locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures]: Words) -> Self {
        let counter = |failures: i64, locked_until| Counter {
            failures: failures.clamp(0, i64::from(i32::MAX)) as i32,
            locked_until,
        };
        Self {
            codes: counter(failures, locked_until),
            recovery: counter(recovery_failures, recovery_locked_until),
            last_failed_at,
        }
    }

    fn to_words(self) -> Words {
        [
            self.codes.locked_until,
            self.recovery.locked_until,
            self.last_failed_at,
            i64::from(self.codes.failures),
            i64::from(self.recovery.failures),
        ]
    }
}

statement!(writes INSERT(TEXTOID), c"
INSERT INTO totp.attempts (locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures, user_id)
VALUES ('-infinity', '-infinity', '-infinity', 0, 0, $1)
ON CONFLICT DO NOTHING");
statement!(writes LOCK(TEXTOID), c"SELECT FROM totp.attempts WHERE user_id = $1 FOR NO KEY UPDATE");
statement!(writes DELETE(TEXTOID), c"DELETE FROM totp.attempts WHERE user_id = $1");

/// Makes sure that the user has a row, and locks it until the end of the transaction. What is read under a new
/// snapshot after this stays as it is.
pub fn lock_or_insert(user_id: &str) -> Result<(), Error> {
    while !lock(user_id)? {
        INSERT.with(|s| s.count(&[text(user_id)]))?;
        pgrx::check_for_interrupts!();
    }
    Ok(())
}

/// Locks the user's row until the end of the transaction. False where there is none.
pub fn lock(user_id: &str) -> Result<bool, Error> {
    Ok(LOCK.with(|s| s.count(&[text(user_id)]))? == 1)
}

/// Removes the row. Comes before anything else of the user is removed, so that no secret is without its row.
pub fn delete(user_id: &str) -> Result<(), Error> {
    DELETE.with(|s| s.count(&[text(user_id)])).map(drop)
}

/// Whether the user has a row.
pub fn exists(snapshot: &Snapshot, user_id: &str) -> Result<bool, Error> {
    statement!(reads EXISTS(TEXTOID), c"SELECT FROM totp.attempts WHERE user_id = $1");
    Ok(EXISTS.with(|s| s.first(snapshot, &[text(user_id)], |_| Ok(())))?.is_some())
}
