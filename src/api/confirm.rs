//! `totp_confirm`, `totp_check_confirm`: the first good code of a pending secret activates it.
//!
//! Owns the answer to a confirmation. Must never judge a code by other rules than `verify.rs` does.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::answer::Answer;
use super::guard;
use super::secret_text::SecretText;
use super::verify::{Scope, judge_code};
use crate::error::Error;

/// What a confirmation asks for.
pub struct Confirmation<'a> {
    pub device: &'a str,
    /// Codes of a set to create, or 0 for none.
    pub recovery_codes: u8,
}

/// Activates the pending secret of a device with its first good code. False if the code is wrong or no secret is pending.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_confirm(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "'default'"),
) -> Result<bool, ErrorReport> {
    guard::writable("totp_confirm")?;
    let Some(device) = device else { return Ok(false) };
    Ok(judge_code(user_id, code, Scope::Pending(&Confirmation { device, recovery_codes: 0 }))?.is_accepted())
}

/// Confirms as `totp_confirm` does, and returns the reason too. With `recovery_codes` above 0 it also creates a set of
/// recovery codes and returns it, this one time.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_check_confirm(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "'default'"),
    recovery_codes: default!(Option<i32>, 0),
) -> Result<
    TableIterator<
        'static,
        (
            name!(accepted, bool),
            name!(reason, &'static str),
            name!(matched_device, Option<String>),
            name!(attempts_left, Option<i32>),
            name!(retry_at, Option<TimestampWithTimeZone>),
            name!(retry_after, Option<i32>),
            name!(recovery_codes, Option<Vec<SecretText>>),
        ),
    >,
    ErrorReport,
> {
    guard::writable("totp_check_confirm")?;
    let recovery_codes = recovery_codes.ok_or(Error::Null("recovery_codes"))?;
    let recovery_codes = u8::try_from(recovery_codes).ok().filter(|n| *n <= 20).ok_or(Error::FirstRecoveryCount)?;
    let answer = match device {
        Some(device) => judge_code(user_id, code, Scope::Pending(&Confirmation { device, recovery_codes }))?,
        None => Answer::not_enrolled(),
    };
    let (retry_at, retry_after) = (answer.retry_at(), answer.retry_after());
    Ok(TableIterator::once((
        answer.is_accepted(),
        answer.reason.as_str(),
        answer.device,
        answer.attempts_left,
        retry_at,
        retry_after,
        answer.recovery_codes,
    )))
}
