//! The only way to SQL: kept plans, run under a snapshot that the caller gives.
//!
//! Plain SPI reads and writes under the snapshot of the transaction, which is old at REPEATABLE
//! READ: an UPDATE of a row that was committed later silently changes nothing. So every statement here runs under
//! [`Snapshot::latest`], as PostgreSQL's own foreign-key triggers do.
//!
//! Owns every use of SPI. Must never change a row under the snapshot of the transaction.

use std::cell::{Cell, OnceCell};
use std::ffi::CStr;

use pgrx::IntoDatum;
use pgrx::pg_sys;
use seal::KeyId;

pub use super::row::Row;
use super::shape::{self, Open, Table};
use crate::backend;
use crate::error::Error;
use crate::timestamp::Timestamp;
use crate::user::{SecretId, UserId};

/// A registered snapshot. Rows it can see are not vacuumed away while it lives.
pub struct Snapshot {
    /// NULL until it is first used.
    snapshot: Cell<pg_sys::Snapshot>,
    owner: pg_sys::ResourceOwner,
}

impl Snapshot {
    /// Sees everything that is committed at its first use, and what this transaction did.
    ///
    /// Its first use comes after the locks on the table that it reads, on its partitions, and on its indexes: a snapshot that is
    /// older than a wait for a lock sees an empty table, if what held the lock has rewritten it, such as ALTER TABLE, or
    /// REPACK (CONCURRENTLY) of PostgreSQL 19; and it does not see what was disabled meanwhile.
    pub fn latest() -> Self {
        // SAFETY: a transaction is open in every function call.
        Self { snapshot: Cell::new(std::ptr::null_mut()), owner: unsafe { pg_sys::CurrentResourceOwner } }
    }

    /// Sees the same, or in parallel mode, where there is no newer snapshot, what the running statement sees.
    pub fn to_read() -> Self {
        if backend::is_parallel() { Self::of_statement() } else { Self::latest() }
    }

    /// Sees what the running statement of the caller sees, so that all calls of a function that returns rows one by one see the
    /// same. For reading alone.
    pub fn of_statement() -> Self {
        let it = Self::latest();
        // SAFETY: a statement that calls a function has an active snapshot.
        it.snapshot.set(unsafe { pg_sys::RegisterSnapshotOnOwner(pg_sys::GetActiveSnapshot(), it.owner) });
        it
    }

    /// Returns it for a read. The tables are locked.
    pub(super) fn get(&self) -> pg_sys::Snapshot {
        if self.snapshot.get().is_null() {
            // SAFETY: RegisterSnapshotOnOwner copies the static snapshot; the owner lives as long as the call that made this
            // value. Parallel mode, where GetLatestSnapshot raises, was refused by `guard`.
            self.snapshot.set(unsafe { pg_sys::RegisterSnapshotOnOwner(pg_sys::GetLatestSnapshot(), self.owner) });
        }
        self.snapshot.get()
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // While an error unwinds, the abort of the transaction releases it.
        if !self.snapshot.get().is_null() && !std::thread::panicking() {
            // SAFETY: registered under this owner, released once.
            unsafe { pg_sys::UnregisterSnapshotFromOwner(self.snapshot.get(), self.owner) }
        }
    }
}

/// A statement with a plan that each backend keeps. The plan is never freed: it lives as long as the backend.
pub struct Statement {
    sql: &'static CStr,
    types: &'static [pg_sys::Oid],
    read_only: bool,
    /// The tables that it reads or writes.
    tables: OnceCell<Vec<&'static Table>>,
    plan: Cell<pg_sys::SPIPlanPtr>,
    is_planned: Cell<bool>,
    finds: Finds,
    /// Whether one plan is good for all arguments: that of a statement that finds rows by index, and that of one that reads
    /// PostgreSQL's catalogs alone. For the arrays of the latter PostgreSQL would plan at each call, which takes longer than to
    /// run it.
    is_generic: bool,
}

/// How a statement finds its rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finds {
    /// As PostgreSQL chooses.
    Anyhow,
    /// Those of a user, or the next ones by id: by index, however few rows a table has when it is planned.
    ByIndex,
    /// By index, and never more of them than it returns. It is not of the hot path, so this is asked for at each call: some
    /// settings make PostgreSQL plan each time.
    OneByOne,
}

/// A session may have turned scans of TIDs off. To compile a statement takes longer than to read the few rows.
const ONE_BY_ONE: [(&CStr, &CStr); 4] =
    [(c"enable_seqscan", c"off"), (c"enable_bitmapscan", c"off"), (c"enable_tidscan", c"on"), (c"jit", c"off")];

/// While this value lives, PostgreSQL plans as these settings say: other scans than those by index only if there is no index.
struct IndexScans(i32);

impl IndexScans {
    fn with(settings: &[(&CStr, &CStr)]) -> Self {
        // SAFETY: what a function with a SET clause does; the abort of a transaction undoes it.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            for (setting, value) in settings {
                pg_sys::set_config_option(
                    setting.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            Self(level)
        }
    }
}

