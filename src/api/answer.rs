//! The answer to a guess: whether it was accepted, why not, and when to try again.
//!
//! Owns the names of the reasons. Must never return `infinity`, which many drivers cannot read.

use otp::{Counter, Policy};
use pgrx::prelude::*;

use super::secret_text::SecretText;
use crate::timestamp::Timestamp;
use crate::user::DeviceName;

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
    ProofRequired,
    ProofWrong,
    ProofReplayed,
    ProofLocked,
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
            Self::ProofRequired => "proof_required",
            Self::ProofWrong => "proof_wrong",
            Self::ProofReplayed => "proof_replayed",
            Self::ProofLocked => "proof_locked",
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
    pub fn of_device(self, device: DeviceName) -> Self {
        Self { device: Some(device.as_str().to_owned()), ..self }
    }

    /// Does the same, but a guess is not judged before this time.
    pub fn not_before(self, retry_at: Option<Timestamp>) -> Self {
        Self { retry_at, ..self }
    }

    /// The answer for a call that was given this code as its proof. It names no device.
    pub fn of_proof(self) -> Self {
        let reason = match self.reason {
            Reason::Accepted => Reason::Accepted,
            Reason::Replayed => Reason::ProofReplayed,
            Reason::Locked => Reason::ProofLocked,
            _ => Reason::ProofWrong,
        };
        Self { reason, device: None, ..self }
    }

    /// Does the same, with a new set of recovery codes.
    pub fn with_recovery_codes(self, codes: Vec<SecretText>) -> Self {
        Self { recovery_codes: Some(codes), ..self }
    }

    /// Returns whether the code was accepted.
    pub fn is_accepted(&self) -> bool {
        self.reason == Reason::Accepted
    }

    /// The time of the answer.
    pub fn now(&self) -> Timestamp {
        self.now
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
