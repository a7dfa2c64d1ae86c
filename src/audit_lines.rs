//! The server log lines of events: who did it, and of an act also the transaction that its audit row belongs to.
//!
//! An act has its line at once, before its row. A statement may act on a million users, so its first two users have a line for
//! each act, and its other acts are counted: one line for each event, when the next statement acts or the transaction ends.
//! That line is written whatever becomes of the transaction.
//!
//! Owns the counts, and the first and last pairs of a line. Must never lose a count: it is taken away only to be written.

use std::cell::RefCell;

use pgrx::pg_sys;

use crate::server_log::Line;
use crate::user::UserId;
use crate::{backend, settings};

/// How many users of one statement have their own lines. A user who is renamed has two ids.
const NAMED_USERS: usize = 2;

/// Who acts: the session user, and the actor that the application names.
#[derive(Clone, PartialEq)]
struct Caller {
    db_user: String,
    actor: Option<String>,
}

impl Caller {
    fn current() -> Self {
        Self { db_user: backend::session_user(), actor: settings::actor() }
    }

    fn begin(&self, event: &str) -> Line {
        let line = Line::new(event).text("db_user", &self.db_user);
        match &self.actor {
            Some(actor) => line.text("actor", actor),
            None => line,
        }
    }
}

/// The acts of one caller that one statement has done in one transaction, or in one subtransaction.
struct Acts {
    caller: Caller,
    statement: pg_sys::TimestampTz,
    transaction: pg_sys::TransactionId,
    users: Vec<String>,
    /// The acts without a line, by event.
    counts: Vec<(&'static str, i64)>,
}

impl Acts {
    fn are_of(&self, caller: &Caller, statement: pg_sys::TimestampTz, transaction: pg_sys::TransactionId) -> bool {
        self.statement == statement && self.transaction == transaction && self.caller == *caller
    }

    /// Returns whether the act has its own line, and counts it if not.
    fn is_named(&mut self, event: &'static str, user: Option<UserId>) -> bool {
        let user = user.map_or("", |user| user.as_str());
        if self.users.iter().any(|known| known == user) {
            return true;
        }
        if self.users.len() < NAMED_USERS {
            self.users.push(user.into());
            return true;
        }
        match self.counts.iter_mut().find(|(counted, _)| *counted == event) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((event, 1)),
        }
        false
    }
}

thread_local! {
    static ACTS: RefCell<Option<Acts>> = const { RefCell::new(None) };
}

/// Asks PostgreSQL for the ends of transactions. Call it once in a backend.
pub fn watch() {
    backend::at_end_of_transaction(write_counts);
}

/// Begins the line of an event that a ROLLBACK does not undo.
pub fn begin(event: &str) -> Line {
    let line = Line::new(event);
    if line.is_wanted() { Caller::current().begin(event) } else { line }
}

/// Writes the line of an act, or counts it. `complete` adds what is known of it.
pub fn write_act(event: &'static str, user: Option<UserId>, complete: impl FnOnce(Line) -> Line) {
    if !Line::new(event).is_wanted() {
        return;
    }
    let (caller, statement, transaction) =
        (Caller::current(), backend::statement_start(), backend::own_transaction_id());
    if !ACTS.with_borrow(|acts| acts.as_ref().is_some_and(|acts| acts.are_of(&caller, statement, transaction))) {
        write_counts();
        let acts = Acts { caller: caller.clone(), statement, transaction, users: Vec::new(), counts: Vec::new() };
        ACTS.set(Some(acts));
    }
    if ACTS.with_borrow_mut(|acts| acts.as_mut().is_none_or(|acts| acts.is_named(event, user))) {
        end(complete(caller.begin(event)), transaction);
    }
}

/// Writes the lines of the acts that were counted. Looks nothing up: the transaction may have failed.
fn write_counts() {
    // A cancel may end the loop after any line, and then the end of the transaction calls again. So each count is taken
    // before its line, and not all at once.
    while let Some((caller, transaction, (event, count))) = ACTS
        .with_borrow_mut(|acts| acts.as_mut().and_then(|a| Some((a.caller.clone(), a.transaction, a.counts.pop()?))))
    {
        end(caller.begin(event).number("count", count), transaction);
    }
    ACTS.set(None);
}

fn end(line: Line, transaction: pg_sys::TransactionId) {
    line.number("xid", transaction.into_inner().into()).write();
}