impl Drop for IndexScans {
    fn drop(&mut self) {
        // While an error unwinds, the abort of the transaction does it.
        if !std::thread::panicking() {
            // SAFETY: ends the level that `with` began, inside of the same function call.
            unsafe { pg_sys::AtEOXact_GUC(true, self.0) }
        }
    }
}

/// Declares a [`Statement`]: `statement!(reads FIND(TEXTOID), c"SELECT …")`, or `writes`. One of a user, with
/// `user_id = $1`, finds them by index. One that `probes` reads by index, and no more rows than it returns.
macro_rules! statement {
    (reads $name:ident($($type:ident),*), $sql:expr) => { statement!(@ $name, new, true, $sql, $($type),*); };
    (writes $name:ident($($type:ident),*), $sql:expr) => { statement!(@ $name, new, false, $sql, $($type),*); };
    (probes $name:ident($($type:ident),*), $sql:expr) => { statement!(@ $name, probing, true, $sql, $($type),*); };
    (@ $name:ident, $new:ident, $read_only:literal, $sql:expr, $($type:ident),*) => {
        thread_local! {
            static $name: $crate::store::spi::Statement = const {
                $crate::store::spi::Statement::$new($sql, &[$(pgrx::pg_sys::$type),*], $read_only)
            };
        }
    };
}
pub(crate) use statement;

/// An argument of a statement. `None` is NULL.
pub type Arg = Option<pg_sys::Datum>;

/// Makes a `text` argument.
pub fn text(value: &str) -> Arg {
    value.into_datum()
}

/// Makes a `name` argument.
pub fn name(value: &str) -> Arg {
    let value = std::ffi::CString::new(value).ok()?;
    // SAFETY: namein takes a C string, and copies at most 63 bytes of it.
    unsafe { pgrx::direct_function_call_as_datum(pg_sys::namein, &[Some(pg_sys::Datum::from(value.as_ptr()))]) }
}

/// Makes a `jsonb` argument: an object of these texts, or NULL if there are none.
pub fn json(members: &[(&str, String)]) -> Arg {
    let flat: Vec<&str> = members.iter().flat_map(|(key, value)| [*key, value]).collect();
    if flat.is_empty() {
        return None;
    }
    // SAFETY: jsonb_object takes an array of text: name, value, name, value.
    unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_object, &[flat.into_datum()]) }
}

/// Makes a `bytea` argument.
pub fn bytes(value: &[u8]) -> Arg {
    value.into_datum()
}

/// Makes a `bigint` argument.
pub fn int8(value: i64) -> Arg {
    value.into_datum()
}

/// Makes a user id argument.
pub fn user(id: UserId) -> Arg {
    text(id.as_str())
}

/// Makes a `timestamptz` argument.
pub fn time(at: Timestamp) -> Arg {
    int8(at.0)
}

/// Makes an argument with the number of a secret or a set of recovery codes.
pub fn secret_id(id: SecretId) -> Arg {
    int8(id.get())
}

/// Makes an argument with the number of a data key.
pub fn key_id(id: KeyId) -> Arg {
    int4(id.get())
}

/// Makes an argument with the numbers of data keys.
pub fn key_ids(ids: &[KeyId]) -> Arg {
    ids.iter().map(|id| id.get()).collect::<Vec<_>>().into_datum()
}

/// Makes a `smallint` argument. One that does not fit is NULL.
pub fn int2(value: u16) -> Arg {
    i16::try_from(value).ok().and_then(IntoDatum::into_datum)
}

/// Makes an `integer` argument.
pub fn int4(value: i32) -> Arg {
    value.into_datum()
}

impl Statement {
    /// Makes a statement that is planned at its first use in a backend.
    pub const fn new(sql: &'static CStr, types: &'static [pg_sys::Oid], read_only: bool) -> Self {
        let is_by_index = contains(sql.to_bytes(), b"user_id = $1") || contains(sql.to_bytes(), b"ORDER BY id LIMIT");
        let finds = if is_by_index { Finds::ByIndex } else { Finds::Anyhow };
        Self::make(sql, types, read_only, finds)
    }

    /// Makes one that reads by index, one row after the other.
    pub const fn probing(sql: &'static CStr, types: &'static [pg_sys::Oid], read_only: bool) -> Self {
        Self::make(sql, types, read_only, Finds::OneByOne)
    }

    const fn make(sql: &'static CStr, types: &'static [pg_sys::Oid], read_only: bool, finds: Finds) -> Self {
        Self {
            sql,
            types,
            read_only,
            tables: OnceCell::new(),
            plan: Cell::new(std::ptr::null_mut()),
            is_planned: Cell::new(false),
            finds,
            is_generic: !matches!(finds, Finds::Anyhow) || !contains(sql.to_bytes(), b"totp."),
        }
    }

