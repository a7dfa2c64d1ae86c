//! Rows that change in place: find, lock, decide, log, flush. Nothing else writes to a page. `page` finds the row,
//! `record` writes and logs.
//!
//! A row of `totp.attempts`, `totp.used_codes` or `totp.floor` changes as a sequence does: under the page lock,
//! outside of the transaction, logged to the WAL in a generic record. So a ROLLBACK undoes nothing.
//! docs/design/in-place.md has the argument for every step.
//!
//! Under a page lock nothing here allocates, waits, reads a file, or can panic. What runs is
//! `HeapTupleSatisfiesUpdate`, the caller's arithmetic on five integers, and the construction of the WAL record.

mod page;
mod wal;

use std::cell::Cell;
use std::marker::PhantomData;

use pgrx::pg_sys;

pub use self::page::may_be_going;
use self::page::{Place, State};
use self::wal::Change;
use crate::error::Error;

/// The columns that change: the first five of the table, each 8 bytes wide and NOT NULL, so their offset is constant.
pub type Words = [i64; 5];

/// A table whose rows change in place.
pub trait InPlace: Copy {
    /// Its name in schema `totp`, for messages.
    const TABLE: &'static str;
    /// The names of the columns that change, in the order of the table.
    const COLUMNS: [&'static str; 5];
    /// Decodes the columns.
    fn from_words(words: Words) -> Self;
    /// Encodes the columns.
    fn to_words(self) -> Words;
}

/// Where a look-up found a row: table (or partition), position, and the transaction that inserted it.
#[derive(Clone, Copy)]
pub struct RowAddress {
    pub table: pg_sys::Oid,
    pub tid: pg_sys::ItemPointerData,
    pub xmin: pg_sys::TransactionId,
    /// Another transaction may be deleting it.
    pub may_be_going: bool,
}

impl RowAddress {
    /// Returns whether this transaction inserted the row: its ROLLBACK removes the row.
    pub fn is_own(&self) -> bool {
        // SAFETY: a look at backend state.
        unsafe { pg_sys::TransactionIdIsCurrentTransactionId(self.xmin) }
    }
}

/// A row that is about to change. Its table is open and its page pinned until this value is dropped.
///
/// Opening it refuses everything that does not depend on the decision. So it comes before a code is compared.
pub struct Target<A>(page::Target, PhantomData<A>);

impl<A: InPlace> Target<A> {
    /// Opens a row. Errors: 55000 if this transaction made a copy of the row, or has rewritten its table; XX001 if the table
    /// is altered.
    pub fn open(row: &RowAddress) -> Result<Self, Error> {
        refuse_own_copy(row)?;
        let target = page::Target::open::<A>(row)?;
        if target.is_rewritten() { Err(Error::TableRewritten(A::TABLE)) } else { Ok(Self(target, PhantomData)) }
    }
}

/// The result of a change.
pub enum Outcome<R> {
    /// Decided on the rows as they are now. The position in the WAL makes the change durable, if something changed.
    Decided(R, Option<Lsn>),
    /// A row was moved or removed since the look-up: look up everything again, under a new snapshot.
    LookAgain,
}

/// The end of the WAL record of a change.
#[derive(Clone, Copy)]
pub struct Lsn(pg_sys::XLogRecPtr);

impl Lsn {
    /// A change that needs no record: PostgreSQL writes the table to disk when the transaction that created it commits.
    const AT_COMMIT: Self = Self(0);

