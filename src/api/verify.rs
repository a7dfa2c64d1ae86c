//! `totp_verify`, `totp_check`: judge a code. The hot path of the extension.
//!
//! Every call answers from the latest committed state, at every isolation level. A guess is charged and a code is
//! burnt in place before the answer is returned: see docs/design/in-place.md.
//!
//! Once a code is compared, it is known whether it is right. From there on a wrong code touches the user's attempts row and
//! nothing else: anything else that waits or fails would reveal a wrong code without a charge. So everything that does not
//! depend on the code comes before the comparison, and what only a right code needs comes after it.
//!
//! Owns the order of a judgment, and the answer. Must never let a wrong code wait, fail, or be told before
//! it is charged.

use std::ops::ControlFlow;

use otp::{Code, Guess, Policy, Secret, TimeStep, Verdict};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::answer::{Answer, Reason};
use super::confirm::Confirmation;
use super::guard;
use super::recovery::NewSet;
use crate::audit::{self, Event};
use crate::clock;
use crate::error::Error;
use crate::inplace::{self, Lsn, Outcome, RowAddress, Target};
use crate::removed::Removed;
use crate::store::attempts::{self, Attempts};
use crate::store::secrets::{self, SealedSecret, Slot};
use crate::store::sign_in::{Candidate, LookUp};
use crate::store::used_codes::UsedCode;
use crate::timestamp::Timestamp;
use crate::user::UserId;
use crate::{keyring, replay_floor, settings};

/// Returns true once for each good code of a user, on any device or on the named one, and false for everything else, also
/// NULL.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_verify(
    user_id: Option<&str>,
    code: Option<&str>,
    device: default!(Option<&str>, "NULL"),
) -> Result<bool, ErrorReport> {
    guard::writable("totp_verify")?;
    Ok(judge_code(user_id, code, Scope::of(device))?.is_accepted())
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
    guard::writable("totp_check")?;
    let answer = judge_code(user_id, code, Scope::of(device))?;
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

/// Which secrets of the user a call is about.
#[derive(Clone, Copy)]
pub enum Scope<'a> {
    AnyDevice,
    Device(&'a str),
    Pending(&'a Confirmation<'a>),
}

impl<'a> Scope<'a> {
    fn of(device: Option<&'a str>) -> Self {
        device.map_or(Self::AnyDevice, Self::Device)
    }

    fn covers(self, secret: &SealedSecret) -> bool {
        match self {
            Self::AnyDevice => true,
            Self::Device(name) => secret.device().as_str() == name,
            Self::Pending(confirmation) => {
                secret.device().as_str() == confirmation.device && secret.slot == Slot::Pending
            }
        }
    }

    /// Creates the recovery codes that the call asks for.
    fn new_set(self, user: UserId) -> Result<Option<NewSet>, Error> {
        match self {
            Self::Pending(confirmation) if confirmation.recovery_codes > 0 => {
                NewSet::create(user, confirmation.recovery_codes).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Returns why there is no secret to compare with.
    fn nothing(self) -> Reason {
        match self {
            Self::Pending(_) => Reason::NothingPending,
            _ => Reason::NotEnrolled,
        }
    }

    /// Returns why there is none that has not expired.
    fn expired(self) -> Reason {
        match self {
            Self::Pending(_) => Reason::Expired,
            _ => Reason::NotEnrolled,
        }
    }
}

/// What a code is compared with, and the rules under which it is judged.
struct Attempt<'a> {
    user: UserId<'a>,
    code: &'a Code,
    now: Timestamp,
    policy: Policy,
    /// Where the user's attempts are counted.
    attempts: RowAddress,
    /// The secrets of the call that can sign in.
    candidates: Vec<Candidate>,
    /// A secret of the user was not inserted or updated by this transaction.
    is_known_user: bool,
}

/// The secret that a code belongs to, and its step.
#[derive(Clone, Copy)]
struct Match<'a> {
    candidate: &'a Candidate,
    step: TimeStep,
}

/// Judges a code.
pub fn judge_code(user_id: Option<&str>, code: Option<&str>, scope: Scope) -> Result<Answer, Error> {
    let Some(user) = UserId::to_find(user_id) else { return Ok(Answer::not_enrolled()) };
    let code = Code::parse(code.unwrap_or_default()).ok();
    let policy = settings::lockout();
    let (mut user_locked, mut keys_were_read, mut new_set) = (false, false, None);
    loop {
        // Look up, and refuse what needs no comparison.
        let look_up = LookUp::begin()?;
        let attempt = match prepare(&look_up, user, code.as_ref(), scope, policy)? {
            ControlFlow::Continue(attempt) => attempt,
            ControlFlow::Break(answer) => return Ok(answer),
        };

        // Open. This may wait. Then everything is looked at again, at the current time.
        let reads = keyring::reads();
        let opened = attempt.open(&look_up)?;
        if keyring::reads() != reads && !keys_were_read {
            keys_were_read = true;
            continue;
        }
        let Some(floor_at) = replay_floor::known(attempt.now) else {
            drop(opened);
            replay_floor::current()?;
            continue;
        };
        let Some(row) = attempt.row()? else { continue };

        // Match, decide, and tell.
        let found = match_code(&opened, attempt.code, attempt.now);
        drop(opened);
        let answer = match found {
            None => attempt.charge(row)?,
            Some(found) if found.candidate.secret.slot == Slot::Pending && !user_locked => {
                // Everything that can wait or fail comes before the judgment.
                drop(row);
                keyring::hold_current()?;
                user_locked = attempts::lock(user)?;
                new_set = scope.new_set(user)?;
                continue;
            }
            Some(found) => attempt.judge(row, found, floor_at, &mut new_set)?,
        };
        if let Some(answer) = answer {
            return Ok(answer);
        }
    }
}

/// Looks up the user, and answers if no code can be compared: the user is locked or has no secret that the call covers, or
/// the code cannot be a code of one.
fn prepare<'a>(
    look_up: &LookUp,
    user: UserId<'a>,
    code: Option<&'a Code>,
    scope: Scope,
    policy: Policy,
) -> Result<ControlFlow<Answer, Attempt<'a>>, Error> {
    let now = clock::now()?;
    let attempts = look_up.attempts(user)?;
    let counter = attempts.as_ref().map(|seen| seen.attempts.codes.believed(&policy, now.0));
    if let Some(counter) = counter.filter(|counter| counter.is_locked(now.0)) {
        return Ok(ControlFlow::Break(Answer::new(Reason::Locked, counter, &policy, now)));
    }
    let secrets = look_up.secrets(user)?;
    if secrets.is_empty() {
        return Ok(ControlFlow::Break(Answer::not_enrolled()));
    }
    let (seen, counter) = attempts.zip(counter).ok_or(Error::RowsAltered)?;
    let is_known_user = secrets.iter().any(|s| !s.is_own);
    let odds = within_odds(policy, &secrets, now);
    let candidates = match usable(secrets, scope, now) {
        Ok(candidates) => candidates,
        Err(Reason::NotEnrolled) => return Ok(ControlFlow::Break(Answer::not_enrolled())),
        Err(reason) => return Ok(ControlFlow::Break(Answer::new(reason, counter, &policy, now))),
    };
    let is_code = |code: &Code| candidates.iter().any(|s| code.has(s.secret.parameters.digits));
    let Some(code) = code.filter(|code| is_code(code)) else {
        return Ok(ControlFlow::Break(Answer::new(Reason::Malformed, counter, &odds, now)));
    };
    Ok(ControlFlow::Continue(Attempt {
        user,
        code,
        now,
        policy: odds,
        attempts: seen.address,
        candidates,
        is_known_user,
    }))
}

