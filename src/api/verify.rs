//! `totp_verify`, `totp_check`, `totp_confirm`: judge a code. The hot path of the extension.
//!
//! Every call answers from the latest committed state, at every isolation level. A guess is charged and a code is
//! burnt in place before the answer is told: see docs/design/in-place.md.

use otp::{Code, Judgement, TimeStep, Verdict};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::audit::{self, Event};
use crate::clock::{self, Timestamp};
use crate::error::Error;
use crate::inplace::{self, Lsn, Outcome};
use crate::store::attempts::{self, Attempts};
use crate::store::secrets::{self, SealedSecret, Slot};
use crate::store::sign_in::{Candidate, LookUp, User, look_up};
use crate::store::spi::Snapshot;
use crate::store::used_codes::UsedCode;
use crate::{floor, guard, keyring, settings};

/// True once for each good code of a user, on any device or on the named one. False for everything else, also NULL.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_verify(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "NULL"),
) -> Result<bool, ErrorReport> {
    guard::writable("totp_verify")?;
    Ok(judge_code(user_id, code, Scope::of(device))?.reason == Reason::Accepted)
}

/// `totp_verify` with its reason.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_check(
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
        ),
    >,
    ErrorReport,
> {
    guard::writable("totp_check")?;
    let answer = judge_code(user_id, code, Scope::of(device))?;
    Ok(TableIterator::once((
        answer.reason == Reason::Accepted,
        answer.reason.as_str(),
        answer.device,
        answer.attempts_left,
        answer.retry_at.and_then(|t| Timestamp(t).to_sql()),
    )))
}

/// Makes a device's pending secret active with its first good code. False where the code is wrong or none is pending.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_confirm(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "'default'"),
) -> Result<bool, ErrorReport> {
    guard::writable("totp_confirm")?;
    let Some(device) = device else { return Ok(false) };
    Ok(judge_code(user_id, code, Scope::Pending(device))?.reason == Reason::Accepted)
}

/// Which secrets of the user a call is about.
#[derive(Clone, Copy)]
enum Scope<'a> {
    AnyDevice,
    Device(&'a str),
    Pending(&'a str),
}

impl<'a> Scope<'a> {
    fn of(device: Option<&'a str>) -> Self {
        device.map_or(Self::AnyDevice, Self::Device)
    }

    fn covers(self, secret: &SealedSecret) -> bool {
        match self {
            Self::AnyDevice => true,
            Self::Device(name) => secret.device == name,
            Self::Pending(name) => secret.device == name && secret.slot == Slot::Pending,
        }
    }
}

/// Why a code was accepted or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    Accepted,
    Wrong,
    Replayed,
    Locked,
    Malformed,
    NotEnrolled,
    Disabled,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Wrong => "wrong",
            Self::Replayed => "replayed",
            Self::Locked => "locked",
            Self::Malformed => "malformed",
            Self::NotEnrolled => "not_enrolled",
            Self::Disabled => "disabled",
        }
    }
}

/// The row of `totp_check`.
struct Answer {
    reason: Reason,
    device: Option<String>,
    attempts_left: Option<i32>,
    retry_at: Option<i64>,
}

impl Answer {
    fn not_enrolled() -> Self {
        Self { reason: Reason::NotEnrolled, device: None, attempts_left: None, retry_at: None }
    }

    fn new(reason: Reason, counter: otp::Counter, now: Timestamp) -> Self {
        Self {
            reason,
            device: None,
            attempts_left: Some(counter.attempts_left(&settings::lockout(), now.0)),
            retry_at: counter.retry_at(now.0),
        }
    }
}

fn judge_code(user_id: Option<&str>, code: Option<&str>, scope: Scope) -> Result<Answer, Error> {
    let Some(user_id) = user_id else { return Ok(Answer::not_enrolled()) };
    let code = code.unwrap_or_default();
    let mut user_locked = false;
    loop {
        let refuse = |attempts: &Attempts| {
            let now = clock::now()?;
            let counter = attempts.codes.believed(&settings::lockout(), now.0);
            Ok(counter.is_locked(now.0).then(|| Answer::new(Reason::Locked, counter, now)))
        };
        let found = match look_up(user_id, refuse)? {
            LookUp::Nobody => return Ok(Answer::not_enrolled()),
            LookUp::Refused(answer) => return Ok(answer),
            LookUp::User(user) => user,
        };
        let now = clock::now()?;
        let counter = found.seen.codes.believed(&settings::lockout(), now.0);
        let candidates = match usable(&found, scope, now) {
            Ok(candidates) => candidates,
            Err(Reason::NotEnrolled) => return Ok(Answer::not_enrolled()),
            Err(reason) => return Ok(Answer::new(reason, counter, now)),
        };
        let code = Code::parse(code).ok().filter(|c| candidates.iter().any(|s| c.has(s.secret.parameters.digits)));
        let Some(code) = code else { return Ok(Answer::new(Reason::Malformed, counter, now)) };

        let (candidate, step) = match_code(&found.snapshot, user_id, &candidates, &code, now)?;
        if step.is_some() && candidate.secret.slot == Slot::Pending && !user_locked {
            // All that can wait or fail comes before the judgement; then everything is looked up again.
            keyring::hold_current()?;
            user_locked = attempts::lock(user_id)?;
            continue;
        }
        let floor = floor::step(floor::current()?, candidate.created_at, now, candidate.secret.parameters.period);
        if let Outcome::Decided(judgement, lsn) = judge_in_place(&found, candidate, step, floor, now)? {
            let mut answer = tell(user_id, &candidate.secret, judgement, lsn, now)?;
            if answer.reason == Reason::Replayed && step <= floor {
                answer.retry_at =
                    floor.map(|f| Timestamp::from_unix_seconds(f.end(candidate.secret.parameters.period)).0);
            }
            return Ok(answer);
        }
    }
}

