//! A proof that the caller acts for a user who has MFA: a current code of an active device, or a recovery code.
//!
//! It is judged as a sign-in: charged, locked, used up, in the log, out of reach of a ROLLBACK.
//!
//! Owns which calls need one. Must never be asked before everything else that a call may refuse is settled: a proof is used
//! up for nothing then.

use otp::RecoveryCode;

use super::answer::Answer;
use super::binding::{self, Proof};
use super::judgment::Scope;
use super::{recovery, verify};
use crate::error::Error;
use crate::settings;
use crate::store::secrets::Existing;
use crate::user::UserId;

/// What came of a proof.
pub enum Judged {
    Good(Proof, Answer),
    Bad(Answer),
}

/// Judges a proof. What has the form of a recovery code is judged as one, everything else as a code.
pub fn judge(user: UserId, proof: &str) -> Result<Judged, Error> {
    let (kind, answer) = if RecoveryCode::parse(proof).is_ok() {
        (Proof::RecoveryCode, recovery::judge_code(Some(user.as_str()), Some(proof))?)
    } else {
        (Proof::Code, verify::judge_code(Some(user.as_str()), Some(proof), Scope::Active)?)
    };
    let answer = answer.of_proof();
    Ok(if answer.is_accepted() { Judged::Good(kind, answer) } else { Judged::Bad(answer) })
}

/// Asks for a proof if the user has MFA, with the user locked. False if it is bad. A proof that is not needed is ignored.
///
/// Errors: 42501 if a proof is needed and there is none.
pub fn ask(user: UserId, existing: &[Existing], proof: Option<&str>) -> Result<bool, Error> {
    if !settings::require_proof() || !binding::has_mfa(existing) {
        return Ok(true);
    }
    Ok(matches!(judge(user, proof.ok_or(Error::ProofRequired)?)?, Judged::Good(..)))
}
