//! A time, as PostgreSQL stores it.
//!
//! Owns the conversion between PostgreSQL's microseconds and Unix seconds. Must never read a clock.

use pgrx::datum::TimestampWithTimeZone;

/// Seconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const EPOCH_OFFSET: i64 = 946_684_800;

/// A time in microseconds since 2000-01-01, as `timestamptz` stores it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// `-infinity`: never.
    pub const NEVER: Self = Self(i64::MIN);

    /// Returns whole seconds since the Unix epoch, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000).saturating_add(EPOCH_OFFSET)
    }

    /// Converts a Unix second.
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_sub(EPOCH_OFFSET).saturating_mul(1_000_000))
    }

    /// Returns the whole seconds from an earlier time to this one, rounded up; 0 if that time is later.
    pub fn seconds_after(self, earlier: Self) -> i32 {
        let micros = self.0.saturating_sub(earlier.0).max(0);
        i32::try_from(micros.div_euclid(1_000_000) + i64::from(micros % 1_000_000 > 0)).unwrap_or(i32::MAX)
    }

    /// Converts an argument. `None` for both infinities.
    pub fn from_sql(value: TimestampWithTimeZone) -> Option<Self> {
        let micros = value.into_inner();
        (micros != i64::MIN && micros != i64::MAX).then_some(Self(micros))
    }

    /// Converts to an output column. Both infinities and a value out of range become NULL.
    pub fn to_sql(self) -> Option<TimestampWithTimeZone> {
        let is_finite = self.0 != i64::MIN && self.0 != i64::MAX;
        TimestampWithTimeZone::try_from(self.0).ok().filter(|_| is_finite)
    }
}
