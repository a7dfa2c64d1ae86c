//! The judgment of a code: compare it with the secrets of a user, then charge it or use it up.
//!
//! Once a code is compared, it is known whether it is right. From there on a wrong code touches the user's attempts row and
//! nothing else: anything else that waits or fails would reveal a wrong code without a charge. So everything that does not
//! depend on the code comes before the comparison, and what only a right code needs comes after it.
//!
//! Owns the order of a judgment. Must never let a wrong code wait, fail, or be told before it is charged.

use std::ops::ControlFlow;

use otp::{Counter, Drift, Guess, Policy, Secret, TimeStep, Verdict};

use super::answer::{Answer, Reason};
use super::binding::{self, Proof};
use super::matching::{self, Typed};
use crate::audit::{self, Event};
use crate::clock;
use crate::counters::{self, Counted};
use crate::error::Error;
use crate::inplace::{self, Lsn, Outcome, RowAddress, Target};
use crate::store::attempts::Attempts;
use crate::store::secrets::{self, SealedSecret, Slot};
use crate::store::sign_in::{Candidate, LookUp};
use crate::store::spi::Snapshot;
use crate::store::used_codes::UsedCode;
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, UserId};
use crate::{keyring, replay_floor, settings};

/// Which secrets of the user a code may belong to.
#[derive(Clone, Copy)]
pub enum Scope<'a> {
    /// A sign-in with any device.
    AnyDevice,
    /// A sign-in with this device.
    Device(&'a str),
    /// A proof: secrets that are active already.
    Active,
    /// A resynchronization of a secret of this device that is active or approved.
    Approved(&'a str),
    /// A confirmation of a secret of this device that waits for its first code.
    Pending { device: &'a str, has_proof: bool },
}

impl<'a> Scope<'a> {
    /// A sign-in.
    pub fn of(device: Option<&'a str>) -> Self {
        device.map_or(Self::AnyDevice, Self::Device)
    }

    fn is_sign_in(self) -> bool {
        !matches!(self, Self::Pending { .. })
    }

    fn covers(self, secret: &SealedSecret) -> bool {
        match self {
            Self::AnyDevice => true,
            Self::Device(name) => secret.device().as_str() == name,
            Self::Active => secret.slot == Slot::Active,
            Self::Approved(name) => secret.device().as_str() == name && secret.slot != Slot::Proposed,
            Self::Pending { device, .. } => secret.device().as_str() == device && secret.slot != Slot::Active,
        }
    }

    /// Returns why there is no secret to compare with.
    fn nothing(self) -> Reason {
        match self {
            Self::Pending { .. } => Reason::NothingPending,
            _ => Reason::NotEnrolled,
        }
    }

    /// Returns why there is none that has not expired.
    fn expired(self) -> Reason {
        match self {
            Self::Pending { .. } => Reason::Expired,
            _ => Reason::NotEnrolled,
        }
    }

    /// Takes away the secrets that the call does not cover, and returns why none is left.
    fn retain(self, secrets: &mut Vec<Candidate>, has_mfa: bool, now: Timestamp) -> Result<(), Reason> {
        let is_sign_in = self.is_sign_in();
        let needs_proof = |c: &Candidate| binding::needs_proof(c.secret.slot, has_mfa);
        let keep = |secrets: &mut Vec<Candidate>, reason, is_kept: &dyn Fn(&Candidate) -> bool| {
            secrets.retain(is_kept);
            if secrets.is_empty() { Err(reason) } else { Ok(()) }
        };
        keep(secrets, self.nothing(), &|c| self.covers(&c.secret) && !(is_sign_in && needs_proof(c)))?;
        keep(secrets, Reason::Disabled, &|c| !c.disabled)?;
        keep(secrets, self.expired(), &|c| c.is_usable(now))?;
        match self {
            Self::Pending { has_proof: false, .. } => keep(secrets, Reason::ProofRequired, &|c| !needs_proof(c)),
            _ => Ok(()),
        }
    }
}

/// What came of a comparison.
pub enum Compared<'a> {
    /// The code was refused, or charged.
    Answered(Answer),
    /// The code belongs to a secret. It is not used up yet.
    Matched(Box<Matched<'a>>),
}

/// What a code is compared with, and the rules under which it is judged.
struct Attempt<'a> {
    user: UserId<'a>,
    typed: Typed<'a>,
    now: Timestamp,
    policy: Policy,
    /// Where the user's attempts are counted, and their count at the look-up. The page decides later, not this value.
    attempts: RowAddress,
    counter: Counter,
    /// The secrets of the call that can sign in.
    candidates: Vec<Candidate>,
    /// The confirmed secrets of disabled devices of the user, if it is a sign-in.
    disabled: Vec<Candidate>,
    /// A secret of the user was not inserted or updated by this transaction.
    is_known_user: bool,
    /// A secret of the user was confirmed once.
    has_mfa: bool,
    /// The support desk has staged a secret.
    has_staged: bool,
}

/// A code that belongs to a secret, and the step that it is of.
pub struct Matched<'a> {
    attempt: Attempt<'a>,
    row: Target<Attempts>,
    found: Candidate,
    /// Of two codes, the step of the later one.
    step: TimeStep,
    floor_at: Timestamp,
    /// Keeps the rows where they were found.
    _look_up: LookUp,
}

