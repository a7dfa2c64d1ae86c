//! Small calls of PostgreSQL, made safe: what it knows in this backend, its locks, and what differs between its major
//! versions. A transaction is open in every one of them, except where a function says otherwise.
//!
//! Owns every condition on the version. Must never keep an answer: each call asks PostgreSQL again.

use std::ffi::{CStr, OsStr, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use pgrx::pg_sys;
use pgrx::pg_sys::FormData_pg_attribute;
use pgrx::pg_sys::PgTryBuilder;

/// Leaves backtraces, with paths of the build, out of the DETAIL of errors, where pgrx would add them.
pub fn hide_backtraces() {
    // SAFETY: a backend has one thread.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
}

/// Returns the id of this transaction, or the invalid one if it has changed nothing yet.
pub fn transaction_id() -> pg_sys::TransactionId {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::GetTopTransactionIdIfAny() }
}

/// Returns the id that the rows have which are written now: of the innermost subtransaction, if there is one. Assigns it.
pub fn own_transaction_id() -> pg_sys::TransactionId {
    // SAFETY: raises in parallel mode and during recovery, where nothing is written.
    unsafe { pg_sys::GetCurrentTransactionId() }
}

/// Returns when the statement of the client began. A function's own statements are a part of it.
pub fn statement_start() -> pg_sys::TimestampTz {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// Calls `f` before each transaction of this backend commits, is prepared, or is rolled back. A commit may fail after that.
/// `f` must not raise or look anything up: a transaction that fails calls it too.
pub fn at_end_of_transaction(f: fn()) {
    // SAFETY: the callback has the type that is asked for.
    unsafe { pg_sys::RegisterXactCallback(Some(transaction_ends), f as *mut std::ffi::c_void) }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn transaction_ends(event: pg_sys::XactEvent::Type, f: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE};
    if matches!(event, XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE | XACT_EVENT_ABORT) {
        // SAFETY: the pointer is that of `at_end_of_transaction`.
        let f = unsafe { std::mem::transmute::<*mut std::ffi::c_void, fn()>(f) };
        f();
    }
}

/// Returns the id of this transaction, with its epoch, so that no other one has ever had it. Assigns one if it has none.
pub fn assigned_transaction_id() -> u64 {
    // SAFETY: what the first change of any row does.
    unsafe { pg_sys::GetTopFullTransactionId().value }
}

/// Returns whether a transaction id is that of this transaction, or of a subtransaction of it that was not rolled back.
pub fn is_own_transaction(id: pg_sys::TransactionId) -> bool {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(id) }
}

/// Returns whether the server is a standby, or still recovering.
pub fn is_in_recovery() -> bool {
    // SAFETY: a read of shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Returns whether the transaction is read-only.
pub fn is_read_only() -> bool {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::XactReadOnly }
}

/// Returns whether a parallel query is running.
pub fn is_parallel() -> bool {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::IsInParallelMode() }
}

/// Returns whether PostgreSQL runs the code of an owner on behalf of another user. A SECURITY DEFINER function keeps the flag
/// of its caller.
pub fn is_restricted() -> bool {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::InSecurityRestrictedOperation() }
}

/// Returns whether the isolation level is READ COMMITTED or below.
pub fn is_read_committed() -> bool {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::XactIsoLevel <= pg_sys::XACT_READ_COMMITTED as i32 }
}

/// Returns whether the current user is a superuser.
pub fn is_superuser() -> bool {
    // SAFETY: a look-up in the catalog, inside of a transaction.
    unsafe { pg_sys::superuser() }
}

/// Returns the operating system user of the server.
pub fn system_user() -> u32 {
    // SAFETY: geteuid cannot fail.
    unsafe { libc::geteuid() }
}

/// Returns the data directory.
pub fn data_directory() -> &'static Path {
    // SAFETY: set once at the start of the server.
    let directory = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    Path::new(OsStr::from_bytes(directory.to_bytes()))
}

