//! Adds to a row of a table whose rows are as good as each other, and waits for nothing.
//!
//! Where a judgment waits, this leaves it: a page that is locked, a row that is being deleted. It tries the next page then.
//!
//! Owns this order. Must never wait for another session, nor make a change durable: nobody is told of it.

use pgrx::pg_sys;

use super::page::{self, State, Target};
use super::row::InPlace;
use super::wal::{self, Change, Lsn};
use crate::backend;

/// Largest number of pages that are tried: as many as the table has at first.
const PAGES: u32 = 16;

/// Changes a row of the table. False if there is none that can be changed now. `add` runs under the page lock: plain
/// arithmetic only.
///
/// # Safety
/// The relation is open, and locked in ROW EXCLUSIVE mode.
pub unsafe fn try_add<A: InPlace>(relation: pg_sys::Relation, add: impl Fn(&mut A)) -> bool {
    // SAFETY: promised by the caller.
    let (table, blocks) = unsafe { ((*relation).rd_id, backend::blocks(relation)) };
    let first = backend::process_id();
    (0..blocks.min(PAGES)).any(|i| try_page(table, first.wrapping_add(i) % blocks, &add))
}

/// Changes a row of one page.
fn try_page<A: InPlace>(table: pg_sys::Oid, block: u32, add: &impl Fn(&mut A)) -> bool {
    let Ok(mut target) = Target::of_page::<A>(table, block) else { return false };
    // A ROLLBACK would restore the rows as they were before.
    if target.is_rewritten() {
        return false;
    }
    // SAFETY: the buffer is pinned by its target. The page lock is released below; PostgreSQL releases it if a call here raises.
    unsafe {
        if !pg_sys::ConditionalLockBuffer(target.buffer) {
            return false;
        }
        let rows = pg_sys::PageGetMaxOffsetNumber(pg_sys::BufferGetPage(target.buffer));
        let lsn = (1..=rows).find_map(|offset| try_row(&mut target, offset, add));
        pg_sys::LockBuffer(target.buffer, pg_sys::BUFFER_LOCK_UNLOCK as _);
        lsn.inspect(|lsn| lsn.flush_soon()).is_some()
    }
}

/// Changes one row of the page, if it may be changed now.
///
/// # Safety
/// The target's buffer is locked exclusively.
unsafe fn try_row<A: InPlace>(target: &mut Target, offset: pg_sys::OffsetNumber, add: &impl Fn(&mut A)) -> Option<Lsn> {
    // SAFETY: promised by the caller.
    unsafe {
        if !target.turn_to(offset) || target.address().is_own() {
            return None;
        }
        let State::Ours(place) = target.state() else { return None };
        let before = page::read_words(place.data(pg_sys::BufferGetPage(target.buffer)));
        let mut row = A::from_words(before);
        add(&mut row);
        let change = Change {
            buffer: target.buffer,
            is_logged: target.is_logged,
            start: place.start_of_data(),
            before,
            after: row.to_words(),
        };
        wal::write_and_log(&[change])
    }
}

/// Returns when every change of the table so far is on disk, so that no crash takes back what was read from it. A standby has
/// what it shows.
///
/// # Safety
/// The relation is open and locked.
pub unsafe fn make_durable(relation: pg_sys::Relation) {
    if backend::is_in_recovery() {
        return;
    }
    // SAFETY: promised by the caller. Each page is pinned while its LSN is read.
    unsafe {
        let mut last = 0;
        for block in 0..backend::blocks(relation).min(PAGES) {
            let buffer = pg_sys::ReadBuffer(relation, block);
            last = last.max(pg_sys::BufferGetLSNAtomic(buffer));
            pg_sys::ReleaseBuffer(buffer);
        }
        pg_sys::XLogFlush(last);
    }
}
