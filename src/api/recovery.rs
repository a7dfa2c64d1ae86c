//! `totp_recover`, `totp_check_recover`: the way in when every device is lost (NIST SP 800-63B "look-up secrets").
//!
//! Owns the order of a judgment, as `verify.rs` does. Must never accept a code twice, nor let a wrong one go uncharged.

use otp::{Counter, Guess, Policy, RecoveryCode, RecoverySet, UsedMask, Verdict};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::answer::{Answer, Reason};
use super::guard;
use crate::audit;
use crate::clock;
use crate::counters::{self, Counted};
use crate::error::Error;
use crate::inplace::{self, Lsn, Outcome, Target};
use crate::store::attempts::Attempts;
use crate::store::recovery_codes::{LookUp, look_up};
use crate::store::used_codes::UsedCode;
use crate::timestamp::Timestamp;
use crate::user::UserId;
use crate::{keyring, settings};

/// Returns true once for each recovery code of a user. Wrong ones have a separate counter and lock.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_recover(user_id: Option<&str>, recovery_code: Option<&str>) -> Result<bool, ErrorReport> {
    guard::judging("totp_recover", || Ok(judge_code(user_id, recovery_code)?.is_accepted()))
}

/// Checks a recovery code as `totp_recover` does, and returns the reason too.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_check_recover(
    user_id: Option<&str>,
    recovery_code: Option<&str>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(accepted, bool),
            name!(reason, &'static str),
            name!(attempts_left, Option<i32>),
            name!(retry_at, Option<TimestampWithTimeZone>),
            name!(retry_after, Option<i32>),
        ),
    >,
    ErrorReport,
> {
    let answer = guard::judging("totp_check_recover", || judge_code(user_id, recovery_code))?;
    Ok(TableIterator::once((
        answer.is_accepted(),
        answer.reason.as_str(),
        answer.attempts_left,
        answer.retry_at(),
        answer.retry_after(),
    )))
}

/// Judges a recovery code.
pub fn judge_code(user_id: Option<&str>, code: Option<&str>) -> Result<Answer, Error> {
    let Some(user) = UserId::to_find(user_id) else { return Ok(Answer::not_enrolled()) };
    let code = RecoveryCode::parse(code.unwrap_or_default()).ok();
    let policy = settings::lockout();
    let mut keys_were_read = false;
    loop {
        let Some(found) = look_up(user)?.filter(|found| !found.disabled) else { return Ok(Answer::not_enrolled()) };
        let now = clock::now()?;
        let counter = found.seen.recovery.believed(&policy, now.0);
        if counter.is_locked(now.0) {
            counters::count(Counted::Locked);
            return Ok(Answer::new(Reason::Locked, counter, &policy, now));
        }
        let Some(code) = &code else { return Ok(Answer::new(Reason::Malformed, counter, &policy, now)) };
        let reads = keyring::reads();
        let hashes = keyring::open_recovery_codes(&found.snapshot, user, &found.set);
        if keyring::reads() != reads && !keys_were_read {
            // It may have waited: look again, at the current time, also if it did not open, as in judgment.rs.
            keys_were_read = true;
            continue;
        }
        let hashes = hashes?;
        let set = RecoverySet::from_bytes(&hashes).map_err(|_| Error::DoesNotOpen)?;
        let Some(row) = attempts_row(&found)? else { continue };
        // From here on a wrong code touches the attempts row and nothing else, as in verify.rs.
        let outcome = match set.find(code) {
            None => charge(row, &policy, now)?,
            Some(place) => judge(row, Target::open(&found.used()?)?, place, &policy, now)?,
        };
        let Outcome::Decided((verdict, counter), lsn) = outcome else { continue };
        report(user, verdict, &counter, lsn, now)?;
        return Ok(Answer::new(reason(verdict), counter, &policy, now));
    }
}

/// Counts a judgment, makes it durable, and tells the logs. A use and a lock are durable before they are reported.
fn report(user: UserId, verdict: Verdict, counter: &Counter, lsn: Option<Lsn>, now: Timestamp) -> Result<(), Error> {
    counters::count(match verdict {
        Verdict::Accepted => Counted::RecoveryCodeUsed,
        Verdict::Wrong { .. } => Counted::Wrong,
        Verdict::Replayed => Counted::Replayed,
        Verdict::Locked => Counted::Locked,
    });
    let newly_locked = counter.is_locked(now.0);
    let is_urgent = verdict == Verdict::Accepted || newly_locked;
    lsn.inspect(|lsn| if is_urgent { lsn.make_durable() } else { lsn.flush_soon() });
    match verdict {
        Verdict::Accepted => audit::recovery_code_used(user, now),
        Verdict::Wrong { .. } => audit::recovery_failed(user, counter, newly_locked, now),
        Verdict::Replayed => audit::recovery_replayed(user, counter, newly_locked, now),
        Verdict::Locked => Ok(()),
    }
}

fn reason(verdict: Verdict) -> Reason {
    match verdict {
        Verdict::Accepted => Reason::Accepted,
        Verdict::Wrong { .. } => Reason::Wrong,
        Verdict::Replayed => Reason::Replayed,
        Verdict::Locked => Reason::Locked,
    }
}

/// Opens the user's attempts row. `None` if another transaction was deleting it: look again.
///
/// Errors: 55000 if the row is a copy that this transaction made, since its ROLLBACK would undo the charge.
fn attempts_row(found: &LookUp) -> Result<Option<Target<Attempts>>, Error> {
    if found.attempts.is_own() && !found.is_own {
        return Err(Error::OwnCopy);
    }
    inplace::settled(Target::open(&found.attempts)?)
}

type Judged = Outcome<(Verdict, Counter)>;

/// Charges a code that the set does not have.
fn charge(row: Target<Attempts>, policy: &Policy, now: Timestamp) -> Result<Judged, Error> {
    inplace::change_one(row, |row: &mut Attempts| {
        let (verdict, counter) = otp::judge_guess(row.recovery, policy, now.0, Guess::NoMatch);
        row.recovery = counter;
        if verdict != Verdict::Locked {
            row.last_failed_at = now;
        }
        (verdict, counter)
    })
}

/// Judges a code of the set. One that was used before is charged like a wrong one, since no window ends it.
fn judge(
    row: Target<Attempts>,
    used: Target<UsedCode>,
    place: u8,
    policy: &Policy,
    now: Timestamp,
) -> Result<Judged, Error> {
    inplace::change_two(row, used, |attempts: &mut Attempts, used: &mut UsedCode| {
        let mask = UsedMask::new(used.recovery_mask as i32);
        let guess = if mask.is_used(place) { Guess::Spent } else { Guess::Fresh };
        let (verdict, counter) = otp::judge_guess(attempts.recovery, policy, now.0, guess);
        match verdict {
            Verdict::Accepted => {
                used.recovery_mask = i64::from(mask.with_used(place).get());
                used.used_at = now;
                used.uses = used.uses.saturating_add(1);
                // The user is in: failures at codes no longer count, not even a lock without end (NIST SP 800-63B-4 3.2.2).
                attempts.codes = Counter::CLEAR;
            }
            Verdict::Replayed => attempts.last_failed_at = now,
            _ => {}
        }
        attempts.recovery = counter;
        (verdict, counter)
    })
}
