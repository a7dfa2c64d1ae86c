//! `totp.audit_seals`, and the lock of which one session at a time seals.
//!
//! Owns the rows, and the lock. Must never change a row.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use seal::trail::Seal;
use seal::{IdSet, KeyId};

use super::audit_rows;
use super::row::Row;
use super::spi::{Snapshot, bytes, int8, key_id, statement, text, time};
use super::table_oid;
use crate::backend;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// Where a seal was made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub system_identifier: i64,
    pub database: i64,
    pub timeline: i64,
}

/// A seal as it is stored.
pub struct StoredSeal {
    pub seal_id: i64,
    pub first_id: i64,
    pub last_id: i64,
    pub row_count: i64,
    pub newest_at: Option<Timestamp>,
    pub rows_mac: Vec<u8>,
    pub holes: IdSet,
    pub late: IdSet,
    pub closed_seal: i64,
    pub pruned_seal: i64,
    pub next_xid: Option<i64>,
    pub place: Place,
    pub key: KeyId,
    pub sealed_at: Timestamp,
    pub previous_mac: Vec<u8>,
    pub mac: Vec<u8>,
}

impl StoredSeal {
    /// Returns what its MAC covers.
    pub fn covered(&self) -> Seal<'_> {
        Seal {
            seal_id: self.seal_id,
            first_id: self.first_id,
            last_id: self.last_id,
            row_count: self.row_count,
            newest_at: self.newest_at.map(|at| at.0),
            rows_mac: &self.rows_mac,
            holes: &self.holes,
            late: &self.late,
            closed_seal: self.closed_seal,
            pruned_seal: self.pruned_seal,
            next_xid: self.next_xid,
            system_identifier: self.place.system_identifier,
            database: self.place.database,
            timeline: self.place.timeline,
            key_id: self.key.get(),
            sealed_at: self.sealed_at.0,
            previous_mac: &self.previous_mac,
        }
    }
}

/// What a later sealing must know of an earlier seal whose holes may be open.
pub struct Open {
    pub seal_id: i64,
    pub holes: IdSet,
    pub late: IdSet,
    pub next_xid: Option<i64>,
    pub place: Place,
}

