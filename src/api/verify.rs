//! `totp_verify`, `totp_check`: judge a code. The hot path of the extension.
//!
//! Every call answers from the latest committed state, at every isolation level. A guess is charged and a code is
//! burnt in place before the answer is returned: see docs/design/in-place.md.
//!
//! Owns the answer to a sign-in. Must never activate a secret without the lock of its user.

use otp::Code;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::answer::Answer;
use super::guard;
use super::judgment::{Compared, Scope, compare};
use super::matching::Typed;
use crate::error::Error;
use crate::store::attempts;
use crate::store::secrets::Slot;
use crate::user::UserId;
use crate::{keyring, settings};

/// Returns true once for each good code of a user, on any device or on the named one, and false for everything else, also
/// NULL.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_verify(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "NULL"),
) -> Result<bool, ErrorReport> {
    guard::judging("totp_verify", || Ok(judge_code(user_id, code, Scope::of(device))?.is_accepted()))
}

/// Checks a code as `totp_verify` does, and returns the reason too. For its symbol see `old_sql.rs`.
#[pg_extern(name = "totp_check", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_check_v2(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "NULL"),
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
        ),
    >,
    ErrorReport,
> {
    let answer = guard::judging("totp_check", || judge_code(user_id, code, Scope::of(device)))?;
    let (retry_at, retry_after) = (answer.retry_at(), answer.retry_after());
    Ok(TableIterator::once((
        answer.is_accepted(),
        answer.reason.as_str(),
        answer.device,
        answer.attempts_left,
        retry_at,
        retry_after,
    )))
}

/// Judges a code as a sign-in.
pub fn judge_code(user_id: Option<&str>, code: Option<&str>, scope: Scope) -> Result<Answer, Error> {
    let Some(user) = UserId::to_find(user_id) else { return Ok(Answer::not_enrolled()) };
    let code = Code::parse(code.unwrap_or_default()).ok();
    let typed = code.as_ref().map(Typed::Code);
    let policy = settings::lockout();
    let mut user_locked = false;
    loop {
        match compare(user, typed, scope, policy)? {
            Compared::Answered(answer) => return Ok(answer),
            Compared::Matched(found) if found.secret().slot != Slot::Active && !user_locked => {
                // Everything that can wait or fail comes before the judgment.
                drop(found);
                keyring::hold_current()?;
                user_locked = attempts::lock(user)?;
            }
            Compared::Matched(found) => {
                if let Some(answer) = found.judge()? {
                    return Ok(answer);
                }
            }
        }
    }
}
