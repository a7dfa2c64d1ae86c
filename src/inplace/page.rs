//! One row on one page: where its columns are, and whether they may be changed now.
//!
//! Owns where a row is on its page. Must never decide anything about codes.

use pgrx::pg_sys;

use super::row::{InPlace, RowAddress, Words};
use crate::backend::{self, is_named};
use crate::error::Error;

const WORDS_LEN: usize = size_of::<Words>();

/// An open table and a pinned page, for one row.
pub struct Target {
    pub relation: pg_sys::Relation,
    pub buffer: pg_sys::Buffer,
    /// Whether a change of the table goes into the WAL.
    pub is_logged: bool,
    row: RowAddress,
    /// An xmax whose delete was rolled back, so that only its row locks count.
    rolled_back: pg_sys::TransactionId,
}

impl Target {
    /// Opens the table in ROW EXCLUSIVE mode, refuses one that must not be changed in place, and pins the page.
    pub fn open<T: InPlace>(row: &RowAddress) -> Result<Self, Error> {
        // SAFETY: the table was found by a look-up of this call, whose locks on it are still held, so it exists and
        // the block is within it.
        unsafe {
            let relation = pg_sys::table_open(row.table, pg_sys::RowExclusiveLock as i32);
            if !can_change_in_place::<T>(relation) {
                pg_sys::table_close(relation, pg_sys::NoLock as i32);
                return Err(Error::TableAltered(T::TABLE));
            }
            // Before any change, and before a code is compared: a copy that is being made would not have the change.
            if backend::can_be_repacked(relation) {
                let name = backend::sql_name(relation);
                pg_sys::table_close(relation, pg_sys::NoLock as i32);
                return Err(Error::TableRepackable(T::TABLE, name));
            }
            let (block, _) = pgrx::itemptr::item_pointer_get_both(row.tid);
            Ok(Self {
                relation,
                buffer: pg_sys::ReadBuffer(relation, block),
                is_logged: is_logged(relation),
                row: *row,
                rolled_back: pg_sys::InvalidTransactionId,
            })
        }
    }

    /// Does the same for a page whose rows are not known yet. The caller holds the lock on the table.
    pub fn of_page<T: InPlace>(table: pg_sys::Oid, block: pg_sys::BlockNumber) -> Result<Self, Error> {
        let mut tid = pg_sys::ItemPointerData::default();
        pgrx::itemptr::item_pointer_set_all(&mut tid, block, pg_sys::InvalidOffsetNumber);
        Self::open::<T>(&RowAddress { table, tid, xmin: pg_sys::InvalidTransactionId, may_be_going: true })
    }

    /// Turns to the row at an offset of the page, no matter which transaction inserted it. False if there is none.
    ///
    /// # Safety
    /// The buffer is locked.
    pub unsafe fn turn_to(&mut self, offset: pg_sys::OffsetNumber) -> bool {
        let (block, _) = pgrx::itemptr::item_pointer_get_both(self.row.tid);
        pgrx::itemptr::item_pointer_set_all(&mut self.row.tid, block, offset);
        // SAFETY: promised by the caller.
        let tuple = unsafe { self.tuple() };
        if let Some(tuple) = &tuple {
            // SAFETY: within the page.
            self.row.xmin = unsafe { (*tuple.header).t_choice.t_heap.t_xmin };
        }
        tuple.is_some()
    }

    /// Returns whether this transaction gave the table a new file (CLUSTER, ALTER TABLE, TRUNCATE), or put another table in its
    /// place: its ROLLBACK restores the old rows, with every code and guess as before. A table of its CREATE EXTENSION does
    /// not count: a ROLLBACK removes it with everything else.
    pub fn is_rewritten(&self) -> bool {
        // SAFETY: the table is open.
        unsafe {
            // Without an id the transaction has changed nothing.
            if backend::transaction_id() == pg_sys::InvalidTransactionId {
                return false;
            }
            let schema = (*(*self.relation).rd_rel).relnamespace;
            if is_made(self.relation) {
                return !are_secrets_made(schema);
            }
            backend::new_file_in(self.relation) != NO_SUBTRANSACTION
                || is_own_catalog_row(pg_sys::SysCacheIdentifier::RELOID, (*self.relation).rd_id)
                || is_own_catalog_row(pg_sys::SysCacheIdentifier::NAMESPACEOID, schema)
        }
    }