    /// Runs it and maps every row of the result.
    pub fn rows<T>(
        &self,
        snapshot: &Snapshot,
        args: &[Arg],
        mut read: impl FnMut(&Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.run(snapshot, args, |count| {
            let mut row = Row::default();
            (0..count).map(|index| read(load(&mut row, index))).collect()
        })
    }

    /// Runs it and maps the first row of the result.
    pub fn first<T>(
        &self,
        snapshot: &Snapshot,
        args: &[Arg],
        read: impl FnOnce(&Row) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.run(snapshot, args, |count| (count > 0).then(|| read(load(&mut Row::default(), 0))).transpose())
    }

    /// Runs it under the latest snapshot and returns how many rows it changed or found.
    pub fn count(&self, args: &[Arg]) -> Result<u64, Error> {
        self.run(&Snapshot::latest(), args, Ok)
    }

    /// Runs a statement that must change exactly one row. Any other number means that rows were altered.
    pub fn change_one(&self, args: &[Arg]) -> Result<(), Error> {
        match self.count(args)? {
            1 => Ok(()),
            _ => Err(Error::RowsAltered),
        }
    }

    fn run<T>(
        &self,
        snapshot: &Snapshot,
        args: &[Arg],
        finish: impl FnOnce(u64) -> Result<T, Error>,
    ) -> Result<T, Error> {
        debug_assert_eq!(args.len(), self.types.len());
        // Before the snapshot. The plan locks them again, and what is locked stays so to the end of the transaction anyway.
        let _open = self.open_tables()?;
        let mut values: Vec<pg_sys::Datum> = args.iter().map(|a| a.unwrap_or(pg_sys::Datum::null())).collect();
        let nulls: Vec<std::ffi::c_char> = args.iter().map(|a| if a.is_none() { b'n' } else { b' ' } as _).collect();
        // SAFETY: connect and finish are paired on every path but a PostgreSQL error, after which the abort of the
        // transaction cleans up. The arrays are as long as the plan's argument list, and outlive the call.
        unsafe {
            if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
                return Err(Error::Internal("begin a query"));
            }
            let plan = self.prepared()?;
            let planning = self.index_scans(plan);
            let code = pg_sys::SPI_execute_snapshot(
                plan,
                values.as_mut_ptr(),
                nulls.as_ptr(),
                snapshot.get(),
                std::ptr::null_mut(),
                self.read_only,
                true,
                0,
            );
            self.is_planned.set(true);
            drop(planning);
            let result = match code {
                ..0 => Err(Error::Internal("run a query")),
                _ => finish(pg_sys::SPI_processed),
            };
            pg_sys::SPI_finish();
            result
        }
    }

    /// Opens and locks the tables of the statement with their parts, and checks them. Errors: XX001 if one is missing, or its
    /// columns have changed; 55000 if Citus has taken it.
    fn open_tables(&self) -> Result<Vec<Open>, Error> {
        let lock = if self.read_only { pg_sys::AccessShareLock } else { pg_sys::RowExclusiveLock };
        let open = |table: &&'static Table| table.open(lock).inspect(|open| open.lock_parts(lock));
        self.tables.get_or_init(|| shape::named_in(self.sql)).iter().map(open).collect()
    }

    fn prepared(&self) -> Result<pg_sys::SPIPlanPtr, Error> {
        if self.plan.get().is_null() {
            let options = if self.is_generic { pg_sys::CURSOR_OPT_GENERIC_PLAN as i32 } else { 0 };
            let (count, types) = (self.types.len() as i32, self.types.as_ptr().cast_mut());
            // SAFETY: called between SPI_connect and SPI_finish; the types are copied.
            unsafe {
                let plan = pg_sys::SPI_prepare_cursor(self.sql.as_ptr(), count, types, options);
                if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
                    return Err(Error::Internal("prepare a query"));
                }
                self.plan.set(plan);
            }
        }
        Ok(self.plan.get())
    }

    /// Makes the next execution use indexes if it plans the statement, so that the plan is good for a table of any size. For
    /// an empty table a sequential scan is as good as an index, and PostgreSQL would keep it while one statement adds a
    /// million users. A bitmap scan reads all rows that fit before the first one is returned.
    ///
    /// # Safety
    /// `plan` is that of this statement.
    unsafe fn index_scans(&self, plan: pg_sys::SPIPlanPtr) -> Option<IndexScans> {
        // SAFETY: promised by the caller.
        let is_planned = || self.is_planned.get() && unsafe { pg_sys::SPI_plan_is_valid(plan) };
        match self.finds {
            Finds::Anyhow => None,
            Finds::ByIndex => (!is_planned()).then(|| IndexScans::with(&[(c"enable_seqscan", c"off")])),
            Finds::OneByOne => Some(IndexScans::with(&ONE_BY_ONE)),
        }
    }
}

/// Returns whether a text contains a part. Evaluated at compile time.
const fn contains(text: &[u8], part: &[u8]) -> bool {
    let mut start = 0;
    while start + part.len() <= text.len() {
        let mut len = 0;
        while len < part.len() && text[start + len] == part[len] {
            len += 1;
        }
        if len == part.len() {
            return true;
        }
        start += 1;
    }
    false
}

/// Loads a row of the running statement's result. Call it only inside `Statement::run`, between execution and SPI_finish.
fn load(row: &mut Row, index: u64) -> &Row {
    // SAFETY: index < SPI_processed, so SPI_tuptable is there and has that row.
    unsafe {
        let table = &*pg_sys::SPI_tuptable;
        row.load(*table.vals.add(index as usize), table.tupdesc)
    }
}