/// Returns the current time.
pub fn clock_time() -> pg_sys::TimestampTz {
    // SAFETY: reads the system's clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Reads a time as SQL does. Raises 22007 for bad text.
pub fn read_time(text: &CStr) -> Option<pg_sys::TimestampTz> {
    let args = [Some(pg_sys::Datum::from(text.as_ptr())), Some(pg_sys::Datum::from(0)), Some(pg_sys::Datum::from(-1))];
    // SAFETY: timestamptz_in takes a C string, an unused type OID, and a type modifier.
    unsafe { pgrx::direct_function_call(pg_sys::timestamptz_in, &args) }
}

/// Returns the time of the last replayed commit, if anything was replayed.
pub fn replayed_until() -> Option<pg_sys::TimestampTz> {
    // SAFETY: a read of shared memory; 0 if nothing was replayed.
    let time = unsafe { pg_sys::GetLatestXTime() };
    (time != 0).then_some(time)
}

/// Returns the number that initdb gave the cluster.
pub fn system_identifier() -> u64 {
    // SAFETY: a read of shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// Returns the timeline of new WAL. For a primary only, where it is set.
pub fn timeline() -> u32 {
    // SAFETY: a read of shared memory.
    unsafe { pg_sys::GetWALInsertionTimeLine() }
}

/// Returns the database of the session.
pub fn database() -> pg_sys::Oid {
    // SAFETY: a read of backend state.
    unsafe { pg_sys::MyDatabaseId }
}

/// Returns the OID of a table, or 0.
pub fn table_oid(schema: &CStr, table: &CStr) -> pg_sys::Oid {
    // SAFETY: look-ups in the system caches.
    unsafe { pg_sys::get_relname_relid(table.as_ptr(), pg_sys::get_namespace_oid(schema.as_ptr(), true)) }
}

/// Returns whether the current user may insert into a table.
pub fn may_insert(table: pg_sys::Oid) -> bool {
    // SAFETY: a look-up in the system caches.
    let answer = unsafe { pg_sys::pg_class_aclcheck(table, pg_sys::GetUserId(), pg_sys::ACL_INSERT as _) };
    answer == pg_sys::AclResult::ACLCHECK_OK
}

/// Returns the next number of a sequence.
pub fn next_number(sequence: pg_sys::Oid) -> Option<i64> {
    // SAFETY: nextval_oid takes the OID of a sequence, and raises for anything else.
    unsafe { pgrx::direct_function_call(pg_sys::nextval_oid, &[Some(sequence.into())]) }
}

/// Locks a table until the end of the transaction. If it does not exist, this locks nothing.
pub fn lock_table(table: pg_sys::Oid, mode: u32) {
    // SAFETY: takes an ordinary lock.
    unsafe { pg_sys::LockRelationOid(table, mode as i32) }
}

/// Locks a table as `lock_table` does, if that needs no wait.
pub fn try_lock_table(table: pg_sys::Oid, mode: u32) -> bool {
    // SAFETY: takes an ordinary lock, or none.
    unsafe { pg_sys::ConditionalLockRelationOid(table, mode as i32) }
}

/// Returns how many pages a table has.
///
/// # Safety
/// `relation` is open.
pub unsafe fn blocks(relation: pg_sys::Relation) -> u32 {
    // SAFETY: promised by the caller.
    unsafe { pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
}

/// Returns the number of this process.
pub fn process_id() -> u32 {
    std::process::id()
}

/// Runs `work` in a subtransaction that is rolled back, and returns its answer: false if it raises. So nothing that it locks,
/// pins, or raises is left, and what it changes in place stays. A cancel of the statement waits for the end.
pub fn try_in_subtransaction(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: what PL/pgSQL does for a block with EXCEPTION: memory context and resource owner are as before. An error sets the
    // count of holdoffs to 0. No parallel query is running, as `guard` makes sure.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        // PostgreSQL writes messages of level DEBUG about the subtransaction. The context has the statement, and with it codes.
        let messages = pg_sys::error_context_stack;
        pg_sys::error_context_stack = std::ptr::null_mut();
        let holdoffs = pg_sys::InterruptHoldoffCount;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::InterruptHoldoffCount = holdoffs + 1;
        let answer = PgTryBuilder::new(AssertUnwindSafe(work)).catch_others(|_| false).execute();
        pg_sys::RollbackAndReleaseCurrentSubTransaction();
        pg_sys::InterruptHoldoffCount = holdoffs;
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
        pg_sys::error_context_stack = messages;
        answer
    }
}

/// Has a function called when the session ends, if the server does not crash: before PostgreSQL ends the last transaction.
pub fn at_end_of_session(function: unsafe extern "C-unwind" fn(c_int, pg_sys::Datum)) {
    // SAFETY: the function stays loaded. PostgreSQL calls the last one first, so this one before its own.
    unsafe { pg_sys::before_shmem_exit(Some(function), pg_sys::Datum::null()) }
}

/// Runs `work` in a transaction of its own, at the end of a session, after it has ended one that is open.
pub fn in_last_transaction(work: impl FnOnce()) {
    // SAFETY: what PostgreSQL does there to drop temporary tables (RemoveTempRelationsCallback in namespace.c). An error ends
    // the process, as it would anyway.
    unsafe {
        pg_sys::AbortOutOfAnyTransaction();
        pg_sys::StartTransactionCommand();
        // What was counted was counted in a transaction that could write, whatever the default of the session is.
        pg_sys::XactReadOnly = false;
        work();
        pg_sys::CommitTransactionCommand();
    }
}

/// Takes a heavyweight lock on an object until the end of the transaction.
pub fn lock_object(class: pg_sys::Oid, object: pg_sys::Oid, mode: u32) {
    // SAFETY: takes an ordinary lock.
    unsafe { pg_sys::LockDatabaseObject(class, object, 0, mode as i32) }
}

/// Names an object of this database for the lock manager, as PostgreSQL's SET_LOCKTAG_OBJECT does.
fn object_tag(class: pg_sys::Oid, object: pg_sys::Oid) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: database().to_u32(),
        locktag_field2: class.to_u32(),
        locktag_field3: object.to_u32(),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}

/// Takes a heavyweight lock on an object until the end of the transaction, if no other session has it.
pub fn try_lock_object(class: pg_sys::Oid, object: pg_sys::Oid, mode: u32) -> bool {
    let tag = object_tag(class, object);
    // SAFETY: takes an ordinary lock, without waiting.
    let result = unsafe { pg_sys::LockAcquire(&tag, mode as i32, false, true) };
    result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Returns the older one of two ids of running transactions.
pub fn older_transaction(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() < 0 { a } else { b }
}

/// Returns the id that the next transaction will have, with its epoch.
pub fn next_transaction_id() -> u64 {
    // SAFETY: a read of shared memory.
    unsafe { pg_sys::ReadNextFullTransactionId().value }
}

/// Returns the timeline that a standby replays.
pub fn replayed_timeline() -> u32 {
    let mut timeline = 0;
    // SAFETY: a read of shared memory.
    unsafe { pg_sys::GetXLogReplayRecPtr(&mut timeline) };
    timeline
}

/// Returns whether this transaction has such a lock.
pub fn holds_object(class: pg_sys::Oid, object: pg_sys::Oid, mode: u32) -> bool {
    let tag = object_tag(class, object);
    // SAFETY: a look into the table of the locks of this backend.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        return pg_sys::LockHeldByMe(&tag, mode as i32);
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        return pg_sys::LockHeldByMe(&tag, mode as i32, false);
    }
}

/// Releases a lock on an object that this transaction has taken.
pub fn unlock_object(class: pg_sys::Oid, object: pg_sys::Oid, mode: u32) {
    // SAFETY: PostgreSQL warns if the lock is not held, and does nothing.
    unsafe { pg_sys::UnlockDatabaseObject(class, object, 0, mode as i32) }
}

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

/// Returns the address of the client, an `inet`, or NULL if it came by a unix socket.
pub fn client_address() -> Option<pg_sys::Datum> {
    // SAFETY: inet_client_addr takes no argument.
    unsafe { pgrx::direct_function_call_as_datum(pg_sys::inet_client_addr, &[]) }
}

/// Returns the name that the client gave the session, a `text`.
pub fn application_name() -> Option<pg_sys::Datum> {
    // SAFETY: PostgreSQL keeps the setting as a NUL-terminated text, which is copied.
    unsafe { Some(pg_sys::cstring_to_text(pg_sys::application_name).into()) }
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
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        return pg_sys::RelationGetPrimaryKeyIndex(relation);
        // A deferrable key may temporarily have two rows.
        #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
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

/// Returns whether REPACK (CONCURRENTLY), new in PostgreSQL 19, would take the table: whatever its replica identity is, but
/// NOTHING. The lock that holds the table open keeps it so: a change of the identity needs ACCESS EXCLUSIVE.
///
/// # Safety
/// `relation` is open, and locked in ROW EXCLUSIVE mode or above.
pub unsafe fn can_be_repacked(relation: pg_sys::Relation) -> bool {
    // SAFETY: an open relation has its pg_class row.
    let identity = unsafe { (*(*relation).rd_rel).relreplident };
    let has_repack = cfg!(not(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18")));
    has_repack && identity as u8 != pg_sys::REPLICA_IDENTITY_NOTHING
}

/// Returns the name of a relation, with its schema, as SQL needs it.
///
/// # Safety
/// `relation` is open.
pub unsafe fn sql_name(relation: pg_sys::Relation) -> String {
    // SAFETY: promised by the caller. An open relation has its pg_class row. The texts are allocated in this call's memory.
    unsafe {
        let class = (*relation).rd_rel;
        let schema = pg_sys::get_namespace_name((*class).relnamespace);
        let name = pg_sys::quote_qualified_identifier(schema, (*class).relname.data.as_ptr());
        CStr::from_ptr(name).to_string_lossy().into_owned()
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

/// Sets the LSN of a page: that of the WAL record of its last change.
///
/// # Safety
/// The page is in a buffer that is pinned and locked exclusively.
pub unsafe fn set_page_lsn(page: pg_sys::Page, lsn: pg_sys::XLogRecPtr) {
    // SAFETY: promised by the caller.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            let halves = pg_sys::PageXLogRecPtr { xlogid: (lsn >> 32) as u32, xrecoff: lsn as u32 };
            (*page.cast::<pg_sys::PageHeaderData>()).pd_lsn = halves;
        }
        // Since 19 it is one number.
        #[cfg(not(feature = "pg15"))]
        pg_sys::PageSetLSN(page, lsn);
    }
}

/// Returns whether the column has that name, without a copy.
pub fn is_named(column: &FormData_pg_attribute, name: &str) -> bool {
    // SAFETY: PostgreSQL ends a name with a NUL.
    unsafe { CStr::from_ptr(column.attname.data.as_ptr()) }.to_bytes() == name.as_bytes()
}