    /// Returns where the row was found.
    pub fn address(&self) -> RowAddress {
        self.row
    }

    /// Reads the columns as they are now, even if the row is no longer visible.
    pub fn read_locked(&self) -> Option<Words> {
        // SAFETY: the buffer is pinned, and locked while it is read.
        unsafe {
            pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_SHARE as _);
            let words = match self.place() {
                Found::At(place) => Some(read_words(place.data(pg_sys::BufferGetPage(self.buffer)))),
                Found::Moved | Found::Altered => None,
            };
            pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_UNLOCK as _);
            words
        }
    }

    /// Returns whether a row in that state can be tried again: it is ours, or its delete was rolled back, which this notes.
    pub fn is_good_after(&mut self, state: &State) -> bool {
        match state {
            State::Ours(_) => true,
            State::BeingDeleted(header) => {
                // SAFETY: look-ups in the transaction logs, in the order that PostgreSQL's visibility rules require.
                unsafe {
                    let deleter = deleter(header);
                    if pg_sys::TransactionIdIsInProgress(deleter) || pg_sys::TransactionIdDidCommit(deleter) {
                        return false;
                    }
                    self.rolled_back = header.t_choice.t_heap.t_xmax;
                    true
                }
            }
            State::Moved | State::Altered => false,
        }
    }

    /// Finds the tuple that is where the row was found.
    ///
    /// # Safety
    /// The buffer is locked.
    unsafe fn tuple(&self) -> Option<Tuple> {
        // SAFETY: the page is locked, so its line pointers do not move; each offset is checked before it is used.
        unsafe {
            let page = pg_sys::BufferGetPage(self.buffer);
            let (_, offset) = pgrx::itemptr::item_pointer_get_both(self.row.tid);
            if offset == 0 || offset > pg_sys::PageGetMaxOffsetNumber(page) {
                return None;
            }
            let item = &*pg_sys::PageGetItemId(page, offset);
            let (start, len) = (item.lp_off() as usize, item.lp_len() as usize);
            let is_tuple = item.lp_flags() == pg_sys::LP_NORMAL
                && len >= size_of::<pg_sys::HeapTupleHeaderData>()
                && start + len <= pg_sys::BLCKSZ as usize;
            is_tuple.then(|| Tuple { start, len, header: page.add(start).cast() })
        }
    }

    /// Finds the row's columns.
    ///
    /// # Safety
    /// The buffer is locked.
    unsafe fn place(&self) -> Found {
        // SAFETY: as `tuple`, which checked that the header is within the page.
        unsafe {
            let Some(Tuple { start, len, header }) = self.tuple() else { return Found::Moved };
            if (*header).t_choice.t_heap.t_xmin != self.row.xmin {
                return Found::Moved;
            }
            let hoff = usize::from((*header).t_hoff);
            let columns = u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
            // A column that was added later is not in the tuple.
            if columns < 5 || hoff + WORDS_LEN > len || (start + hoff) % size_of::<i64>() != 0 {
                return Found::Altered;
            }
            Found::At(Place { start, len, hoff })
        }
    }

    /// Returns whether the row may be changed now.
    ///
    /// # Safety
    /// The buffer is locked exclusively.
    pub unsafe fn state(&self) -> State {
        // SAFETY: `place` checked the offsets. HeapTupleSatisfiesUpdate is called as the heap's own code calls it: on
        // a tuple of the buffer's own page. It sets hint bits, hence before the page is copied.
        unsafe {
            let place = match self.place() {
                Found::At(place) => place,
                Found::Moved => return State::Moved,
                Found::Altered => return State::Altered,
            };
            let header = pg_sys::BufferGetPage(self.buffer).add(place.start).cast::<pg_sys::HeapTupleHeaderData>();
            let mut tuple = pg_sys::HeapTupleData {
                t_len: place.len as u32,
                t_self: self.row.tid,
                t_tableOid: self.row.table,
                t_data: header,
            };
            let command = pg_sys::GetCurrentCommandId(false);
            match pg_sys::HeapTupleSatisfiesUpdate(&mut tuple, command, self.buffer) {
                pg_sys::TM_Result::TM_Ok => State::Ours(place),
                pg_sys::TM_Result::TM_BeingModified if is_only_locked((*header).t_infomask) => State::Ours(place),
                pg_sys::TM_Result::TM_BeingModified if (*header).t_choice.t_heap.t_xmax == self.rolled_back => {
                    State::Ours(place)
                }
                pg_sys::TM_Result::TM_BeingModified => State::BeingDeleted(std::ptr::read(header)),
                // Deleted by the statement that calls us.
                pg_sys::TM_Result::TM_SelfModified => State::Altered,
                _ => State::Moved,
            }
        }
    }
}

