//! Matching: which secret and which time step a code belongs to.
//!
//! Owns the comparison. Must never end early, wait, or fail: a right code and a wrong one take the same way.

use otp::{Code, Digits, Secret, TimeStep};

use crate::settings;
use crate::store::sign_in::Candidate;
use crate::timestamp::Timestamp;

/// What the user typed.
#[derive(Clone, Copy)]
pub enum Typed<'a> {
    /// One code, in the window of a sign-in.
    Code(&'a Code),
    /// Two codes in a row, for a resynchronization.
    Pair([&'a Code; 2]),
}

impl Typed<'_> {
    /// Returns whether a secret with so many digits could have it.
    pub fn has(self, digits: Digits) -> bool {
        match self {
            Self::Code(code) => code.has(digits),
            Self::Pair(codes) => codes.iter().all(|code| code.has(digits)),
        }
    }

    /// Returns the step of the code, or of the later one of two.
    pub fn step(self, candidate: &Candidate, secret: &Secret, now: Timestamp) -> Option<TimeStep> {
        let parameters = candidate.secret.parameters;
        let now = TimeStep::at(now.unix_seconds(), parameters.period);
        match self {
            Self::Code(code) => {
                otp::matching_step(secret, parameters, code, candidate.drift().of_token(now), settings::window())
            }
            Self::Pair(codes) => otp::matching_pair(secret, parameters, codes, now, settings::resync_steps()),
        }
    }
}

/// Compares every step of every window, whether an earlier one matched or not. Returns the place of the secret that the code
/// belongs to, and its step.
pub fn find(candidates: &[Candidate], opened: &[Secret], typed: Typed, now: Timestamp) -> Option<(usize, TimeStep)> {
    let mut best: Option<(usize, TimeStep)> = None;
    for (place, (candidate, secret)) in candidates.iter().zip(opened).enumerate() {
        let step = typed.step(candidate, secret, now);
        // A code that fits two devices by chance counts for the one where it is not used.
        let is_fresh = |(place, step): (usize, TimeStep)| candidates.get(place).is_some_and(|c| c.is_fresh(step));
        if let Some(step) = step.filter(|step| best.is_none_or(|best| !is_fresh(best) && candidate.is_fresh(*step))) {
            best = Some((place, step));
        }
    }
    best
}
