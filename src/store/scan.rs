//! Reads a user's rows of one table by primary key, without SPI: running a plan costs more than the rest of a sign-in.
//! PostgreSQL reads its own catalogs in this way.

use std::thread::LocalKey;

use pgrx::{IntoDatum, pg_sys};

use super::relcache::Kept;
use super::row::Row;
use super::shape::Table;
use super::spi::{self, Snapshot, Statement};
use super::table_oid;
use crate::backend;
use crate::backend::is_named;
use crate::error::Error;
use crate::inplace::{self, RowAddress};
use crate::user::UserId;

/// A table whose primary key holds `user_id`.
pub struct UserTable {
    pub table: &'static Table,
    /// Selects these columns of a user, then `tableoid, ctid, xmin`. For a table that is partitioned or has children.
    pub select: &'static LocalKey<Statement>,
    pub checked: &'static LocalKey<Kept<Checked>>,
}

/// A table with the expected name and columns.
#[derive(Clone, Copy)]
pub struct Checked {
    table: pg_sys::Oid,
    /// The primary key of a plain table, and the number of `user_id` in the table.
    key: Option<(pg_sys::Oid, pg_sys::AttrNumber)>,
}

/// An open table. Its lock stays until the end of the transaction.
pub struct Open {
    table: &'static UserTable,
    relation: pg_sys::Relation,
    key: Option<(pg_sys::Oid, pg_sys::AttrNumber)>,
}

/// Why a table cannot be used.
enum Unfit {
    /// It had the name before, and another table has it now.
    NotTheName,
    Altered,
}

impl UserTable {
    /// Opens and locks it.
    ///
    /// Errors: XX001 if it is missing, or its columns have changed.
    pub fn open(&'static self, lock: u32) -> Result<Open, Error> {
        self.checked.with(|checked| {
            loop {
                let table = checked.get().map_or_else(|| table_oid(self.table.name), |checked| checked.table);
                // SAFETY: returns NULL if the table does not exist. Taking the lock reads the messages about changes, so
                // a value that is kept afterward is true of the current table.
                let relation = unsafe { pg_sys::try_table_open(table, lock as i32) };
                if !relation.is_null() {
                    // SAFETY: just opened.
                    match checked.get_or(|| unsafe { self.check(relation) }) {
                        Ok(Checked { key, .. }) => return Ok(Open { table: self, relation, key }),
                        Err(unfit) => {
                            // SAFETY: opened above. An unused table is not kept locked.
                            unsafe { pg_sys::table_close(relation, lock as i32) };
                            if matches!(unfit, Unfit::Altered) {
                                return Err(self.table.altered());
                            }
                        }
                    }
                } else if table_oid(self.table.name) == pg_sys::InvalidOid {
                    return Err(self.table.altered());
                }
                pgrx::check_for_interrupts!();
            }
        })
    }

    /// # Safety
    /// `relation` is open and locked.
    unsafe fn check(&self, relation: pg_sys::Relation) -> Result<Checked, Unfit> {
        // SAFETY: an open relation has its pg_class row and tuple descriptor.
        unsafe {
            if (*relation).rd_id != table_oid(self.table.name) {
                return Err(Unfit::NotTheName);
            }
            let class = &*(*relation).rd_rel;
            let user_id = self.user_id_column((*relation).rd_att).ok_or(Unfit::Altered)?;
            let key = match class.relkind as u8 {
                pg_sys::RELKIND_RELATION if !class.relhassubclass => {
                    key_with(relation, user_id).map(|key| (key, user_id))
                }
                pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE => None,
                _ => return Err(Unfit::Altered),
            };
            Ok(Checked { table: (*relation).rd_id, key })
        }
    }

    /// Returns the number of column `user_id`, if all columns are as expected and it is compared byte by byte.
    ///
    /// # Safety
    /// `columns` belongs to an open relation.
    unsafe fn user_id_column(&self, columns: pg_sys::TupleDesc) -> Option<pg_sys::AttrNumber> {
        // SAFETY: promised by the caller.
        let (fits, columns) = unsafe { (self.table.fits(columns), pgrx::PgTupleDesc::from_pg_unchecked(columns)) };
        let is_user_id =
            |c: &&pg_sys::FormData_pg_attribute| is_named(c, "user_id") && c.attcollation == pg_sys::C_COLLATION_OID;
        columns.iter().find(is_user_id).filter(|_| fits).map(|c| c.attnum)
    }
}

/// Returns the primary key, if it includes the column.
///
/// # Safety
/// `relation` is open.
unsafe fn key_with(relation: pg_sys::Relation, column: pg_sys::AttrNumber) -> Option<pg_sys::Oid> {
    // SAFETY: promised by the caller. Both answers come from the relation's cache entry.
    unsafe {
        let index = backend::primary_key(relation);
        let columns =
            pg_sys::RelationGetIndexAttrBitmap(relation, pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_PRIMARY_KEY);
        let member = i32::from(column) - pg_sys::FirstLowInvalidHeapAttributeNumber;
        (index != pg_sys::InvalidOid && pg_sys::bms_is_member(member, columns)).then_some(index)
    }
}

impl Open {
    /// Reads the user's rows that the snapshot sees. Columns that change in place may be newer.
    pub fn rows_of<T>(
        &self,
        user: UserId,
        snapshot: &Snapshot,
        mut read: impl FnMut(RowAddress, &Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let Some((index, column)) = self.key else {
            let address = self.table.table.width() as i32 + 1;
            let select = |s: &Statement| s.rows(snapshot, &[spi::user(user)], |row| read(row.address(address)?, row));
            return self.table.select.with(select);
        };
        let (mut rows, mut row) = (Vec::new(), Row::default());
        // SAFETY: the table is open and locked, its key was looked for in `open`. A tuple stays pinned until the next
        // one is asked for, and `read` copies what it takes. After an error PostgreSQL ends the scan itself.
        unsafe {
            let mut key = pg_sys::ScanKeyData::default();
            let wanted = user.as_str().into_datum().unwrap_or(pg_sys::Datum::null());
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
                    may_be_going: inplace::may_be_going(&*(*tuple).t_data),
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
