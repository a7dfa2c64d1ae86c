//! The floor: which codes may have been accepted in WAL that this cluster does not have.
//!
//! After a failover, a restore, or a copy, a code that was accepted at the very end may look unused here. So the first
//! call under a new identity sets the floor to now. Codes of older secrets count again from the first step that
//! cannot have been accepted before it. docs/design/in-place.md says what is recognized, and what is not.
//!
//! Owns the identity of the cluster. Must never let a code count that may have been accepted before.

use std::cell::Cell;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use otp::{Drift, Period, TimeStep, Window};
use pgrx::pg_sys;

use crate::backend;
use crate::clock;
use crate::error::Error;
use crate::inplace::{self, Outcome, Target};
use crate::server_log::Line;
use crate::store::floor::{self, Floor};
use crate::store::recovery_codes;
use crate::timestamp::Timestamp;

thread_local! {
    /// The floor that this backend has judged under. The identity cannot change while the backend lives: a promotion
    /// comes before the first judgment, and every other change needs a restart.
    static JUDGED: Cell<Option<(pg_sys::Oid, Timestamp)>> = const { Cell::new(None) };
}

/// Returns the floor that this backend knows, if it need not look again.
pub fn known(now: Timestamp) -> Option<Timestamp> {
    let (judged, floor_at) = JUDGED.get()?;
    (judged == floor::table() && !is_far_ahead(floor_at, now)).then_some(floor_at)
}

/// Returns the floor of this cluster. Sets it to now if this identity has not judged before; no ROLLBACK undoes that. May
/// wait for the table, a flush, and a standby.
pub fn current() -> Result<Timestamp, Error> {
    if let Some(floor_at) = known(clock::now()?) {
        return Ok(floor_at);
    }
    let table = floor::table();
    let floor_at = loop {
        let found = floor::find()?;
        let ours = identity()?;
        let now = clock::now()?;
        if found.floor.identity == ours && !is_far_ahead(found.floor.floor_at, now) {
            break found.floor.floor_at;
        }
        let new_floor = last_known(now);
        let has_recovery_codes = recovery_codes::is_any()?;
        let outcome = inplace::change_one(Target::open(&found.address)?, |row: &mut Floor| {
            // Another session may have been faster.
            if row.identity != ours || is_far_ahead(row.floor_at, now) {
                let is_to_acknowledge = row.is_to_acknowledge || row.identity != ours && has_recovery_codes;
                *row = Floor { floor_at: new_floor, identity: ours, is_to_acknowledge };
            }
            row.floor_at
        })?;
        if let Outcome::Decided(floor_at, lsn) = outcome {
            if let Some(lsn) = lsn {
                lsn.make_durable();
                Line::new("floor").number("timeline", ours[3]).write();
            }
            break floor_at;
        }
    };
    JUDGED.set(Some((table, floor_at)));
    Ok(floor_at)
}

/// Ends the warning that recovery codes are older than the floor, which stays. Returns the floor, if there was a warning. No
/// ROLLBACK undoes it.
pub fn acknowledge() -> Result<Option<Timestamp>, Error> {
    loop {
        let found = floor::find()?;
        let outcome = inplace::change_one(Target::open(&found.address)?, |row: &mut Floor| {
            row.is_to_acknowledge = false;
            row.floor_at
        })?;
        match outcome {
            Outcome::LookAgain => continue,
            Outcome::Decided(_, None) => return Ok(None),
            Outcome::Decided(floor_at, Some(lsn)) => {
                lsn.make_durable();
                return Ok(Some(floor_at));
            }
        }
    }
}

/// Returns now, or the time of the last replayed commit if that is later: after a failover it comes from the clock of the
/// lost primary, which may have been ahead of ours.
fn last_known(now: Timestamp) -> Timestamp {
    let replayed = backend::replayed_until().map(Timestamp).filter(|replayed| !is_far_ahead(*replayed, now));
    replayed.map_or(now, |replayed| now.max(replayed))
}

/// Returns whether the clock was so far ahead when the floor was set that nobody should wait until then: the floor is set
/// again, to now. If it is a little ahead, the clock may have gone back since, and codes up to the floor may have been used.
fn is_far_ahead(floor_at: Timestamp, now: Timestamp) -> bool {
    floor_at.0.saturating_sub(now.0) > otp::lockout::CLOCK_DOUBT
}

/// Returns the last step whose codes may have been accepted before the floor, for a secret that is older than the floor. A
/// secret from the future may be older too: it was made while the clock was ahead. The widest window counts, since the
/// window of the session that accepted a code is not known, and one step more, which may have been learned as drift in the WAL
/// that was lost. A token that is ahead has used later steps.
pub fn step(
    floor_at: Timestamp,
    created_at: Timestamp,
    now: Timestamp,
    period: Period,
    drift: Drift,
) -> Option<TimeStep> {
    if (floor_at..=now).contains(&created_at) {
        return None;
    }
    let steps = i64::from(Window::WIDEST.get()) + drift.steps().max(0) + 1;
    Some(TimeStep::at(floor_at.unix_seconds(), period).plus(steps))
}

/// Returns the identity: system identifier, the files that differ in a copy of the data directory, database, timeline. For a
/// primary only.
fn identity() -> Result<[i64; 4], Error> {
    let directory = backend::data_directory();
    let control =
        directory.join("global/pg_control").metadata().map_err(|_| Error::Internal("read the control file"))?;
    let files = which_file(&control) ^ which_backup(directory)?;
    Ok([
        backend::system_identifier().cast_signed(),
        files.cast_signed(),
        i64::from(backend::database().to_u32()),
        i64::from(backend::timeline()),
    ])
}

/// Returns a number that differs in a copy of the file: its inode and, if the file system stores it, its creation time. It
/// detects a base backup that was started without recovery, which has the system identifier and the timeline of its origin.
///
/// The inode alone is not enough: each volume numbers its files from the start, so copies that are made in the same way on
/// new volumes have the same inode. PostgreSQL writes the control file in place and never creates it again.
fn which_file(file: &Metadata) -> u64 {
    let made = file.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    file.ino() ^ made.map_or(0, |since| (since.as_nanos() as u64).rotate_left(32))
}

/// Returns a number for the backup that the data directory came from, or 0 if it came from none. It detects a base backup
/// whose files were copied over a data directory, which may leave the control file the same.
///
/// Recovery from a backup leaves `backup_label.old`. The same backup, copied there twice, creates the file twice.
fn which_backup(directory: &Path) -> Result<u64, Error> {
    match directory.join("backup_label.old").metadata() {
        Ok(label) => {
            let written = label.mtime().cast_unsigned().rotate_left(16) ^ label.mtime_nsec().cast_unsigned();
            Ok((which_file(&label) ^ written).rotate_left(8))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(_) => Err(Error::Internal("read the old backup label")),
    }
}
