//! The names and types of the columns of each table in schema `totp`, for all readers.
//!
//! A value is read by its expected type. A value of another type could be taken for an address. So each table is checked
//! before anything is read from it, and again after PostgreSQL reports a change.
//!
//! Owns the columns of each table, and the one check of them. Must never let a row be read from a table that does not fit.

use std::ffi::CStr;
use std::thread::LocalKey;

use pgrx::pg_sys::{
    self, BOOLOID, BYTEAOID, INETOID, INT2OID, INT4OID, INT8MULTIRANGEOID, INT8OID, JSONBOID, NAMEOID, TEXTOID,
    TIMESTAMPTZOID,
};

use super::relcache::Kept;
use super::{citus, parts, table_oid};
use crate::backend::{self, is_named};
use crate::error::Error;

/// A table of schema `totp`.
pub struct Table {
    pub name: &'static CStr,
    /// Names and types of its first columns. More may follow.
    columns: &'static [(&'static str, pg_sys::Oid)],
    /// Rows are found by `user_id`, which must be compared byte by byte.
    by_user: bool,
    checked: &'static LocalKey<Kept<Checked>>,
}

/// Declares a [`Table`], or a table `by user_id`.
macro_rules! table {
    ($table:ident, $name:literal by user_id, $columns:tt) => { table!(@ $table, $name, true, $columns); };
    ($table:ident, $name:literal, $columns:tt) => { table!(@ $table, $name, false, $columns); };
    (@ $table:ident, $name:literal, $by_user:literal, [$(($column:literal, $type:ident)),* $(,)?]) => {
        pub static $table: Table = {
            thread_local! {
                static CHECKED: Kept<Checked> = const { Kept::nothing() };
            }
            Table { name: $name, columns: &[$(($column, $type)),*], by_user: $by_user, checked: &CHECKED }
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
    c"secrets" by user_id,
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
    c"used_codes" by user_id,
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
    c"attempts" by user_id,
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
    c"recovery_codes" by user_id,
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
    COUNTERS,
    c"counters",
    [
        ("accepted", INT8OID),
        ("wrong", INT8OID),
        ("replayed", INT8OID),
        ("locked", INT8OID),
        ("recovery_codes_used", INT8OID),
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

table!(
    AUDIT_SEALS,
    c"audit_seals",
    [
        ("seal_id", INT8OID),
        ("first_id", INT8OID),
        ("last_id", INT8OID),
        ("row_count", INT8OID),
        ("newest_at", TIMESTAMPTZOID),
        ("rows_mac", BYTEAOID),
        ("holes", INT8MULTIRANGEOID),
        ("late", INT8MULTIRANGEOID),
        ("closed_seal", INT8OID),
        ("pruned_seal", INT8OID),
        ("next_xid", INT8OID),
        ("system_identifier", INT8OID),
        ("database", INT8OID),
        ("timeline", INT8OID),
        ("key_id", INT4OID),
        ("sealed_at", TIMESTAMPTZOID),
        ("previous_mac", BYTEAOID),
        ("mac", BYTEAOID),
    ]
);
table!(
    AUDIT_KEYS,
    c"audit_keys",
    [("key_id", INT4OID), ("master_key", TEXTOID), ("wrapped", BYTEAOID), ("created_at", TIMESTAMPTZOID)]
);

static ALL: [&Table; 10] = [
    &DATA_KEYS,
    &SECRETS,
    &USED_CODES,
    &ATTEMPTS,
    &RECOVERY_CODES,
    &FLOOR,
    &COUNTERS,
    &AUDIT_LOG,
    &AUDIT_SEALS,
    &AUDIT_KEYS,
];

/// Returns the tables that cannot be used, and why. Judgments do without the counters, which the SQL of 0.1.0 does not have:
/// they are among them only if they are elsewhere.
pub fn unusable() -> Vec<(&'static str, Error)> {
    // Before ALTER EXTENSION UPDATE, these do not exist.
    let is_old = [&AUDIT_SEALS, &AUDIT_KEYS].iter().all(|table| table_oid(table.name) == pg_sys::InvalidOid);
    let is_there = |table: &&&Table| !is_old || (table.name != AUDIT_SEALS.name && table.name != AUDIT_KEYS.name);
    let matters =
        |table: &Table, error: &Error| table.name != COUNTERS.name || matches!(error, Error::TableDistributed(_));
    ALL.iter()
        .filter(is_there)
        .filter_map(|table| {
            table.check().err().filter(|error| matters(table, error)).map(|error| (table.name(), error))
        })
        .collect()
}

/// Returns the names of all tables.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|table| table.name())
}

/// What was found out about a table.
#[derive(Clone, Copy)]
struct Checked {
    table: pg_sys::Oid,
    user_id: Option<UserIdColumn>,
    is_plain: bool,
}

/// How the rows of a user are found.
#[derive(Clone, Copy)]
pub struct UserIdColumn {
    /// The number of column `user_id`, which is compared byte by byte.
    pub column: pg_sys::AttrNumber,
    /// The primary key of a plain table, if it includes that column.
    pub key: Option<pg_sys::Oid>,
}

/// An open table, as expected. Its lock stays until the end of the transaction.
pub struct Open {
    relation: pg_sys::Relation,
    user_id: Option<UserIdColumn>,
    is_plain: bool,
}

impl Open {
    /// Returns the table, which stays open while this value lives.
    pub fn relation(&self) -> pg_sys::Relation {
        self.relation
    }

    /// Returns its OID.
    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_id }
    }

    /// Locks its indexes, and its partitions and children with theirs.
    pub fn lock_parts(&self, lock: u32) {
        // SAFETY: the relation is open, and locked since it was opened.
        unsafe { parts::lock(self.relation, lock) }
    }

    /// Returns how the rows of a user are found, in a table by user id.
    pub fn user_id(&self) -> Option<UserIdColumn> {
        self.user_id
    }

    /// Returns whether it has the expected columns and no more, and all its rows are in itself, where an INSERT only checks
    /// constraints, and adds the row to the table and its indexes.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // While an error unwinds, the abort of the transaction closes it.
        if !std::thread::panicking() {
            // SAFETY: opened in `Table::open`, closed once.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) }
        }
    }
}

