//! Differences between the major versions of PostgreSQL. No other module has a condition on the version.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::FormData_pg_attribute;

/// Returns when the configuration was last read again in this backend.
pub fn reloaded_at() -> pg_sys::TimestampTz {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::PgReloadTime }
}

/// Makes the commit of this transaction wait for its flush, whatever `synchronous_commit` says.
pub fn force_sync_commit() {
    // SAFETY: sets a flag of the backend.
    unsafe { pg_sys::ForceSyncCommit() }
}

/// Returns the name of the session user, or its OID if the role is gone.
pub fn session_user() -> String {
    // SAFETY: look-ups of backend state and of the catalog; the name is copied.
    unsafe {
        let role = pg_sys::GetSessionUserId();
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() { role.to_u32().to_string() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}

/// Returns all settings of the server and of its extensions.
///
/// # Safety
/// The slice is valid until a setting is defined.
pub unsafe fn all_settings<'a>() -> &'a [*mut pg_sys::config_generic] {
    // SAFETY: PostgreSQL's array and its length.
    unsafe {
        #[cfg(feature = "pg15")]
        let (array, count) = (pg_sys::get_guc_variables(), pg_sys::GetNumConfigOptions());
        #[cfg(not(feature = "pg15"))]
        let (array, count) = {
            let mut count = 0;
            (pg_sys::get_guc_variables(&mut count), count)
        };
        std::slice::from_raw_parts(array, usize::try_from(count).unwrap_or(0))
    }
}

/// Returns the index of the table's primary key, or 0.
///
/// # Safety
/// `relation` is open.
pub unsafe fn primary_key(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: promised by the caller.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return pg_sys::RelationGetPrimaryKeyIndex(relation);
        // A deferrable key may temporarily have two rows.
        #[cfg(feature = "pg18")]
        return pg_sys::RelationGetPrimaryKeyIndex(relation, false);
    }
}

/// Returns the subtransaction in which this transaction first gave the table another file, or 0.
///
/// # Safety
/// `relation` is open.
pub unsafe fn new_file_in(relation: pg_sys::Relation) -> pg_sys::SubTransactionId {
    // SAFETY: promised by the caller.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*relation).rd_firstRelfilenodeSubid;
        #[cfg(not(feature = "pg15"))]
        return (*relation).rd_firstRelfilelocatorSubid;
    }
}

/// Adds bytes to a page of the WAL record under construction.
///
/// # Safety
/// The page was registered; the bytes stay until the record is inserted.
pub unsafe fn register_buffer_data(block: u8, bytes: &[u8]) {
    // SAFETY: promised by the caller. PostgreSQL only reads them, whatever the type says.
    unsafe { pg_sys::XLogRegisterBufData(block, bytes.as_ptr().cast_mut().cast(), bytes.len() as _) }
}

/// Returns whether the column has that name, without a copy.
pub fn is_named(column: &FormData_pg_attribute, name: &str) -> bool {
    // SAFETY: PostgreSQL ends a name with a NUL.
    unsafe { CStr::from_ptr(column.attname.data.as_ptr()) }.to_bytes() == name.as_bytes()
}
