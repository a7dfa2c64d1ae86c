//! What is told to the audit log and to the server log, and by whom it was done.
//!
//! No code, secret, URI or key ever gets here: the events carry names and numbers only.

use otp::Counter;

use crate::clock::Timestamp;
use crate::error::Error;
use crate::log::Line;
use crate::{settings, store};

/// The events of the audit log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Enrolled,
    Imported,
    Confirmed,
    Verified,
    Failed,
    Replayed,
    Locked,
    Removed,
}

impl Event {
    /// The name as it stands in `totp.audit_log` and in the server log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Imported => "imported",
            Self::Confirmed => "confirmed",
            Self::Verified => "verified",
            Self::Failed => "failed",
            Self::Replayed => "replayed",
            Self::Locked => "locked",
            Self::Removed => "removed",
        }
    }
}

/// Writes one audit row.
pub fn record(event: Event, at: Timestamp, user_id: Option<&str>, device: Option<&str>) -> Result<(), Error> {
    store::audit::insert(event.as_str(), at, user_id, device, settings::actor().as_deref(), None)
}

/// A wrong code, and the lock that it set if it did. In the server log too, which a ROLLBACK does not reach.
pub fn failed(user_id: &str, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    line(Event::Failed, user_id, None).number("failures", counter.failures.into()).write();
    record(Event::Failed, at, Some(user_id), None)?;
    if newly_locked {
        line(Event::Locked, user_id, None).number("failures", counter.failures.into()).write();
        record(Event::Locked, at, Some(user_id), None)?;
    }
    Ok(())
}

/// A good code that was used before.
pub fn replayed(user_id: &str, device: &str, at: Timestamp) -> Result<(), Error> {
    line(Event::Replayed, user_id, Some(device)).write();
    record(Event::Replayed, at, Some(user_id), Some(device))
}

fn line(event: Event, user_id: &str, device: Option<&str>) -> Line {
    let line = Line::new(event.as_str()).text("user", user_id);
    match device {
        Some(device) => line.text("device", device),
        None => line,
    }
}
