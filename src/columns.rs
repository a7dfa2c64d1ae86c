//! Columns of an open table.

use std::ffi::CStr;

use pgrx::pg_sys::FormData_pg_attribute;

/// Returns whether the column has that name, without a copy.
pub fn is_named(column: &FormData_pg_attribute, name: &str) -> bool {
    // SAFETY: PostgreSQL ends a name with a NUL.
    unsafe { CStr::from_ptr(column.attname.data.as_ptr()) }.to_bytes() == name.as_bytes()
}
