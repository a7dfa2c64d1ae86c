//! The floor: which codes may have been accepted in WAL that this cluster does not have.
//!
//! After a failover, a restore or a copy, a code that was accepted at the very end may look unused here. So the first
//! call under a new identity sets the floor to now: secrets older than it are good again from the first step that
//! cannot have been accepted before it. docs/design/in-place.md says what is recognised, and what is not.

use std::cell::Cell;
use std::ffi::{CStr, OsStr};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use otp::{Period, TimeStep, Window};
use pgrx::pg_sys;

use crate::clock::{self, Timestamp};
use crate::error::Error;
use crate::inplace::{self, Outcome, Target};
use crate::log::Line;
use crate::store::floor::{self, Floor};

thread_local! {
    /// The floor that this backend has judged under. Its identity cannot change while the backend lives: a promotion
    /// comes before the first judgement, and every other change comes with a restart.
    static JUDGED: Cell<Option<(pg_sys::Oid, Timestamp)>> = const { Cell::new(None) };
}

/// The floor that this backend knows, if it need not look.
pub fn known(now: Timestamp) -> Option<Timestamp> {
    let (judged, floor_at) = JUDGED.get()?;
    (judged == floor::table() && !is_far_ahead(floor_at.0, now)).then_some(floor_at)
}

/// The floor of this cluster. Sets it to now if this identity has not judged before; no ROLLBACK takes that back. May wait
/// for the table, a flush and a standby.
pub fn current() -> Result<Timestamp, Error> {
    if let Some(floor_at) = known(clock::now()?) {
        return Ok(floor_at);
    }
    let table = floor::table();
    let floor_at = loop {
        let (address, found, _snapshot) = floor::find()?;
        let ours = identity()?;
        let now = clock::now()?;
        if found.identity == ours && !is_far_ahead(found.floor_at, now) {
            break Timestamp(found.floor_at);
        }
        let new_floor = last_known(now);
        let outcome = inplace::change_one(Target::open(&address)?, |row: &mut Floor| {
            // Another session may have been faster.
            if row.identity != ours || is_far_ahead(row.floor_at, now) {
                *row = Floor { floor_at: new_floor.0, identity: ours };
            }
            row.floor_at
        })?;
        if let Outcome::Decided(floor_at, lsn) = outcome {
            if let Some(lsn) = lsn {
                lsn.make_durable();
                Line::new("floor").number("timeline", ours[3]).write();
            }
            break Timestamp(floor_at);
        }
    };
    JUDGED.set(Some((table, floor_at)));
    Ok(floor_at)
}

/// Now, or the time of the last commit that was replayed: after a failover it is of the lost primary's clock, which may have
/// been ahead of ours.
fn last_known(now: Timestamp) -> Timestamp {
    // SAFETY: a read of shared memory; 0 where nothing was replayed.
    let replayed = unsafe { pg_sys::GetLatestXTime() };
    if replayed == 0 || is_far_ahead(replayed, now) { now } else { now.max(Timestamp(replayed)) }
}

/// Whether the clock was so far ahead when the floor was set that nobody shall wait until then: the floor is now.
/// A little ahead may be a clock that has gone back since, and then codes up to the floor may have been used.
fn is_far_ahead(floor_at: i64, now: Timestamp) -> bool {
    floor_at.saturating_sub(now.0) > otp::lockout::CLOCK_DOUBT
}

/// The last step whose codes may have been accepted before the floor, for a secret that is older than it. So may be one
/// that is younger than now: it was made while the clock was ahead. The window counts at its widest, since that of the
/// session that accepted a code is not known.
pub fn step(floor_at: Timestamp, created_at: Timestamp, now: Timestamp, period: Period) -> Option<TimeStep> {
    if (floor_at..=now).contains(&created_at) {
        return None;
    }
    let last = TimeStep::at(floor_at.unix_seconds(), period);
    Some(TimeStep::new(last.get().saturating_add(i64::from(Window::WIDEST.get()))))
}

/// System identifier, the files that tell this data directory from a copy, database, timeline.
fn identity() -> Result<[i64; 4], Error> {
    // SAFETY: reads of shared memory and backend state; DataDir is set once at the start of the server. Called on a
    // primary only, where the insertion timeline is set.
    let (system, directory, database, timeline) = unsafe {
        (
            pg_sys::GetSystemIdentifier(),
            CStr::from_ptr(pg_sys::DataDir),
            pg_sys::MyDatabaseId,
            pg_sys::GetWALInsertionTimeLine(),
        )
    };
    let directory = Path::new(OsStr::from_bytes(directory.to_bytes()));
    let control = directory.join("global/pg_control").metadata().map_err(|_| Error::Internal("pg_control"))?;
    let files = which_file(&control) ^ which_backup(directory)?;
    Ok([system.cast_signed(), files.cast_signed(), i64::from(database.to_u32()), i64::from(timeline)])
}

/// A number that a copy of the file does not share: its inode and, if the file system keeps it, when it was made. It tells
/// a base backup that was started directly, which has the system identifier and the timeline of its origin.
///
/// The inode alone does not do: each volume numbers its files from the start, so copies that are made in the same way on new
/// volumes have the same. PostgreSQL writes the control file in place and never makes it again.
fn which_file(file: &Metadata) -> u64 {
    let made = file.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    file.ino() ^ made.map_or(0, |since| (since.as_nanos() as u64).rotate_left(32))
}

/// A number for the backup that the data directory came from, 0 if it came from none. It tells a base backup whose files
/// were copied over those of a data directory: that may leave the control file what it was.
///
/// Recovery from a backup leaves `backup_label.old`. The same backup, copied there twice, makes it twice.
fn which_backup(directory: &Path) -> Result<u64, Error> {
    match directory.join("backup_label.old").metadata() {
        Ok(label) => {
            let written = label.mtime().cast_unsigned().rotate_left(16) ^ label.mtime_nsec().cast_unsigned();
            Ok((which_file(&label) ^ written).rotate_left(8))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(_) => Err(Error::Internal("backup_label.old")),
    }
}
