//! Decides on one row or two, and changes them.
//!
//! Owns the order: lock the pages, look at the rows, decide, log, unlock. Must never change a row that another transaction is
//! deleting, or that this one may roll back.

use std::marker::PhantomData;

use pgrx::pg_sys;

use super::copies;
use super::page::{self, Place, State};
use super::row::{InPlace, RowAddress, Words};
use super::wal::{self, Change, Lsn};
use crate::error::Error;

/// A row that is about to change. Its table is open and its page pinned until this value is dropped.
///
/// Opening it refuses everything that does not depend on the decision. So it comes before a code is compared.
pub struct Target<A>(page::Target, PhantomData<A>);

impl<A: InPlace> Target<A> {
    /// Opens a row. Errors: 55000 if this transaction made a copy of the row, or has rewritten its table, or if the table may be
    /// repacked meanwhile; XX001 if the table is altered.
    pub fn open(row: &RowAddress) -> Result<Self, Error> {
        copies::refuse(row)?;
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
            pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as _);
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
            pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_UNLOCK as _);
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
