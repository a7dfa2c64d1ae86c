//! What the audit log has of an event since a time: read by index, the newest entries first.
//!
//! A transaction that is rolled back leaves its entries in the index, until VACUUM or longer, and a query reads past all of them
//! to find rows that are there.
//!
//! Owns the scan. Must never read more than [`MOST`] entries, whatever the index has.

use std::hash::{BuildHasher, RandomState};

use pgrx::{FromDatum, IntoDatum, pg_sys};

use super::parts;
use super::shape::{self, Open};
use super::spi::Snapshot;
use crate::error::Error;
use crate::timestamp::Timestamp;

// Columns of `totp.audit_log`, as `shape` has them.
const AT: pg_sys::AttrNumber = 2;
const EVENT: pg_sys::AttrNumber = 3;
const USER_ID: pg_sys::AttrNumber = 4;

/// Largest number of entries of an event that are read.
pub const MOST: i64 = 10_000;

/// How many rows there are, and how many users they are about. If there are `MOST` entries or more: how many entries, and how
/// many users these may be about, with those of transactions that were rolled back.
pub struct Counted {
    pub rows: i64,
    pub users: i64,
}

/// Counts the rows of an event that are newer, until there are enough. `None` if the rows are in other tables or not
/// in a heap, or there is no index to find them by.
///
/// Errors: XX001 if the table is missing or altered.
pub fn count(event: &str, since: Timestamp, enough: i64) -> Result<Option<Counted>, Error> {
    let open = shape::AUDIT_LOG.open(pg_sys::AccessShareLock)?;
    open.lock_parts(pg_sys::AccessShareLock);
    // SAFETY: the table is open, and locked with its indexes.
    unsafe {
        let (class, methods) = (&*(*open.relation()).rd_rel, (*open.relation()).rd_tableam);
        if class.relkind as u8 != pg_sys::RELKIND_RELATION
            || class.relhassubclass
            || !std::ptr::eq(methods, pg_sys::GetHeapamTableAmRoutine())
        {
            return Ok(None);
        }
        let index = parts::indexes(open.relation()).into_iter().find_map(|oid| Index::open(oid));
        Ok(index.map(|index| scan(&open, &index, keys(&index, event, since), enough)))
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
            // indcheckxmin is about snapshots that are older than the index.
            let has_all = form.indisvalid && pg_sys::RelationGetIndexPredicate(index.0).is_null();
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

/// Reads the entries backward, dead ones too, and asks of each row whether it is there. An entry counts also if its row is
/// gone: PostgreSQL 19 removes those of transactions that were rolled back when it reads their page, and VACUUM may leave the
/// index for later.
///
/// # Safety
/// The table is open, and locked with this index of it.
unsafe fn scan(open: &Open, index: &Index, mut keys: [pg_sys::ScanKeyData; 2], enough: i64) -> Counted {
    let (table, snapshot) = (open.relation(), Snapshot::latest());
    let (mut entries, mut rows, mut users) = (0, 0, Users::default());
    // SAFETY: promised by the caller. A row stays in the slot until the next one is asked for. After an error PostgreSQL ends the
    // scan itself.
    unsafe {
        let any = &raw mut pg_sys::SnapshotAnyData;
        // This function has the same arguments in every version, and the scan in it has not.
        let outer = pg_sys::systable_beginscan_ordered(table, index.0, any, keys.len() as i32, keys.as_mut_ptr());
        let (scan, slot) = ((*outer).iscan, (*outer).slot);
        // PostgreSQL would read past entries that it has marked as dead, all of them.
        (*scan).ignore_killed_tuples = false;
        while entries < MOST
            && rows < enough
            && !pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::BackwardScanDirection).is_null()
        {
            entries += 1;
            let mut is_gone = true;
            while pg_sys::index_fetch_heap(scan, slot) {
                is_gone = false;
                let is_there = is_there(table, slot, &snapshot);
                rows += i64::from(is_there);
                users.add(slot, is_there);
                if !(*scan).xs_heap_continue {
                    break; // there is no other version of the row
                }
            }
            users.unknown += i64::from(is_gone);
        }
        pg_sys::systable_endscan_ordered(outer);
    }
    if entries < MOST {
        Counted { rows, users: distinct(users.of_rows) }
    } else {
        Counted { rows: MOST, users: distinct(users.of_entries) + users.unknown }
    }
}

/// Makes the keys of a scan: this event, later than that.
///
/// # Safety
/// The index is open. The keys point at the event, which PostgreSQL frees with the memory of the call.
unsafe fn keys(index: &Index, event: &str, since: Timestamp) -> [pg_sys::ScanKeyData; 2] {
    let mut keys = [pg_sys::ScanKeyData::default(); 2];
    let [of_event, of_time] = &mut keys;
    let event = event.into_datum().unwrap_or(pg_sys::Datum::null());
    // SAFETY: promised by the caller; the functions compare what the columns are.
    unsafe {
        pg_sys::ScanKeyInit(of_event, EVENT, pg_sys::BTEqualStrategyNumber as u16, pg_sys::F_TEXTEQ.into(), event);
        of_event.sk_collation = *(*index.0).rd_indcollation;
        let (later, at) = (pg_sys::BTGreaterStrategyNumber as u16, pg_sys::Datum::from(since.0));
        pg_sys::ScanKeyInit(of_time, AT, later, pg_sys::F_TIMESTAMPTZ_GT.into(), at);
    }
    keys
}

/// Returns whether a snapshot sees the row.
///
/// # Safety
/// The table is open, and the slot has a pinned row of it.
unsafe fn is_there(table: pg_sys::Relation, slot: *mut pg_sys::TupleTableSlot, snapshot: &Snapshot) -> bool {
    let snapshot = snapshot.get();
    // SAFETY: promised by the caller. Not by the inline function, which pgrx has in its C file only; so the guard against a
    // jump of PostgreSQL over this frame is here.
    unsafe {
        let satisfies = (*(*table).rd_tableam).tuple_satisfies_snapshot;
        satisfies.is_some_and(|satisfies| pg_sys::ffi::pg_guard_ffi_boundary(|| satisfies(table, slot, snapshot)))
    }
}

/// Hashes of user ids: a user counts once.
#[derive(Default)]
struct Users {
    state: RandomState,
    of_rows: Vec<u64>,
    of_entries: Vec<u64>,
    /// Entries without a user id that can be read: each may be of another one.
    unknown: i64,
}

impl Users {
    /// Adds the user of a row, if it has one.
    ///
    /// # Safety
    /// The slot has a row of `totp.audit_log`.
    unsafe fn add(&mut self, slot: *mut pg_sys::TupleTableSlot, is_there: bool) {
        let column = USER_ID as usize;
        // SAFETY: promised by the caller. A text, in any encoding, is stored as a bytea is.
        let user = unsafe {
            pg_sys::slot_getsomeattrs_int(slot, column as i32);
            let (value, is_null) = (*(*slot).tts_values.add(column - 1), *(*slot).tts_isnull.add(column - 1));
            if !is_null && !is_there && pgrx::varlena::varatt_is_1b_e(value.cast_mut_ptr()) {
                self.unknown += 1; // what it points at may be gone
                return;
            }
            <&[u8]>::from_datum(value, is_null)
        };
        if let Some(user) = user {
            let hash = self.state.hash_one(user);
            self.of_entries.push(hash);
            self.of_rows.extend(is_there.then_some(hash));
        }
    }
}

fn distinct(mut hashes: Vec<u64>) -> i64 {
    hashes.sort_unstable();
    hashes.dedup();
    hashes.len() as i64
}
