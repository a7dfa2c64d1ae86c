//! Rows that change in place: find, lock, decide, log, flush. Nothing else writes to a page.
//!
//! A row of `totp.attempts`, `totp.used_codes`, `totp.floor` or `totp.counters` changes as a sequence does: under the page lock,
//! outside of the transaction, logged to the WAL in a generic record. So a ROLLBACK undoes nothing.
//! docs/design/in-place.md has the argument for every step.
//!
//! `change` decides, `add` adds without a wait; both use the others: `page` finds the row, `wal` writes and logs it, `copies` knows what this transaction
//! has moved, and `row` has the types that all of them share.
//!
//! Owns every write to a page. Under a page lock it must never allocate, wait, read a file, or panic: what runs there is
//! `HeapTupleSatisfiesUpdate`, the caller's arithmetic on five integers, and the construction of the WAL record.

mod add;
mod change;
mod copies;
mod page;
mod row;
mod wal;

pub use add::{make_durable, try_add};
pub use change::{Outcome, Target, change_one, change_two, settled};
pub use copies::{note_delete, note_import, read_deleted, take_for_copy};
pub use page::may_be_going;
pub use row::{InPlace, RowAddress, Words};
pub use wal::Lsn;
