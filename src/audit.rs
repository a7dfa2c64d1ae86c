//! What goes to the audit log and to the server log, and who did it. Events have names and numbers only.
//!
//! Owns the names of events. Must never get a code, secret, URI, or key.

use otp::{Counter, Drift};
use seal::KeyId;

use crate::error::Error;
use crate::server_log::Line;
use crate::store::audit_log;
pub use crate::store::audit_log::{Detail, Value};
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, UserId};
use crate::{audit_lines, settings};

/// Defines [`Event`]: each variant, and its name in `totp.audit_log` and in the server log.
macro_rules! events {
    ($($variant:ident = $name:literal,)*) => {
        /// The events of the audit log.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub enum Event {
            $($variant,)*
        }

        impl Event {
            /// Returns the name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

events! {
    Enrolled = "enrolled",
    Imported = "imported",
    Confirmed = "confirmed",
    Verified = "verified",
    Failed = "failed",
    DisabledCode = "disabled_code",
    Replayed = "replayed",
    Locked = "locked",
    Unlocked = "unlocked",
    Reset = "reset",
    Disabled = "disabled",
    Enabled = "enabled",
    Removed = "removed",
    Renamed = "renamed",
    RecoveryCodesCreated = "recovery_codes_created",
    RecoveryCodesRemoved = "recovery_codes_removed",
    RecoveryCodeUsed = "recovery_code_used",
    Moved = "moved",
    Resynced = "resynced",
    KeyRotated = "key_rotated",
    UnreadableForgotten = "unreadable_forgotten",
    Exported = "exported",
    RestoreAcknowledged = "restore_acknowledged",
    Granted = "granted",
    Revoked = "revoked",
}

/// Records an act, which a ROLLBACK undoes: its line first, then its row.
pub fn record(event: Event, at: Timestamp, user: Option<UserId>, device: Option<DeviceName>) -> Result<(), Error> {
    record_with(event, at, user, device, &Detail::new())
}

/// Records an act with details.
pub fn record_with(
    event: Event,
    at: Timestamp,
    user: Option<UserId>,
    device: Option<DeviceName>,
    detail: &Detail,
) -> Result<(), Error> {
    audit_lines::write_act(event.as_str(), user, |line| describe(line, user, device, detail));
    row(event, at, user, device, detail)
}

/// Writes one audit row.
fn row(
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
    charged((Event::Failed, None), user, counter, newly_locked, at, &Detail::new())
}

/// Records a wrong code that is one of a disabled device, and the lock if it set one.
pub fn disabled_code(
    user: UserId,
    device: DeviceName,
    counter: &Counter,
    newly_locked: bool,
    at: Timestamp,
) -> Result<(), Error> {
    charged((Event::DisabledCode, Some(device)), user, counter, newly_locked, at, &Detail::new())
}

/// Records a wrong recovery code, and the lock if it set one.
pub fn recovery_failed(user: UserId, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged((Event::Failed, None), user, counter, newly_locked, at, &of_recovery_codes())
}

fn of_recovery_codes() -> Detail {
    vec![("of", "recovery_codes".into())]
}

/// Records a guess that was charged, and the lock if it set one.
fn charged(
    event: (Event, Option<DeviceName>),
    user: UserId,
    counter: &Counter,
    newly_locked: bool,
    at: Timestamp,
    detail: &Detail,
) -> Result<(), Error> {
    let events = if newly_locked { &[event, (Event::Locked, None)][..] } else { &[event] };
    // All lines first: writing a row may fail, but the event has happened.
    for (event, device) in events {
        line(*event, Some(user), *device, detail).number("failures", counter.failures.into()).write();
    }
    events.iter().try_for_each(|(event, device)| row(*event, at, Some(user), *device, detail))
}

/// Records a good code that was used before.
pub fn replayed(user: UserId, device: DeviceName, at: Timestamp) -> Result<(), Error> {
    happened(Event::Replayed, Some(user), Some(device), at, &Detail::new())
}

/// Records a recovery code that was used before, and the lock if it set one.
pub fn recovery_replayed(user: UserId, counter: &Counter, newly_locked: bool, at: Timestamp) -> Result<(), Error> {
    charged((Event::Replayed, None), user, counter, newly_locked, at, &of_recovery_codes())
}

/// Records a recovery code that was accepted.
pub fn recovery_code_used(user: UserId, at: Timestamp) -> Result<(), Error> {
    happened(Event::RecoveryCodeUsed, Some(user), None, at, &Detail::new())
}

/// Records that failures and locks were cleared.
pub fn unlocked(user: UserId, at: Timestamp) -> Result<(), Error> {
    happened(Event::Unlocked, Some(user), None, at, &Detail::new())
}

/// Records that the drift of a token was measured, in steps.
pub fn resynced(user: UserId, device: DeviceName, drift: Drift, at: Timestamp) -> Result<(), Error> {
    happened(Event::Resynced, Some(user), Some(device), at, &vec![("drift", drift.steps().into())])
}

/// Records that the owner has acknowledged a failover or restore, which the floor dates.
pub fn restore_acknowledged(floor_at: Timestamp, at: Timestamp) -> Result<(), Error> {
    happened(Event::RestoreAcknowledged, None, None, at, &vec![("floor_at", floor_at.unix_seconds().into())])
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

/// Records a complete rotation. `from` has the master keys of the data keys that it destroys.
pub fn key_rotated(key: KeyId, secrets: i64, mut from: Vec<&str>, to: &str, at: Timestamp) -> Result<(), Error> {
    from.sort_unstable();
    from.dedup();
    let detail = vec![
        ("key_id", key.get().into()),
        ("secrets", secrets.into()),
        ("from_master_key", from.join(",").into()),
        ("to_master_key", to.into()),
    ];
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

/// Records that a superuser exports so many secrets.
pub fn exported(secrets: usize, at: Timestamp) -> Result<(), Error> {
    record_with(Event::Exported, at, None, None, &vec![("secrets", secrets.into())])
}

/// Records that a role gets a capability, or loses it.
pub fn right(granted: bool, role: &str, capability: &str, at: Timestamp) -> Result<(), Error> {
    let event = if granted { Event::Granted } else { Event::Revoked };
    record_with(event, at, None, None, &vec![("role", role.into()), ("capability", capability.into())])
}

/// Logs that audit rows were deleted. In the server log only: an audit row would be deleted by the next call.
pub fn pruned(rows: i64) {
    audit_lines::begin("audit_pruned").number("rows", rows).write();
}

/// Records an event that has happened, whatever becomes of the transaction.
fn happened(
    event: Event,
    user: Option<UserId>,
    device: Option<DeviceName>,
    at: Timestamp,
    detail: &Detail,
) -> Result<(), Error> {
    line(event, user, device, detail).write();
    row(event, at, user, device, detail)
}

/// Begins the line of an event that a ROLLBACK does not undo.
fn line(event: Event, user: Option<UserId>, device: Option<DeviceName>, detail: &Detail) -> Line {
    describe(audit_lines::begin(event.as_str()), user, device, detail)
}

/// Adds what the row has too.
fn describe(line: Line, user: Option<UserId>, device: Option<DeviceName>, detail: &Detail) -> Line {
    let names = [("user", user.map(|user| user.as_str())), ("device", device.map(|device| device.as_str()))];
    let line = names.iter().fold(line, |line, (key, name)| match name {
        Some(name) => line.text(key, name),
        None => line,
    });
    detail.iter().fold(line, |line, (key, value)| match value {
        Value::Text(text) => line.text(key, text),
        Value::Number(number) => line.number(key, *number),
        Value::Flag(flag) => line.flag(key, *flag),
    })
}