/// The secrets that a code may match, or why there are none.
fn usable<'a>(found: &'a User, scope: Scope, now: Timestamp) -> Result<Vec<&'a Candidate>, Reason> {
    let mut secrets: Vec<_> = found.secrets.iter().filter(|c| scope.covers(&c.secret)).collect();
    if secrets.is_empty() {
        return Err(Reason::NotEnrolled);
    }
    secrets.retain(|s| !s.disabled);
    if secrets.is_empty() {
        return Err(Reason::Disabled);
    }
    secrets.retain(|s| s.expires_at.is_none_or(|t| t > now.0));
    if secrets.is_empty() { Err(Reason::NotEnrolled) } else { Ok(secrets) }
}

/// Opens every candidate and compares every step of its window, whether an earlier one matched or not.
///
/// Returns the secret that the code belongs to and its step; or, for a wrong code, any candidate and no step.
fn match_code<'a>(
    snapshot: &Snapshot,
    user_id: &str,
    candidates: &[&'a Candidate],
    code: &Code,
    now: Timestamp,
) -> Result<(&'a Candidate, Option<TimeStep>), Error> {
    let mut best = (candidates[0], None);
    let mut best_is_fresh = false;
    for &candidate in candidates {
        let secret = keyring::open_secret(snapshot, user_id, &candidate.secret)?;
        let step =
            otp::matching_step(&secret, candidate.secret.parameters, code, now.unix_seconds(), settings::window());
        // A code that fits two devices by chance counts for the one where it is not used up.
        let is_fresh = step > Some(candidate.seen_step);
        if step.is_some() && (best.1.is_none() || (is_fresh && !best_is_fresh)) {
            (best, best_is_fresh) = ((candidate, step), is_fresh);
        }
    }
    Ok(best)
}

/// Decides under the page locks, on the rows as they are now, and changes them.
fn judge_in_place(
    found: &User,
    candidate: &Candidate,
    step: Option<TimeStep>,
    floor: Option<TimeStep>,
    now: Timestamp,
) -> Result<Outcome<Judgement>, Error> {
    let policy = settings::lockout();
    inplace::change_two(&found.attempts, &candidate.used, |attempts: &mut Attempts, used: &mut UsedCode| {
        let judgement = otp::judge(attempts.codes, &policy, now.0, used.step, step, floor);
        match judgement.verdict {
            Verdict::Accepted => {
                used.step = judgement.burnt;
                used.used_at = now.0;
                used.uses = used.uses.saturating_add(1);
            }
            Verdict::Wrong { .. } => attempts.last_failed_at = now.0,
            Verdict::Locked | Verdict::Replayed => {}
        }
        attempts.codes = judgement.counter;
        judgement
    })
}

/// Makes the judgement last, notes it, and shapes the answer.
fn tell(
    user_id: &str,
    secret: &SealedSecret,
    judgement: Judgement,
    lsn: Option<Lsn>,
    now: Timestamp,
) -> Result<Answer, Error> {
    let reason = match judgement.verdict {
        Verdict::Accepted => {
            lsn.inspect(|l| l.make_durable());
            accepted(user_id, secret, now)?;
            Reason::Accepted
        }
        Verdict::Wrong { newly_locked } => {
            lsn.inspect(|l| if newly_locked { l.make_durable() } else { l.flush_soon() });
            audit::failed(user_id, &judgement.counter, newly_locked, now)?;
            Reason::Wrong
        }
        Verdict::Replayed => {
            audit::replayed(user_id, &secret.device, now)?;
            Reason::Replayed
        }
        Verdict::Locked => Reason::Locked,
    };
    let mut answer = Answer::new(reason, judgement.counter, now);
    if matches!(reason, Reason::Accepted | Reason::Replayed) {
        answer.device = Some(secret.device.clone());
    }
    Ok(answer)
}

/// What an accepted code does besides: it makes a pending secret the active one.
fn accepted(user_id: &str, secret: &SealedSecret, now: Timestamp) -> Result<(), Error> {
    if secret.slot == Slot::Pending {
        secrets::activate(user_id, &secret.device, secret.secret_id, now)?;
        audit::record(Event::Confirmed, now, Some(user_id), Some(&secret.device))?;
    }
    if settings::audit_success() {
        audit::record(Event::Verified, now, Some(user_id), Some(&secret.device))?;
    }
    Ok(())
}
