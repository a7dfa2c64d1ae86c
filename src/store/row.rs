//! A row from PostgreSQL, read column by column.
//!
//! Owns the conversion of values. Must never guess a type: the caller names the type that `shape` has checked.

use pgrx::{FromDatum, pg_sys};
use seal::KeyId;

use crate::error::Error;
use crate::inplace::{RowAddress, Words};
use crate::timestamp::Timestamp;
use crate::user::SecretId;

/// A row of a statement's result or of a table. Columns count from 1.
#[derive(Default)]
pub struct Row {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    /// Splits a tuple into its columns.
    ///
    /// # Safety
    /// `columns` describes the tuple. What the values point at must stay until the last one is read.
    pub unsafe fn load(&mut self, tuple: pg_sys::HeapTuple, columns: pg_sys::TupleDesc) -> &Self {
        // SAFETY: both arrays are as long as the row is wide.
        unsafe {
            let count = (*columns).natts as usize;
            self.values.resize(count, pg_sys::Datum::null());
            self.nulls.resize(count, true);
            pg_sys::heap_deform_tuple(tuple, columns, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
        self
    }

    /// Returns the column's value, or `None` for NULL. `T` must be the column's type: SPI does not check it.
    pub fn get<T: FromDatum>(&self, column: i32) -> Option<T> {
        // SAFETY: a datum of the column's type, copied out of PostgreSQL's memory by `T`, an owned type at every call.
        self.datum(column).and_then(|datum| unsafe { T::from_datum(datum, false) })
    }

    /// Returns the value of a column that is never NULL.
    pub fn must<T: FromDatum>(&self, column: i32) -> Result<T, Error> {
        self.get(column).ok_or(Error::RowsAltered)
    }

    /// Returns a `text` that is never NULL.
    pub fn text(&self, column: i32) -> Result<&str, Error> {
        // SAFETY: a datum of type text, which stays until the last value of the row is read, as `load` asks.
        self.datum(column).and_then(|datum| unsafe { <&str>::from_datum(datum, false) }).ok_or(Error::RowsAltered)
    }

    /// Returns a `text`, or `None` for NULL.
    pub fn text_or_null(&self, column: i32) -> Option<&str> {
        // SAFETY: as in `text`.
        self.datum(column).and_then(|datum| unsafe { <&str>::from_datum(datum, false) })
    }

    /// Returns a `bytea`, or `None` for NULL.
    pub fn bytes_or_null(&self, column: i32) -> Option<&[u8]> {
        // SAFETY: a datum of type bytea, which stays until the last value of the row is read, as `load` asks.
        self.datum(column).and_then(|datum| unsafe { <&[u8]>::from_datum(datum, false) })
    }

    /// Returns the bytes of a `text` that is never NULL and may be in any encoding.
    pub fn text_bytes(&self, column: i32) -> Result<Vec<u8>, Error> {
        self.must(column) // a text is stored as a bytea is
    }

    /// Returns a `bigint` or `timestamptz` that is never NULL, as its 8 bytes.
    pub fn word(&self, column: i32) -> Result<i64, Error> {
        self.datum(column).map(|d| d.value() as i64).ok_or(Error::RowsAltered)
    }

    /// Returns the columns that change in place, of a row that begins with them.
    pub fn words(&self) -> Result<Words, Error> {
        Ok([self.word(1)?, self.word(2)?, self.word(3)?, self.word(4)?, self.word(5)?])
    }

    /// Returns a `timestamptz` that is never NULL.
    pub fn time(&self, column: i32) -> Result<Timestamp, Error> {
        self.word(column).map(Timestamp)
    }

    /// Returns a `timestamptz`, or `None` for NULL.
    pub fn time_or_null(&self, column: i32) -> Option<Timestamp> {
        self.datum(column).map(|d| Timestamp(d.value() as i64))
    }

    /// Returns the number of a secret or a set of recovery codes.
    pub fn secret_id(&self, column: i32) -> Result<SecretId, Error> {
        self.word(column).map(SecretId::new)
    }

    /// Returns the number of a data key.
    pub fn key_id(&self, column: i32) -> Result<KeyId, Error> {
        self.must(column).map(KeyId::new)
    }

    /// Returns the columns `tableoid`, `ctid`, and `xmin`, from `column` on. NULL means that the row is missing.
    pub fn address(&self, column: i32) -> Result<RowAddress, Error> {
        match (self.datum(column), self.datum(column + 1), self.datum(column + 2)) {
            (Some(table), Some(tid), Some(xmin)) => Ok(RowAddress {
                table: pg_sys::Oid::from(table.value() as u32),
                // SAFETY: a datum of type tid points at an ItemPointerData in PostgreSQL's memory.
                tid: unsafe { *tid.cast_mut_ptr::<pg_sys::ItemPointerData>() },
                xmin: pg_sys::TransactionId::from(xmin.value() as u32),
                may_be_going: true, // a statement does not say
            }),
            _ => Err(Error::RowsAltered),
        }
    }

    fn datum(&self, column: i32) -> Option<pg_sys::Datum> {
        let index = usize::try_from(column - 1).ok()?;
        if *self.nulls.get(index)? { None } else { self.values.get(index).copied() }
    }
}
