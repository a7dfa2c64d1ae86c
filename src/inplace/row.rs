//! A row that changes in place: its columns, and where it was found.
//!
//! Owns the types that the other files share. Must never touch a page.

use pgrx::pg_sys;

use crate::backend;

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
        backend::is_own_transaction(self.xmin)
    }
}
