//! A user's rows of one table, by primary key, without SPI: running a plan costs more than all the rest of a sign-in.
//! PostgreSQL reads its own catalogues so.

use std::ffi::CStr;
use std::thread::LocalKey;

use pgrx::{IntoDatum, pg_sys};

use super::row::Row;
use super::spi::{Snapshot, Statement, text};
use super::table_oid;
use crate::error::Error;
use crate::inplace::RowAddress;
use crate::versions;

/// A table of schema `totp` whose primary key holds `user_id`.
pub struct UserTable {
    pub name: &'static CStr,
    /// Names and types of its columns, from the first on.
    pub columns: &'static [(&'static CStr, pg_sys::Oid)],
    /// Selects these columns, then `tableoid, ctid, xmin`, of a user: for a table that is partitioned.
    pub select: &'static LocalKey<Statement>,
}

/// Such a table, open. Its lock stays until the end of the transaction.
pub struct Open {
    table: &'static UserTable,
    relation: pg_sys::Relation,
    /// The primary key of a plain table, and the number of `user_id` in the table.
    key: Option<(pg_sys::Oid, pg_sys::AttrNumber)>,
}

impl UserTable {
    /// Opens and locks it.
    ///
    /// Errors: 55000 where its columns are not the expected ones.
    pub fn open(&'static self, lock: u32) -> Result<Open, Error> {
        // SAFETY: an open relation has its pg_class row and tuple descriptor. `Open` closes it.
        unsafe {
            let relation = pg_sys::try_table_open(table_oid(self.name), lock as i32);
            if relation.is_null() {
                return Err(self.altered());
            }
            let mut open = Open { table: self, relation, key: None };
            let user_id = self.user_id_column((*relation).rd_att).ok_or(self.altered())?;
            let primary_key = versions::primary_key(relation);
            if (*(*relation).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION && primary_key != pg_sys::InvalidOid {
                open.key = Some((primary_key, user_id));
            }
            Ok(open)
        }
    }

    /// The number of `user_id`, compared byte by byte, where all columns are as expected.
    ///
    /// # Safety
    /// `columns` belongs to an open relation.
    unsafe fn user_id_column(&self, columns: pg_sys::TupleDesc) -> Option<pg_sys::AttrNumber> {
        // SAFETY: promised by the caller.
        let columns = unsafe { pgrx::PgTupleDesc::from_pg_unchecked(columns) };
        let mut user_id = None;
        for (index, (name, type_oid)) in self.columns.iter().enumerate() {
            let column = columns.get(index)?;
            if column.attisdropped || column.atttypid != *type_oid || column.name().as_bytes() != name.to_bytes() {
                return None;
            }
            if *name == c"user_id" && column.attcollation == pg_sys::C_COLLATION_OID {
                user_id = Some(column.attnum);
            }
        }
        user_id
    }

    fn altered(&self) -> Error {
        Error::TableAltered(self.name.to_str().unwrap_or_default())
    }
}

impl Open {
    /// Reads the user's rows that the snapshot sees. What is read of columns that change in place may be newer.
    pub fn rows_of<T>(
        &self,
        user_id: &str,
        snapshot: &Snapshot,
        mut read: impl FnMut(RowAddress, &Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let Some((index, column)) = self.key else {
            let address = self.table.columns.len() as i32 + 1;
            let select = |s: &Statement| s.rows(snapshot, &[text(user_id)], |row| read(row.address(address)?, row));
            return self.table.select.with(select);
        };
        let (mut rows, mut row) = (Vec::new(), Row::default());
        // SAFETY: the table is open and locked, its key was looked for in `open`. A tuple stays pinned until the next
        // one is asked for, and `read` copies what it takes. After an error PostgreSQL ends the scan itself.
        unsafe {
            let mut key = pg_sys::ScanKeyData::default();
            let wanted = user_id.into_datum().unwrap_or(pg_sys::Datum::null());
            let equal = (pg_sys::BTEqualStrategyNumber as u16, pg_sys::F_TEXTEQ.into());
            pg_sys::ScanKeyInit(&mut key, column, equal.0, equal.1, wanted);
            let scan = pg_sys::systable_beginscan(self.relation, index, true, snapshot.0, 1, &mut key);
            let result = loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break Ok(rows);
                }
                let address = RowAddress {
                    table: (*self.relation).rd_id,
                    tid: (*tuple).t_self,
                    xmin: (*(*tuple).t_data).t_choice.t_heap.t_xmin,
                };
                match read(address, row.load(tuple, (*self.relation).rd_att)) {
                    Ok(value) => rows.push(value),
                    Err(error) => break Err(error),
                }
            };
            pg_sys::systable_endscan(scan);
            result
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // While an error unwinds, the abort of the transaction closes it.
        if !std::thread::panicking() {
            // SAFETY: opened in `UserTable::open`, closed once.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) }
        }
    }
}