/// Compares a code, or two. `None` has not the form of a code. What matches nothing is charged, once.
pub fn compare<'a>(
    user: UserId<'a>,
    typed: Option<Typed<'a>>,
    scope: Scope,
    policy: Policy,
) -> Result<Compared<'a>, Error> {
    let mut keys_were_read = false;
    loop {
        // Look up, and refuse what needs no comparison.
        let look_up = LookUp::begin()?;
        let mut attempt = match prepare(&look_up, user, typed, scope, policy)? {
            ControlFlow::Continue(attempt) => attempt,
            ControlFlow::Break(answer) => return Ok(Compared::Answered(answer)),
        };

        // Open. This may wait. Then everything is looked at again, at the current time, also if it did not open: a rotation may
        // have ended meanwhile, and the key that it retired may be gone from the key file.
        let reads = keyring::reads();
        let opened = attempt.open(&look_up);
        if keyring::reads() != reads && !keys_were_read {
            keys_were_read = true;
            continue;
        }
        let opened = opened?;
        let Some(floor_at) = replay_floor::known(attempt.now) else {
            drop(opened);
            replay_floor::current()?;
            continue;
        };
        let Some(row) = attempt.row()? else { continue };

        // Match.
        let found = matching::find(&attempt.candidates, &opened, attempt.typed, attempt.now);
        drop(opened);
        if let Some((place, step)) = found {
            let found = attempt.candidates.swap_remove(place);
            let matched = Matched { attempt, row, found, step, floor_at, _look_up: look_up };
            return Ok(Compared::Matched(Box::new(matched)));
        }
        if let Some(answer) = attempt.charge(row)? {
            return Ok(Compared::Answered(answer));
        }
    }
}

/// Looks up the user, and answers if no code can be compared: the user is locked or has no secret that the call covers, or
/// the code cannot be a code of one.
fn prepare<'a>(
    look_up: &LookUp,
    user: UserId<'a>,
    typed: Option<Typed<'a>>,
    scope: Scope,
    policy: Policy,
) -> Result<ControlFlow<Answer, Attempt<'a>>, Error> {
    let now = clock::now()?;
    let attempts = look_up.attempts(user)?;
    let counter = attempts.as_ref().map(|seen| seen.attempts.codes.believed(&policy, now.0));
    if let Some(counter) = counter.filter(|counter| counter.is_locked(now.0)) {
        counters::count(Counted::Locked);
        return Ok(ControlFlow::Break(Answer::new(Reason::Locked, counter, &policy, now)));
    }
    let mut candidates = look_up.secrets(user)?;
    if candidates.is_empty() {
        return Ok(ControlFlow::Break(Answer::not_enrolled()));
    }
    let (seen, counter) = attempts.zip(counter).ok_or(Error::RowsAltered)?;
    let is_known_user = candidates.iter().any(|s| !s.is_own);
    let has_mfa = candidates.iter().any(|s| s.is_enforced);
    let has_staged = candidates.iter().any(|s| s.secret.slot == Slot::Pending);
    let odds = within_odds(policy, &candidates, has_mfa, now);
    let is_of_disabled_device = |c: &&Candidate| scope.is_sign_in() && c.disabled && c.secret.slot == Slot::Active;
    let disabled = candidates.iter().filter(is_of_disabled_device).cloned().collect();
    match scope.retain(&mut candidates, has_mfa, now) {
        Err(Reason::NotEnrolled) => return Ok(ControlFlow::Break(Answer::not_enrolled())),
        Err(reason) => return Ok(ControlFlow::Break(Answer::new(reason, counter, &policy, now))),
        Ok(()) => {}
    }
    let is_code = |typed: &Typed| candidates.iter().any(|s| typed.has(s.secret.parameters.digits));
    let Some(typed) = typed.filter(is_code) else {
        return Ok(ControlFlow::Break(Answer::new(Reason::Malformed, counter, &odds, now)));
    };
    let (attempts, policy) = (seen.address, odds);
    Ok(ControlFlow::Continue(Attempt {
        user,
        typed,
        now,
        policy,
        attempts,
        counter,
        candidates,
        disabled,
        is_known_user,
        has_mfa,
        has_staged,
    }))
}

