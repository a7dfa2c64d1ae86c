//! `totp.counters`: sums of judgments, changed in place. A counter is the sum over all rows.
//!
//! Owns the rows. Must never wait to add to one, nor take a count away.

use pgrx::pg_sys;

use super::shape;
use super::spi::{Snapshot, statement};
use crate::error::Error;
use crate::inplace::{self, InPlace, Words};

/// The columns that change in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub accepted: i64,
    pub wrong: i64,
    pub replayed: i64,
    pub locked: i64,
    pub recovery_codes_used: i64,
}

impl Counts {
    pub const NONE: Self = Self { accepted: 0, wrong: 0, replayed: 0, locked: 0, recovery_codes_used: 0 };

    /// Returns the sums with others.
    fn plus(self, other: Self) -> Self {
        let (these, others) = (self.to_words(), other.to_words());
        Self::from_words(std::array::from_fn(|i| these[i].saturating_add(others[i])))
    }
}

impl InPlace for Counts {
    const TABLE: &'static str = shape::COUNTERS.name();
    const COLUMNS: [&'static str; 5] = shape::COUNTERS.words();

    fn from_words([accepted, wrong, replayed, locked, recovery_codes_used]: Words) -> Self {
        Self { accepted, wrong, replayed, locked, recovery_codes_used }
    }

    fn to_words(self) -> Words {
        [self.accepted, self.wrong, self.replayed, self.locked, self.recovery_codes_used]
    }
}

statement!(reads SUMS(), c"
SELECT GREATEST(LEAST(accepted, 9223372036854775807), 0)::bigint, GREATEST(LEAST(wrong, 9223372036854775807), 0)::bigint,
       GREATEST(LEAST(replayed, 9223372036854775807), 0)::bigint, GREATEST(LEAST(locked, 9223372036854775807), 0)::bigint,
       GREATEST(LEAST(recovery_codes_used, 9223372036854775807), 0)::bigint
  FROM (SELECT pg_catalog.sum(accepted) AS accepted, pg_catalog.sum(wrong) AS wrong, pg_catalog.sum(replayed) AS replayed,
               pg_catalog.sum(locked) AS locked, pg_catalog.sum(recovery_codes_used) AS recovery_codes_used
          FROM totp.counters
        HAVING pg_catalog.count(*) > 0) AS sums");

/// Adds to a row. False if it would have to wait, or if there is no such table, or no row: then nothing is changed. It takes
/// a lock on the table, which the caller releases, and may raise.
pub fn try_add(counts: Counts) -> bool {
    let Some(table) = shape::COUNTERS.try_open(pg_sys::RowExclusiveLock) else { return false };
    // SAFETY: the table is open and locked.
    unsafe { inplace::try_add(table.relation(), |row: &mut Counts| *row = row.plus(counts)) }
}

/// Returns the counters. `None` if the table is missing, altered or empty. No crash takes back what was returned.
pub fn sums() -> Result<Option<Counts>, Error> {
    let Ok(table) = shape::COUNTERS.open(pg_sys::AccessShareLock) else { return Ok(None) };
    let sums = SUMS.with(|s| s.first(&Snapshot::latest(), &[], |row| Ok(Counts::from_words(row.words()?))))?;
    // SAFETY: the table is open and locked.
    unsafe { inplace::make_durable(table.relation()) };
    Ok(sums)
}
