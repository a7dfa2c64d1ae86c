//! What the audit log has of an event since a time: read by index, the newest entries first.
//!
//! A transaction that is rolled back leaves its entries in the index until VACUUM, and a query reads past all of them to find
//! rows that are there.
//!
//! Owns the scan. Must never read more than [`MOST`] entries, whatever the index has.

use std::collections::HashSet;

use pgrx::{IntoDatum, pg_sys};

use super::row::Row;
use super::shape::{self, Open};
use super::spi::Snapshot;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// Largest number of entries of an event that are read.
pub const MOST: i64 = 10_000;

// Columns of `totp.audit_log`, as `shape` has them.
const AT: pg_sys::AttrNumber = 2;
const EVENT: pg_sys::AttrNumber = 3;
const USER_ID: pg_sys::AttrNumber = 4;

/// How many rows there are, and how many users they are about. If there are `MOST` entries or more, those of transactions that
/// were rolled back are among them.
#[derive(Default)]
pub struct Counted {
    pub rows: i64,
    pub users: i64,
}

/// Counts the rows of an event that are newer. `None` if the rows are in other tables, or there is no index to find them by.
///
/// Errors: XX001 if the table is missing or altered.
pub fn count(event: &str, since: Timestamp) -> Result<Option<Counted>, Error> {
    let open = shape::AUDIT_LOG.open(pg_sys::AccessShareLock)?;
    open.lock_parts(pg_sys::AccessShareLock);
    // SAFETY: the table is open, and locked with its indexes.
    unsafe {
        let class = &*(*open.relation()).rd_rel;
        if class.relkind as u8 != pg_sys::RELKIND_RELATION || class.relhassubclass {
            return Ok(None);
        }
        let indexes = pg_sys::RelationGetIndexList(open.relation());
        let found = pgrx::PgList::<pg_sys::Oid>::from_pg(indexes).iter_oid().find_map(|oid| Index::open(oid));
        pg_sys::list_free(indexes);
        found.map(|index| scan(&open, &index, event, since)).transpose()
    }
}

/// The open index on event and time.
struct Index(pg_sys::Relation);

impl Index {
    /// Opens it. `None` if it is another one, or cannot be used.
    ///
    /// # Safety
    /// The index is locked, and one of `totp.audit_log`.
    unsafe fn open(index: pg_sys::Oid) -> Option<Self> {
        // SAFETY: promised by the caller. An index has as many columns and options as it says.
        unsafe {
            let index = Self(pg_sys::index_open(index, pg_sys::NoLock as i32));
            let (class, form) = (&*(*index.0).rd_rel, &*(*index.0).rd_index);
            let has_all = form.indisvalid && !form.indcheckxmin && pg_sys::RelationGetIndexPredicate(index.0).is_null();
            let is_by_event = class.relam == pg_sys::BTREE_AM_OID
                && form.indnkeyatts == 2
                && form.indkey.values.as_slice(2) == [EVENT, AT]
                && std::slice::from_raw_parts((*index.0).rd_indoption, 2) == [0, 0];
            (has_all && is_by_event).then_some(index)
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // While an error unwinds, the abort of the transaction closes it.
        if !std::thread::panicking() {
            // SAFETY: opened in `open`, closed once.
            unsafe { pg_sys::index_close(self.0, pg_sys::NoLock as i32) }
        }
    }
}

/// Reads the entries backward, dead ones too, and asks of each row whether it is there.
///
/// # Safety
/// The table is open, and locked with this index of it.
unsafe fn scan(open: &Open, index: &Index, event: &str, since: Timestamp) -> Result<Counted, Error> {
    let (table, snapshot, mut row) = (open.relation(), Snapshot::latest(), Row::default());
    let (mut entries, mut rows) = (0, 0);
    let (mut users, mut users_of_entries) = (HashSet::new(), HashSet::new());
    let mut key = pg_sys::ScanKeyData::default();
    let wanted = event.into_datum().unwrap_or(pg_sys::Datum::null());
    // SAFETY: promised by the caller. A tuple stays pinned until the next one is asked for. After an error PostgreSQL ends the
    // scan itself.
    let result = unsafe {
        let equal = (pg_sys::BTEqualStrategyNumber as u16, pg_sys::F_TEXTEQ.into());
        pg_sys::ScanKeyInit(&mut key, EVENT, equal.0, equal.1, wanted);
        key.sk_collation = *(*index.0).rd_indcollation;
        let any = &raw mut pg_sys::SnapshotAnyData;
        let scan = pg_sys::systable_beginscan_ordered(table, index.0, any, 1, &mut key);
        let result = loop {
            let tuple = pg_sys::systable_getnext_ordered(scan, pg_sys::ScanDirection::BackwardScanDirection);
            if tuple.is_null() || entries == MOST {
                break Ok(());
            }
            let row = row.load(tuple, (*table).rd_att);
            match row.time(AT.into()) {
                Ok(at) if at > since => {}
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
            let user: Option<Vec<u8>> = row.get(USER_ID.into());
            entries += 1;
            if pg_sys::table_tuple_satisfies_snapshot(table, (*scan).slot, snapshot.get()) {
                rows += 1;
                users.extend(user.clone());
            }
            users_of_entries.extend(user);
        };
        pg_sys::systable_endscan_ordered(scan);
        result
    };
    result?;
    Ok(if entries < MOST {
        Counted { rows, users: users.len() as i64 }
    } else {
        Counted { rows: MOST, users: users_of_entries.len() as i64 }
    })
}
