//! The checks about the sealed trail.
//!
//! Owns their sentences. Must never read more than the last seal and one row after it.

use super::check::{Check, Status, counted};
use crate::error::Error;
use crate::keyring;
use crate::store::spi::Snapshot;
use crate::store::{audit_keys, audit_rows, audit_seals};
use crate::timestamp::Timestamp;

const HOUR: i64 = 3_600_000_000;

/// Returns one row per check. An installation that makes no seals has none.
pub fn checks(now: Timestamp) -> Result<Vec<Check>, Error> {
    let snapshot = Snapshot::latest();
    let last = if audit_seals::exist() { audit_seals::last(&snapshot)? } else { None };
    match last {
        Some(last) => Ok(vec![age(&snapshot, last.last_id, now)?, cache()?, lost_keys(&snapshot)?]),
        None => Ok(vec![]),
    }
}

/// A seal of hours ago is as good as new if nothing has happened since.
fn age(snapshot: &Snapshot, last_id: i64, now: Timestamp) -> Result<Check, Error> {
    const NAME: &str = "audit_seals";
    let waits = audit_rows::first_after(snapshot, last_id)?.is_some_and(|at| now.0.saturating_sub(at.0) > HOUR);
    Ok(if waits {
        Check::warn(NAME, "audit rows of more than an hour ago are not sealed: CALL totp_audit_seal() each minute")
    } else {
        Check::ok(NAME, "no audit row waits for its seal for more than an hour; nothing to do")
    })
}

fn cache() -> Result<Check, Error> {
    const NAME: &str = "audit_ids";
    let cache = audit_rows::sequence_cache()?;
    Ok(if cache > 1 {
        Check::warn(
            NAME,
            "totp.audit_ids has a CACHE, so totp_audit_verify() may report rows as filled that nobody put in: \
             ALTER SEQUENCE totp.audit_ids CACHE 1",
        )
    } else {
        Check::ok(NAME, "no session takes ids of audit rows before it needs them; nothing to do")
    })
}

fn lost_keys(snapshot: &Snapshot) -> Result<Check, Error> {
    const NAME: &str = "audit_keys";
    let keys = audit_keys::all(snapshot)?;
    let lost: Vec<_> = keys.iter().filter(|key| !keyring::is_loaded(&key.master_key)).collect();
    let detail = match lost.first() {
        None => "every key of the trail can be opened; nothing to do".into(),
        Some(key) => format!(
            "{} of the trail under a master key that is not loaded, such as {}: add it to the key file again",
            counted(lost.len() as i64, "key is", "keys are"),
            key.master_key
        ),
    };
    Ok(Check::new(NAME, Status::warn_if(!lost.is_empty()), detail))
}
