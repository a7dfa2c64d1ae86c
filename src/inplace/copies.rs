//! What a transaction has deleted and put elsewhere: a copy of a row that changes in place.
//!
//! Owns the memory of it. Must never allow a judgment on a copy: a ROLLBACK would restore the original as it was before.

use std::cell::Cell;

use pgrx::pg_sys;

use super::page;
use super::row::{InPlace, RowAddress};
use crate::backend;
use crate::error::Error;

thread_local! {
    /// The transaction that last deleted a row, and the one that last put a copy of a row in its place. A ROLLBACK would
    /// undo what is judged on the copy.
    static DELETED_IN: Cell<pg_sys::TransactionId> = const { Cell::new(pg_sys::InvalidTransactionId) };
    static COPIED_IN: Cell<pg_sys::TransactionId> = const { Cell::new(pg_sys::InvalidTransactionId) };
}

/// Notes that this transaction has deleted rows.
pub fn note_delete() {
    // The delete has given the transaction an id.
    DELETED_IN.set(backend::transaction_id());
}

/// Notes that a secret was imported. If this transaction has deleted rows, the secret may be a copy of a deleted one.
pub fn note_import() {
    let top = backend::transaction_id();
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
    // The delete has given the transaction an id.
    COPIED_IN.set(backend::transaction_id());
    read_deleted(row)
}

/// Reads a row that this transaction has just deleted, as it was at the delete.
pub fn read_deleted<A: InPlace>(row: &RowAddress) -> Result<A, Error> {
    page::Target::open::<A>(row)?.read_locked().map(A::from_words).ok_or(Error::RowsAltered)
}

/// Refuses a row that is a copy. Errors: 55000.
pub fn refuse(row: &RowAddress) -> Result<(), Error> {
    let top = backend::transaction_id();
    if top != pg_sys::InvalidTransactionId && top == COPIED_IN.get() && row.is_own() {
        return Err(Error::OwnCopy);
    }
    Ok(())
}
