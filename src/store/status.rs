//! What `totp_enabled` and `totp_status` know about a user.
//!
//! Owns the join of the tables of a user. Must never read anything that is sealed.

use otp::{Counter, Drift};

use super::attempts;
use super::spi::{self, Row, Snapshot, statement};
use crate::error::Error;
use crate::timestamp::Timestamp;
use crate::user::UserId;

/// A row of `totp_status()`.
pub struct Listed {
    pub device: String,
    pub state: String,
    pub account_name: String,
    pub issuer: Option<String>,
    pub algorithm: String,
    pub digits: i16,
    pub period: i16,
    pub version: i32,
    pub created_at: Timestamp,
    pub confirmed_at: Option<Timestamp>,
    pub used_at: Timestamp,
    pub uses: i64,
    pub codes: Counter,
    pub recovery: Counter,
    pub recovery_codes_left: i32,
    pub approved: bool,
    pub drift: Drift,
}

statement!(reads ENFORCED(TEXTOID), c"
SELECT FROM totp.secrets WHERE user_id = $1 AND enforced_since IS NOT NULL AND disabled_at IS NULL");
statement!(reads LIST(TEXTOID), c"
SELECT s.device, CASE WHEN s.disabled_at IS NOT NULL THEN 'disabled' WHEN s.slot = 'active' THEN 'active' ELSE 'pending' END,
       s.account_name, s.issuer,
       s.algorithm, s.digits, s.period, s.version, s.created_at, s.confirmed_at,
       u.used_at, u.uses, a.failures, a.locked_until, a.recovery_failures, a.recovery_locked_until,
       coalesce(r.count - pg_catalog.bit_count(c.recovery_mask::bit(64)), 0)::integer,
       s.slot <> 'proposed', u.recovery_mask
  FROM totp.secrets s
  LEFT JOIN totp.used_codes u ON u.user_id = s.user_id AND u.secret_id = s.secret_id
  LEFT JOIN totp.attempts a ON a.user_id = s.user_id
  LEFT JOIN totp.recovery_codes r ON r.user_id = s.user_id
  LEFT JOIN totp.used_codes c ON c.user_id = r.user_id AND c.secret_id = r.set_id
 WHERE s.user_id = $1
 ORDER BY s.device, s.slot");

/// Returns whether a device of the user was ever confirmed and is neither disabled nor removed.
pub fn is_enforced(snapshot: &Snapshot, user: UserId) -> Result<bool, Error> {
    Ok(ENFORCED.with(|s| s.first(snapshot, &[spi::user(user)], |_| Ok(())))?.is_some())
}

/// Returns the rows of `totp_status()`.
pub fn list(snapshot: &Snapshot, user: UserId) -> Result<Vec<Listed>, Error> {
    LIST.with(|s| s.rows(snapshot, &[spi::user(user)], listed))
}

fn listed(row: &Row) -> Result<Listed, Error> {
    Ok(Listed {
        device: row.must(1)?,
        state: row.must(2)?,
        account_name: row.must(3)?,
        issuer: row.get(4),
        algorithm: row.must(5)?,
        digits: row.must(6)?,
        period: row.must(7)?,
        version: row.must(8)?,
        created_at: row.time(9)?,
        confirmed_at: row.time_or_null(10),
        used_at: row.time(11)?,
        uses: row.must(12)?,
        codes: attempts::counter(row.must(13)?, row.time(14)?),
        recovery: attempts::counter(row.must(15)?, row.time(16)?),
        recovery_codes_left: row.must(17)?,
        approved: row.must(18)?,
        drift: Drift::from_stored(row.must(19)?),
    })
}
