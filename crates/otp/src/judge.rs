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
    /// The code of a step that is burnt, or not above the floor. Not charged.
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

/// Judges one attempt at `now` (microseconds, as in [`Policy`]).
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
    if counter.is_locked(now) {
        return Judgement {
            verdict: Verdict::Locked,
            counter,
            burnt,
        };
    }
    let Some(step) = matched else {
        let counter = counter.charge(policy, now);
        return Judgement {
            verdict: Verdict::Wrong {
                newly_locked: counter.is_locked(now),
            },
            counter,
            burnt,
        };
    };
    if step <= burnt || floor.is_some_and(|floor| step <= floor) {
        return Judgement {
            verdict: Verdict::Replayed,
            counter,
            burnt,
        };
    }
    Judgement {
        verdict: Verdict::Accepted,
        counter: Counter::CLEAR,
        burnt: step,
    }
}
