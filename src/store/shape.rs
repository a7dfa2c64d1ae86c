//! The names and types of the columns of each table in schema `totp`, for all readers.
//!
//! A value is read by its expected type. A value of another type could be taken for an address. So each table is checked
//! before anything is read from it, and again after PostgreSQL reports a change.

use std::ffi::CStr;
use std::thread::LocalKey;

use pgrx::pg_sys::{
    self, BOOLOID, BYTEAOID, INETOID, INT2OID, INT4OID, INT8OID, JSONBOID, NAMEOID, TEXTOID, TIMESTAMPTZOID,
};

use super::relcache::Kept;
use super::table_oid;
use crate::backend::is_named;
use crate::error::Error;

/// A table of schema `totp`.
pub struct Table {
    pub name: &'static CStr,
    /// Names and types of its first columns. More may follow.
    columns: &'static [(&'static str, pg_sys::Oid)],
    checked: &'static LocalKey<Kept<()>>,
}

/// Declares a [`Table`].
macro_rules! table {
    ($table:ident, $name:literal, [$(($column:literal, $type:ident)),* $(,)?]) => {
        pub static $table: Table = {
            thread_local! {
                static CHECKED: Kept<()> = const { Kept::nothing() };
            }
            Table { name: $name, columns: &[$(($column, $type)),*], checked: &CHECKED }
        };
    };
}

table!(
    DATA_KEYS,
    c"data_keys",
    [
        ("key_id", INT4OID),
        ("state", TEXTOID),
        ("master_key", TEXTOID),
        ("wrapped", BYTEAOID),
        ("created_at", TIMESTAMPTZOID),
    ]
);
table!(
    SECRETS,
    c"secrets",
    [
        ("user_id", TEXTOID),
        ("device", TEXTOID),
        ("slot", TEXTOID),
        ("secret_id", INT8OID),
        ("version", INT4OID),
        ("key_id", INT4OID),
        ("sealed", BYTEAOID),
        ("algorithm", TEXTOID),
        ("digits", INT2OID),
        ("period", INT2OID),
        ("issuer", TEXTOID),
        ("account_name", TEXTOID),
        ("created_at", TIMESTAMPTZOID),
        ("confirmed_at", TIMESTAMPTZOID),
        ("enforced_since", TIMESTAMPTZOID),
        ("expires_at", TIMESTAMPTZOID),
        ("disabled_at", TIMESTAMPTZOID),
    ]
);
table!(
    USED_CODES,
    c"used_codes",
    [
        ("time_step", INT8OID),
        ("used_at", TIMESTAMPTZOID),
        ("uses", INT8OID),
        ("recovery_mask", INT8OID),
        ("secret_id", INT8OID),
        ("user_id", TEXTOID),
    ]
);
table!(
    ATTEMPTS,
    c"attempts",
    [
        ("locked_until", TIMESTAMPTZOID),
        ("recovery_locked_until", TIMESTAMPTZOID),
        ("last_failed_at", TIMESTAMPTZOID),
        ("failures", INT8OID),
        ("recovery_failures", INT8OID),
        ("user_id", TEXTOID),
    ]
);
table!(
    RECOVERY_CODES,
    c"recovery_codes",
    [
        ("user_id", TEXTOID),
        ("set_id", INT8OID),
        ("count", INT2OID),
        ("key_id", INT4OID),
        ("sealed", BYTEAOID),
        ("created_at", TIMESTAMPTZOID),
    ]
);
table!(
    FLOOR,
    c"floor",
    [
        ("floor_at", TIMESTAMPTZOID),
        ("system_identifier", INT8OID),
        ("control_inode", INT8OID),
        ("database", INT8OID),
        ("timeline", INT8OID),
        ("one", BOOLOID),
    ]
);
table!(
    AUDIT_LOG,
    c"audit_log",
    [
        ("id", INT8OID),
        ("at", TIMESTAMPTZOID),
        ("event", TEXTOID),
        ("user_id", TEXTOID),
        ("device", TEXTOID),
        ("actor", TEXTOID),
        ("db_user", NAMEOID),
        ("client_addr", INETOID),
        ("application_name", TEXTOID),
        ("detail", JSONBOID),
    ]
);

static ALL: [&Table; 7] = [&DATA_KEYS, &SECRETS, &USED_CODES, &ATTEMPTS, &RECOVERY_CODES, &FLOOR, &AUDIT_LOG];

/// Returns the tables that are missing or altered.
pub fn altered() -> Vec<&'static str> {
    ALL.iter().filter(|table| table.check().is_err()).map(|table| table.name.to_str().unwrap_or_default()).collect()
}

impl Table {
    /// Checks the table, unless nothing has changed since the last check.
    ///
    /// Errors: XX001 if it is missing, or its columns have changed.
    pub fn check(&'static self) -> Result<(), Error> {
        self.checked.with(|checked| checked.get_or(|| self.look()))
    }

    /// Compares the table with the expected columns. The lock stays until the end of the transaction, so the result stays true.
    fn look(&self) -> Result<(), Error> {
        // SAFETY: returns NULL for what does not exist; an open relation has its columns, and is closed once.
        unsafe {
            let relation = pg_sys::try_table_open(table_oid(self.name), pg_sys::AccessShareLock as i32);
            if relation.is_null() {
                return Err(self.altered());
            }
            let fits = is_table(relation) && self.fits((*relation).rd_att);
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
            if fits { Ok(()) } else { Err(self.altered()) }
        }
    }

    /// Returns whether the columns are the expected ones.
    ///
    /// # Safety
    /// `columns` belongs to an open relation.
    pub unsafe fn fits(&self, columns: pg_sys::TupleDesc) -> bool {
        // SAFETY: promised by the caller.
        let columns = unsafe { pgrx::PgTupleDesc::from_pg_unchecked(columns) };
        self.columns.iter().enumerate().all(|(index, (name, type_oid))| {
            columns.get(index).is_some_and(|c| !c.attisdropped && c.atttypid == *type_oid && is_named(c, name))
        })
    }

    /// Returns how many columns are expected.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Returns the error for an altered table.
    pub fn altered(&self) -> Error {
        Error::TableAltered(self.name.to_str().unwrap_or_default())
    }
}

/// Returns whether it is a table or a partitioned table. Only their rows have a `ctid`.
///
/// # Safety
/// `relation` is open.
unsafe fn is_table(relation: pg_sys::Relation) -> bool {
    // SAFETY: promised by the caller. An open relation has its pg_class row.
    let kind = unsafe { (*(*relation).rd_rel).relkind } as u8;
    matches!(kind, pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE)
}

/// Returns the tables that a statement names.
pub fn named_in(sql: &CStr) -> Vec<&'static Table> {
    let sql = sql.to_string_lossy();
    let names = |table: &&&Table| {
        let name = table.name.to_str().unwrap_or_default();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        sql.split("totp.").skip(1).any(|rest| rest.split(|c| !is_word(c)).next() == Some(name))
    };
    ALL.iter().filter(names).copied().collect()
}