/// Returns the policy for guesses that are compared with every code in the windows of all secrets that can sign in.
///
/// It is the same for a call that names a device, since one counter counts the guesses at all devices.
fn within_odds(policy: Policy, secrets: &[Candidate], has_mfa: bool, now: Timestamp) -> Policy {
    let steps = 2 * usize::from(settings::window().get()) + 1;
    let counts = |s: &&Candidate| s.is_usable(now) && !binding::needs_proof(s.secret.slot, has_mfa);
    let digits = || secrets.iter().filter(counts).map(|s| s.secret.parameters.digits);
    digits().fold(policy, |policy, length| {
        let alike = digits().filter(|d| *d == length).count();
        policy.within_odds(alike * steps, length)
    })
}

impl Attempt<'_> {
    /// Opens every candidate.
    fn open(&self, look_up: &LookUp) -> Result<Vec<Secret>, Error> {
        self.candidates.iter().map(|c| keyring::open_secret(&look_up.snapshot, self.user, &c.secret)).collect()
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
                counters::count(Counted::Wrong);
                lsn.inspect(|l| if newly_locked { l.make_durable() } else { l.flush_soon() });
                match self.disabled_device() {
                    None => audit::failed(self.user, &counter, newly_locked, self.now),
                    Some(device) => audit::disabled_code(self.user, device, &counter, newly_locked, self.now),
                }?;
                Reason::Wrong
            }
            _ => {
                counters::count(Counted::Locked);
                Reason::Locked
            }
        };
        Ok(Some(Answer::new(reason, counter, &self.policy, self.now)))
    }

    /// Returns the disabled device that a wrong code belongs to. For the audit log, and only after the charge: see
    /// docs/design/decisions.md.
    fn disabled_device(&self) -> Option<DeviceName<'_>> {
        let has_code = |found: &&Candidate| {
            keyring::open_secret_at_hand(self.user, &found.secret)
                .is_some_and(|opened| self.typed.step(found, &opened, self.now).is_some())
        };
        self.disabled.iter().find(has_code).map(|found| found.secret.device())
    }

    /// Makes an accepted code durable, and activates its secret if it waited for its first code.
    fn accepted(&self, secret: &SealedSecret, lsn: Option<Lsn>) -> Result<(), Error> {
        lsn.inspect(|l| l.make_durable());
        if secret.slot != Slot::Active {
            binding::activate(self.user, secret, Proof::of_none(secret.slot), self.has_mfa, self.now)?;
        }
        if settings::audit_success() {
            audit::record(Event::Verified, self.now, Some(self.user), Some(secret.device()))?;
        }
        Ok(())
    }
}

