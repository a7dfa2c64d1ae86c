//! `totp_confirm`, `totp_check_confirm`: the first good code of a secret activates it, with a proof if the user has MFA.
//!
//! The order: refuse what needs no comparison; judge the code of the new secret; take the locks of a writer and look again;
//! judge the proof, last. So no proof is used up for a typo, and after the proof nothing waits or fails but the server.
//!
//! Owns the answer to a confirmation. Must never use a proof up before the code of the new secret is known to be good.

use otp::Code;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::answer::{Answer, Reason};
use super::binding;
use super::guard;
use super::judgment::{Compared, Matched, Scope, compare};
use super::matching::Typed;
use super::proof::{self, Judged};
use super::recovery_codes::NewSet;
use super::secret_text::SecretText;
use crate::error::Error;
use crate::store::attempts;
use crate::store::secrets;
use crate::store::spi::Snapshot;
use crate::user::UserId;
use crate::{keyring, settings};

/// Activates a secret of a device with its first good code. False if the code or the proof is wrong or no secret is pending.
/// For its symbol see `old_sql.rs`.
#[pg_extern(name = "totp_confirm", security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
pub fn totp_confirm_v2(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "'default'"),
    proof: default!(Option<&str>, "NULL"),
) -> Result<bool, ErrorReport> {
    guard::judging("totp_confirm", || {
        let answer = confirm(user_id, code, device, proof, 0)?;
        match answer.reason {
            Reason::ProofRequired => Err(Error::ProofRequired),
            _ => Ok(answer.is_accepted()),
        }
    })
}

/// Confirms as `totp_confirm` does, and returns the reason too. With `recovery_codes` above 0 it also creates a set of
/// recovery codes and returns it, this one time.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_check_confirm(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "'default'"),
    proof: default!(Option<&str>, "NULL"),
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
    let answer = guard::judging("totp_check_confirm", || {
        let count = recovery_codes.ok_or(Error::Null("recovery_codes"))?;
        let count = u8::try_from(count).ok().filter(|n| *n <= 20).ok_or(Error::FirstRecoveryCount)?;
        confirm(user_id, code, device, proof, count)
    })?;
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

/// Judges the code of a secret that waits for it, and a proof if it needs one. Then creates so many recovery codes.
fn confirm(
    user_id: Option<&str>,
    code: Option<&str>,
    device: Option<&str>,
    proof: Option<&str>,
    recovery_codes: u8,
) -> Result<Answer, Error> {
    let (Some(user), Some(device)) = (UserId::to_find(user_id), device) else { return Ok(Answer::not_enrolled()) };
    let code = Code::parse(code.unwrap_or_default()).ok();
    let typed = code.as_ref().map(Typed::Code);
    let scope = Scope::Pending { device, has_proof: proof.is_some() };
    let policy = settings::lockout();
    let (mut user_locked, mut new_set) = (false, None);
    let answer = loop {
        let found = match compare(user, typed, scope, policy)? {
            Compared::Answered(answer) => return Ok(answer),
            Compared::Matched(found) => found,
        };
        if !user_locked {
            drop(found);
            keyring::hold_current()?;
            user_locked = attempts::lock(user)?;
            new_set = NewSet::create_some(user, recovery_codes)?;
        } else if found.needs_proof() {
            break bind(&found, proof.ok_or(Error::ProofRequired)?)?;
        } else if let Some(answer) = found.judge()? {
            break answer;
        }
    };
    match new_set.filter(|_| answer.is_accepted()) {
        Some(set) => {
            let codes = set.store(user, answer.now())?;
            Ok(answer.with_recovery_codes(codes))
        }
        None => Ok(answer),
    }
}

/// Activates a secret whose code is good if the proof is good too. Its own code clears no count.
fn bind(found: &Matched, proof: &str) -> Result<Answer, Error> {
    if let Some(answer) = found.replayed()? {
        return Ok(answer);
    }
    let (user, device) = (found.user(), found.secret().device());
    binding::make_room(user, device, &secrets::of_user(&Snapshot::latest(), user)?, found.now())?;
    let used = found.open_used()?;
    let (kind, answer) = match proof::judge(user, proof)? {
        Judged::Good(kind, answer) => (kind, answer),
        Judged::Bad(answer) => return Ok(answer),
    };
    found.use_up(used)?;
    binding::activate(user, found.secret(), kind, true, found.now())?;
    Ok(answer.of_device(device))
}
