//! Columns of an open table.

use pgrx::pg_sys::FormData_pg_attribute;

/// Whether the column has that name. Compared as it is stored: up to the NUL, without a copy.
pub fn is_named(column: &FormData_pg_attribute, name: &str) -> bool {
    let stored = column.attname.data.iter().map(|c| *c as u8);
    stored.take_while(|byte| *byte != 0).eq(name.bytes())
}
