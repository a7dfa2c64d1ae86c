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

    /// Converts an argument. `None` for both infinities.
    pub fn from_sql(value: TimestampWithTimeZone) -> Option<Self> {
        let micros = value.into_inner();
        (micros != i64::MIN && micros != i64::MAX).then_some(Self(micros))
    }

    /// Converts to an output column. Both infinities are kept; a value out of range becomes NULL.
    pub fn to_sql(self) -> Option<TimestampWithTimeZone> {
        TimestampWithTimeZone::try_from(self.0).ok()
    }

    /// Converts to an output column in which `-infinity` means that it never happened.
    pub fn to_sql_unless_never(self) -> Option<TimestampWithTimeZone> {
        if self == Self::NEVER { None } else { self.to_sql() }
    }
}