impl<'a> Matched<'a> {
    /// The user whose secret it is.
    pub fn user(&self) -> UserId<'a> {
        self.attempt.user
    }

    /// The time of the comparison.
    pub fn now(&self) -> Timestamp {
        self.attempt.now
    }

    /// The secret that the code belongs to.
    pub fn secret(&self) -> &SealedSecret {
        &self.found.secret
    }

    /// Returns whether the secret counts only with a proof besides.
    pub fn needs_proof(&self) -> bool {
        binding::needs_proof(self.secret().slot, self.attempt.has_mfa)
    }

    /// Returns the step at the time of the comparison.
    fn current_step(&self) -> TimeStep {
        TimeStep::at(self.now().unix_seconds(), self.secret().parameters.period)
    }

    /// Returns the last step that may have been used in WAL that was lost.
    fn floor(&self) -> Option<TimeStep> {
        let found = &self.found;
        let period = self.secret().parameters.period;
        replay_floor::step(self.floor_at, found.created_at, self.now(), period, found.drift())
    }

    /// Returns how the code is used up, and what is learned from it.
    fn use_of_code(&self) -> impl Fn(UsedCode) -> UsedCode + use<> {
        let (step, current, now, learns) = (self.step, self.current_step(), self.now(), settings::learn_drift());
        move |used| {
            let used = used.with_use(step, now);
            if learns { used.with_drift(used.drift().learn(step, current)) } else { used }
        }
    }

    /// Judges the code: it may be used, or the user locked. `None` if a row is gone: look again.
    ///
    /// A secret that waits for its first code becomes active. For that the user is locked.
    pub fn judge(self) -> Result<Option<Answer>, Error> {
        if self.secret().slot != Slot::Active {
            let existing = secrets::of_user(&Snapshot::latest(), self.user())?;
            binding::make_room(self.user(), self.secret().device(), &existing, self.now())?;
        }
        let used = self.open_used()?;
        let (floor, use_of_code) = (self.floor(), self.use_of_code());
        let Self { attempt, row, found, step, .. } = self;
        // Who can only enroll knows the codes of a proposed secret. They clear no count of guesses at what the support desk has
        // staged.
        let clears = found.secret.slot != Slot::Proposed || !attempt.has_staged;
        let outcome = inplace::change_two(row, used, |attempts: &mut Attempts, used: &mut UsedCode| {
            let judgement = otp::judge(attempts.codes, &attempt.policy, attempt.now.0, used.step, Some(step), floor);
            if judgement.verdict == Verdict::Accepted {
                *used = use_of_code(*used);
            }
            if clears {
                attempts.codes = judgement.counter;
            }
            (judgement.verdict, attempts.codes)
        })?;
        let Outcome::Decided((verdict, counter), lsn) = outcome else { return Ok(None) };
        let answer = |reason| Answer::new(reason, counter, &attempt.policy, attempt.now);
        let (secret, device) = (&found.secret, found.secret.device());
        Ok(Some(match verdict {
            Verdict::Accepted => {
                counters::count(Counted::Accepted);
                attempt.accepted(secret, lsn)?;
                answer(Reason::Accepted).of_device(device)
            }
            Verdict::Replayed => {
                counters::count(Counted::Replayed);
                audit::replayed(attempt.user, device, attempt.now)?;
                answer(Reason::Replayed).of_device(device).not_before(retry_at(floor, step, &found))
            }
            Verdict::Locked | Verdict::Wrong { .. } => {
                counters::count(Counted::Locked);
                answer(Reason::Locked)
            }
        }))
    }

    /// Judges two codes in a row, and uses both up: the later one is the last used one then. Clears no count. `None` if a row is
    /// gone: look again.
    pub fn resync(self) -> Result<Option<bool>, Error> {
        let used = self.open_used()?;
        let (floor, current) = (self.floor(), self.current_step());
        let Self { attempt, row, found, step, .. } = self;
        let (earlier, now) = (step.plus(-1), attempt.now);
        // The search goes no further than a drift may.
        let drift = Drift::of_steps(step.get().saturating_sub(current.get())).ok_or(Error::Drift)?;
        let outcome = inplace::change_two(row, used, |attempts: &mut Attempts, used: &mut UsedCode| {
            let judgement = otp::judge(attempts.codes, &attempt.policy, now.0, used.step, Some(earlier), floor);
            if judgement.verdict == Verdict::Accepted {
                *used = used.with_resync(step, drift);
            }
            judgement.verdict
        })?;
        let Outcome::Decided(verdict, lsn) = outcome else { return Ok(None) };
        let (user, device) = (attempt.user, found.secret.device());
        match verdict {
            Verdict::Accepted => {
                lsn.inspect(|lsn| lsn.make_durable());
                audit::resynced(user, device, drift, now)?;
            }
            Verdict::Replayed => {
                counters::count(Counted::Replayed);
                audit::replayed(user, device, now)?;
            }
            Verdict::Locked | Verdict::Wrong { .. } => counters::count(Counted::Locked),
        }
        Ok(Some(verdict == Verdict::Accepted))
    }

    /// Returns the answer to a code that was used before. For a confirmation, with the user locked: nobody else uses a code of
    /// a secret that is not active then.
    pub fn replayed(&self) -> Result<Option<Answer>, Error> {
        let floor = self.floor();
        if self.found.is_fresh(self.step) && floor.is_none_or(|floor| self.step > floor) {
            return Ok(None);
        }
        let device = self.secret().device();
        counters::count(Counted::Replayed);
        audit::replayed(self.user(), device, self.now())?;
        let answer = Answer::new(Reason::Replayed, self.attempt.counter, &self.attempt.policy, self.now());
        Ok(Some(answer.of_device(device).not_before(retry_at(floor, self.step, &self.found))))
    }

    /// Opens the row of the used codes of the secret. What may refuse the code comes here.
    pub fn open_used(&self) -> Result<Target<UsedCode>, Error> {
        Target::open(&self.found.used()?)
    }

    /// Uses the code up, and nothing else: it clears no count. For a confirmation that was proven by another code.
    pub fn use_up(&self, used: Target<UsedCode>) -> Result<(), Error> {
        let use_of_code = self.use_of_code();
        let outcome = inplace::change_one(used, |used: &mut UsedCode| *used = use_of_code(*used))?;
        match outcome {
            Outcome::Decided((), lsn) => {
                counters::count(Counted::Accepted);
                lsn.inspect(|lsn| lsn.make_durable());
                Ok(())
            }
            // The user is locked, so nobody else removes the row.
            Outcome::LookAgain => Err(Error::RowsAltered),
        }
    }
}

/// Returns when a code that is refused for the floor alone is accepted again.
fn retry_at(floor: Option<TimeStep>, step: TimeStep, found: &Candidate) -> Option<Timestamp> {
    let floor = floor.filter(|floor| step <= *floor)?;
    let by_our_clock = floor.plus(-found.drift().steps());
    Some(Timestamp::from_unix_seconds(by_our_clock.end(found.secret.parameters.period)))
}