/// Why a table cannot be used.
enum Unfit {
    /// It had the name before, and another table has it now.
    NotTheName,
    Altered,
    /// Citus has taken it.
    Distributed,
}

impl Table {
    /// Checks the table, unless nothing has changed since the last check.
    ///
    /// Errors: XX001 if it is missing, or its columns have changed; 55000 if Citus has taken it.
    pub fn check(&'static self) -> Result<(), Error> {
        match self.checked.with(Kept::get) {
            Some(_) => Ok(()),
            None => self.open(pg_sys::AccessShareLock).map(drop),
        }
    }

    /// Opens and locks the table, and checks it unless nothing has changed since the last check.
    ///
    /// Errors: XX001 if it is missing, or its columns have changed; 55000 if Citus has taken it.
    pub fn open(&'static self, lock: u32) -> Result<Open, Error> {
        self.checked.with(|checked| {
            loop {
                let table = checked.get().map_or_else(|| table_oid(self.name), |checked| checked.table);
                // SAFETY: returns NULL if the table does not exist. Taking the lock reads the messages about changes, so
                // a value that is kept afterward is true of the current table.
                let relation = unsafe { pg_sys::try_table_open(table, lock as i32) };
                if !relation.is_null() {
                    // SAFETY: just opened.
                    match checked.get_or(|| unsafe { self.look(relation) }) {
                        Ok(Checked { user_id, is_plain, .. }) => return Ok(Open { relation, user_id, is_plain }),
                        Err(unfit) => {
                            // SAFETY: opened above. An unused table is not kept locked.
                            unsafe { pg_sys::table_close(relation, lock as i32) };
                            match unfit {
                                Unfit::NotTheName => {}
                                Unfit::Altered => return Err(self.altered()),
                                Unfit::Distributed => return Err(Error::TableDistributed(self.name())),
                            }
                        }
                    }
                } else if table_oid(self.name) == pg_sys::InvalidOid {
                    return Err(self.altered());
                }
                pgrx::check_for_interrupts!();
            }
        })
    }

