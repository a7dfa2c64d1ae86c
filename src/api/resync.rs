//! `totp_resync`: measures how far the clock of a token has drifted, by two codes in a row (RFC 6238 section 6).
//!
//! Both codes are used up, in one lock hold (`judgment.rs`). It is no sign-in: it activates nothing, and clears no count.
//!
//! Owns the answer to a pair of codes. Must never say whether one of them alone is right.

use otp::Code;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use super::judgment::{Compared, Scope, compare};
use super::matching::Typed;
use crate::error::Error;
use crate::settings;
use crate::user::UserId;

/// Measures the drift of a device by two codes that it showed one after the other. True if they fit: then its codes are
/// accepted around that drift from now on. They sign nobody in.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_resync(
    user_id: Option<&str>,
    code1: Option<&str>,
    code2: Option<&str>,
    device: default!(Option<&str>, "'default'"),
) -> Result<bool, ErrorReport> {
    guard::judging("totp_resync", || resync(user_id, [code1, code2], device))
}

/// Judges the pair. What has not the form of a code is not charged.
fn resync(user_id: Option<&str>, codes: [Option<&str>; 2], device: Option<&str>) -> Result<bool, Error> {
    let (Some(user), Some(device)) = (UserId::to_find(user_id), device) else { return Ok(false) };
    if settings::resync_steps() == 0 {
        return Ok(false);
    }
    let codes = codes.map(|code| Code::parse(code.unwrap_or_default()).ok());
    let typed = match &codes {
        [Some(first), Some(second)] => Some(Typed::Pair([first, second])),
        _ => None,
    };
    loop {
        match compare(user, typed, Scope::Approved(device), settings::lockout())? {
            Compared::Answered(_) => return Ok(false),
            Compared::Matched(found) => {
                if let Some(fits) = found.resync()? {
                    return Ok(fits);
                }
            }
        }
    }
}
