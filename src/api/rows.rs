//! Rows of a function that returns a set, given to PostgreSQL at once.
//!
//! Owns the tuple store. Must never write a row to disk: rows have secrets.

use pgrx::pg_sys;

use crate::error::Error;

/// Gives rows to PostgreSQL in a tuple store of its materialize mode, without a memory limit. If PostgreSQL collected the rows
/// of a function in FROM itself, it would write what exceeds `work_mem` to a temporary file, unencrypted.
///
/// # Safety
/// `fcinfo` is that of the running call, of a function that returns a set of rows with `N` columns. Each row has a datum of the
/// type of its column, or `None` for NULL, and makes it when it is asked for: its memory is freed after each row.
pub unsafe fn give<const N: usize>(
    fcinfo: pg_sys::FunctionCallInfo,
    rows: impl Iterator<Item = [Option<pg_sys::Datum>; N]>,
) -> Result<(), Error> {
    // SAFETY: the tag says whether resultinfo is a ReturnSetInfo. The store and its description are in the memory of the
    // query, as materialize mode requires. The rows are those that the caller promises.
    unsafe {
        let info = (*fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        let mode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
        if info.is_null()
            || (*info.cast::<pg_sys::Node>()).type_ != pg_sys::NodeTag::T_ReturnSetInfo
            || (*info).allowedModes.cast_unsigned() & mode == 0
        {
            return Err(Error::Internal("return a set of rows"));
        }
        let caller = pg_sys::MemoryContextSwitchTo((*(*info).econtext).ecxt_per_query_memory);
        let mut columns = std::ptr::null_mut();
        pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut columns);
        let store = pg_sys::tuplestore_begin_heap(true, false, i32::MAX);
        (*info).returnMode = mode;
        (*info).setResult = store;
        (*info).setDesc = columns;
        pg_sys::MemoryContextSwitchTo(caller);
        if columns.is_null() || (*columns).natts != N as i32 {
            return Err(Error::Internal("determine the result columns"));
        }
        // A child of the caller's memory, so that it goes with it if a row raises.
        let of_row = pg_sys::AllocSetContextCreateExtended(caller, c"totp row".as_ptr(), 0, 8192, 1 << 20);
        pg_sys::MemoryContextSwitchTo(of_row);
        for row in rows {
            let mut nulls = row.map(|datum| datum.is_none());
            let mut values = row.map(|datum| datum.unwrap_or(pg_sys::Datum::null()));
            pg_sys::tuplestore_putvalues(store, columns, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::MemoryContextReset(of_row);
        }
        pg_sys::MemoryContextSwitchTo(caller);
        pg_sys::MemoryContextDelete(of_row);
    }
    Ok(())
}