statement!(probes LAST(), c"
SELECT seal_id, first_id, last_id, row_count, newest_at, rows_mac, holes::text, late::text, closed_seal, pruned_seal, next_xid,
       system_identifier, database, timeline, key_id, sealed_at, previous_mac, mac
  FROM totp.audit_seals ORDER BY seal_id DESC LIMIT 1");
statement!(reads NEXT(INT8OID), c"
SELECT seal_id, first_id, last_id, row_count, newest_at, rows_mac, holes::text, late::text, closed_seal, pruned_seal, next_xid,
       system_identifier, database, timeline, key_id, sealed_at, previous_mac, mac
  FROM totp.audit_seals WHERE seal_id >= $1 ORDER BY seal_id LIMIT 1");
statement!(reads OPEN(INT8OID), c"
SELECT seal_id, holes::text, late::text, next_xid, system_identifier, database, timeline
  FROM totp.audit_seals WHERE seal_id > $1 ORDER BY seal_id");
statement!(reads FIRST_YOUNG(TIMESTAMPTZOID, INTERVALOID), c"
SELECT pg_catalog.min(seal_id) FROM totp.audit_seals WHERE newest_at >= $1 - $2");
statement!(writes INSERT(INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, BYTEAOID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT8OID,
                         INT8OID, INT8OID, INT8OID, INT4OID, TIMESTAMPTZOID, BYTEAOID, BYTEAOID), c"
INSERT INTO totp.audit_seals
       (seal_id, first_id, last_id, row_count, newest_at, rows_mac, holes, late, closed_seal, pruned_seal, next_xid,
        system_identifier, database, timeline, key_id, sealed_at, previous_mac, mac)
VALUES ($1, $2, $3, $4, $5, $6, $7::pg_catalog.int8multirange, $8::pg_catalog.int8multirange, $9, $10, $11,
        $12, $13, $14, $15, $16, $17, $18)");
statement!(writes DELETE_BEFORE(INT8OID), c"DELETE FROM totp.audit_seals WHERE seal_id < $1");

fn stored(row: &Row) -> Result<StoredSeal, Error> {
    Ok(StoredSeal {
        seal_id: row.word(1)?,
        first_id: row.word(2)?,
        last_id: row.word(3)?,
        row_count: row.word(4)?,
        newest_at: row.time_or_null(5),
        rows_mac: row.must(6)?,
        holes: ids(row, 7)?,
        late: ids(row, 8)?,
        closed_seal: row.word(9)?,
        pruned_seal: row.word(10)?,
        next_xid: row.get(11),
        place: place(row, 12)?,
        key: row.key_id(15)?,
        sealed_at: row.time(16)?,
        previous_mac: row.must(17)?,
        mac: row.must(18)?,
    })
}

fn ids(row: &Row, column: i32) -> Result<IdSet, Error> {
    IdSet::parse(row.text(column)?).ok_or(Error::RowsAltered)
}

fn place(row: &Row, column: i32) -> Result<Place, Error> {
    Ok(Place { system_identifier: row.word(column)?, database: row.word(column + 1)?, timeline: row.word(column + 2)? })
}

/// Returns whether the table exists. Before ALTER EXTENSION UPDATE it does not.
pub fn exist() -> bool {
    table_oid(c"audit_seals") != pg_sys::InvalidOid
}

/// Returns the last seal.
pub fn last(snapshot: &Snapshot) -> Result<Option<StoredSeal>, Error> {
    LAST.with(|s| s.first(snapshot, &[], stored))
}

/// Returns the first seal with that number or a higher one.
pub fn next(snapshot: &Snapshot, seal_id: i64) -> Result<Option<StoredSeal>, Error> {
    NEXT.with(|s| s.first(snapshot, &[int8(seal_id)], stored))
}

/// Returns the seal with that number.
pub fn find(snapshot: &Snapshot, seal_id: i64) -> Result<Option<StoredSeal>, Error> {
    Ok(next(snapshot, seal_id)?.filter(|seal| seal.seal_id == seal_id))
}

/// Returns what is known of the seals after one, in order.
pub fn open(snapshot: &Snapshot, after: i64) -> Result<Vec<Open>, Error> {
    OPEN.with(|s| {
        s.rows(snapshot, &[int8(after)], |row| {
            Ok(Open {
                seal_id: row.word(1)?,
                holes: ids(row, 2)?,
                late: ids(row, 3)?,
                next_xid: row.get(4),
                place: place(row, 5)?,
            })
        })
    })
}

/// Returns the first seal with a row that is younger than that.
pub fn first_young(now: Timestamp, older_than: Interval) -> Result<Option<i64>, Error> {
    let args = audit_rows::age(now, older_than);
    Ok(FIRST_YOUNG.with(|s| s.first(&Snapshot::latest(), &args, |row| Ok(row.get(1))))?.flatten())
}

/// Stores a seal.
pub fn insert(seal: &StoredSeal) -> Result<(), Error> {
    INSERT.with(|s| {
        s.change_one(&[
            int8(seal.seal_id),
            int8(seal.first_id),
            int8(seal.last_id),
            int8(seal.row_count),
            seal.newest_at.and_then(time),
            bytes(&seal.rows_mac),
            text(&seal.holes.to_string()),
            text(&seal.late.to_string()),
            int8(seal.closed_seal),
            int8(seal.pruned_seal),
            seal.next_xid.and_then(int8),
            int8(seal.place.system_identifier),
            int8(seal.place.database),
            int8(seal.place.timeline),
            key_id(seal.key),
            time(seal.sealed_at),
            bytes(&seal.previous_mac),
            bytes(&seal.mac),
        ])
    })
}

/// Deletes the seals before one.
pub fn delete_before(seal_id: i64) -> Result<(), Error> {
    DELETE_BEFORE.with(|s| s.count(&[int8(seal_id)])).map(drop)
}

/// Lets this session seal until the end of the transaction. Returns false if another one does.
pub fn try_lock() -> bool {
    backend::try_lock_object(table_oid(c"audit_seals"), OBJECT, pg_sys::ExclusiveLock)
}

/// Does the same, but waits for the other one.
pub fn lock() {
    backend::lock_object(table_oid(c"audit_seals"), OBJECT, pg_sys::ExclusiveLock);
}

/// Nothing else uses the table's own OID as class.
const OBJECT: pg_sys::Oid = pg_sys::InvalidOid;
