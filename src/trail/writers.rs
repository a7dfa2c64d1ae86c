//! Who may still commit a row with an id that was taken before: sessions that hold the lock of a writer of the audit log.
//!
//! An INSERT locks the table before it takes an id from the sequence, and that lock lasts until the transaction has ended,
//! rows and all. A transaction may take the id before it has a transaction id.
//!
//! Owns the conversion of transaction ids. Must never wait.

use crate::backend;
use crate::error::Error;
use crate::store::audit_rows;

/// How often to look at the locks, for writers that have no transaction id yet. They get one within microseconds.
const LOOKS: u32 = 50;

/// Returns the lowest transaction id of a writer, with its epoch; the next one if there is none. A writer without one gets a
/// higher one.
pub fn oldest() -> Result<i64, Error> {
    // Read first: who begins later has a higher one.
    let next = backend::next_transaction_id();
    let writers = audit_rows::writers()?;
    let ids = writers.values().flatten().map(|id| with_epoch(*id));
    Ok(ids.min().unwrap_or(next).min(next).cast_signed())
}

/// Returns a transaction id above those of all who write now. `None` if one of them does not get an id soon.
pub fn all_below() -> Result<Option<i64>, Error> {
    let mut without_id = audit_rows::writers()?;
    without_id.retain(|_, id| id.is_none());
    for _ in 0..LOOKS {
        if without_id.is_empty() {
            return Ok(Some(backend::next_transaction_id().cast_signed()));
        }
        let now = audit_rows::writers()?;
        without_id.retain(|writer, _| now.get(writer) == Some(&None));
    }
    Ok(None)
}

/// Adds the epoch to the id of a running transaction, which is less than 2^31 before the next one.
fn with_epoch(id: u32) -> u64 {
    let next = backend::next_transaction_id();
    next - u64::from((next as u32).wrapping_sub(id))
}
