//! Counters of judgments, out of reach of a ROLLBACK: counted in the memory of the backend, and added in place to a row of
//! `totp.counters` at the end of a call, once a second at most, and at the end of the session.
//!
//! Best effort: what is in the way of an addition is not waited for, and no error of it reaches the caller. What was not added
//! stays in memory for the next time.
//!
//! Owns what was counted and not yet added. Must never be in the way of an answer.

use std::cell::Cell;
use std::ffi::c_int;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::backend;
use crate::store::counters::{self, Counts};

/// A session adds once in this time at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// What came of a judgment.
#[derive(Clone, Copy)]
pub enum Counted {
    /// A code was used up.
    Accepted,
    /// A wrong code or recovery code was charged.
    Wrong,
    /// A code or recovery code was used before.
    Replayed,
    /// The user is in a lock.
    Locked,
    /// A recovery code was used up.
    RecoveryCodeUsed,
}

thread_local! {
    static PENDING: Cell<Counts> = const { Cell::new(Counts::NONE) };
    /// Whether the end of the session will add what is left.
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
    /// When this session last tried to add. By a clock that is never set.
    static TRIED_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Counts a judgment, once it is made: neither an error after it nor a ROLLBACK undoes it.
pub fn count(judgment: Counted) {
    let mut pending = PENDING.get();
    let counter = match judgment {
        Counted::Accepted => &mut pending.accepted,
        Counted::Wrong => &mut pending.wrong,
        Counted::Replayed => &mut pending.replayed,
        Counted::Locked => &mut pending.locked,
        Counted::RecoveryCodeUsed => &mut pending.recovery_codes_used,
    };
    *counter = counter.saturating_add(1);
    PENDING.set(pending);
    if !IS_WATCHED.replace(true) {
        backend::at_end_of_session(add_the_rest);
    }
}

/// Adds what was counted to the table, if the last try is long enough ago. Call it when the answer is durable, and where
/// `guard::writable` lets a call run.
pub fn add_when_due() {
    if PENDING.get() == Counts::NONE {
        return;
    }
    let now = Instant::now();
    if TRIED_AT.get().is_none_or(|last| now.duration_since(last) >= INTERVAL) {
        TRIED_AT.set(Some(now));
        add();
    }
}

/// Adds what was counted. If something is in the way, it stays in memory.
fn add() {
    let pending = PENDING.get();
    if backend::try_in_subtransaction(|| counters::try_add(pending)) {
        PENDING.set(Counts::NONE);
    }
}

/// Adds what the last second left in memory. The session ends, so it has no transaction.
#[pgrx::pg_guard]
extern "C-unwind" fn add_the_rest(_code: c_int, _argument: pg_sys::Datum) {
    if PENDING.get() != Counts::NONE && !backend::is_in_recovery() {
        backend::in_last_transaction(add);
    }
}
