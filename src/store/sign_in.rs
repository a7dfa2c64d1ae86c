//! The look-up of the hot path: everything that a sign-in needs for its decision, seen by one snapshot.
//!
//! Owns which tables a sign-in reads, and in which order they are locked. Must never wait after the snapshot is taken.

use otp::TimeStep;
use pgrx::pg_sys;

use super::attempts::{self, Seen};
use super::scan::OpenTable;
use super::secrets::{self, SealedSecret};
use super::spi::Snapshot;
use super::used_codes;
use crate::backend;
use crate::error::Error;
use crate::inplace::RowAddress;
use crate::timestamp::Timestamp;
use crate::user::UserId;

/// The first part of a look-up, which is enough to refuse a user who is locked.
pub struct FirstLook {
    table: OpenTable,
    snapshot: Snapshot,
    began: pg_sys::TimestampTz,
    /// Where the user's attempts are counted, and their values.
    pub attempts: Option<Seen>,
}

/// Microseconds that no lock takes if nobody else holds it.
const NO_WAIT: i64 = 1_000;

/// The tables of a sign-in, locked, and one snapshot of them.
pub struct LookUp {
    used_codes: OpenTable,
    secrets: OpenTable,
    /// Keeps the rows where they are found, and the data keys that open them.
    pub snapshot: Snapshot,
    pub attempts: Option<Seen>,
}

/// A secret that a code may belong to.
pub struct Candidate {
    pub secret: SealedSecret,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub disabled: bool,
    /// The device was confirmed once.
    pub is_enforced: bool,
    /// This transaction inserted or updated the row.
    pub is_own: bool,
    /// Where its last used step is stored, and the step at the look-up. The page decides later, not this value. `None` if
    /// that row is missing, which matters only to a code of this secret.
    used: Option<(RowAddress, TimeStep)>,
}

impl Candidate {
    /// Returns whether it is neither disabled nor expired.
    pub fn is_usable(&self, now: Timestamp) -> bool {
        !self.disabled && self.expires_at.is_none_or(|t| t > now)
    }

    /// Returns where its last used step is stored.
    ///
    /// Errors: XX001 if the row is missing; 55000 if this transaction made a copy of it.
    pub fn used(&self) -> Result<RowAddress, Error> {
        match self.used {
            None => Err(Error::RowsAltered),
            Some((address, _)) if address.is_own() && !self.is_own => Err(Error::OwnCopy),
            Some((address, _)) => Ok(address),
        }
    }

    /// Returns whether a step is later than the last used one at the look-up.
    pub fn is_fresh(&self, step: TimeStep) -> bool {
        self.used.is_some_and(|(_, seen)| step > seen)
    }
}

impl FirstLook {
    /// Opens and locks the table of the attempts, and reads those of the user.
    ///
    /// Errors: XX001 if the table is altered, or if there are two rows.
    pub fn at(user: UserId) -> Result<Self, Error> {
        let table = attempts::open()?;
        let (began, snapshot) = (backend::clock_time(), Snapshot::latest());
        let attempts = attempts::read(&table, user, &snapshot)?;
        Ok(Self { table, snapshot, began, attempts })
    }

    /// Opens and locks the other tables. Every wait for a lock ends before the snapshot is taken. If it waited, or if a
    /// transaction has ended since the first look, the attempts are read again: all rows are of one snapshot, and of the time
    /// after the wait.
    ///
    /// Errors: XX001 if a table is altered.
    pub fn go_on(self, user: UserId) -> Result<LookUp, Error> {
        let (used_codes, secrets) = (used_codes::open()?, secrets::open()?);
        let snapshot = Snapshot::latest();
        let has_waited = backend::clock_time().saturating_sub(self.began) > NO_WAIT;
        let attempts = if has_waited || !snapshot.sees_the_same_as(&self.snapshot) {
            attempts::read(&self.table, user, &snapshot)?
        } else {
            self.attempts
        };
        Ok(LookUp { used_codes, secrets, snapshot, attempts })
    }
}

impl LookUp {
    /// Returns the user's secrets, active ones first.
    pub fn secrets(&self, user: UserId) -> Result<Vec<Candidate>, Error> {
        let used = self.used_codes.rows_of(user, &self.snapshot, used_codes::read)?;
        let mut secrets = self.secrets.rows_of(user, &self.snapshot, |address, row| {
            let secret = SealedSecret::read(row, secrets::SEALED_COLUMNS)?;
            Ok(Candidate {
                created_at: row.time(secrets::CREATED_AT)?,
                expires_at: row.time_or_null(secrets::EXPIRES_AT),
                is_enforced: row.time_or_null(secrets::ENFORCED_SINCE).is_some(),
                disabled: row.time_or_null(secrets::DISABLED_AT).is_some(),
                is_own: address.is_own(),
                used: used_codes::only_of(secret.secret_id, &used).map(|(address, seen)| (address, seen.step)),
                secret,
            })
        })?;
        secrets.sort_by(|a, b| a.secret.order().cmp(&b.secret.order()));
        Ok(secrets)
    }
}
