//! `totp.floor`: the one row with the identity of the cluster that last judged a code, changed in place.
//!
//! Owns the row. Must never add a second one.

use std::convert::Infallible;

use pgrx::pg_sys;

use super::relcache::Kept;
use super::shape;
use super::spi::{Snapshot, statement};
use super::table_oid;
use crate::error::Error;
use crate::inplace::{InPlace, RowAddress, Words};
use crate::timestamp::Timestamp;

/// The columns that change in place.
#[derive(Clone, Copy)]
pub struct Floor {
    pub floor_at: Timestamp,
    pub identity: [i64; 4],
    /// There were recovery codes when the floor was set, and nobody has acknowledged it. Stored as the sign of the timeline.
    pub is_to_acknowledge: bool,
}

impl InPlace for Floor {
    const TABLE: &'static str = shape::FLOOR.name();
    const COLUMNS: [&'static str; 5] = shape::FLOOR.words();

    fn from_words([floor_at, system_identifier, control_inode, database, timeline]: Words) -> Self {
        let identity = [system_identifier, control_inode, database, timeline.saturating_abs()];
        Self { floor_at: Timestamp(floor_at), identity, is_to_acknowledge: timeline < 0 }
    }

    fn to_words(self) -> Words {
        let [system_identifier, control_inode, database, timeline] = self.identity;
        let sign = if self.is_to_acknowledge { -1 } else { 1 };
        [self.floor_at.0, system_identifier, control_inode, database, sign * timeline]
    }
}

statement!(reads FIND(), c"
SELECT tableoid, ctid, xmin, floor_at, system_identifier, control_inode, database, timeline FROM totp.floor");

thread_local! {
    static TABLE: Kept<pg_sys::Oid> = const { Kept::nothing() };
}

/// The row, and where it is as long as this value lives.
pub struct Found {
    pub address: RowAddress,
    pub floor: Floor,
    _snapshot: Snapshot,
}

/// Returns the row.
///
/// Errors: XX001 if there is none.
pub fn find() -> Result<Found, Error> {
    // Nothing may rewrite or move the row until the end of the transaction.
    shape::FLOOR.open(pg_sys::RowExclusiveLock)?.lock_parts(pg_sys::RowExclusiveLock);
    let snapshot = Snapshot::latest();
    let row = FIND.with(|s| {
        s.first(&snapshot, &[], |row| {
            let words = [row.word(4)?, row.word(5)?, row.word(6)?, row.word(7)?, row.word(8)?];
            Ok((row.address(1)?, Floor::from_words(words)))
        })
    })?;
    let (address, floor) = row.ok_or(Error::RowsAltered)?;
    Ok(Found { address, floor, _snapshot: snapshot })
}

/// Returns the OID of the table, which differs after DROP and CREATE EXTENSION.
pub fn table() -> pg_sys::Oid {
    let Ok(table) = TABLE.with(|table| table.get_or(|| Ok::<_, Infallible>(table_oid(c"floor"))));
    table
}
