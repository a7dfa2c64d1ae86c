//! The used codes of removed secrets.
//!
//! The used step of a secret is removed with it. If the secret is imported again soon after, the last used code would be good
//! once more. So the audit row of the removal says until when codes were used, and an import looks there.
//!
//! Owns the detail `used_until` of the audit log. Must never lower a used step.

use otp::{Period, TimeStep};

use crate::error::Error;
use crate::replay_floor;
use crate::store::audit_log::{self, Detail};
use crate::store::secrets::Codes;
use crate::store::used_codes::UsedCode;
use crate::timestamp::Timestamp;
use crate::user::UserId;

/// The name of the detail.
const USED_UNTIL: &str = "used_until";

/// How far back a used code matters: longer than any window of a token that is far behind, plus the clock error that is
/// tolerated.
const REACH: i64 = otp::lockout::CLOCK_DOUBT + otp::drift::LONGEST;

/// The end of the last used step of the secrets that a call removes, in unix seconds.
#[derive(Clone, Copy)]
pub struct Removed(Option<i64>);

impl Removed {
    /// Nothing was removed.
    pub fn nothing() -> Self {
        Self(None)
    }

    /// Adds a removed secret and its used step. Steps under the floor count as used.
    pub fn add(&mut self, used: UsedCode, codes: Codes, now: Timestamp) -> Result<(), Error> {
        let floor = replay_floor::step(replay_floor::current()?, codes.created_at, now, codes.period, used.drift());
        let last = Some(used.step).filter(|step| *step != TimeStep::NONE).max(floor);
        let until = last.map(|step| step.end(codes.period));
        self.0 = self.0.max(until.filter(|until| Timestamp::from_unix_seconds(*until).0 > now.0.saturating_sub(REACH)));
        Ok(())
    }

    /// Returns the detail for the audit row of the call.
    pub fn detail(&self) -> Detail {
        self.0.map(|until| (USED_UNTIL, until.into())).into_iter().collect()
    }

    /// Reads the used steps of removed secrets of a user from the audit log.
    pub fn of_user(user: UserId, now: Timestamp) -> Result<Self, Error> {
        audit_log::latest_number(user, Timestamp(now.0.saturating_sub(2 * REACH)), USED_UNTIL).map(Self)
    }

    /// Raises the used step of a secret of the same user, which may be one of the removed ones, in steps of its period.
    pub fn raise(&self, used: UsedCode, period: Period) -> UsedCode {
        let step = self.0.map_or(TimeStep::NONE, |until| TimeStep::at(until.saturating_sub(1), period));
        UsedCode { step: used.step.max(step), ..used }
    }
}
