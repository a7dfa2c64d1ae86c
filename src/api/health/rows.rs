//! The checks about the rows of the tables: what is missing, and times that no right clock has written.
//!
//! Owns their sentences. Must never name a user.

use super::check::{Check, counted, of};
use crate::error::Error;
use crate::store::health::{self, FutureTimes};
use crate::timestamp::Timestamp;

/// Checks that nothing that belongs to a secret is missing.
pub fn incomplete() -> Result<[Check; 2], Error> {
    let found = health::incomplete()?;
    Ok([without_row(found.without_row), without_data_key(found.without_data_key)])
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

/// Compares the clock with the times that are stored. `None` if the floor has no row.
pub fn clock(now: Timestamp) -> Result<Option<Check>, Error> {
    Ok(health::future_times(now)?.map(|found| clock_behind(&found)))
}

fn clock_behind(found: &FutureTimes) -> Check {
    const NAME: &str = "clock";
    const CORRECT: &str = "the clock was ahead, or is behind now: correct it";
    if let Some(floor_at) = &found.floor_at {
        let detail = format!(
            "the clock was ahead when this cluster first judged a code, or is behind now: \
             codes of older secrets are refused until {floor_at}"
        );
        Check::fail(NAME, detail)
    } else if let Some(last_used_at) = &found.last_used_at {
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
    }
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

pub fn recovery_after_restore() -> Result<Check, Error> {
    const NAME: &str = "recovery_after_restore";
    let number = health::recovery_sets_older_than_floor()?;
    if number == 0 {
        let detail = "no recovery codes are older than the last failover or restore; nothing to do";
        return Ok(Check::ok(NAME, detail));
    }
    let detail = format!(
        "{} older than the last failover or restore, and a code used just before it may be good again: \
         create new ones with totp_reset_recovery_codes()",
        counted(number, "set of recovery codes is", "sets of recovery codes are")
    );
    Ok(Check::warn(NAME, detail))
}
