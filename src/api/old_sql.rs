//! What the SQL of 0.1.0 calls, until ALTER EXTENSION UPDATE.
//!
//! A function of 0.1.0 that has new arguments or columns has a new symbol, `…_v2`. So a session that still has the library of
//! 0.1.0 fails to find it. With the old symbol, that library would ignore the arguments, and read past the end of its columns.
//!
//! `totp_enroll` has a new symbol for another reason: the tables of 0.1.0 have no slot for proposed secrets, so its secrets are
//! pending, which means approved. A session with the old library must not go on with that after the update.
//!
//! Owns the old symbols. Must never ask for a proof: no caller can give one before the update.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::confirm::totp_confirm_v2;
use super::enroll::{self, Asked};
use super::guard;
use super::health;
use super::import::totp_import_v2;
use super::recovery_codes;
use super::secret_text::SecretText;
use super::status::totp_status_v2_wrapper;
use super::verify::totp_check_v2_wrapper;
use crate::store::secrets::Slot;

/// Defines an old symbol of a function whose SQL had fewer columns: PostgreSQL takes the first ones.
macro_rules! fewer_columns {
    ($old:ident, $info:ident, $new:ident) => {
        #[unsafe(no_mangle)]
        extern "C" fn $info() -> &'static pg_sys::Pg_finfo_record {
            const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &V1
        }

        #[unsafe(no_mangle)]
        unsafe extern "C-unwind" fn $old(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
            // SAFETY: both symbols take the same arguments, and `fcinfo` is that of the running call.
            unsafe { $new(fcinfo) }
        }
    };
}

fewer_columns!(totp_check_wrapper, pg_finfo_totp_check_wrapper, totp_check_v2_wrapper);
fewer_columns!(totp_status_wrapper, pg_finfo_totp_status_wrapper, totp_status_v2_wrapper);

/// Two arguments less: the encoding and the drift.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn totp_import(
    user_id: Option<&str>,
    secret: Option<&str>,
    account_name: Option<&str>,
    issuer: Option<&str>,
    device: Option<&str>,
    algorithm: Option<&str>,
    digits: Option<i32>,
    period: Option<i32>,
    confirmed: Option<bool>,
    allow_weak: Option<bool>,
) -> Result<SecretText, ErrorReport> {
    totp_import_v2(
        user_id,
        secret,
        account_name,
        issuer,
        device,
        algorithm,
        digits,
        period,
        confirmed,
        allow_weak,
        None,
        Some(0),
    )
}

/// One argument less: the proof.
#[pg_extern(sql = false)]
fn totp_confirm(user_id: Option<&str>, code: Option<&str>, device: Option<&str>) -> Result<bool, ErrorReport> {
    totp_confirm_v2(user_id, code, device, None)
}

/// One argument less: the proof.
#[pg_extern(sql = false)]
fn totp_recovery_codes(
    user_id: Option<&str>,
    count: Option<i32>,
) -> Result<SetOfIterator<'static, SecretText>, ErrorReport> {
    guard::writable("totp_recovery_codes")?;
    Ok(recovery_codes::replace_without_proof(user_id, count)?)
}

/// A secret in slot `pending`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn totp_enroll(
    user_id: Option<&str>,
    account_name: Option<&str>,
    issuer: Option<&str>,
    device: Option<&str>,
    algorithm: Option<&str>,
    digits: Option<i32>,
    period: Option<i32>,
    keep_current: Option<bool>,
) -> Result<TableIterator<'static, (name!(secret, SecretText), name!(otpauth_uri, SecretText))>, ErrorReport> {
    guard::writable("totp_enroll")?;
    let asked = Asked { account_name, issuer, algorithm, digits, period, keep_current };
    Ok(enroll::enroll(user_id, device, &asked, Slot::Pending)?)
}

/// Without an argument and a column: always the full checks.
#[pg_extern(sql = false)]
fn totp_health() -> Result<
    TableIterator<'static, (name!(check_name, String), name!(status, String), name!(detail, String))>,
    ErrorReport,
> {
    guard::not_parallel("totp_health")?;
    let rows = health::all(true)?;
    Ok(TableIterator::new(rows.into_iter().map(|(c, _)| (c.name, c.status.as_str().into(), c.detail))))
}
