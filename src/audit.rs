//! What goes to the audit log and to the server log, and who did it. Events have names and numbers only.
//!
//! Owns the names of events. Must never get a code, secret, URI, or key.

use otp::{Counter, Drift};
use seal::KeyId;

use crate::error::Error;
use crate::server_log::Line;
use crate::store::audit_log;
pub use crate::store::audit_log::Detail;
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, UserId};
use crate::{backend, settings};

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
    RecoveryCodesRemoved,
    RecoveryCodeUsed,
    Moved,
    Resynced,
    KeyRotated,
    UnreadableForgotten,
    Exported,
    RestoreAcknowledged,
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
            Self::RecoveryCodesRemoved => "recovery_codes_removed",
            Self::RecoveryCodeUsed => "recovery_code_used",
            Self::Moved => "moved",
            Self::Resynced => "resynced",
            Self::KeyRotated => "key_rotated",
            Self::UnreadableForgotten => "unreadable_forgotten",
            Self::Exported => "exported",
            Self::RestoreAcknowledged => "restore_acknowledged",
        }
    }
}

/// Writes one audit row.
pub fn record(event: Event, at: Timestamp, user: Option<UserId>, device: Option<DeviceName>) -> Result<(), Error> {
    record_with(event, at, user, device, &Detail::new())
}

/// Writes one audit row with details.
pub fn record_with(
    event: Event,
    at: Timestamp,
    user: Option<UserId>,
    device: Option<DeviceName>,
    detail: &Detail,
) -> Result<(), Error> {
    audit_log::insert(event.as_str(), at, user, device, settings::actor().as_deref(), detail)
}

/// Records a wrong code, and the lock if it set one.
pub fn failed(user: UserId, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged(Event::Failed, user, counter, newly_locked, at, &Detail::new())
}

/// Records a wrong recovery code, and the lock if it set one.
pub fn recovery_failed(user: UserId, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged(Event::Failed, user, counter, newly_locked, at, &of_recovery_codes())
}

fn of_recovery_codes() -> Detail {
    vec![("of", "recovery_codes".into())]
}

/// Records a guess that was charged, and the lock if it set one.
fn charged(
    event: Event,
    user: UserId,
    counter: &Counter,
    newly_locked: bool,
    at: Timestamp,
    detail: &Detail,
) -> Result<(), Error> {
    let events = if newly_locked { &[event, Event::Locked][..] } else { &[event] };
    // All lines first: writing a row may fail, but the event has happened.
    for event in events {
        line(*event, user, detail).number("failures", counter.failures.into()).write();
    }
    events.iter().try_for_each(|event| record_with(*event, at, Some(user), None, detail))
}

/// Records a good code that was used before.
pub fn replayed(user: UserId, device: DeviceName, at: Timestamp) -> Result<(), Error> {
    line(Event::Replayed, user, &vec![("device", device.as_str().into())]).write();
    record(Event::Replayed, at, Some(user), Some(device))
}

/// Records a recovery code that was used before, and the lock if it set one.
pub fn recovery_replayed(user: UserId, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged(Event::Replayed, user, counter, newly_locked, at, &of_recovery_codes())
}

/// Records a recovery code that was accepted.
pub fn recovery_code_used(user: UserId, at: Timestamp) -> Result<(), Error> {
    line(Event::RecoveryCodeUsed, user, &Detail::new()).write();
    record(Event::RecoveryCodeUsed, at, Some(user), None)
}

/// Records that failures and locks were cleared.
pub fn unlocked(user: UserId, at: Timestamp) -> Result<(), Error> {
    line(Event::Unlocked, user, &Detail::new()).write();
    record(Event::Unlocked, at, Some(user), None)
}

/// Records one side of a rename: `name` says what the other id is to the user of the row. Each id has a row, so that
/// the history of either can be found.
pub fn renamed(
    user: UserId,
    (name, other): (&'static str, UserId),
    mut detail: Detail,
    at: Timestamp,
) -> Result<(), Error> {
    detail.push((name, other.as_str().into()));
    record_with(Event::Renamed, at, Some(user), None, &detail)
}

/// Records that the drift of a token was measured, in steps.
pub fn resynced(user: UserId, device: DeviceName, drift: Drift, at: Timestamp) -> Result<(), Error> {
    let detail = vec![("drift", drift.steps().to_string())];
    record_with(Event::Resynced, at, Some(user), Some(device), &detail)
}

/// Records a complete rotation.
pub fn key_rotated(key: KeyId, secrets: i64, at: Timestamp) -> Result<(), Error> {
    let detail = vec![("key_id", key.get().to_string()), ("secrets", secrets.to_string())];
    record_with(Event::KeyRotated, at, None, None, &detail)
}

/// Records the removal of a secret that can never be opened again. Without a device it is a set of recovery codes, without a
/// user only a key.
pub fn unreadable_forgotten(
    user: Option<UserId>,
    device: Option<DeviceName>,
    master_key: &str,
    mut detail: Detail,
    at: Timestamp,
) -> Result<(), Error> {
    detail.push(("master_key", master_key.into()));
    record_with(Event::UnreadableForgotten, at, user, device, &detail)
}

/// Records that a superuser exported all secrets.
pub fn exported(at: Timestamp) -> Result<(), Error> {
    signed(Event::Exported.as_str()).write();
    record(Event::Exported, at, None, None)
}

/// Records that the owner has acknowledged a failover or restore, which the floor dates.
pub fn restore_acknowledged(floor_at: Timestamp, at: Timestamp) -> Result<(), Error> {
    let floor_at = floor_at.unix_seconds().to_string();
    signed(Event::RestoreAcknowledged.as_str()).text("floor_at", &floor_at).write();
    record_with(Event::RestoreAcknowledged, at, None, None, &vec![("floor_at", floor_at)])
}

/// Logs that audit rows were deleted. In the server log only: an audit row would be deleted by the next call.
pub fn pruned(rows: i64) {
    signed("audit_pruned").number("rows", rows).write();
}

/// Begins a line in the server log, which a ROLLBACK does not undo.
fn line(event: Event, user: UserId, detail: &Detail) -> Line {
    let line = signed(event.as_str()).text("user", user.as_str());
    detail.iter().fold(line, |line, (key, value)| line.text(key, value))
}

/// Begins a line that names who did it, since the audit row may be rolled back.
fn signed(event: &str) -> Line {
    let line = Line::new(event);
    if !line.is_wanted() {
        return line;
    }
    let line = line.text("db_user", &backend::session_user());
    match settings::actor() {
        Some(actor) => line.text("actor", &actor),
        None => line,
    }
}
