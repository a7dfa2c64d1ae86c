//! `totp_recovery_codes`, `totp_recover`: the way in when every device is lost (NIST SP 800-63B "look-up secrets").

use otp::{Counter, Guess, RecoveryCode, RecoverySet, UsedMask, Verdict};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::shown::Shown;
use crate::audit;
use crate::clock::{self, Timestamp};
use crate::error::Error;
use crate::inplace::{self, Outcome};
use crate::names::UserId;
use crate::store::attempts::{self, Attempts};
use crate::store::recovery_codes::{self, LookUp, look_up};
use crate::store::secrets;
use crate::store::spi::Snapshot;
use crate::store::used_codes::UsedCode;
use crate::{guard, keyring, settings};

/// Makes a new set of recovery codes and shows it, this one time. The old set dies.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_recovery_codes(
    user_id: Option<&str>,
    count: default!(Option<i32>, 10),
) -> Result<SetOfIterator<'static, Shown>, ErrorReport> {
    guard::writable("totp_recovery_codes")?;
    let user = UserId::new(user_id)?;
    let count = count.ok_or(Error::Null("count"))?;
    let count = u8::try_from(count).ok().filter(|c| (1..=20).contains(c)).ok_or(Error::RecoveryCount)?;
    keyring::hold_existing()?;
    if !attempts::lock(user.as_str())? || secrets::of_user(&Snapshot::latest(), user.as_str())?.is_empty() {
        return Err(Error::NoSuchDevice.into());
    }
    let key = keyring::hold_current()?;
    let codes =
        (0..count).map(|_| keyring::random().map(RecoveryCode::from_random)).collect::<Result<Vec<_>, Error>>()?;
    let hashes = RecoverySet::from_codes(&codes).map_err(|_| Error::RecoveryCount)?.to_bytes();
    let set_id = secrets::next_id(&Snapshot::latest())?;
    let sealed = keyring::seal_recovery_codes(key, user.as_str(), set_id, count, &hashes)?;
    let now = clock::now()?;
    recovery_codes::replace(user.as_str(), set_id, count, key.get(), &sealed, now)?;
    audit::record(audit::Event::RecoveryCodesCreated, now, Some(user.as_str()), None)?;
    Ok(SetOfIterator::new(codes.into_iter().map(|code| Shown(code.render()))))
}

/// True once for each recovery code of a user. Wrong ones lock a counter of their own.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_recover(user_id: Option<&str>, recovery_code: Option<&str>) -> Result<bool, ErrorReport> {
    guard::writable("totp_recover")?;
    let (Some(user_id), Some(code)) = (user_id, recovery_code) else { return Ok(false) };
    loop {
        let Some(found) = look_up(user_id)? else { return Ok(false) };
        let now = clock::now()?;
        if found.disabled || found.seen.recovery.believed(&settings::lockout(), now.0).is_locked(now.0) {
            return Ok(false);
        }
        let Ok(code) = RecoveryCode::parse(code) else { return Ok(false) };
        let hashes = keyring::open_recovery_codes(&found.snapshot, user_id, found.set_id, found.count, &found.sealed)?;
        let set = RecoverySet::from_bytes(&hashes).map_err(|_| Error::DoesNotOpen)?;
        let Outcome::Decided((verdict, counter), lsn) = judge_in_place(&found, set.find(&code), now)? else {
            continue;
        };
        if let Some(lsn) = lsn {
            // A use and a lock last before they are told.
            match verdict {
                Verdict::Wrong { newly_locked: false } => lsn.flush_soon(),
                _ => lsn.make_durable(),
            }
        }
        match verdict {
            Verdict::Accepted => audit::recovery_code_used(user_id, now)?,
            Verdict::Wrong { newly_locked } => audit::recovery_failed(user_id, &counter, newly_locked, now)?,
            Verdict::Replayed => audit::recovery_replayed(user_id, now)?,
            Verdict::Locked => {}
        }
        return Ok(verdict == Verdict::Accepted);
    }
}

/// Decides under the page locks, on the rows as they are now, and changes them.
fn judge_in_place(found: &LookUp, place: Option<u8>, now: Timestamp) -> Result<Outcome<(Verdict, Counter)>, Error> {
    let policy = settings::lockout();
    inplace::change_two(&found.attempts, &found.used, |attempts: &mut Attempts, used: &mut UsedCode| {
        let mask = UsedMask::new(used.recovery_mask as i32);
        let guess = match place {
            None => Guess::NoMatch,
            Some(place) if mask.is_used(place) => Guess::Used,
            Some(_) => Guess::Fresh,
        };
        let (verdict, counter) = otp::judge_guess(attempts.recovery, &policy, now.0, guess);
        match (verdict, place) {
            (Verdict::Accepted, Some(place)) => {
                used.recovery_mask = i64::from(mask.with_used(place).get());
                used.used_at = now.0;
                used.uses = used.uses.saturating_add(1);
            }
            (Verdict::Wrong { .. }, _) => attempts.last_failed_at = now.0,
            _ => {}
        }
        attempts.recovery = counter;
        (verdict, counter)
    })
}
