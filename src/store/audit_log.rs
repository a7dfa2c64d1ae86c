//! `totp.audit_log`.
//!
//! Owns the rows. Must never update one.

use pgrx::IntoDatum;
use pgrx::datum::Interval;

use super::insert::insert_table;
use super::spi::{self, Snapshot, int8, statement, text, time};
use super::{next_number, shape};
use crate::backend;
use crate::error::Error;
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, UserId};

statement!(writes INSERT(INT8OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, NAMEOID, INETOID, TEXTOID, JSONBOID), c"
INSERT INTO totp.audit_log (id, at, event, user_id, device, actor, db_user, client_addr, application_name, detail)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)");

insert_table!(NEW, &shape::AUDIT_LOG, &INSERT);

/// The names and values of a detail.
pub type Detail = Vec<(&'static str, Value)>;

/// A value of a detail. In a row each is text.
pub enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl Value {
    fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// A row of `totp_stats()`.
pub struct EventCount {
    pub event: String,
    pub count: i64,
    pub users: i64,
    pub last_at: Timestamp,
}

statement!(reads STATS(TIMESTAMPTZOID, INTERVALOID), c"
SELECT event, pg_catalog.count(*), pg_catalog.count(DISTINCT user_id), pg_catalog.max(at)
  FROM totp.audit_log
 WHERE at > $1 - $2
 GROUP BY event
 ORDER BY event");
statement!(writes PRUNE(TIMESTAMPTZOID, INTERVALOID), c"DELETE FROM totp.audit_log WHERE at < $1 - $2");

statement!(reads NUMBERS(TEXTOID, TIMESTAMPTZOID, TEXTOID), c"
SELECT (detail->>$3)::bigint
  FROM totp.audit_log
 WHERE user_id = $1 AND at > $2 AND detail ? $3");

/// Returns the highest number in a detail of the rows of a user since a time.
pub fn latest_number(user: UserId, since: Timestamp, detail: &str) -> Result<Option<i64>, Error> {
    let args = [spi::user(user), time(since), text(detail)];
    let numbers = NUMBERS.with(|s| s.rows(&Snapshot::latest(), &args, |row| Ok(row.get(1))))?;
    Ok(numbers.into_iter().flatten().max()) // cheaper than a node of the plan
}

/// Counts the events in the interval before `now`.
pub fn stats(now: Timestamp, since: Interval) -> Result<Vec<EventCount>, Error> {
    STATS.with(|s| {
        s.rows(&Snapshot::latest(), &[time(now), since.into_datum()], |row| {
            Ok(EventCount { event: row.must(1)?, count: row.must(2)?, users: row.must(3)?, last_at: row.time(4)? })
        })
    })
}

/// Deletes older rows. Returns the number of rows.
pub fn prune(now: Timestamp, older_than: Interval) -> Result<i64, Error> {
    Ok(PRUNE.with(|s| s.count(&[time(now), older_than.into_datum()]))?.cast_signed())
}

/// Appends a row. The user and the client come from the session. If `actor` is `None`, it is the session user.
pub fn insert(
    event: &str,
    at: Timestamp,
    user: Option<UserId>,
    device: Option<DeviceName>,
    actor: Option<&str>,
    detail: &Detail,
) -> Result<(), Error> {
    let db_user = backend::session_user();
    let detail: Vec<_> = detail.iter().map(|(name, value)| (*name, value.to_text())).collect();
    // The table is locked before the id is taken: docs/design/trail.md.
    NEW.insert(|| {
        Ok([
            int8(next_number(c"audit_ids")?),
            time(at),
            text(event),
            user.and_then(spi::user),
            device.and_then(|d| text(d.as_str())),
            text(actor.unwrap_or(&db_user)),
            spi::name(&db_user),
            backend::client_address(),
            backend::application_name(),
            spi::json(&detail),
        ])
    })
}
