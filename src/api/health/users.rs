//! The checks about users: signs of an attack, and users who need help.
//!
//! Owns their sentences. Must never show a user id that is not quoted.

use super::check::{Check, Status, counted, listed, of, quoted};
use crate::error::Error;
use crate::store::health::{self, AUDIT_ROWS, Locks, SampledHour};
use crate::timestamp::Timestamp;

/// Users with wrong codes in an hour from which on it may be password spraying.
const SPRAYED_USERS: i64 = 20;

/// Used codes in an hour that are too many.
pub const REPLAYS: i64 = 10;

/// Looks for signs of an attack in the last hour. Counts used codes until there are enough.
pub fn signs_of_an_attack(now: Timestamp, enough_replays: i64) -> Result<[Check; 2], Error> {
    let audited = health::audited_hour(now, enough_replays)?;
    let sampled = health::sampled_hour(now)?;
    Ok([failures_over_many_users(audited.failing_users, &sampled), replays(audited.replays)])
}

/// Counts the users in a lock, and near one.
pub fn locks(now: Timestamp) -> Result<Vec<Check>, Error> {
    Ok(vec![locked_users(&health::locks(now)?, &health::users_near_a_lock(now)?)])
}

/// Counts the users who need help.
pub fn help(now: Timestamp) -> Result<Vec<Check>, Error> {
    let help = health::help(now)?;
    Ok(vec![
        unconfirmed_devices(help.unconfirmed_devices),
        recovery_codes_low(help.few_recovery_codes),
        recovery_codes_alone(help.recovery_codes_alone),
    ])
}

fn locked_users(locks: &Locks, last: &[String]) -> Check {
    let mut detail = format!(
        "{} locked, {} of them until totp_unlock(), and {} one wrong code away: {}",
        counted(locks.locked, "user is", "users are"),
        locks.forever,
        counted(locks.near, "is", "are"),
        match locks.forever {
            0 => "nothing to do",
            _ => "unlock the users that you know",
        }
    );
    if !last.is_empty() {
        detail.push_str(of(last.len() as i64, "; the user is ", "; the last of them "));
        detail.push_str(&listed(last.iter().map(quoted)));
    }
    Check::new("locked_users", Status::warn_if(locks.forever > 0), detail)
}

/// The audit log has few failures exactly, and the sample many, also those that were rolled back.
fn failures_over_many_users(audited: i64, hour: &SampledHour) -> Check {
    let failing = audited.max(hour.failing_users.at_least());
    // Few users mistype. The number of tries per user does not matter: an attacker chooses it.
    let is_spraying = failing >= SPRAYED_USERS && failing.saturating_mul(10) > hour.used_secrets.at_most();
    let used = hour.used_secrets;
    let detail = format!(
        "{}{} had a wrong code in the last hour, and {}{} used: {}",
        if hour.failing_users.is_all() { "" } else { "at least " },
        counted(failing, "user", "users"),
        if used.is_all() { "" } else { "about " },
        counted(used.about(), "secret was", "secrets were"),
        if is_spraying {
            "this looks like password spraying; look at client_addr in totp.audit_log"
        } else {
            "nothing to do"
        }
    );
    Check::new("failures_over_many_users", Status::warn_if(is_spraying), detail)
}

fn replays(number: i64) -> Check {
    let are_many = number >= REPLAYS;
    let detail = format!(
        "{}: {}",
        if number < AUDIT_ROWS {
            format!(
                "{} tried again in the last hour, in {} that committed",
                counted(number, "used code was", "used codes were"),
                of(number, "a transaction", "transactions")
            )
        } else {
            format!(
                "{AUDIT_ROWS} or more used codes were tried again in the last hour, in transactions that committed or not"
            )
        },
        if are_many {
            "a client sends codes twice, or someone intercepts them; look at totp.audit_log"
        } else {
            "nothing to do"
        }
    );
    Check::new("replays", Status::warn_if(are_many), detail)
}

fn unconfirmed_devices(number: i64) -> Check {
    let detail = format!(
        "{} expired: {}",
        counted(
            number,
            "device was enrolled and never confirmed, and its secret has",
            "devices were enrolled and never confirmed, and their secrets have"
        ),
        to_do(number, "enroll again, or call totp_remove()")
    );
    Check::ok("unconfirmed_devices", detail)
}

fn recovery_codes_low(number: i64) -> Check {
    let detail = format!(
        "{} two or fewer recovery codes left: {}",
        counted(number, "user has", "users have"),
        to_do(number, of(number, "ask for a new set", "ask for new sets"))
    );
    Check::ok("recovery_codes_low", detail)
}

fn recovery_codes_alone(number: i64) -> Check {
    let (the_user, users) = ("if the user should no longer sign in", "for users who should no longer sign in");
    let detail = format!(
        "{} recovery codes and no device: {}",
        counted(number, "user has", "users have"),
        to_do(number, &format!("call totp_remove() {}", of(number, the_user, users)))
    );
    Check::ok("recovery_codes_alone", detail)
}

/// Says what to do, if there is anyone to do it for.
fn to_do(number: i64, what: &str) -> &str {
    if number > 0 { what } else { "nothing to do" }
}
