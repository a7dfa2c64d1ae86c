//! The look-up of the hot path: everything that a sign-in decides on, in one statement.

use otp::{Algorithm, Digits, Parameters, Period, TimeStep};

use super::attempts::Attempts;
use super::lock_table;
use super::secrets::Slot;
use super::spi::{Row, Snapshot, statement, text};
use crate::error::Error;
use crate::inplace::{InPlace, RowAddress};

/// A user's secrets as they are now.
pub struct LookUp {
    /// Where the user's attempts are counted, and what they were at the look-up: the page decides, not this.
    pub attempts: RowAddress,
    pub seen: Attempts,
    pub secrets: Vec<StoredSecret>,
    /// Keeps the rows where they were found.
    _snapshot: Snapshot,
}

/// One secret of the user.
pub struct StoredSecret {
    pub device: String,
    pub slot: Slot,
    pub secret_id: i64,
    pub sealed: Vec<u8>,
    pub parameters: Parameters,
    pub created_at: i64,
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
            stored_secret(row)
        })
    })?;
    secrets.sort_by(|a, b| (a.slot as u8, &a.device).cmp(&(b.slot as u8, &b.device)));
    Ok(attempts.map(|(attempts, seen)| LookUp { attempts, seen, secrets, _snapshot: snapshot }))
}

fn stored_secret(row: &Row) -> Result<StoredSecret, Error> {
    Ok(StoredSecret {
        used: row.address(9)?,
        seen_step: TimeStep::new(row.word(12)?),
        device: row.must(13)?,
        slot: Slot::from_stored(&row.must::<String>(14)?)?,
        secret_id: row.must(15)?,
        sealed: row.must(16)?,
        parameters: Parameters {
            algorithm: Algorithm::parse(&row.must::<String>(17)?).map_err(|_| Error::RowsAltered)?,
            digits: Digits::new(row.must::<i16>(18)?.into()).map_err(|_| Error::RowsAltered)?,
            period: Period::new(row.must::<i16>(19)?.into()).map_err(|_| Error::RowsAltered)?,
        },
        created_at: row.word(20)?,
        expires_at: row.time_or_null(21),
        disabled: row.must(22)?,
    })
}
