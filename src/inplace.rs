//! Rows that change in place: find, lock, decide, log, flush. The only file that writes to a page.
//!
//! A row of `totp.attempts`, `totp.used_codes` or `totp.floor` changes as a sequence does: under the page lock,
//! outside of the transaction, logged to the WAL through PostgreSQL's generic WAL interface. So a ROLLBACK gives
//! nothing back. docs/design/in-place.md has the argument for every step.
//!
//! Under a page lock nothing here allocates, waits, reads a file or can panic: what runs is
//! `HeapTupleSatisfiesUpdate`, the caller's arithmetic on five integers, and the generic WAL calls.

use pgrx::pg_sys;

use crate::error::Error;

/// The columns that change: the first five of the table, each 8 bytes wide and NOT NULL, so their offset is constant.
pub type Words = [i64; 5];

const WORDS_LEN: usize = size_of::<Words>();

/// A table whose rows change in place.
pub trait InPlace: Copy {
    /// Its name in schema `totp`, for messages.
    const TABLE: &'static str;
    /// Decodes the columns.
    fn from_words(words: Words) -> Self;
    /// Encodes the columns.
    fn to_words(self) -> Words;
}

/// Where a look-up found a row: table (or partition), place, and the transaction that inserted it.
#[derive(Clone, Copy)]
pub struct RowAddress {
    pub table: pg_sys::Oid,
    pub tid: pg_sys::ItemPointerData,
    pub xmin: pg_sys::TransactionId,
}

/// What became of a change.
pub enum Outcome<R> {
    /// Decided on the rows as they are now; with the end of the WAL record where something changed.
    Decided(R, Option<Lsn>),
    /// A row was moved or removed since the look-up: look up everything again, under a new snapshot.
    LookAgain,
}

/// The end of a WAL record.
#[derive(Clone, Copy)]
pub struct Lsn(pg_sys::XLogRecPtr);

impl Lsn {
    /// Returns when the change is on disk, and on the synchronous standbys where there are any.
    ///
    /// A transaction without an id neither flushes nor waits at its commit, so this does, whatever
    /// `synchronous_commit` says; the wait for standbys follows that setting, as COMMIT does.
    pub fn make_durable(self) {
        // SAFETY: plain calls of PostgreSQL's interface. SyncRepWaitForLSN asserts that interrupts are held; it ends
        // a cancelled wait in a WARNING. Were it to raise, PostgreSQL resets the count itself.
        unsafe {
            pg_sys::XLogFlush(self.0);
            pg_sys::InterruptHoldoffCount += 1;
            pg_sys::SyncRepWaitForLSN(self.0, false);
            pg_sys::InterruptHoldoffCount -= 1;
        }
    }

    /// Leaves the flush to the WAL writer, within three times `wal_writer_delay`.
    pub fn flush_soon(self) {
        // SAFETY: notes the position in shared memory and may wake the WAL writer.
        unsafe { pg_sys::XLogSetAsyncXactLSN(self.0) }
    }
}

/// Decides on one row and changes it. `decide` runs under the page lock: plain arithmetic only.
pub fn change_one<A: InPlace, R>(row: &RowAddress, decide: impl FnOnce(&mut A) -> R) -> Result<Outcome<R>, Error> {
    change([Target::open::<A>(row)?], |[words]| {
        let mut value = A::from_words(*words);
        let result = decide(&mut value);
        *words = value.to_words();
        result
    })
}

/// Decides on two rows of two tables in one lock hold, and changes them in one WAL record.
///
/// `decide` runs under the page locks: plain arithmetic only. The locks are taken in the order of the arguments:
/// `attempts` comes before `used_codes` at every call, so two calls never wait for one another.
pub fn change_two<A: InPlace, B: InPlace, R>(
    first: &RowAddress,
    second: &RowAddress,
    decide: impl FnOnce(&mut A, &mut B) -> R,
) -> Result<Outcome<R>, Error> {
    change([Target::open::<A>(first)?, Target::open::<B>(second)?], |[a, b]| {
        let (mut x, mut y) = (A::from_words(*a), B::from_words(*b));
        let result = decide(&mut x, &mut y);
        (*a, *b) = (x.to_words(), y.to_words());
        result
    })
}

/// Reads the row at an address as it is now, whether it is still visible or not.
///
/// For copying a row that the own transaction has just deleted: what was read before the delete may be overtaken.
pub fn read_one<A: InPlace>(row: &RowAddress) -> Result<A, Error> {
    let target = Target::open::<A>(row)?;
    // SAFETY: the buffer is pinned by `target` and locked while it is read. The row was deleted by this transaction,
    // so no vacuum removes it.
    let words = unsafe {
        pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let words = match target.place() {
            Found::At(place) => Some(read_words(place.data(pg_sys::BufferGetPage(target.buffer)))),
            Found::Moved | Found::Altered => None,
        };
        pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
        words
    };
    target.close();
    words.map(A::from_words).ok_or(Error::RowsAltered)
}

