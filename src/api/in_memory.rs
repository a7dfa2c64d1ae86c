//! Sets of rows that stay in memory. If PostgreSQL collects the rows of a function in FROM itself, it writes what exceeds
//! `work_mem` to a temporary file, unencrypted.

use pgrx::{IntoDatum, pg_sys};

use crate::error::Error;

/// Gives rows of text to PostgreSQL in a tuple store of its materialize mode, without a memory limit.
///
/// # Safety
/// `fcinfo` is that of the running call, of a function that returns a set of rows with `N` columns of text.
pub unsafe fn give<'a, const N: usize>(
    fcinfo: pg_sys::FunctionCallInfo,
    rows: impl Iterator<Item = [&'a str; N]>,
) -> Result<(), Error> {
    // SAFETY: the tag says whether resultinfo is a ReturnSetInfo. The store and its description are in the memory of the
    // query, as materialize mode requires. Each row has as many columns as the function declares.
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
        for row in rows {
            let mut values = row.map(|text| text.into_datum().unwrap_or(pg_sys::Datum::null()));
            pg_sys::tuplestore_putvalues(store, columns, values.as_mut_ptr(), [false; N].as_mut_ptr());
            values.into_iter().for_each(|value| pg_sys::pfree(value.cast_mut_ptr()));
        }
    }
    Ok(())
}
