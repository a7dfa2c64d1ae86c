//! The look-up of the hot path: everything that a sign-in decides on, in one statement.

use otp::TimeStep;

use super::attempts::Attempts;
use super::lock_table;
use super::secrets::SealedSecret;
use super::spi::{Row, Snapshot, statement, text};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::inplace::{InPlace, RowAddress};

/// A user's secrets as they are now.
pub struct LookUp {
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

statement!(reads LOOK_UP(TEXTOID), c"
SELECT a.tableoid, a.ctid, a.xmin, a.locked_until, a.recovery_locked_until, a.last_failed_at, a.failures,
       a.recovery_failures,
       u.tableoid, u.ctid, u.xmin, u.time_step,
       s.device, s.slot, s.secret_id, s.sealed, s.algorithm, s.digits, s.period, s.created_at, s.expires_at,
       s.disabled_at IS NOT NULL
  FROM totp.secrets s
  LEFT JOIN totp.attempts a ON a.user_id = s.user_id
  LEFT JOIN totp.used_codes u ON u.user_id = s.user_id AND u.secret_id = s.secret_id
 WHERE s.user_id = $1");

/// Looks up a user. `None` where the user has no secret.
///
/// Errors: 55000 where a secret is without its row in `totp.attempts` or `totp.used_codes`: never a free guess.
pub fn look_up(user_id: &str) -> Result<Option<LookUp>, Error> {
    lock_table(c"attempts");
    lock_table(c"used_codes");
    let snapshot = Snapshot::latest();
    let mut attempts = None;
    let mut secrets = LOOK_UP.with(|s| {
        s.rows(&snapshot, &[text(user_id)], |row| {
            if attempts.is_none() {
                let words = [row.word(4)?, row.word(5)?, row.word(6)?, row.word(7)?, row.word(8)?];
                attempts = Some((row.address(1)?, Attempts::from_words(words)));
            }
            candidate(row)
        })
    })?;
    // Here, since a Sort node costs more than the rest of the plan.
    secrets.sort_by(|a, b| a.secret.order().cmp(&b.secret.order()));
    Ok(attempts.map(|(attempts, seen)| LookUp { attempts, seen, secrets, snapshot }))
}

fn candidate(row: &Row) -> Result<Candidate, Error> {
    Ok(Candidate {
        used: row.address(9)?,
        seen_step: TimeStep::new(row.word(12)?),
        secret: SealedSecret::read(row, 13)?,
        created_at: row.time(20)?,
        expires_at: row.time_or_null(21),
        disabled: row.must(22)?,
    })
}
