//! `totp.used_codes`: the last used step of each secret and the used codes of each recovery set, changed in place.

use otp::TimeStep;

use super::spi::{int8, statement, text};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::inplace::{InPlace, Words};

/// The columns that change in place. Times are microseconds as in `timestamptz`; `-infinity` means never.
#[derive(Clone, Copy)]
pub struct UsedCode {
    pub step: TimeStep,
    pub used_at: i64,
    pub uses: i64,
    pub recovery_mask: i64,
    /// Does not change: stands among the words so that a row can be told to be the right one under the page lock.
    pub secret_id: i64,
}

impl InPlace for UsedCode {
    const TABLE: &'static str = "used_codes";

    fn from_words([step, used_at, uses, recovery_mask, secret_id]: Words) -> Self {
        Self { step: TimeStep::new(step), used_at, uses, recovery_mask, secret_id }
    }

    fn to_words(self) -> Words {
        [self.step.get(), self.used_at, self.uses, self.recovery_mask, self.secret_id]
    }
}

statement!(writes INSERT(TEXTOID, INT8OID, INT8OID, TIMESTAMPTZOID, INT8OID), c"
INSERT INTO totp.used_codes (user_id, secret_id, time_step, used_at, uses, recovery_mask)
VALUES ($1, $2, $3, $4, $5, 0)");
statement!(writes DELETE(TEXTOID, INT8OID), c"DELETE FROM totp.used_codes WHERE user_id = $1 AND secret_id = $2");
statement!(writes DELETE_ALL(TEXTOID), c"DELETE FROM totp.used_codes WHERE user_id = $1");

/// Adds the row of a new secret, of which no code was used.
pub fn insert(user_id: &str, secret_id: i64) -> Result<(), Error> {
    INSERT.with(|s| {
        s.change_one(&[text(user_id), int8(secret_id), int8(TimeStep::NONE.get()), int8(Timestamp::NEVER.0), int8(0)])
    })
}

/// Removes the row of one secret.
pub fn delete(user_id: &str, secret_id: i64) -> Result<(), Error> {
    DELETE.with(|s| s.change_one(&[text(user_id), int8(secret_id)]))
}

/// Removes every row of a user.
pub fn delete_all(user_id: &str) -> Result<(), Error> {
    DELETE_ALL.with(|s| s.count(&[text(user_id)])).map(drop)
}