/// Steps 3 to 5 of docs/design/in-place.md for one or two rows.
fn change<const N: usize, R>(
    targets: [Target; N],
    decide: impl FnOnce(&mut [Words; N]) -> R,
) -> Result<Outcome<R>, Error> {
    let mut states = [const { State::Moved }; N];
    let mut decided = None;
    // SAFETY: every buffer is pinned by its target. GenericXLogStart allocates and so comes before the locks. The
    // locks are taken in the order of `targets` and released below; PostgreSQL releases them if a call here raises.
    unsafe {
        let wal = pg_sys::GenericXLogStart(targets[0].relation);
        for target in &targets {
            pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
        }
        for (state, target) in states.iter_mut().zip(&targets) {
            *state = target.state();
        }
        if let Some(places) = all_ours(&states) {
            decided = Some(decide_and_log(wal, &targets, &places, decide));
        } else {
            pg_sys::GenericXLogAbort(wal);
        }
        for target in &targets {
            pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
        }
    }
    let places = targets.map(Target::close);
    match decided {
        Some((result, lsn)) => Ok(Outcome::Decided(result, lsn)),
        None => {
            for (state, (table, tid)) in states.iter().zip(places) {
                match state {
                    State::BeingDeleted(header) => wait_for_deleter(header, table, tid),
                    State::Altered => return Err(Error::RowsAltered),
                    State::Ours(_) | State::Moved => {}
                }
            }
            pgrx::check_for_interrupts!();
            Ok(Outcome::LookAgain)
        }
    }
}

/// Runs `decide` on the rows and logs the pages of those that it changed, in one record.
///
/// # Safety
/// The targets' buffers are pinned and locked exclusively; the places were found under these locks.
unsafe fn decide_and_log<const N: usize, R>(
    wal: *mut pg_sys::GenericXLogState,
    targets: &[Target; N],
    places: &[Place; N],
    decide: impl FnOnce(&mut [Words; N]) -> R,
) -> (R, Option<Lsn>) {
    // SAFETY: as promised by the caller. GenericXLogRegisterBuffer returns a copy of the page, which
    // GenericXLogFinish logs and copies back.
    unsafe {
        let mut before = [[0; 5]; N];
        for ((words, target), place) in before.iter_mut().zip(targets).zip(places) {
            *words = read_words(place.data(pg_sys::BufferGetPage(target.buffer)));
        }
        let mut after = before;
        let result = decide(&mut after);
        if after == before {
            pg_sys::GenericXLogAbort(wal);
            return (result, None);
        }
        for i in 0..N {
            if after[i] != before[i] {
                let copy = pg_sys::GenericXLogRegisterBuffer(wal, targets[i].buffer, 0);
                write_words(places[i].data(copy), after[i]);
            }
        }
        (result, Some(Lsn(pg_sys::GenericXLogFinish(wal))))
    }
}

/// A table opened and a page pinned, for one row.
struct Target {
    relation: pg_sys::Relation,
    buffer: pg_sys::Buffer,
    row: RowAddress,
}

impl Target {
    /// Opens the table in ROW EXCLUSIVE mode, refuses one that must not be changed in place, and pins the page.
    fn open<T: InPlace>(row: &RowAddress) -> Result<Self, Error> {
        // SAFETY: the table was found by a look-up of this call, whose locks on it are still held, so it exists and
        // the block is within it.
        unsafe {
            let relation = pg_sys::table_open(row.table, pg_sys::RowExclusiveLock as i32);
            if !can_change_in_place(relation) {
                pg_sys::table_close(relation, pg_sys::NoLock as i32);
                return Err(Error::TableAltered(T::TABLE));
            }
            let (block, _) = pgrx::itemptr::item_pointer_get_both(row.tid);
            Ok(Self { relation, buffer: pg_sys::ReadBuffer(relation, block), row: *row })
        }
    }

    /// Unpins the page and closes the table, whose lock stays until the end of the transaction.
    fn close(self) -> (pg_sys::Oid, pg_sys::ItemPointerData) {
        // SAFETY: opened in `open`, closed once. After an error PostgreSQL does this itself, hence no Drop.
        unsafe {
            pg_sys::ReleaseBuffer(self.buffer);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
        }
        (self.row.table, self.row.tid)
    }

    /// Where the row's columns lie.
    ///
    /// # Safety
    /// The buffer is locked.
    unsafe fn place(&self) -> Found {
        // SAFETY: the page is locked, so its line pointers do not move; each offset is checked before it is used.
        unsafe {
            let page = pg_sys::BufferGetPage(self.buffer);
            let (_, offset) = pgrx::itemptr::item_pointer_get_both(self.row.tid);
            if offset == 0 || offset > pg_sys::PageGetMaxOffsetNumber(page) {
                return Found::Moved;
            }
            let item = &*pg_sys::PageGetItemId(page, offset);
            let (start, len) = (item.lp_off() as usize, item.lp_len() as usize);
            if item.lp_flags() != pg_sys::LP_NORMAL
                || len < size_of::<pg_sys::HeapTupleHeaderData>()
                || start + len > pg_sys::BLCKSZ as usize
            {
                return Found::Moved;
            }
            let header = page.add(start).cast::<pg_sys::HeapTupleHeaderData>();
            if (*header).t_choice.t_heap.t_xmin != self.row.xmin {
                return Found::Moved;
            }
            let hoff = usize::from((*header).t_hoff);
            let columns = u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
            // A column that was added later is not in the tuple.
            if columns < 5 || hoff + WORDS_LEN > len {
                return Found::Altered;
            }
            Found::At(Place { start, len, hoff })
        }
    }

