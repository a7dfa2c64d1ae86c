//! The lockout policy: what a wrong guess costs.
//!
//! Owns the arithmetic on failures and locks. Must never read a clock, allocate or panic: it runs under a page lock.
//!
//! Times are microseconds of any one epoch; [`NEVER`] is PostgreSQL's `-infinity`, [`FOREVER`] its `infinity`.

use crate::parameters::Digits;

/// Before every time: not locked.
pub const NEVER: i64 = i64::MIN;

/// After every time: locked until somebody unlocks.
pub const FOREVER: i64 = i64::MAX;

/// Largest clock error that is tolerated without correction, in microseconds: an hour.
pub const CLOCK_DOUBT: i64 = 3_600_000_000;

/// What a wrong guess costs. A value outside its range counts as the nearest valid one: a count below 1 as 1, a time below 0
/// as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The failure that sets the first lock.
    pub max_attempts: i32,
    /// Length of the first lock in microseconds.
    pub lockout: i64,
    /// Longest lock in microseconds. Less than `lockout` counts as `lockout`.
    pub lockout_max: i64,
    /// The failure that locks forever (NIST SP 800-63B-4 section 3.2.2: at most 100).
    pub hard_limit: i32,
}

/// Before the hard limit is reached, guessing succeeds for at most one in so many users.
const ODDS: u64 = 1000;

impl Policy {
    /// Returns the policy with a hard limit that keeps the odds of guessing at one in a thousand, if each guess is compared
    /// with `codes` codes of `digits` digits.
    pub fn within_odds(self, codes: usize, digits: Digits) -> Policy {
        let space = 10u64.saturating_pow(digits.get().into());
        let guesses = space / ODDS / u64::try_from(codes).unwrap_or(u64::MAX).max(1);
        Policy { hard_limit: self.hard_limit.min(i32::try_from(guesses.max(1)).unwrap_or(i32::MAX)), ..self }
    }

    /// Returns the length of the lock that failure number `failures` sets, in microseconds, or `None` if it sets none.
    ///
    /// `min(lockout * 2^n, max(lockout, lockout_max))` for the n-th failure after the first that locks.
    fn lock_length(&self, failures: i32) -> Option<i64> {
        let beyond = u32::try_from(failures.saturating_sub(self.max_attempts.max(1))).ok()?;
        let first = self.lockout.max(0);
        Some(first.saturating_mul(2i64.saturating_pow(beyond)).min(self.lockout_max.max(first)))
    }
}

/// Failures since the last success, and the lock that they set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Wrong guesses since the last accepted code or unlock.
    pub failures: i32,
    /// End of the lock in microseconds; [`NEVER`] for none, [`FOREVER`] for one without end.
    pub locked_until: i64,
}

impl Counter {
    /// No failure, no lock.
    pub const CLEAR: Counter = Counter { failures: 0, locked_until: NEVER };

    /// Returns the counter at `now`, without an implausible lock. A lock that ends later than any lock set by now can end was
    /// set by a clock that was ahead. It does not count, or the user would wait until that time. The failures stay.
    ///
    /// Tolerates [`CLOCK_DOUBT`], so that sessions whose `now` is a little old decide the same.
    pub fn believed(self, policy: &Policy, now: i64) -> Counter {
        let longest = policy.lockout.max(policy.lockout_max).max(0).saturating_add(CLOCK_DOUBT);
        if self.locked_until != FOREVER && self.locked_until.saturating_sub(now) > longest {
            Counter { locked_until: NEVER, ..self }
        } else {
            self
        }
    }

    /// Returns whether guesses are refused at `now`. A lock ends at exactly the microsecond that it names.
    pub fn is_locked(self, now: i64) -> bool {
        self.locked_until == FOREVER || self.locked_until > now
    }

    /// Returns the counter after one more wrong guess at `now`. Never shortens a lock.
    pub fn charge(self, policy: &Policy, now: i64) -> Counter {
        let failures = self.failures.max(0).saturating_add(1);
        let lock = if failures >= policy.hard_limit {
            FOREVER
        } else {
            policy.lock_length(failures).map_or(NEVER, |length| now.saturating_add(length))
        };
        Counter { failures, locked_until: self.locked_until.max(lock) }
    }

    /// Returns the wrong guesses until the next lock: 0 while locked, 1 after a lock has ended.
    pub fn attempts_left(self, policy: &Policy, now: i64) -> i32 {
        if self.is_locked(now) {
            return 0;
        }
        let limit = policy.max_attempts.min(policy.hard_limit);
        limit.saturating_sub(self.failures.max(0)).max(1)
    }

    /// Returns when guesses are judged again, in microseconds. `None` if they are judged now, or only after an unlock.
    pub fn retry_at(self, now: i64) -> Option<i64> {
        (self.is_locked(now) && self.locked_until != FOREVER).then_some(self.locked_until)
    }
}
