//! TOTP: the code of one time step, and the window: which step a code belongs to (RFC 6238).
//!
//! Owns the step as the counter of HOTP, and the search. Must never return early: the time it takes says nothing about the
//! code.

use hmac::EagerHash;
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::algorithm::Algorithm;
use crate::code::Code;
use crate::hotp::Keyed;
use crate::parameters::{Digits, Parameters};
use crate::secret::Secret;
use crate::step::{TimeStep, Window};

/// Computes the code of one step (RFC 4226 section 5.3, RFC 6238 section 4.2). Defined for every step, also negative ones.
pub fn code_at_step(secret: &Secret, algorithm: Algorithm, digits: Digits, step: TimeStep) -> Code {
    match algorithm {
        Algorithm::Sha1 => Keyed::<Sha1>::new(secret).code(digits, step.get()),
        Algorithm::Sha256 => Keyed::<Sha256>::new(secret).code(digits, step.get()),
        Algorithm::Sha512 => Keyed::<Sha512>::new(secret).code(digits, step.get()),
    }
}

/// Returns the highest step of the window around step `middle` whose code is `code` (RFC 6238 section 5.2).
///
/// All `2 * window + 1` codes are computed and compared in constant time. A code of another number of digits matches none.
/// Nothing is allocated.
pub fn matching_step(
    secret: &Secret,
    parameters: Parameters,
    code: &Code,
    middle: TimeStep,
    window: Window,
) -> Option<TimeStep> {
    let digits = parameters.digits;
    match parameters.algorithm {
        Algorithm::Sha1 => highest_match::<Sha1>(secret, digits, code, middle, window),
        Algorithm::Sha256 => highest_match::<Sha256>(secret, digits, code, middle, window),
        Algorithm::Sha512 => highest_match::<Sha512>(secret, digits, code, middle, window),
    }
}

/// Searches from the lowest step up, so that the highest match is kept.
fn highest_match<D: EagerHash>(
    secret: &Secret,
    digits: Digits,
    code: &Code,
    middle: TimeStep,
    window: Window,
) -> Option<TimeStep> {
    let keyed = Keyed::<D>::new(secret);
    let reach = i64::from(window.get());
    let (mut step, mut matched) = (0, Choice::from(0));
    for offset in -reach..=reach {
        // A period has at least 15 seconds, so a step is far from the ends of i64.
        let candidate = middle.get().saturating_add(offset);
        let equal = keyed.code(digits, candidate).ct_eq(code);
        step.conditional_assign(&candidate, equal);
        matched |= equal;
    }
    bool::from(matched).then_some(TimeStep::new(step))
}

/// Returns the later step of the highest two steps in a row, at most `reach` steps from `now`, that have these codes
/// (RFC 6238 section 6).
///
/// All `2 * reach + 1` codes are computed and compared in constant time. Nothing is allocated.
pub fn matching_pair(
    secret: &Secret,
    parameters: Parameters,
    codes: [&Code; 2],
    now: TimeStep,
    reach: u8,
) -> Option<TimeStep> {
    let digits = parameters.digits;
    match parameters.algorithm {
        Algorithm::Sha1 => highest_pair::<Sha1>(secret, digits, codes, now, reach),
        Algorithm::Sha256 => highest_pair::<Sha256>(secret, digits, codes, now, reach),
        Algorithm::Sha512 => highest_pair::<Sha512>(secret, digits, codes, now, reach),
    }
}

/// Searches from the lowest step up, so that the highest pair is kept.
fn highest_pair<D: EagerHash>(
    secret: &Secret,
    digits: Digits,
    [first, second]: [&Code; 2],
    now: TimeStep,
    reach: u8,
) -> Option<TimeStep> {
    let keyed = Keyed::<D>::new(secret);
    let reach = i64::from(reach);
    let (mut step, mut matched) = (0, Choice::from(0));
    let mut step_before_has_first = Choice::from(0);
    for offset in -reach..=reach {
        let candidate = now.get().saturating_add(offset);
        let code = keyed.code(digits, candidate);
        let both = step_before_has_first & code.ct_eq(second);
        step_before_has_first = code.ct_eq(first);
        step.conditional_assign(&candidate, both);
        matched |= both;
    }
    bool::from(matched).then_some(TimeStep::new(step))
}
