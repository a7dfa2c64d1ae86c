//! The sealed audit trail: MACs over the rows of `totp.audit_log`, and their verification. Read docs/design/trail.md.
//!
//! `sealing` makes seals, with `writers`, which knows when a hole is closed; `verification` computes their MACs again, with
//! `expected`, which knows the rows that a seal must have.
//!
//! Owns the rules of holes, of pruning, and of what is reported. Must never wait for a writer.

pub mod anchor;
mod expected;
pub mod sealing;
pub mod verification;
mod writers;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::backend;
use crate::store::audit_seals::Place;
use crate::timestamp::Timestamp;

/// Returns where this session is.
fn here() -> Place {
    Place {
        system_identifier: backend::system_identifier().cast_signed(),
        database: i64::from(backend::database().to_u32()),
        timeline: i64::from(timeline()),
    }
}

/// Returns the current timeline, on a standby too.
fn timeline() -> u32 {
    if backend::is_in_recovery() { backend::replayed_timeline() } else { backend::timeline() }
}

/// Returns when the current timeline began, as its history file says. `None` for the first one.
fn promoted_at() -> Option<Timestamp> {
    let history = backend::data_directory().join(format!("pg_wal/{:08X}.history", timeline()));
    let written: SystemTime = history.metadata().ok()?.modified().ok()?;
    Some(Timestamp::from_unix_seconds(written.duration_since(UNIX_EPOCH).ok()?.as_secs().cast_signed()))
}
