//! The look-up of the hot path: everything that a sign-in decides on, seen by one snapshot.

use otp::TimeStep;

use super::attempts::{self, Attempts};
use super::secrets::{self, SealedSecret};
use super::spi::Snapshot;
use super::used_codes;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::inplace::RowAddress;

/// What a look at a user tells.
pub enum LookUp<R> {
    /// The user has no secret.
    Nobody,
    /// Refused for what the attempts were: nothing else was looked at.
    Refused(R),
    User(User),
}

/// A user's secrets as they are now.
pub struct User {
    /// Where the user's attempts are counted, and what they were at the look-up: the page decides, not this.
    pub attempts: RowAddress,
    pub seen: Attempts,
    /// Active ones first.
    pub secrets: Vec<Candidate>,
    /// Keeps the rows where they were found, and the data keys that open them.
    pub snapshot: Snapshot,
}

/// A secret that a code may belong to.
pub struct Candidate {
    pub secret: SealedSecret,
    pub created_at: Timestamp,
    pub expires_at: Option<i64>,
    pub disabled: bool,
    /// Where its last used step is kept, and what that was at the look-up: the page decides, not this.
    pub used: RowAddress,
    pub seen_step: TimeStep,
}

/// Looks up a user, unless `refuse` has an answer to the user's attempts already.
///
/// Errors: 55000 where a secret has not one row in `totp.attempts` and one in `totp.used_codes`: never a free guess.
pub fn look_up<R>(
    user_id: &str,
    refuse: impl FnOnce(&Attempts) -> Result<Option<R>, Error>,
) -> Result<LookUp<R>, Error> {
    let (attempts, used_codes, secrets) = (attempts::open()?, used_codes::open()?, secrets::open()?);
    let snapshot = Snapshot::latest();
    let attempts = attempts::read(&attempts, user_id, &snapshot)?;
    if let Some((_, seen)) = attempts
        && let Some(refused) = refuse(&seen)?
    {
        return Ok(LookUp::Refused(refused));
    }
    let used = used_codes.rows_of(user_id, &snapshot, used_codes::read)?;
    let mut secrets = secrets.rows_of(user_id, &snapshot, |_, row| {
        let secret = SealedSecret::read(row, secrets::SEALED_COLUMNS)?;
        let (used, seen) = used_codes::only_of(secret.secret_id, &used)?;
        Ok(Candidate {
            created_at: row.time(secrets::CREATED_AT)?,
            expires_at: row.time_or_null(secrets::EXPIRES_AT),
            disabled: row.time_or_null(secrets::DISABLED_AT).is_some(),
            used,
            seen_step: seen.step,
            secret,
        })
    })?;
    if secrets.is_empty() {
        return Ok(LookUp::Nobody);
    }
    let (attempts, seen) = attempts.ok_or(Error::RowsAltered)?;
    secrets.sort_by(|a, b| a.secret.order().cmp(&b.secret.order()));
    Ok(LookUp::User(User { attempts, seen, secrets, snapshot }))
}
