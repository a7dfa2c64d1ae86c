//! Reads a user's rows of one table by primary key, or all rows of a small table, without SPI: running a plan costs more than the rest of a sign-in.
//! PostgreSQL reads its own catalogs in this way.
//!
//! Owns the scan. Must never read a table that was not checked, nor compare user ids in another way than byte by byte.

use std::thread::LocalKey;

use pgrx::{IntoDatum, pg_sys};

use super::row::Row;
use super::shape::{Open, Table, UserIdColumn};
use super::spi::{self, Snapshot, Statement};
use crate::backend;
use crate::error::Error;
use crate::inplace::{self, RowAddress};
use crate::user::UserId;

/// A table with rows of users.
pub struct UserTable {
    pub table: &'static Table,
    /// Selects its columns of a user, then `tableoid, ctid, xmin`. For a table that is partitioned or has children, or whose
    /// primary key has changed.
    pub select: &'static LocalKey<Statement>,
}

/// Such a table, open. Its lock stays until the end of the transaction.
pub struct OpenTable {
    table: &'static UserTable,
    open: Open,
    user_id: UserIdColumn,
}

impl UserTable {
    /// Opens and locks it, with all that is opened to read it: nobody who reads waits for a lock.
    ///
    /// Errors: XX001 if it is missing, or its columns or the collation of `user_id` have changed.
    pub fn open(&'static self, lock: u32) -> Result<OpenTable, Error> {
        let open = self.table.open(lock)?;
        let user_id = open.user_id().ok_or_else(|| self.table.altered())?;
        match user_id.key {
            Some(key) => backend::lock_table(key, pg_sys::AccessShareLock),
            None => open.lock_parts(lock),
        }
        Ok(OpenTable { table: self, open, user_id })
    }
}

impl OpenTable {
    /// Reads the user's rows that the snapshot sees. Columns that change in place may be newer.
    pub fn rows_of<T>(
        &self,
        user: UserId,
        snapshot: &Snapshot,
        mut read: impl FnMut(RowAddress, &Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let UserIdColumn { column, key } = self.user_id;
        let Some(index) = key else {
            let address = self.table.table.width() as i32 + 1;
            let select = |s: &Statement| s.rows(snapshot, &[spi::user(user)], |row| read(row.address(address)?, row));
            return self.table.select.with(select);
        };
        let mut key = pg_sys::ScanKeyData::default();
        let wanted = user.as_str().into_datum().unwrap_or(pg_sys::Datum::null());
        // SAFETY: the table is open and locked, its key was looked for when it was checked. The key of the scan is filled in.
        unsafe {
            let equal = (pg_sys::BTEqualStrategyNumber as u16, pg_sys::F_TEXTEQ.into());
            pg_sys::ScanKeyInit(&mut key, column, equal.0, equal.1, wanted);
            scan(&self.open, Some((index, &mut key)), snapshot, read)
        }
    }
}

/// A table with few rows, which are not of users.
pub struct SmallTable {
    pub table: &'static Table,
    /// Selects its columns. For a table that is partitioned or has children.
    pub select: &'static LocalKey<Statement>,
}

impl SmallTable {
    /// Reads the rows that the snapshot sees, one after the other.
    ///
    /// Errors: XX001 if the table is missing or altered.
    pub fn rows<T>(
        &'static self,
        snapshot: &Snapshot,
        mut read: impl FnMut(&Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let open = self.table.open(pg_sys::AccessShareLock)?;
        if !open.is_plain() {
            return self.select.with(|s| s.rows(snapshot, &[], read));
        }
        // SAFETY: the table is open and locked.
        unsafe { scan(&open, None, snapshot, |_, row| read(row)) }
    }
}

/// Reads the rows that an index finds for a key, or all rows.
///
/// # Safety
/// The table is open and locked, the index is one of its own, and the key fits it.
unsafe fn scan<T>(
    open: &Open,
    by: Option<(pg_sys::Oid, &mut pg_sys::ScanKeyData)>,
    snapshot: &Snapshot,
    mut read: impl FnMut(RowAddress, &Row) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let (mut rows, mut row) = (Vec::new(), Row::default());
    let (index, keys, key) = match by {
        Some((index, key)) => (index, 1, std::ptr::from_mut(key)),
        None => (pg_sys::InvalidOid, 0, std::ptr::null_mut()),
    };
    // SAFETY: promised by the caller. A tuple stays pinned until the next one is asked for, and `read` copies what it takes.
    // After an error PostgreSQL ends the scan itself.
    unsafe {
        let relation = open.relation();
        let scan = pg_sys::systable_beginscan(relation, index, keys > 0, snapshot.get(), keys, key);
        let result = loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break Ok(rows);
            }
            let address = RowAddress {
                table: (*relation).rd_id,
                tid: (*tuple).t_self,
                xmin: (*(*tuple).t_data).t_choice.t_heap.t_xmin,
                may_be_going: inplace::may_be_going(&*(*tuple).t_data),
            };
            match read(address, row.load(tuple, (*relation).rd_att)) {
                Ok(value) => rows.push(value),
                Err(error) => break Err(error),
            }
        };
        pg_sys::systable_endscan(scan);
        result
    }
}
