//! The users, page by page, for `totp_list`.
//!
//! Owns the order of the users: that of the bytes of their ids. Must never read more than a page, nor anything sealed.

use otp::Counter;

use super::attempts;
use super::spi::{Row, Snapshot, int4, statement, text};
use crate::error::Error;
use crate::timestamp::Timestamp;

/// A row of `totp_list()`.
pub struct Listed {
    pub user_id: String,
    pub device: String,
    pub state: String,
    pub account_name: String,
    pub issuer: Option<String>,
    pub created_at: Timestamp,
    pub confirmed_at: Option<Timestamp>,
    /// `None` if the row with it is missing, which does not keep the page from the others.
    pub used_at: Option<Timestamp>,
    pub uses: Option<i64>,
    pub codes: Option<Counter>,
    pub recovery_codes_left: i32,
}

// The ids that begin with a prefix are next to each other, so the first one that does not ends the page. Each id is found from
// the one before, by the primary key: users may have many rows. OFFSET 0 keeps the joins within a user.
statement!(probes PAGE(TEXTOID, TEXTOID, INT4OID), c"
WITH RECURSIVE page(user_id, number) AS (
  SELECT first.user_id, 1
    FROM (SELECT s.user_id FROM totp.secrets s
           WHERE s.user_id > $1 AND s.user_id >= $2 ORDER BY s.user_id LIMIT 1) AS first
   WHERE pg_catalog.starts_with(first.user_id, $2)
   UNION ALL
  SELECT next.user_id, page.number + 1
    FROM page
   CROSS JOIN LATERAL (SELECT s.user_id FROM totp.secrets s
                        WHERE s.user_id > page.user_id ORDER BY s.user_id LIMIT 1) AS next
   WHERE page.number < $3 AND pg_catalog.starts_with(next.user_id, $2))
SELECT page.user_id, listed.*
  FROM page
 CROSS JOIN LATERAL (
       SELECT s.device,
              CASE WHEN s.disabled_at IS NOT NULL THEN 'disabled' WHEN s.slot = 'active' THEN 'active' ELSE 'pending' END,
              s.account_name, s.issuer, s.created_at, s.confirmed_at, u.used_at, u.uses, a.failures, a.locked_until,
              coalesce(r.count - pg_catalog.bit_count(c.recovery_mask::bit(64)), 0)::integer, s.slot
         FROM totp.secrets s
         LEFT JOIN totp.used_codes u ON u.user_id = s.user_id AND u.secret_id = s.secret_id
         LEFT JOIN totp.attempts a ON a.user_id = s.user_id
         LEFT JOIN totp.recovery_codes r ON r.user_id = s.user_id
         LEFT JOIN totp.used_codes c ON c.user_id = r.user_id AND c.secret_id = r.set_id
        WHERE s.user_id = page.user_id
       OFFSET 0) AS listed
 ORDER BY page.user_id, listed.device, listed.slot");

/// Returns the secrets of up to `max` users whose ids begin with `prefix`, after that id.
pub fn page(snapshot: &Snapshot, after: &str, max: i32, prefix: &str) -> Result<Vec<Listed>, Error> {
    PAGE.with(|s| s.rows(snapshot, &[text(after), text(prefix), int4(max)], listed))
}

fn listed(row: &Row) -> Result<Listed, Error> {
    Ok(Listed {
        user_id: row.must(1)?,
        device: row.must(2)?,
        state: row.must(3)?,
        account_name: row.must(4)?,
        issuer: row.get(5),
        created_at: row.time(6)?,
        confirmed_at: row.time_or_null(7),
        used_at: row.time_or_null(8),
        uses: row.get(9),
        codes: row.get(10).zip(row.time_or_null(11)).map(|(failures, until)| attempts::counter(failures, until)),
        recovery_codes_left: row.must(12)?,
    })
}