    /// Whether the row may be changed now.
    ///
    /// # Safety
    /// The buffer is locked exclusively.
    unsafe fn state(&self) -> State {
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
                pg_sys::TM_Result::TM_BeingModified => State::BeingDeleted(std::ptr::read(header)),
                _ => State::Moved,
            }
        }
    }
}

/// What stands where the look-up found a row.
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
struct Place {
    start: usize,
    len: usize,
    hoff: usize,
}

impl Place {
    /// Where the columns begin on that page, or on a copy of it.
    ///
    /// # Safety
    /// `page` is the page on which the place was found, or a copy.
    unsafe fn data(&self, page: pg_sys::Page) -> *mut u8 {
        // SAFETY: `start + hoff + WORDS_LEN` lies within the page, as checked in `Target::place`.
        unsafe { page.cast::<u8>().add(self.start + self.hoff) }
    }
}

/// What a row is, seen under the page lock.
enum State {
    /// It is the row of the look-up, and no transaction has deleted it. Row locks of others do not matter.
    Ours(Place),
    /// An open transaction is deleting it. Its header, copied, tells which.
    BeingDeleted(pg_sys::HeapTupleHeaderData),
    /// It is gone, or something else stands in its place.
    Moved,
    /// It does not have the columns that change.
    Altered,
}

/// Waits, with no page locked or pinned, until the transaction that deletes a row has ended.
fn wait_for_deleter(header: &pg_sys::HeapTupleHeaderData, table: pg_sys::Oid, mut tid: pg_sys::ItemPointerData) {
    // SAFETY: `header` is a copy; a multixact is resolved from its xmax and info mask alone. The table is open during
    // the wait, which names it if it is cancelled.
    unsafe {
        let xid = if u32::from(header.t_infomask) & pg_sys::HEAP_XMAX_IS_MULTI != 0 {
            pg_sys::HeapTupleGetUpdateXid(std::ptr::from_ref(header).cast_mut())
        } else {
            header.t_choice.t_heap.t_xmax
        };
        let relation = pg_sys::table_open(table, pg_sys::NoLock as i32);
        pg_sys::XactLockTableWait(xid, relation, &mut tid, pg_sys::XLTW_Oper::XLTW_Update);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
    }
}

fn all_ours<const N: usize>(states: &[State; N]) -> Option<[Place; N]> {
    let mut places = [Place { start: 0, len: 0, hoff: 0 }; N];
    for (place, state) in places.iter_mut().zip(states) {
        match state {
            State::Ours(found) => *place = *found,
            _ => return None,
        }
    }
    Some(places)
}

/// HEAP_XMAX_IS_LOCKED_ONLY of PostgreSQL's htup_details.h.
fn is_only_locked(infomask: u16) -> bool {
    let mask = u32::from(infomask);
    mask & pg_sys::HEAP_XMAX_LOCK_ONLY != 0
        || mask & (pg_sys::HEAP_XMAX_IS_MULTI | pg_sys::HEAP_LOCK_MASK) == pg_sys::HEAP_XMAX_EXCL_LOCK
}

/// A logged heap table whose first five columns are 8 bytes wide, NOT NULL and there.
///
/// # Safety
/// `relation` is open.
unsafe fn can_change_in_place(relation: pg_sys::Relation) -> bool {
    // SAFETY: an open relation has its pg_class row and tuple descriptor.
    unsafe {
        let class = &*(*relation).rd_rel;
        let columns = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        class.relam == pg_sys::HEAP_TABLE_AM_OID
            && class.relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
            && (0..5).all(|i| {
                columns.get(i).is_some_and(|c| {
                    c.attnotnull && !c.attisdropped && matches!(c.atttypid, pg_sys::INT8OID | pg_sys::TIMESTAMPTZOID)
                })
            })
    }
}

/// # Safety
/// `data` points at `WORDS_LEN` readable bytes.
unsafe fn read_words(data: *const u8) -> Words {
    // SAFETY: promised by the caller; a tuple's data is MAXALIGNed, and an unaligned read asks for nothing.
    unsafe { std::ptr::read_unaligned(data.cast::<Words>()) }
}

/// # Safety
/// `data` points at `WORDS_LEN` writable bytes.
unsafe fn write_words(data: *mut u8, words: Words) {
    // SAFETY: promised by the caller.
    unsafe { std::ptr::write_unaligned(data.cast::<Words>(), words) }
}
