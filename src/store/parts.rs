//! The parts of a table: its indexes, its partitions and children, and the indexes of these.
//!
//! Owns their locks. Must never leave a part out that a statement about the table waits for: its snapshot would be older than
//! the wait.

use pgrx::pg_sys;

/// Locks the indexes of a table, and its partitions and children with theirs, until the end of the transaction: everything
/// that a statement about the table may wait for.
///
/// # Safety
/// `relation` is open and locked.
pub unsafe fn lock(relation: pg_sys::Relation, mode: u32) {
    // SAFETY: promised by the caller. A partition or child that is gone meanwhile is not opened.
    unsafe {
        lock_indexes(relation, mode);
        if !(*(*relation).rd_rel).relhassubclass {
            return;
        }
        for table in taken(pg_sys::find_all_inheritors((*relation).rd_id, mode as i32, std::ptr::null_mut())) {
            let part = pg_sys::try_table_open(table, pg_sys::NoLock as i32);
            if !part.is_null() {
                lock_indexes(part, mode);
                pg_sys::table_close(part, pg_sys::NoLock as i32);
            }
        }
    }
}

/// Locks the indexes of a table until the end of the transaction.
///
/// # Safety
/// `relation` is open and locked.
unsafe fn lock_indexes(relation: pg_sys::Relation, mode: u32) {
    // SAFETY: promised by the caller.
    unsafe {
        for index in indexes(relation) {
            pg_sys::LockRelationOid(index, mode as i32);
        }
    }
}

/// Returns the indexes of a table.
///
/// # Safety
/// `relation` is open and locked.
pub unsafe fn indexes(relation: pg_sys::Relation) -> Vec<pg_sys::Oid> {
    // SAFETY: promised by the caller. The list is a copy.
    unsafe { taken(pg_sys::RelationGetIndexList(relation)) }
}

/// Returns the OIDs of a list, and frees it. Not by pgrx's list, which needs its C file in the library.
///
/// # Safety
/// It is a list of OIDs, and nobody else's.
unsafe fn taken(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return vec![]; // an empty list of PostgreSQL
    }
    // SAFETY: promised by the caller. A list has as many cells as it says.
    unsafe {
        let cells = std::slice::from_raw_parts((*list).elements, (*list).length as usize);
        let oids = cells.iter().map(|cell| cell.oid_value).collect();
        pg_sys::list_free(list);
        oids
    }
}
