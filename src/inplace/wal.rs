//! The WAL record of a change: the same that `GenericXLogFinish` would write, but without its comparison of whole pages.
//!
//! PostgreSQL's generic WAL functions copy the page, let the caller change the copy, and compare both byte by byte to find
//! what changed. That takes longer than everything else in a sign-in, and it happens under the page lock. Here the change is
//! known. For each page the record has pieces of offset, length, and bytes (`generic_redo` in PostgreSQL's generic_xlog.c,
//! the same from 9.6 to 19): crash recovery and standbys replay it without this library.
//!
//! Owns the record, and when it is on disk. Must never log anything but the words of one row per page.

use std::sync::atomic::{AtomicI64, Ordering};

use pgrx::pg_sys;

use super::row::Words;
use crate::backend;

/// Bytes of the two numbers before each piece.
const HEAD: usize = 4;

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

/// New values of the columns of one row.
pub struct Change {
    pub buffer: pg_sys::Buffer,
    /// Whether the page's table is logged. Otherwise it is new, and is written to disk when its transaction commits.
    pub is_logged: bool,
    /// Where the columns begin on the page.
    pub start: usize,
    pub before: Words,
    pub after: Words,
}

impl Change {
    /// Returns the bytes from the first to the last word that changes, after their offset and length.
    fn piece(&self) -> ([u8; HEAD + size_of::<Words>()], usize) {
        let differs = |i: &usize| self.before[*i] != self.after[*i];
        let first = (0..self.after.len()).find(differs).unwrap_or(0);
        let last = (0..self.after.len()).rfind(differs).unwrap_or(0);
        let mut piece = [0; HEAD + size_of::<Words>()];
        let (head, mut bytes) = piece.split_at_mut(HEAD);
        for word in &self.after[first..=last] {
            let (place, rest) = bytes.split_at_mut(size_of::<i64>());
            place.copy_from_slice(&word.to_ne_bytes());
            bytes = rest;
        }
        let len = (last + 1 - first) * size_of::<i64>();
        // A page has 8 kB: both fit into 16 bits.
        head[..2].copy_from_slice(&((self.start + first * size_of::<i64>()) as u16).to_ne_bytes());
        head[2..].copy_from_slice(&(len as u16).to_ne_bytes());
        (piece, HEAD + len)
    }

    /// Stores each word atomically: a reader that has only pinned the page sees the old or the new word.
    ///
    /// # Safety
    /// As [`write_and_log`].
    unsafe fn write(&self) {
        // SAFETY: within the page, and a multiple of 8 from its beginning, which is aligned.
        let words = unsafe { pg_sys::BufferGetPage(self.buffer).cast::<u8>().add(self.start).cast::<i64>() };
        for (i, word) in self.after.into_iter().enumerate() {
            // SAFETY: as above; PostgreSQL reads it as a plain 8-byte value.
            unsafe { AtomicI64::from_ptr(words.add(i)).store(word, Ordering::Relaxed) }
        }
    }
}

/// Writes the changes into the pages and logs them in one record. Nothing between the two can fail, except the server.
///
/// # Safety
/// The buffers are different ones, pinned and locked exclusively. `start` is a multiple of 8; the 40 bytes from it are
/// within a tuple of that page.
pub unsafe fn write_and_log<const N: usize>(changes: &[Change; N]) -> Option<Lsn> {
    if changes.iter().all(|change| change.before == change.after) {
        return None;
    }
    let pieces: [_; N] = std::array::from_fn(|i| changes[i].piece());
    let changed = || (0..N).filter(|i| changes[*i].before != changes[*i].after);
    let logged = || changed().filter(|i| changes[*i].is_logged);
    // SAFETY: as promised by the caller. The order is that of PostgreSQL's src/backend/access/transam/README: critical
    // section, change, mark dirty, log, set the page's LSN. The pieces outlive the construction of the record.
    unsafe {
        let is_logged = logged().next().is_some();
        if is_logged {
            pg_sys::XLogBeginInsert();
        }
        pg_sys::CritSectionCount += 1;
        for i in changed() {
            changes[i].write();
            pg_sys::MarkBufferDirty(changes[i].buffer);
        }
        let mut lsn = Lsn::AT_COMMIT;
        if is_logged {
            for (block, i) in (0..).zip(logged()) {
                pg_sys::XLogRegisterBuffer(block, changes[i].buffer, pg_sys::REGBUF_STANDARD as u8);
                let (piece, len) = &pieces[i];
                backend::register_buffer_data(block, &piece[..*len]);
            }
            lsn = Lsn(pg_sys::XLogInsert(pg_sys::RmgrIds::RM_GENERIC_ID as u8, 0));
        }
        for i in logged() {
            backend::set_page_lsn(pg_sys::BufferGetPage(changes[i].buffer), lsn.0);
        }
        pg_sys::CritSectionCount -= 1;
        Some(lsn)
    }
}