    /// Does the same without a wait, for a caller who releases the lock. `None` if the lock is not to be had now, or the table
    /// is not as expected.
    pub fn try_open(&'static self, lock: u32) -> Option<Open> {
        self.checked.with(|checked| {
            let table = checked.get().map_or_else(|| table_oid(self.name), |checked| checked.table);
            if table == pg_sys::InvalidOid || !backend::try_lock_table(table, lock) {
                return None;
            }
            // The check opens this one too. An update of Citus holds it.
            let citus = citus::catalog();
            if citus != pg_sys::InvalidOid && !backend::try_lock_table(citus, pg_sys::AccessShareLock) {
                return None;
            }
            // SAFETY: returns NULL if the table does not exist.
            let relation = unsafe { pg_sys::try_table_open(table, pg_sys::NoLock as i32) };
            if relation.is_null() {
                return None;
            }
            // SAFETY: just opened, and locked above.
            match checked.get_or(|| unsafe { self.look(relation) }) {
                Ok(Checked { user_id, is_plain, .. }) => Some(Open { relation, user_id, is_plain }),
                Err(_) => {
                    // SAFETY: opened above.
                    unsafe { pg_sys::table_close(relation, pg_sys::NoLock as i32) };
                    None
                }
            }
        })
    }

    /// Compares a table with the expected one.
    ///
    /// # Safety
    /// `relation` is open and locked.
    unsafe fn look(&self, relation: pg_sys::Relation) -> Result<Checked, Unfit> {
        // SAFETY: an open relation has its OID, its pg_class row, and its columns, which stay while it is locked.
        let table = unsafe { (*relation).rd_id };
        if table != table_oid(self.name) {
            return Err(Unfit::NotTheName);
        }
        // Before its columns are looked at: to open another table may read them again.
        if citus::has_taken(table) {
            return Err(Unfit::Distributed);
        }
        // SAFETY: as above.
        let (class, columns) =
            unsafe { (&*(*relation).rd_rel, pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att)) };
        // Only rows of a table or a partitioned table have a ctid.
        let kind = class.relkind as u8;
        if !matches!(kind, pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE) || !self.fits(&columns) {
            return Err(Unfit::Altered);
        }
        let is_table = kind == pg_sys::RELKIND_RELATION;
        let is_plain = is_table && columns.len() == self.width() && !has_more_than_rows(class);
        if !self.by_user {
            return Ok(Checked { table, user_id: None, is_plain });
        }
        let is_user_id = |c: &&pg_sys::FormData_pg_attribute| is_named(c, "user_id");
        let has_all_rows = is_table && !class.relhassubclass;
        match columns.iter().find(is_user_id).map(|c| (c.attnum, c.attcollation)) {
            Some((column, pg_sys::C_COLLATION_OID)) => {
                // SAFETY: promised by the caller.
                let key = if has_all_rows { unsafe { key_with(relation, column) } } else { None };
                Ok(Checked { table, user_id: Some(UserIdColumn { column, key }), is_plain })
            }
            _ => Err(Unfit::Altered),
        }
    }

    fn fits(&self, columns: &pgrx::PgTupleDesc) -> bool {
        self.columns.iter().enumerate().all(|(index, (name, type_oid))| {
            columns.get(index).is_some_and(|c| !c.attisdropped && c.atttypid == *type_oid && is_named(c, name))
        })
    }

    /// Returns its name in schema `totp`.
    pub const fn name(&self) -> &'static str {
        match self.name.to_str() {
            Ok(name) => name,
            Err(_) => "",
        }
    }

    /// Returns the names of the columns that change in place, which are the first ones of such a table.
    pub const fn words(&self) -> [&'static str; 5] {
        let [(a, _), (b, _), (c, _), (d, _), (e, _), ..] = self.columns else { panic!("too few columns") };
        [a, b, c, d, e]
    }

    /// Returns how many columns are expected.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Returns the error for an altered table.
    pub fn altered(&self) -> Error {
        Error::TableAltered(self.name())
    }
}

/// Returns whether rows may be elsewhere, or an INSERT may do more with a row than check it: by a rule, a trigger, or a policy.
fn has_more_than_rows(class: &pg_sys::FormData_pg_class) -> bool {
    class.relhassubclass || class.relispartition || class.relhasrules || class.relhastriggers || class.relrowsecurity
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

/// Returns the tables that a statement names.
pub fn named_in(sql: &CStr) -> Vec<&'static Table> {
    let sql = sql.to_string_lossy();
    let names = |table: &&&Table| {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        sql.split("totp.").skip(1).any(|rest| rest.split(|c| !is_word(c)).next() == Some(table.name()))
    };
    ALL.iter().filter(names).copied().collect()
}