    /// Returns when the change is on disk, and on the synchronous standbys if there are any.
    ///
    /// A transaction without an id neither flushes nor waits at its commit. So this function flushes, whatever
    /// `synchronous_commit` says. The wait for standbys follows that setting, as COMMIT does.
    pub fn make_durable(self) {
        // SAFETY: plain calls of PostgreSQL's interface. SyncRepWaitForLSN asserts that interrupts are held; it ends
        // a canceled wait in a WARNING. If it raised, PostgreSQL would reset the count itself.
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
pub fn change_one<A: InPlace, R>(row: Target<A>, decide: impl FnOnce(&mut A) -> R) -> Result<Outcome<R>, Error> {
    change([row.0], |[words]| {
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
    first: Target<A>,
    second: Target<B>,
    decide: impl FnOnce(&mut A, &mut B) -> R,
) -> Result<Outcome<R>, Error> {
    change([first.0, second.0], |[a, b]| {
        let (mut x, mut y) = (A::from_words(*a), B::from_words(*b));
        let result = decide(&mut x, &mut y);
        (*a, *b) = (x.to_words(), y.to_words());
        result
    })
}

/// Waits while another transaction is deleting the row. `None` if it had to wait: look the row up again.
pub fn settled<A: InPlace>(row: Target<A>) -> Result<Option<Target<A>>, Error> {
    let address = row.0.address();
    if !address.may_be_going {
        return Ok(Some(row));
    }
    match change_one(row, |_: &mut A| ())? {
        Outcome::Decided(..) => Target::open(&address).map(Some),
        Outcome::LookAgain => Ok(None),
    }
}

thread_local! {
    /// The transaction that last deleted a row, and the one that last put a copy of a row in its place. A ROLLBACK would
    /// undo what is judged on the copy.
    static DELETED_IN: Cell<pg_sys::TransactionId> = const { Cell::new(pg_sys::InvalidTransactionId) };
    static COPIED_IN: Cell<pg_sys::TransactionId> = const { Cell::new(pg_sys::InvalidTransactionId) };
}

/// Notes that this transaction has deleted rows.
pub fn note_delete() {
    // SAFETY: a read of backend state; the delete has given the transaction an id.
    DELETED_IN.set(unsafe { pg_sys::GetTopTransactionIdIfAny() });
}

/// Notes that a secret was imported. If this transaction has deleted rows, the secret may be a copy of a deleted one.
pub fn note_import() {
    // SAFETY: a read of backend state.
    let top = unsafe { pg_sys::GetTopTransactionIdIfAny() };
    if DELETED_IN.get() == top {
        COPIED_IN.set(top);
    }
}

/// Reads a row that this transaction has just deleted, to insert it again elsewhere. A sign-in may have changed the row since
/// an earlier read.
///
/// From now on this transaction cannot judge on rows that it inserted itself: a ROLLBACK would restore the original as it was
/// before.
pub fn take_for_copy<A: InPlace>(row: &RowAddress) -> Result<A, Error> {
    // SAFETY: a read of backend state; the delete has given the transaction an id.
    COPIED_IN.set(unsafe { pg_sys::GetTopTransactionIdIfAny() });
    read_deleted(row)
}

/// Reads a row that this transaction has just deleted, as it was at the delete.
pub fn read_deleted<A: InPlace>(row: &RowAddress) -> Result<A, Error> {
    page::Target::open::<A>(row)?.read_locked().map(A::from_words).ok_or(Error::RowsAltered)
}

fn refuse_own_copy(row: &RowAddress) -> Result<(), Error> {
    // SAFETY: a read of backend state.
    let top = unsafe { pg_sys::GetTopTransactionIdIfAny() };
    if top != pg_sys::InvalidTransactionId && top == COPIED_IN.get() && row.is_own() {
        return Err(Error::OwnCopy);
    }
    Ok(())
}

/// Steps 4 to 6 of docs/design/in-place.md for one or two rows.
fn change<const N: usize, R>(
    mut targets: [page::Target; N],
    decide: impl FnOnce(&mut [Words; N]) -> R,
) -> Result<Outcome<R>, Error> {
    let mut decide = Some(decide);
    loop {
        let states = match try_change(&targets, &mut decide) {
            Ok((result, lsn)) => return Ok(Outcome::Decided(result, lsn)),
            Err(states) => states,
        };
        pgrx::check_for_interrupts!();
        // A multixact of row locks may include a delete that was rolled back. Then the row is as good as before.
        if targets.iter_mut().zip(&states).all(|(target, state)| target.is_good_after(state)) {
            continue;
        }
        let rows = targets.map(|target| target.address());
        for (state, row) in states.iter().zip(rows) {
            match state {
                State::BeingDeleted(header) => page::wait_for_deleter(header, &row),
                State::Altered => return Err(Error::RowsAltered),
                State::Ours(_) | State::Moved => {}
            }
        }
        return Ok(Outcome::LookAgain);
    }
}

/// Locks the pages once: decides if every row may be changed now, and otherwise returns what prevents it.
fn try_change<const N: usize, R, F: FnOnce(&mut [Words; N]) -> R>(
    targets: &[page::Target; N],
    decide: &mut Option<F>,
) -> Result<(R, Option<Lsn>), [State; N]> {
    let mut states = [const { State::Moved }; N];
    let mut decided = None;
    // SAFETY: every buffer is pinned by its target. The locks are taken in the order of `targets` and released below;
    // PostgreSQL releases them if a call here raises.
    unsafe {
        for target in targets {
            pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
        }
        for (state, target) in states.iter_mut().zip(targets) {
            *state = target.state();
        }
        if let Some(places) = all_ours(&states)
            && let Some(decide) = decide.take()
        {
            decided = Some(decide_and_log(targets, &places, decide));
        }
        for target in targets {
            pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
        }
    }
    decided.ok_or(states)
}

/// Runs `decide` on the rows, and writes and logs those that it changed, in one record.
///
/// # Safety
/// The targets' buffers are pinned and locked exclusively; the places were found under these locks.
unsafe fn decide_and_log<const N: usize, R>(
    targets: &[page::Target; N],
    places: &[Place; N],
    decide: impl FnOnce(&mut [Words; N]) -> R,
) -> (R, Option<Lsn>) {
    // SAFETY: as promised by the caller.
    unsafe {
        let before: [Words; N] =
            std::array::from_fn(|i| page::read_words(places[i].data(pg_sys::BufferGetPage(targets[i].buffer))));
        let mut after = before;
        let result = decide(&mut after);
        let lsn = wal::write_and_log(&std::array::from_fn::<_, N, _>(|i| Change {
            buffer: targets[i].buffer,
            is_logged: targets[i].is_logged,
            start: places[i].start_of_data(),
            before: before[i],
            after: after[i],
        }));
        (result, lsn)
    }
}

fn all_ours<const N: usize>(states: &[State; N]) -> Option<[Place; N]> {
    let mut places = [Place::NOWHERE; N];
    for (place, state) in places.iter_mut().zip(states) {
        match state {
            State::Ours(found) => *place = *found,
            _ => return None,
        }
    }
    Some(places)
}
