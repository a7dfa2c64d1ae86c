//! Time steps and how many of them count.
//!
//! Owns the division of time. Must never read a clock.

use crate::parameter_error::ParameterError;
use crate::parameters::Period;

/// A time step: `floor(unix_time / period)` (T of RFC 6238 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeStep(i64);

impl TimeStep {
    /// Below every step of any time: no step was burnt yet.
    pub const NONE: TimeStep = TimeStep(i64::MIN);

    /// Any number.
    pub const fn new(number: i64) -> TimeStep {
        TimeStep(number)
    }

    /// Returns the step that contains `unix_seconds`. Times before 1970 round down too.
    pub const fn at(unix_seconds: i64, period: Period) -> TimeStep {
        TimeStep(unix_seconds.div_euclid(period.get() as i64))
    }

    /// The number of the step.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Returns the step that is so many steps later. Saturates.
    pub const fn plus(self, steps: i64) -> TimeStep {
        TimeStep(self.0.saturating_add(steps))
    }

    /// Returns the Unix second at which the step ends: the first of the next one. Saturates.
    pub const fn end(self, period: Period) -> i64 {
        self.0.saturating_add(1).saturating_mul(period.get() as i64)
    }
}

/// Steps accepted on each side of now: 0, 1 or 2 (RFC 6238 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u8);

impl Window {
    /// Two steps on each side.
    pub const WIDEST: Window = Window(2);

    /// # Errors
    /// [`ParameterError::Window`] outside 0 to 2.
    pub const fn new(steps: i32) -> Result<Window, ParameterError> {
        match steps {
            0..=2 => Ok(Window(steps as u8)),
            _ => Err(ParameterError::Window),
        }
    }

    /// The number of steps on each side, 0 to 2.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Window {
    /// One step on each side: what RFC 6238 section 5.2 recommends.
    fn default() -> Window {
        Window(1)
    }
}
