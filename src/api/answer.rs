//! The answer to a guess: whether it was accepted, why not, and when to try again.
//!
//! Owns the names of the reasons. Must never return `infinity`, which many drivers cannot read.

use otp::{Counter, Policy};
use pgrx::prelude::*;

use super::secret_text::SecretText;
use crate::timestamp::Timestamp;

/// Why a code was accepted or not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Accepted,
    Wrong,
    Replayed,
    Locked,
    Malformed,
    NotEnrolled,
    Disabled,
    NothingPending,
    Expired,
}

impl Reason {
    /// Returns the name in column `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Wrong => "wrong",
            Self::Replayed => "replayed",
            Self::Locked => "locked",
            Self::Malformed => "malformed",
            Self::NotEnrolled => "not_enrolled",
            Self::Disabled => "disabled",
            Self::NothingPending => "nothing_pending",
            Self::Expired => "expired",
        }
    }
}

/// The answer to a guess.
pub struct Answer {
    pub reason: Reason,
    pub device: Option<String>,
    pub attempts_left: Option<i32>,
    /// A set that a confirmation created.
    pub recovery_codes: Option<Vec<SecretText>>,
    /// When a guess is judged again. `None` if it is judged now, or only after an unlock.
    retry_at: Option<Timestamp>,
    /// When the answer was found.
    now: Timestamp,
}

impl Answer {
    /// The user has nothing to compare a guess with.
    pub fn not_enrolled() -> Self {
        Self {
            reason: Reason::NotEnrolled,
            device: None,
            attempts_left: None,
            recovery_codes: None,
            retry_at: None,
            now: Timestamp::NEVER,
        }
    }

    /// The answer for a counter. `policy` says how many guesses are left.
    pub fn new(reason: Reason, counter: Counter, policy: &Policy, now: Timestamp) -> Self {
        Self {
            reason,
            device: None,
            attempts_left: Some(counter.attempts_left(policy, now.0)),
            recovery_codes: None,
            retry_at: counter.retry_at(now.0).map(Timestamp),
            now,
        }
    }

    /// Does the same for a code of this device.
    pub fn of_device(self, device: &str) -> Self {
        Self { device: Some(device.to_owned()), ..self }
    }

    /// Does the same, but a guess is not judged before this time.
    pub fn not_before(self, retry_at: Option<Timestamp>) -> Self {
        Self { retry_at, ..self }
    }

    /// Does the same, with a new set of recovery codes.
    pub fn with_recovery_codes(self, recovery_codes: Option<Vec<SecretText>>) -> Self {
        Self { recovery_codes, ..self }
    }

    /// Returns whether the code was accepted.
    pub fn is_accepted(&self) -> bool {
        self.reason == Reason::Accepted
    }

    /// Returns column `retry_at`.
    pub fn retry_at(&self) -> Option<TimestampWithTimeZone> {
        self.retry_at.and_then(Timestamp::to_sql)
    }

    /// Returns column `retry_after`: whole seconds, rounded up.
    pub fn retry_after(&self) -> Option<i32> {
        self.retry_at.map(|at| at.seconds_after(self.now))
    }
}
