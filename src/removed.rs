//! What was used of secrets that are gone.
//!
//! A secret takes its used step along when it is removed. If it is imported again soon after, the code that was used last
//! would be good once more. So the audit row of the removal says until when codes were used, and an import looks there.

use otp::{Period, TimeStep};

use crate::audit::Detail;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::floor;
use crate::store;
use crate::store::secrets::Codes;
use crate::store::used_codes::UsedCode;

/// The name of the detail.
const USED_UNTIL: &str = "used_until";

/// How far back a used code matters: further than any window reaches, with a clock that may be wrong by as much.
const REACH: i64 = otp::lockout::CLOCK_DOUBT;

/// The end of the last used step of the secrets that a call removes, in unix seconds.
#[derive(Clone, Copy)]
pub struct Removed(Option<i64>);

impl Removed {
    /// None was removed.
    pub fn nothing() -> Self {
        Self(None)
    }

    /// One was removed, of which so much was used. Steps under the floor may have been.
    pub fn add(&mut self, used: UsedCode, codes: Codes, now: Timestamp) -> Result<(), Error> {
        let floor = floor::step(floor::current()?, codes.created_at, now, codes.period);
        let last = Some(used.step).filter(|step| *step != TimeStep::NONE).max(floor);
        let until = last.map(|step| step.end(codes.period));
        self.0 = self.0.max(until.filter(|until| Timestamp::from_unix_seconds(*until).0 > now.0.saturating_sub(REACH)));
        Ok(())
    }

    /// What the audit row of the call says of it.
    pub fn detail(&self) -> Detail {
        self.0.map(|until| (USED_UNTIL, until.to_string())).into_iter().collect()
    }

    /// What the audit rows say of secrets that the user had.
    pub fn of_user(user_id: &str, now: Timestamp) -> Result<Self, Error> {
        store::audit::latest_number(user_id, Timestamp(now.0.saturating_sub(2 * REACH)), USED_UNTIL).map(Self)
    }

    /// What is used of a secret of the same user that may be one of them: all steps up to there, in steps of its period.
    pub fn raise(&self, used: UsedCode, period: Period) -> UsedCode {
        let step = self.0.map_or(TimeStep::NONE, |until| TimeStep::at(until.saturating_sub(1), period));
        UsedCode { step: used.step.max(step), ..used }
    }
}
