//! The look-up of the hot path: everything that a sign-in decides on, seen by one snapshot.

use otp::TimeStep;

use super::attempts::{self, Attempts};
use super::scan::Open;
use super::secrets::{self, SealedSecret};
use super::spi::Snapshot;
use super::used_codes;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::inplace::RowAddress;

/// The tables of a sign-in, locked, and one snapshot of them.
pub struct LookUp {
    attempts: Open,
    used_codes: Open,
    secrets: Open,
    /// Keeps the rows where they are found, and the data keys that open them.
    pub snapshot: Snapshot,
}

/// A secret that a code may belong to.
pub struct Candidate {
    pub secret: SealedSecret,
    pub created_at: Timestamp,
    pub expires_at: Option<i64>,
    pub disabled: bool,
    /// The own transaction made or changed the row.
    pub is_own: bool,
    /// Where its last used step is kept, and what that was at the look-up: the page decides, not this. `None` if that
    /// row is missing, which matters to a code of this secret alone.
    used: Option<(RowAddress, TimeStep)>,
}

impl Candidate {
    /// Neither disabled nor expired.
    pub fn is_usable(&self, now: Timestamp) -> bool {
        !self.disabled && self.expires_at.is_none_or(|t| t > now.0)
    }

    /// Where its last used step is kept.
    ///
    /// Errors: XX001 if the row is missing; 55000 if the own transaction made a copy of it.
    pub fn used(&self) -> Result<RowAddress, Error> {
        match self.used {
            None => Err(Error::RowsAltered),
            Some((address, _)) if address.is_own() && !self.is_own => Err(Error::OwnCopy),
            Some((address, _)) => Ok(address),
        }
    }

    /// Whether a step is later than the last used one was at the look-up.
    pub fn is_fresh(&self, step: TimeStep) -> bool {
        self.used.is_some_and(|(_, seen)| step > seen)
    }
}

impl LookUp {
    /// Opens and locks the tables. What waits for a lock has waited before the snapshot is taken.
    ///
    /// Errors: XX001 if a table is not as it was made.
    pub fn begin() -> Result<Self, Error> {
        let (attempts, used_codes, secrets) = (attempts::open()?, used_codes::open()?, secrets::open()?);
        Ok(Self { attempts, used_codes, secrets, snapshot: Snapshot::latest() })
    }

    /// Where the user's attempts are counted, and what they are now: the page decides, not this.
    ///
    /// Errors: XX001 if there are two rows.
    pub fn attempts(&self, user_id: &str) -> Result<Option<(RowAddress, Attempts)>, Error> {
        attempts::read(&self.attempts, user_id, &self.snapshot)
    }

    /// The user's secrets, active ones first.
    pub fn secrets(&self, user_id: &str) -> Result<Vec<Candidate>, Error> {
        let used = self.used_codes.rows_of(user_id, &self.snapshot, used_codes::read)?;
        let mut secrets = self.secrets.rows_of(user_id, &self.snapshot, |address, row| {
            let secret = SealedSecret::read(row, secrets::SEALED_COLUMNS)?;
            Ok(Candidate {
                created_at: row.time(secrets::CREATED_AT)?,
                expires_at: row.time_or_null(secrets::EXPIRES_AT),
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
