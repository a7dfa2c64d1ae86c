//! Which tables Citus has taken: those that its catalog `pg_dist_partition` names, on every node that has the catalog.
//!
//! The rows of such a table are in other tables, and what it shows itself is old or nothing. Citus copies these tables to
//! other servers without seeing what changes in place. It adds and removes a row of its catalog together with a message that
//! the table has changed, so an answer can be kept as long as what PostgreSQL says of the table.
//!
//! Owns the look into that catalog. Must never take a catalog that it does not understand for one that does not have the table.

use pgrx::pg_sys;

use crate::backend::{self, is_named};

/// Returns the catalog of Citus, or 0 if the database has no Citus.
pub fn catalog() -> pg_sys::Oid {
    backend::table_oid(c"pg_catalog", c"pg_dist_partition")
}

/// Returns whether Citus has taken the table.
pub fn has_taken(table: pg_sys::Oid) -> bool {
    let catalog = catalog();
    if catalog == pg_sys::InvalidOid {
        return is_installed(); // then its catalog is somewhere else
    }
    // SAFETY: returns NULL if Citus was dropped meanwhile. Closed below; an error closes it too.
    unsafe {
        let relation = pg_sys::try_table_open(catalog, pg_sys::AccessShareLock as i32);
        if relation.is_null() {
            return false;
        }
        let names = match column(relation) {
            Some(column) => names(relation, column, table),
            None => true,
        };
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        names
    }
}

fn is_installed() -> bool {
    // SAFETY: a string of C, in a transaction. Returns 0 if there is no such extension.
    unsafe { pg_sys::get_extension_oid(c"citus".as_ptr(), true) != pg_sys::InvalidOid }
}

/// Returns the column that names a table. `None` if this is not the catalog that Citus has today.
///
/// # Safety
/// `relation` is open and locked.
unsafe fn column(relation: pg_sys::Relation) -> Option<pg_sys::AttrNumber> {
    // SAFETY: promised by the caller.
    let (kind, columns) =
        unsafe { ((*(*relation).rd_rel).relkind as u8, pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att)) };
    let is_wanted =
        |c: &&pg_sys::FormData_pg_attribute| is_named(c, "logicalrelid") && c.atttypid == pg_sys::REGCLASSOID;
    let found = columns.iter().filter(|c| !c.attisdropped).find(is_wanted);
    found.filter(|_| kind == pg_sys::RELKIND_RELATION).map(|c| c.attnum)
}

/// Returns whether a row of the catalog names the table.
///
/// # Safety
/// `relation` is open and locked, and the column is one of type `regclass`.
unsafe fn names(relation: pg_sys::Relation, column: pg_sys::AttrNumber, table: pg_sys::Oid) -> bool {
    let mut key = pg_sys::ScanKeyData::default();
    // Without an index: there may be none that is good, to open one waits for a REINDEX, and the catalog is small.
    // SAFETY: promised by the caller. A scan without a snapshot takes the latest one.
    unsafe {
        let equal = (pg_sys::BTEqualStrategyNumber as u16, pg_sys::F_OIDEQ.into());
        pg_sys::ScanKeyInit(&mut key, column, equal.0, equal.1, table.into());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, std::ptr::null_mut(), 1, &mut key);
        let found = !pg_sys::systable_getnext(scan).is_null();
        pg_sys::systable_endscan(scan);
        found
    }
}
