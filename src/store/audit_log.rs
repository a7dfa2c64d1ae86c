//! `totp.audit_log`.
//!
//! Owns the rows. Must never update one.

use super::spi::{self, Arg, Snapshot, statement, text, time};
use pgrx::IntoDatum;
use pgrx::datum::Interval;

use crate::error::Error;
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, UserId};

statement!(writes INSERT(TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID), c"
INSERT INTO totp.audit_log (at, event, user_id, device, actor, db_user, client_addr, application_name, detail)
VALUES ($1, $2, $3, $4, coalesce($5, session_user::text), session_user, pg_catalog.inet_client_addr(),
        pg_catalog.current_setting('application_name'), pg_catalog.jsonb_object($6))");

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

statement!(reads LATEST_NUMBER(TEXTOID, TIMESTAMPTZOID, TEXTOID), c"
SELECT pg_catalog.max((detail->>$3)::bigint)
  FROM totp.audit_log
 WHERE user_id = $1 AND at > $2 AND detail ? $3");

/// Returns the highest number in a detail of the rows of a user since a time.
pub fn latest_number(user: UserId, since: Timestamp, detail: &str) -> Result<Option<i64>, Error> {
    let args = [spi::user(user), time(since), text(detail)];
    Ok(LATEST_NUMBER.with(|s| s.first(&Snapshot::latest(), &args, |row| Ok(row.get(1))))?.flatten())
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

/// Converts to name, value, name, value; NULL if there is none.
fn text_array(detail: &Detail) -> Arg {
    let flat: Vec<String> = detail.iter().flat_map(|(key, value)| [(*key).into(), value.to_text()]).collect();
    if flat.is_empty() { None } else { flat.into_datum() }
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
    INSERT.with(|s| {
        s.change_one(&[
            time(at),
            text(event),
            user.and_then(spi::user),
            device.and_then(|d| text(d.as_str())),
            actor.and_then(text),
            text_array(detail),
        ])
    })
}
