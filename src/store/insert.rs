//! Inserts a row without SPI, as logical replication does: to begin and end a statement costs more than the row.
//!
//! Owns the insertion. Must never do less than an INSERT: if the table has triggers, rules, or policies, the statement runs.

use std::thread::LocalKey;

use pgrx::pg_sys;

use super::relcache::{Kept, Taken};
use super::shape::Table;
use super::spi::{Arg, Statement};
use crate::backend;
use crate::error::Error;

/// A table to which rows are added.
pub struct InsertTable {
    pub table: &'static Table,
    /// Inserts a row. Its parameters are the columns of the table, in their order.
    pub insert: &'static LocalKey<Statement>,
    pub executor: &'static LocalKey<Kept<Executor>>,
}

/// Declares an [`InsertTable`]: `insert_table!(NAME, &shape::TABLE, &INSERT)`.
macro_rules! insert_table {
    ($name:ident, $table:expr, $insert:expr) => {
        static $name: $crate::store::insert::InsertTable = {
            thread_local! {
                static EXECUTOR: $crate::store::relcache::Kept<$crate::store::insert::Executor> =
                    const { $crate::store::relcache::Kept::nothing() };
            }
            $crate::store::insert::InsertTable { table: $table, insert: $insert, executor: &EXECUTOR }
        };
    };
}
pub(crate) use insert_table;

/// What PostgreSQL's executor keeps during a statement: above all the constraints of the table, read and compiled, which costs
/// more than to check them. Kept for the transaction, whose end frees it.
#[derive(Clone, Copy)]
pub struct Executor {
    transaction: u64,
    state: *mut pg_sys::EState,
    target: *mut pg_sys::ResultRelInfo,
}

impl Executor {
    /// Makes one that lives as long as the transaction.
    ///
    /// # Safety
    /// The relation is open.
    unsafe fn new(relation: pg_sys::Relation, transaction: u64) -> Self {
        // SAFETY: promised by the caller. Both are allocated in the memory of the state.
        unsafe {
            let caller = pg_sys::MemoryContextSwitchTo(pg_sys::TopTransactionContext);
            let state = pg_sys::CreateExecutorState();
            pg_sys::MemoryContextSwitchTo((*state).es_query_cxt);
            let target = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast::<pg_sys::ResultRelInfo>();
            pg_sys::InitResultRelInfo(target, relation, 0, std::ptr::null_mut(), 0);
            pg_sys::MemoryContextSwitchTo(caller);
            Self { transaction, state, target }
        }
    }

    /// Checks the constraints, adds the row to the table and its indexes, and lets later statements see it. Returns whether this
    /// value may be used again: what an index on an expression needs is compiled for each row, and would pile up.
    ///
    /// # Safety
    /// The relation is the open table that this was made for, without triggers. The values are those of its columns, and of
    /// their types.
    unsafe fn insert(&self, relation: pg_sys::Relation, row: &[Arg]) -> bool {
        // SAFETY: promised by the caller. These are the calls of PostgreSQL's worker.c for a row that it received. After an
        // error the abort of the transaction closes the indexes, and this value is used no more.
        unsafe {
            // A function of a constraint that is marked STABLE sees what an INSERT of this moment would.
            pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
            (*self.target).ri_RelationDesc = relation;
            pg_sys::ExecOpenIndices(self.target, false);
            let slot = pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, pg_sys::table_slot_callbacks(relation));
            for (column, value) in row.iter().enumerate() {
                *(*slot).tts_values.add(column) = value.unwrap_or(pg_sys::Datum::null());
                *(*slot).tts_isnull.add(column) = value.is_none();
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            pg_sys::ExecSimpleRelationInsert(self.target, self.state, slot);
            let indexes = (*self.target).ri_NumIndices as usize;
            let is_simple = (0..indexes).all(|i| {
                let index = *(*self.target).ri_IndexRelationInfo.add(i);
                (*index).ii_Expressions.is_null() && (*index).ii_Predicate.is_null()
            });
            pg_sys::ExecCloseIndices(self.target);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            if let Some(context) = (*self.state).es_per_tuple_exprcontext.as_ref() {
                pg_sys::MemoryContextReset(context.ecxt_per_tuple_memory);
            }
            pg_sys::PopActiveSnapshot();
            pg_sys::CommandCounterIncrement();
            is_simple
        }
    }
}

impl InsertTable {
    /// Adds a row: a value for each column, of its type. It is made when the table is locked.
    ///
    /// Errors: XX001 if the table is altered.
    pub fn insert<const N: usize>(&self, row: impl FnOnce() -> Result<[Arg; N], Error>) -> Result<(), Error> {
        debug_assert_eq!(N, self.table.width());
        let open = self.table.open(pg_sys::RowExclusiveLock)?;
        let row = &row()?;
        if !open.is_plain() || !backend::may_insert(open.oid()) {
            drop(open);
            return self.insert.with(|s| s.change_one(row));
        }
        let (relation, transaction) = (open.relation(), backend::assigned_transaction_id());
        self.executor.with(|kept| {
            let of_this = kept.take().filter(|taken| taken.value.transaction == transaction);
            // SAFETY: the table is open and locked, and its columns are those of `row`. What this transaction has kept is still
            // in its memory, and nobody else uses it: it was taken out.
            unsafe {
                let executor = of_this.unwrap_or_else(|| Taken::new(|| Executor::new(relation, transaction)));
                if executor.value.insert(relation, row) {
                    kept.put(executor);
                } else {
                    pg_sys::FreeExecutorState(executor.value.state);
                }
            }
        });
        Ok(())
    }
}