/// Returns the secrets that a code may match, or why there are none.
fn usable(mut secrets: Vec<Candidate>, scope: Scope, now: Timestamp) -> Result<Vec<Candidate>, Reason> {
    secrets.retain(|c| scope.covers(&c.secret));
    if secrets.is_empty() {
        return Err(scope.nothing());
    }
    secrets.retain(|s| !s.disabled);
    if secrets.is_empty() {
        return Err(Reason::Disabled);
    }
    secrets.retain(|s| s.is_usable(now));
    if secrets.is_empty() { Err(scope.expired()) } else { Ok(secrets) }
}

/// Returns the policy for guesses that are compared with every code in the windows of all secrets of a user.
///
/// It is the same for a call that names a device, since one counter counts the guesses at all devices.
fn within_odds(policy: Policy, secrets: &[Candidate], now: Timestamp) -> Policy {
    let steps = 2 * usize::from(settings::window().get()) + 1;
    let digits = || secrets.iter().filter(|s| s.is_usable(now)).map(|s| s.secret.parameters.digits);
    digits().fold(policy, |policy, length| {
        let alike = digits().filter(|d| *d == length).count();
        policy.within_odds(alike * steps, length)
    })
}

/// Compares every step of every window, whether an earlier one matched or not.
fn match_code<'a>(opened: &[(&'a Candidate, Secret)], code: &Code, now: Timestamp) -> Option<Match<'a>> {
    let mut best: Option<Match> = None;
    for (candidate, secret) in opened {
        let parameters = candidate.secret.parameters;
        let step = otp::matching_step(secret, parameters, code, now.unix_seconds(), settings::window());
        // A code that fits two devices by chance counts for the one where it is not used.
        let is_better = |step| best.is_none_or(|b| !b.candidate.is_fresh(b.step) && candidate.is_fresh(step));
        if let Some(step) = step.filter(|step| is_better(*step)) {
            best = Some(Match { candidate, step });
        }
    }
    best
}