impl Drop for Target {
    /// Unpins the page and closes the table, whose lock stays until the end of the transaction.
    fn drop(&mut self) {
        // While an error unwinds, the abort of the transaction does it.
        if !std::thread::panicking() {
            // SAFETY: opened in `open`, closed once.
            unsafe {
                pg_sys::ReleaseBuffer(self.buffer);
                pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
            }
        }
    }
}

/// A tuple within its page.
struct Tuple {
    start: usize,
    len: usize,
    header: *const pg_sys::HeapTupleHeaderData,
}

/// What is now where the look-up found a row.
enum Found {
    /// The row, by its inserting transaction.
    At(Place),
    /// Nothing, or another row.
    Moved,
    /// The row, but without the columns that change.
    Altered,
}

/// Offsets of a tuple within its page, checked against the page and the tuple's own length.
#[derive(Clone, Copy)]
pub struct Place {
    start: usize,
    len: usize,
    hoff: usize,
}

impl Place {
    pub const NOWHERE: Self = Self { start: 0, len: 0, hoff: 0 };

    /// Returns where the columns begin on the page.
    pub fn start_of_data(&self) -> usize {
        self.start + self.hoff
    }

    /// Returns the same as a pointer.
    ///
    /// # Safety
    /// `page` is the page on which the place was found.
    pub unsafe fn data(&self, page: pg_sys::Page) -> *const u8 {
        // SAFETY: `start + hoff + WORDS_LEN` is within the page, as checked in `Target::place`.
        unsafe { page.cast::<u8>().add(self.start_of_data()) }
    }
}

/// The state of a row, seen under the page lock.
pub enum State {
    /// It is the row of the look-up, and no transaction has deleted it. Row locks of others do not matter.
    Ours(Place),
    /// An open transaction is deleting it. A copy of its header says which.
    BeingDeleted(pg_sys::HeapTupleHeaderData),
    /// It is gone, or something else is in its place.
    Moved,
    /// It does not have the columns that change.
    Altered,
}

/// Returns the transaction that deletes a row, from a copy of its header.
///
/// # Safety
/// No page is locked: a multixact is looked up.
unsafe fn deleter(header: &pg_sys::HeapTupleHeaderData) -> pg_sys::TransactionId {
    // SAFETY: HeapTupleGetUpdateXid reads no more of the header than xmax and info mask.
    unsafe {
        if u32::from(header.t_infomask) & pg_sys::HEAP_XMAX_IS_MULTI != 0 {
            pg_sys::HeapTupleGetUpdateXid(std::ptr::from_ref(header).cast_mut())
        } else {
            header.t_choice.t_heap.t_xmax
        }
    }
}

/// Waits, with no page locked or pinned, until the transaction that deletes a row has ended.
pub fn wait_for_deleter(header: &pg_sys::HeapTupleHeaderData, row: &RowAddress) {
    // SAFETY: the table is open during the wait, which names it if it is canceled.
    unsafe {
        let mut tid = row.tid;
        let relation = pg_sys::table_open(row.table, pg_sys::NoLock as i32);
        pg_sys::XactLockTableWait(deleter(header), relation, &mut tid, pg_sys::XLTW_Oper::XLTW_Update);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
    }
}

