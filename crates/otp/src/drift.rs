//! Drift: how far the clock of a token has run away from ours (RFC 6238 section 6).
//!
//! Owns what is learned from accepted codes, and how it is stored. Must never allocate or panic: it runs under a page lock.

use crate::parameters::Period;
use crate::step::TimeStep;

/// How many steps a token may be ahead or behind.
const MOST: i64 = 60;

/// The longest drift that there is, in microseconds: so many steps of the longest period.
pub const LONGEST: i64 = MOST * Period::LONGEST.get() as i64 * 1_000_000;

/// After so many accepted codes in a row at the same offset, a token has drifted by one more step.
const RUN: u8 = 3;

/// The drift of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Steps that the token is ahead of our clock; negative if it is behind.
    steps: i8,
    /// The drift was measured or given, not learned.
    is_set: bool,
    /// Steps between the last accepted code and the middle of the window: -2 to 2.
    offset: i8,
    /// How many accepted codes in a row had that offset.
    run: u8,
}

impl Drift {
    /// The clocks agree.
    pub const NONE: Drift = Drift { steps: 0, is_set: false, offset: 0, run: 0 };

    /// A drift that was measured by a resynchronization or given by an import. `None` beyond 60 steps.
    pub const fn of_steps(steps: i64) -> Option<Drift> {
        if steps < -MOST || steps > MOST {
            return None;
        }
        Some(Drift { steps: steps as i8, is_set: true, offset: 0, run: 0 })
    }

    /// Steps that the token is ahead of our clock: -60 to 60.
    pub const fn steps(self) -> i64 {
        self.steps as i64
    }

    /// Returns the step that the token shows at `now`.
    pub const fn of_token(self, now: TimeStep) -> TimeStep {
        now.plus(self.steps())
    }

    /// Returns the drift after the code of step `accepted` was accepted at step `now`.
    ///
    /// It moves by one step at most, after [`RUN`] codes in a row at the same offset. It moves back only if it was set: a code
    /// that is typed slowly looks like one of a clock that is behind.
    pub const fn learn(self, accepted: TimeStep, now: TimeStep) -> Drift {
        let offset = match accepted.get().saturating_sub(self.of_token(now).get()) {
            0 => 0,
            offset @ -2..=2 => offset as i8,
            // Accepted under another drift, which has changed since.
            _ => 0,
        };
        let run = match (offset, offset == self.offset) {
            (0, _) => 0,
            (_, false) => 1,
            (_, true) => self.run.saturating_add(1),
        };
        if run < RUN {
            return Drift { offset, run, ..self };
        }
        let steps = self.steps() + offset.signum() as i64;
        let may_move = (offset > 0 || self.is_set) && steps.abs() <= MOST;
        Drift { steps: if may_move { steps as i8 } else { self.steps }, is_set: self.is_set, offset: 0, run: 0 }
    }

    /// Returns the drift of the same clock in steps of another length, rounded toward zero.
    pub const fn in_period(self, old: Period, new: Period) -> Drift {
        let steps = self.steps() * old.get() as i64 / new.get() as i64;
        let steps = if steps > MOST {
            MOST
        } else if steps < -MOST {
            -MOST
        } else {
            steps
        };
        Drift { steps: steps as i8, is_set: self.is_set, offset: 0, run: 0 }
    }

    /// The number that the database stores: one byte each for steps, offset, run, and whether it was set. 0 is [`Drift::NONE`].
    pub const fn to_stored(self) -> i64 {
        i64::from_le_bytes([self.steps as u8, self.offset as u8, self.run, self.is_set as u8, 0, 0, 0, 0])
    }

    /// Reads that number. One that no drift is stored as is [`Drift::NONE`].
    pub const fn from_stored(stored: i64) -> Drift {
        match stored.to_le_bytes() {
            [steps, offset, run, is_set @ 0..=1, 0, 0, 0, 0]
                if (steps as i8 as i64).abs() <= MOST && (offset as i8).unsigned_abs() <= 2 && run < RUN =>
            {
                Drift { steps: steps as i8, is_set: is_set == 1, offset: offset as i8, run }
            }
            _ => Drift::NONE,
        }
    }
}