impl Attempt<'_> {
    /// Opens every candidate.
    fn open(&self, look_up: &LookUp) -> Result<Vec<(&Candidate, Secret)>, Error> {
        let snapshot = &look_up.snapshot;
        self.candidates.iter().map(|c| Ok((c, keyring::open_secret(snapshot, self.user, &c.secret)?))).collect()
    }

    /// Opens the user's attempts row. `None` if another transaction was deleting it: look again. This may wait, at a point
    /// where right and wrong codes do not differ.
    ///
    /// Errors: 55000 if the row is a copy that this transaction made, since its ROLLBACK would undo the charge. If the user
    /// is new, the row and every secret are new, and that is no copy.
    fn row(&self) -> Result<Option<Target<Attempts>>, Error> {
        if self.attempts.is_own() && self.is_known_user {
            return Err(Error::OwnCopy);
        }
        inplace::settled(Target::open(&self.attempts)?)
    }

    /// Charges a wrong code. `None` if the row is gone: look again.
    fn charge(&self, row: Target<Attempts>) -> Result<Option<Answer>, Error> {
        let outcome = inplace::change_one(row, |row: &mut Attempts| {
            let (verdict, counter) = otp::judge_guess(row.codes, &self.policy, self.now.0, Guess::NoMatch);
            row.codes = counter;
            if verdict != Verdict::Locked {
                row.last_failed_at = self.now;
            }
            (verdict, counter)
        })?;
        let Outcome::Decided((verdict, counter), lsn) = outcome else { return Ok(None) };
        let reason = match verdict {
            Verdict::Wrong { newly_locked } => {
                lsn.inspect(|l| if newly_locked { l.make_durable() } else { l.flush_soon() });
                audit::failed(self.user, &counter, newly_locked, self.now)?;
                Reason::Wrong
            }
            _ => Reason::Locked,
        };
        Ok(Some(Answer::new(reason, counter, &self.policy, self.now)))
    }

    /// Judges a code that belongs to a secret: it may be used, or the user locked. `None` if a row is gone: look again.
    fn judge(
        &self,
        row: Target<Attempts>,
        found: Match,
        floor_at: Timestamp,
        new_set: &mut Option<NewSet>,
    ) -> Result<Option<Answer>, Error> {
        let secret = &found.candidate.secret;
        let used = Target::<UsedCode>::open(&found.candidate.used()?)?;
        let period = secret.parameters.period;
        let floor = replay_floor::step(floor_at, found.candidate.created_at, self.now, period);
        let outcome = inplace::change_two(row, used, |attempts: &mut Attempts, used: &mut UsedCode| {
            let judgement = otp::judge(attempts.codes, &self.policy, self.now.0, used.step, Some(found.step), floor);
            if judgement.verdict == Verdict::Accepted {
                used.step = judgement.burnt;
                used.used_at = self.now;
                used.uses = used.uses.saturating_add(1);
            }
            attempts.codes = judgement.counter;
            judgement
        })?;
        let Outcome::Decided(judgement, lsn) = outcome else { return Ok(None) };
        let answer = |reason| Answer::new(reason, judgement.counter, &self.policy, self.now);
        let device = secret.device().as_str();
        Ok(Some(match judgement.verdict {
            Verdict::Accepted => {
                self.accepted(secret, lsn)?;
                let codes = new_set.take().map(|set| set.store(self.user, self.now)).transpose()?;
                answer(Reason::Accepted).of_device(device).with_recovery_codes(codes)
            }
            Verdict::Replayed => {
                audit::replayed(self.user, secret.device(), self.now)?;
                let under_floor = floor.filter(|floor| found.step <= *floor);
                let retry_at = under_floor.map(|floor| Timestamp::from_unix_seconds(floor.end(period)));
                answer(Reason::Replayed).of_device(device).not_before(retry_at)
            }
            Verdict::Locked | Verdict::Wrong { .. } => answer(Reason::Locked),
        }))
    }

    /// Makes an accepted code durable, and activates its secret if it is pending.
    fn accepted(&self, secret: &SealedSecret, lsn: Option<Lsn>) -> Result<(), Error> {
        lsn.inspect(|l| l.make_durable());
        let (user, device) = (Some(self.user), Some(secret.device()));
        if secret.slot == Slot::Pending {
            let mut removed = Removed::nothing();
            if let Some(old) = secrets::activate(self.user, secret.device(), secret.secret_id, self.now)? {
                removed.add(old.used, old.codes, self.now)?;
            }
            audit::record_with(Event::Confirmed, self.now, user, device, &removed.detail())?;
        }
        if settings::audit_success() {
            audit::record(Event::Verified, self.now, user, device)?;
        }
        Ok(())
    }
}
