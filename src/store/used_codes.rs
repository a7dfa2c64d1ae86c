//! `totp.used_codes`: the last used step of each secret and the used codes of each recovery set, changed in place.
//!
//! Owns the rows. Must never lower a step that was used.

use otp::{Drift, Period, TimeStep};
use pgrx::pg_sys;

use super::insert::insert_table;
use super::row::Row;
use super::scan::{OpenTable, UserTable};
use super::shape;
use super::spi::{self, Snapshot, int8, statement};
use crate::error::Error;
use crate::inplace::{self, InPlace, RowAddress, Words};
use crate::timestamp::Timestamp;
use crate::user::{SecretId, UserId};

/// The columns that change in place. `-infinity` means never.
#[derive(Clone, Copy)]
pub struct UsedCode {
    pub step: TimeStep,
    pub used_at: Timestamp,
    pub uses: i64,
    /// Of a set of recovery codes: which are used. Of a secret: its drift.
    pub recovery_mask: i64,
    /// Does not change. It is among the words so that the row can be recognized under the page lock.
    pub secret_id: SecretId,
}

impl InPlace for UsedCode {
    const TABLE: &'static str = shape::USED_CODES.name();
    const COLUMNS: [&'static str; 5] = shape::USED_CODES.words();

    fn from_words([step, used_at, uses, recovery_mask, secret_id]: Words) -> Self {
        Self {
            step: TimeStep::new(step),
            used_at: Timestamp(used_at),
            uses,
            recovery_mask,
            secret_id: SecretId::new(secret_id),
        }
    }

    fn to_words(self) -> Words {
        [self.step.get(), self.used_at.0, self.uses, self.recovery_mask, self.secret_id.get()]
    }
}

impl UsedCode {
    /// Returns the row after one more use, of this step.
    pub fn with_use(self, step: TimeStep, now: Timestamp) -> Self {
        Self { step, used_at: now, uses: self.uses.saturating_add(1), ..self }
    }

    /// Returns the row after a resynchronization, which uses codes up to this step and is no sign-in.
    pub fn with_resync(self, step: TimeStep, drift: Drift) -> Self {
        Self { step, ..self.with_drift(drift) }
    }

    /// The drift of the secret.
    pub fn drift(&self) -> Drift {
        Drift::from_stored(self.recovery_mask)
    }

    /// Returns the row of a secret with this drift.
    pub fn with_drift(self, drift: Drift) -> Self {
        Self { recovery_mask: drift.to_stored(), ..self }
    }

    /// Returns the row of a secret whose steps get another length. A used step becomes the one in which it ends.
    pub fn in_period(self, old: Period, new: Period) -> Self {
        let step = match self.step {
            TimeStep::NONE => TimeStep::NONE,
            used => TimeStep::at(used.end(old).saturating_sub(1), new),
        };
        Self { step, ..self }.with_drift(self.drift().in_period(old, new))
    }

    /// Returns the row of a secret whose codes were never used.
    pub fn none(secret_id: SecretId) -> Self {
        Self { step: TimeStep::NONE, used_at: Timestamp::NEVER, uses: 0, recovery_mask: 0, secret_id }
    }
}

static TABLE: UserTable = UserTable { table: &shape::USED_CODES, select: &SELECT };
insert_table!(NEW, &shape::USED_CODES, &INSERT);

statement!(reads SELECT(TEXTOID), c"
SELECT time_step, used_at, uses, recovery_mask, secret_id, user_id, tableoid, ctid, xmin
  FROM totp.used_codes
 WHERE user_id = $1");
statement!(writes INSERT(INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID, TEXTOID), c"
INSERT INTO totp.used_codes (time_step, used_at, uses, recovery_mask, secret_id, user_id)
VALUES ($1, $2, $3, $4, $5, $6)");
statement!(writes DELETE(TEXTOID, INT8OID), c"
DELETE FROM totp.used_codes WHERE user_id = $1 AND secret_id = $2 RETURNING tableoid, ctid, xmin");
statement!(writes DELETE_ALL(TEXTOID), c"
DELETE FROM totp.used_codes WHERE user_id = $1 RETURNING tableoid, ctid, xmin");

/// Opens the table to change rows in place. Errors: XX001 if it is altered.
pub fn open() -> Result<OpenTable, Error> {
    TABLE.open(pg_sys::RowExclusiveLock)
}

/// Reads a row of the table.
pub fn read(address: RowAddress, row: &Row) -> Result<(RowAddress, UsedCode), Error> {
    Ok((address, UsedCode::from_words(row.words()?)))
}

/// Returns the row of a secret or a recovery set among those of its user. `None` if there is none, or more than one, which
/// is possible without the primary key.
pub fn only_of(secret_id: SecretId, rows: &[(RowAddress, UsedCode)]) -> Option<(RowAddress, UsedCode)> {
    let mut found = rows.iter().filter(|(_, used)| used.secret_id == secret_id);
    match (found.next(), found.next()) {
        (Some(row), None) => Some(*row),
        _ => None,
    }
}

/// Adds the row of a secret or a recovery set.
pub fn insert(user: UserId, used: &UsedCode) -> Result<(), Error> {
    let [step, used_at, uses, recovery_mask, secret_id] = used.to_words().map(int8);
    NEW.insert(|| Ok([step, used_at, uses, recovery_mask, secret_id, spi::user(user)]))
}

/// Removes the row of one secret and returns its last contents.
pub fn delete(user: UserId, secret_id: SecretId) -> Result<UsedCode, Error> {
    let address = delete_row(user, secret_id)?;
    inplace::note_delete();
    inplace::read_deleted(&address)
}

/// Does the same, to insert it again.
pub fn take(user: UserId, secret_id: SecretId) -> Result<UsedCode, Error> {
    inplace::take_for_copy(&delete_row(user, secret_id)?)
}

fn delete_row(user: UserId, secret_id: SecretId) -> Result<RowAddress, Error> {
    let args = [spi::user(user), spi::secret_id(secret_id)];
    DELETE.with(|s| s.first(&Snapshot::latest(), &args, |row| row.address(1)))?.ok_or(Error::RowsAltered)
}

/// Removes every row of a user and returns their last contents.
pub fn delete_all(user: UserId) -> Result<Vec<UsedCode>, Error> {
    let rows = DELETE_ALL.with(|s| s.rows(&Snapshot::latest(), &[spi::user(user)], |row| row.address(1)))?;
    inplace::note_delete();
    rows.iter().map(inplace::read_deleted).collect()
}