/// Returns whether a transaction may be deleting the row, from the header that a look-up saw.
pub fn may_be_going(header: &pg_sys::HeapTupleHeaderData) -> bool {
    u32::from(header.t_infomask) & pg_sys::HEAP_XMAX_INVALID == 0 && !is_only_locked(header.t_infomask)
}

/// HEAP_XMAX_IS_LOCKED_ONLY of PostgreSQL's htup_details.h.
fn is_only_locked(infomask: u16) -> bool {
    let mask = u32::from(infomask);
    mask & pg_sys::HEAP_XMAX_LOCK_ONLY != 0
        || mask & (pg_sys::HEAP_XMAX_IS_MULTI | pg_sys::HEAP_LOCK_MASK) == pg_sys::HEAP_XMAX_EXCL_LOCK
}

/// Returns whether it is a permanent heap table whose first five columns are the expected ones, 8 bytes wide and NOT NULL.
///
/// # Safety
/// `relation` is open.
unsafe fn can_change_in_place<T: InPlace>(relation: pg_sys::Relation) -> bool {
    // SAFETY: an open relation has its pg_class row and tuple descriptor.
    unsafe {
        let class = &*(*relation).rd_rel;
        let columns = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        class.relam == pg_sys::HEAP_TABLE_AM_OID
            && class.relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
            && T::COLUMNS.iter().enumerate().all(|(i, name)| {
                columns.get(i).is_some_and(|c| {
                    c.attnotnull
                        && !c.attisdropped
                        && is_named(c, name)
                        && matches!(c.atttypid, pg_sys::INT8OID | pg_sys::TIMESTAMPTZOID)
                })
            })
    }
}

/// Returns whether changes of the table are logged: RelationNeedsWAL of PostgreSQL's rel.h, for a permanent table. With
/// `wal_level = minimal` changes of a table that this transaction created are not logged.
///
/// # Safety
/// `relation` is open.
unsafe fn is_logged(relation: pg_sys::Relation) -> bool {
    // SAFETY: promised by the caller, and a setting.
    unsafe {
        pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32
            || (!is_made(relation) && backend::new_file_in(relation) == NO_SUBTRANSACTION)
    }
}

/// Returns whether this transaction created the table.
///
/// # Safety
/// `relation` is open.
unsafe fn is_made(relation: pg_sys::Relation) -> bool {
    // SAFETY: promised by the caller.
    unsafe { (*relation).rd_createSubid != NO_SUBTRANSACTION }
}

/// Returns whether this transaction created table `secrets` in that schema too, and so the extension.
fn are_secrets_made(schema: pg_sys::Oid) -> bool {
    // SAFETY: returns NULL if the table does not exist; an open table is closed once.
    unsafe {
        let table = pg_sys::get_relname_relid(c"secrets".as_ptr(), schema);
        let secrets = pg_sys::try_table_open(table, pg_sys::AccessShareLock as i32);
        if secrets.is_null() {
            return false;
        }
        let is_made = is_made(secrets);
        pg_sys::table_close(secrets, pg_sys::NoLock as i32);
        is_made
    }
}

/// Returns whether this transaction wrote the catalog row: it renamed or moved the object, for one.
fn is_own_catalog_row(cache: pg_sys::SysCacheIdentifier::Type, object: pg_sys::Oid) -> bool {
    // SAFETY: returns NULL if the object does not exist; a row is released once.
    unsafe {
        let row = pg_sys::SearchSysCache1(cache as i32, object.into());
        if row.is_null() {
            return false;
        }
        let xmin = (*(*row).t_data).t_choice.t_heap.t_xmin;
        pg_sys::ReleaseSysCache(row);
        backend::is_own_transaction(xmin)
    }
}

/// PostgreSQL's InvalidSubTransactionId.
const NO_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

/// # Safety
/// `data` points at `WORDS_LEN` readable bytes.
pub unsafe fn read_words(data: *const u8) -> Words {
    // SAFETY: promised by the caller; a tuple's data is MAXALIGNed, and an unaligned read asks for nothing.
    unsafe { std::ptr::read_unaligned(data.cast::<Words>()) }
}
