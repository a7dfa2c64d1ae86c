//! The checks about the rows of the tables: what is missing, and times that no right clock has written.
//!
//! Owns their sentences. Must never name a user.

use super::check::{Check, counted, of};
use crate::error::Error;
use crate::store::health::{self, FloorSeen};
use crate::timestamp::Timestamp;

/// Checks that nothing that belongs to a secret is missing.
pub fn incomplete(_: Timestamp) -> Result<Vec<Check>, Error> {
    let found = health::incomplete()?;
    Ok(vec![without_row(found.without_row), without_data_key(found.without_data_key)])
}

fn without_row(number: i64) -> Check {
    if number == 0 {
        return Check::ok("rows", "every secret has its rows; nothing to do");
    }
    let detail = format!(
        "{} a row in totp.attempts or totp.used_codes: {}",
        counted(number, "secret or recovery set lacks", "secrets or recovery sets lack"),
        of(number, "restore the row, or enroll the user again", "restore the rows, or enroll the users again")
    );
    Check::fail("rows", detail)
}

fn without_data_key(number: i64) -> Check {
    if number == 0 {
        return Check::ok("data_keys", "every secret has its data key; nothing to do");
    }
    let detail = format!(
        "{} sealed under a data key that does not exist: restore totp.data_keys",
        counted(number, "secret or recovery set is", "secrets or recovery sets are")
    );
    Check::fail("data_keys", detail)
}

/// What to do about a time in the future.
const CORRECT: &str = "the clock was ahead, or is behind now: correct it";

/// Compares the clock with the floor, and reports a restore or failover.
pub fn floor(now: Timestamp) -> Result<Vec<Check>, Error> {
    Ok(match health::floor(now)? {
        Some(floor) => vec![clock(&floor), recovery_after_restore(&floor)],
        None => vec![Check::fail(
            "clock",
            "table totp.floor has no row, so no code is judged: INSERT INTO totp.floor VALUES ('-infinity', 0, 0, 0, 0, true)",
        )],
    })
}

fn clock(floor: &FloorSeen) -> Check {
    const NAME: &str = "clock";
    if !floor.is_future {
        return Check::ok(
            NAME,
            "the clock is not behind the time when this cluster first judged a code; nothing to do",
        );
    }
    let detail = format!(
        "the clock was ahead when this cluster first judged a code, or is behind now: \
         codes of older secrets are refused until {}",
        floor.at
    );
    Check::fail(NAME, detail)
}

fn recovery_after_restore(floor: &FloorSeen) -> Check {
    const NAME: &str = "recovery_after_restore";
    if !floor.is_to_acknowledge {
        let detail = "no failover or restore with recovery codes is to be acknowledged; nothing to do";
        return Check::ok(NAME, detail);
    }
    let detail = format!(
        "there was a failover or restore, noticed at {}, and a recovery code used just before it may be good again: \
         create new ones with totp_reset_recovery_codes(), then SELECT totp_acknowledge_restore()",
        floor.at
    );
    Check::warn(NAME, detail)
}

/// Compares the clock with the times that are stored.
pub fn future_times(now: Timestamp) -> Result<Vec<Check>, Error> {
    const NAME: &str = "future_times";
    let found = health::future_times(now)?;
    Ok(vec![if let Some(last_used_at) = &found.last_used_at {
        Check::fail(NAME, format!("{CORRECT}; {}", used_later(found.used, last_used_at)))
    } else if found.locks > 0 {
        let detail = format!(
            "{CORRECT}; {} ignored: call totp_unlock() for {}",
            counted(
                found.locks,
                "lock in totp.attempts ends later than any lock can, and is",
                "locks in totp.attempts end later than any lock can, and are"
            ),
            of(found.locks, "this user", "these users")
        );
        Check::warn(NAME, detail)
    } else {
        Check::ok(NAME, "the clock is not behind any time seen before; nothing to do")
    }])
}

fn used_later(number: i64, last: &str) -> String {
    if number == 1 {
        return format!(
            "1 secret or recovery set in totp.used_codes was used later than now, at {last}, and is refused until then: \
             call totp_reset() if the user cannot wait"
        );
    }
    format!(
        "{number} secrets or recovery sets in totp.used_codes were used later than now, the last at {last}, \
         and such secrets are refused until then: call totp_reset() for users who cannot wait"
    )
}

/// Counts the recovery codes that a failover or restore may have made good again.
pub fn old_recovery_codes(_: Timestamp) -> Result<Vec<Check>, Error> {
    let number = health::recovery_sets_older_than_floor()?;
    let detail = format!(
        "{} older than the last failover or restore: {}",
        counted(number, "set of recovery codes is", "sets of recovery codes are"),
        if number > 0 { "see recovery_after_restore" } else { "nothing to do" }
    );
    Ok(vec![Check::ok("old_recovery_codes", detail)])
}
