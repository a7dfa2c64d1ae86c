//! Values from PostgreSQL's catalog, kept until PostgreSQL says that it may have changed. Its plan cache does the same.
//!
//! Owns the count of changes. Must never keep a value over one of them.

use std::cell::Cell;

use pgrx::pg_sys;

thread_local! {
    /// Counts the messages about changes of tables and schemas, and of the functions and types that a constraint may use, by
    /// this session and by others.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// Asks PostgreSQL for the messages. Call it once in a backend.
pub fn watch() {
    // SAFETY: both functions have the types that are asked for, and only count.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(table_changed), pg_sys::Datum::null());
        use pg_sys::SysCacheIdentifier::{NAMESPACENAME, PROCOID, TYPEOID};
        for cache in [NAMESPACENAME, PROCOID, TYPEOID] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(object_changed), pg_sys::Datum::null());
        }
    }
}

unsafe extern "C-unwind" fn table_changed(_: pg_sys::Datum, _: pg_sys::Oid) {
    count();
}

unsafe extern "C-unwind" fn object_changed(_: pg_sys::Datum, _: i32, _: u32) {
    count();
}

fn count() {
    CHANGES.set(CHANGES.get().wrapping_add(1));
}

/// A value that was derived from the catalog. It is dropped when a message arrives: taking a lock on a table reads them.
pub struct Kept<T>(Cell<Option<(u64, T)>>);

impl<T: Copy> Kept<T> {
    /// Nothing yet.
    pub const fn nothing() -> Self {
        Self(Cell::new(None))
    }

    /// Returns the value, if nothing has changed since it was derived.
    pub fn get(&self) -> Option<T> {
        self.0.get().and_then(|(changes, value)| (changes == CHANGES.get()).then_some(value))
    }

    /// Takes the value out, if nothing has changed since it was derived. An error in its use loses it.
    pub fn take(&self) -> Option<Taken<T>> {
        self.0.take().filter(|(changes, _)| *changes == CHANGES.get()).map(|(changes, value)| Taken { changes, value })
    }

    /// Puts a value back. What changed while it was out counts.
    pub fn put(&self, Taken { changes, value }: Taken<T>) {
        self.0.set(Some((changes, value)));
    }

    /// Returns the value. Derives it again if something has changed.
    pub fn get_or<E>(&self, derive: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        let before = CHANGES.get(); // a message that arrives meanwhile counts
        let value = derive()?;
        self.0.set(Some((before, value)));
        Ok(value)
    }
}

/// A value that is in use, and not kept.
pub struct Taken<T> {
    changes: u64,
    pub value: T,
}

impl<T> Taken<T> {
    /// Derives a value. What changes meanwhile counts.
    pub fn new(derive: impl FnOnce() -> T) -> Self {
        let changes = CHANGES.get();
        Self { changes, value: derive() }
    }
}
