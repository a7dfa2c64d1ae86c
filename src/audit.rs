//! What goes to the audit log and to the server log, and who did it.
//!
//! No code, secret, URI, or key ever gets here: the events have names and numbers only.

use std::ffi::CStr;

use otp::Counter;
use pgrx::pg_sys;

use crate::clock::Timestamp;
use crate::error::Error;
use crate::removed::Removed;
use crate::server_log::Line;
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
    Unlocked,
    Reset,
    Disabled,
    Enabled,
    Removed,
    Renamed,
    RecoveryCodesCreated,
    RecoveryCodeUsed,
    KeyRotated,
    UnreadableForgotten,
    Exported,
}

impl Event {
    /// Returns the name that `totp.audit_log` and the server log have.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Imported => "imported",
            Self::Confirmed => "confirmed",
            Self::Verified => "verified",
            Self::Failed => "failed",
            Self::Replayed => "replayed",
            Self::Locked => "locked",
            Self::Unlocked => "unlocked",
            Self::Reset => "reset",
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::Removed => "removed",
            Self::Renamed => "renamed",
            Self::RecoveryCodesCreated => "recovery_codes_created",
            Self::RecoveryCodeUsed => "recovery_code_used",
            Self::KeyRotated => "key_rotated",
            Self::UnreadableForgotten => "unreadable_forgotten",
            Self::Exported => "exported",
        }
    }
}

/// The names and values of a detail.
pub type Detail = Vec<(&'static str, String)>;

/// Writes one audit row.
pub fn record(event: Event, at: Timestamp, user_id: Option<&str>, device: Option<&str>) -> Result<(), Error> {
    record_with(event, at, user_id, device, &Detail::new())
}

/// Writes one audit row with details.
pub fn record_with(
    event: Event,
    at: Timestamp,
    user_id: Option<&str>,
    device: Option<&str>,
    detail: &Detail,
) -> Result<(), Error> {
    store::audit_log::insert(event.as_str(), at, user_id, device, settings::actor().as_deref(), detail)
}

/// Records a wrong code, and the lock if it set one.
pub fn failed(user_id: &str, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged(Event::Failed, user_id, counter, newly_locked, at, &Detail::new())
}

/// Records a wrong recovery code, and the lock if it set one.
pub fn recovery_failed(user_id: &str, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged(Event::Failed, user_id, counter, newly_locked, at, &of_recovery_codes())
}

fn of_recovery_codes() -> Detail {
    vec![("of", "recovery_codes".into())]
}

/// Records a guess that was charged, and the lock if it set one.
fn charged(
    event: Event,
    user_id: &str,
    counter: &Counter,
    newly_locked: bool,
    at: Timestamp,
    detail: &Detail,
) -> Result<(), Error> {
    let events = if newly_locked { &[event, Event::Locked][..] } else { &[event] };
    // All lines first: writing a row may fail, but the event has happened.
    for event in events {
        line(*event, user_id, detail).number("failures", counter.failures.into()).write();
    }
    events.iter().try_for_each(|event| record_with(*event, at, Some(user_id), None, detail))
}

/// Records a good code that was used before.
pub fn replayed(user_id: &str, device: &str, at: Timestamp) -> Result<(), Error> {
    line(Event::Replayed, user_id, &vec![("device", device.into())]).write();
    record(Event::Replayed, at, Some(user_id), Some(device))
}

/// Records a recovery code that was used before, and the lock if it set one.
pub fn recovery_replayed(user_id: &str, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged(Event::Replayed, user_id, counter, newly_locked, at, &of_recovery_codes())
}

/// Records a recovery code that was accepted.
pub fn recovery_code_used(user_id: &str, at: Timestamp) -> Result<(), Error> {
    line(Event::RecoveryCodeUsed, user_id, &Detail::new()).write();
    record(Event::RecoveryCodeUsed, at, Some(user_id), None)
}

/// Records that failures and locks were cleared.
pub fn unlocked(user_id: &str, at: Timestamp) -> Result<(), Error> {
    line(Event::Unlocked, user_id, &Detail::new()).write();
    record(Event::Unlocked, at, Some(user_id), None)
}

/// Records a new id of a user: one row for each id, with the used steps of secrets that it has lost, so that the history of
/// either id can be found.
pub fn renamed((old, lost): (&str, &Removed), (new, inherited): (&str, &Removed), at: Timestamp) -> Result<(), Error> {
    let detail = |removed: &Removed, name, other: &str| [removed.detail(), vec![(name, other.into())]].concat();
    record_with(Event::Renamed, at, Some(old), None, &detail(lost, "new_user_id", new))?;
    record_with(Event::Renamed, at, Some(new), None, &detail(inherited, "old_user_id", old))
}

/// Records a complete rotation.
pub fn key_rotated(key_id: i32, secrets: i64, at: Timestamp) -> Result<(), Error> {
    let detail = vec![("key_id", key_id.to_string()), ("secrets", secrets.to_string())];
    record_with(Event::KeyRotated, at, None, None, &detail)
}

/// Records the removal of a secret that can never be opened again. Without a device it is a set of recovery codes, without a
/// user only a key.
pub fn unreadable_forgotten(
    user_id: Option<&str>,
    device: Option<&str>,
    master_key: &str,
    removed: &Removed,
    at: Timestamp,
) -> Result<(), Error> {
    let mut detail = removed.detail();
    detail.push(("master_key", master_key.into()));
    record_with(Event::UnreadableForgotten, at, user_id, device, &detail)
}

/// Records that a superuser exported all secrets.
pub fn exported(at: Timestamp) -> Result<(), Error> {
    signed(Event::Exported.as_str()).write();
    record(Event::Exported, at, None, None)
}

/// Logs that audit rows were deleted. In the server log only: an audit row would be deleted by the next call.
pub fn pruned(rows: i64) {
    signed("audit_pruned").number("rows", rows).write();
}

/// Begins a line in the server log, which a ROLLBACK does not undo.
fn line(event: Event, user_id: &str, detail: &Detail) -> Line {
    let line = signed(event.as_str()).text("user", user_id);
    detail.iter().fold(line, |line, (key, value)| line.text(key, value))
}

/// Begins a line that names who did it, since the audit row may be rolled back.
fn signed(event: &str) -> Line {
    let line = Line::new(event);
    if !line.is_wanted() {
        return line;
    }
    let line = line.text("db_user", &session_user());
    match settings::actor() {
        Some(actor) => line.text("actor", &actor),
        None => line,
    }
}

fn session_user() -> String {
    // SAFETY: the session's role exists while the session does, or its OID is shown; the name is copied.
    unsafe {
        let role = pg_sys::GetSessionUserId();
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() { role.to_u32().to_string() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}
