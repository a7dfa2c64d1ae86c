//! `totp_export`: every secret in clear, for a superuser who moves to another system.
//!
//! Owns the only way out for stored secrets. Must never write a row of it to disk, nor return one without an audit row.

use otp::OtpauthUri;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{IntoDatum, pg_extern, pg_sys};

use super::guard;
use super::secret_text::SecretText;
use crate::audit;
use crate::clock;
use crate::error::Error;
use crate::keyring;
use crate::store::secrets::{self, Exported};
use crate::store::spi::Snapshot;
use crate::user::UserId;

/// Returns the otpauth URI of every secret that is active or can become active. For superusers only; audited.
#[pg_extern(sql = r#"
CREATE FUNCTION totp_export() RETURNS TABLE (user_id text, device text, state text, otpauth_uri text)
STRICT VOLATILE PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn totp_export(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    guard::writable("totp_export")?;
    // SAFETY: that of this call.
    unsafe { guard::superuser(fcinfo, "totp_export") }?;
    let now = clock::now()?;
    let snapshot = Snapshot::latest();
    let sealed = secrets::export(&snapshot, now)?;
    audit::exported(sealed.len(), now)?;
    let rows = sealed
        .into_iter()
        .map(|row| {
            let user_id = row.user_id.clone();
            exported(&snapshot, row).map_err(|error| error.of_user(&user_id))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let texts = rows.iter().map(|(user_id, device, state, uri)| [user_id, device, state, uri.0.as_str()]);
    // SAFETY: the columns are those of the SQL above.
    Ok(unsafe { give(fcinfo, texts) }?)
}

fn exported(snapshot: &Snapshot, row: Exported) -> Result<(String, String, String, SecretText), Error> {
    let secret = keyring::open_secret(snapshot, UserId::stored(&row.user_id), &row.secret)?;
    let uri = OtpauthUri { issuer: row.issuer, account: row.account_name, secret, parameters: row.secret.parameters };
    Ok((row.user_id, row.secret.device().as_str().into(), row.state, SecretText(uri.build())))
}

/// Gives rows of text to PostgreSQL in a tuple store of its materialize mode, without a memory limit. If PostgreSQL collected
/// the rows of a function in FROM itself, it would write what exceeds `work_mem` to a temporary file, unencrypted.
///
/// # Safety
/// `fcinfo` is that of the running call, of a function that returns a set of rows with `N` columns of text.
unsafe fn give<'a, const N: usize>(
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
