//! The judgement of one attempt.
//!
//! Owns the decision that is made under the page lock. Must never do more than compare and assign: no allocation, no panic,
//! no HMAC, so that the page is locked for nanoseconds and an error cannot leave it half written.
//! It cannot panic: it compares integers and calls [`Counter::charge`], which saturates.

use crate::lockout::{Counter, Policy};
use crate::step::TimeStep;

/// The outcome of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Refused unseen: the counter is locked. Not charged.
    Locked,
    /// No step of the window has this code. Charged.
    Wrong {
        /// Whether this failure set a lock.
        newly_locked: bool,
    },
    /// The code of a step that is burnt, or not above the floor: not charged. Or a spent recovery code: charged.
    Replayed,
    /// The code of a step above both. The step is burnt now.
    Accepted,
}

/// The outcome and what is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The outcome.
    pub verdict: Verdict,
    /// Failures and lock after it.
    pub counter: Counter,
    /// The highest step that was ever accepted, after it.
    pub burnt: TimeStep,
}

/// What a guess is, before failures and locks are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// No code or recovery code is this one.
    NoMatch,
    /// A code that was used before, or may have been. The window ends it soon.
    Used,
    /// A recovery code that was used before. No window ends it.
    Spent,
    /// One that may be used now.
    Fresh,
}

/// Judges a guess at `now` (microseconds, as in [`Policy`]): its verdict, and the counter after it.
///
/// A lock comes first, whatever the guess is. [`Guess::NoMatch`] and [`Guess::Spent`] are charged; only [`Guess::Fresh`]
/// clears failures.
pub fn judge_guess(counter: Counter, policy: &Policy, now: i64, guess: Guess) -> (Verdict, Counter) {
    let counter = counter.believed(policy, now);
    if counter.is_locked(now) {
        return (Verdict::Locked, counter);
    }
    match guess {
        Guess::NoMatch => {
            let counter = counter.charge(policy, now);
            (Verdict::Wrong { newly_locked: counter.is_locked(now) }, counter)
        }
        Guess::Used => (Verdict::Replayed, counter),
        Guess::Spent => (Verdict::Replayed, counter.charge(policy, now)),
        Guess::Fresh => (Verdict::Accepted, Counter::CLEAR),
    }
}

/// Judges one code at `now` (microseconds, as in [`Policy`]).
///
/// `burnt` is the last accepted step, or [`TimeStep::NONE`]. `matched` is the highest step of the window that has this code.
/// `floor`, where there is one, is a step up to which codes may have been accepted elsewhere.
///
/// A code counts once: a step at or below `burnt` is refused (RFC 6238 section 5.2).
pub fn judge(
    counter: Counter,
    policy: &Policy,
    now: i64,
    burnt: TimeStep,
    matched: Option<TimeStep>,
    floor: Option<TimeStep>,
) -> Judgement {
    let guess = match matched {
        None => Guess::NoMatch,
        Some(step) if step <= burnt || floor.is_some_and(|floor| step <= floor) => Guess::Used,
        Some(_) => Guess::Fresh,
    };
    let (verdict, counter) = judge_guess(counter, policy, now, guess);
    let burnt = if verdict == Verdict::Accepted { matched.unwrap_or(burnt) } else { burnt };
    Judgement { verdict, counter, burnt }
}
