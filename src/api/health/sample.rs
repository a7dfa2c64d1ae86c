//! Numbers that come from a sample of the pages of a table.
//!
//! Owns what can be concluded from one. Must never take a few rows of a large table for a number.

use crate::store::health::Sampled;

/// How many standard deviations are left for chance.
const DOUBT: f64 = 3.0;

impl Sampled {
    /// Returns whether the sample is the table.
    pub fn is_all(&self) -> bool {
        self.scale <= 1.0
    }

    /// Returns the most likely number in the table.
    pub fn about(&self) -> i64 {
        (self.rows as f64 * self.scale) as i64
    }

    /// Returns a number that is hardly ever more than there are in the table.
    pub fn at_least(&self) -> i64 {
        let rows = self.rows as f64;
        if self.is_all() { self.rows } else { ((rows - DOUBT * rows.sqrt()).max(0.0) * self.scale) as i64 }
    }

    /// Returns a number that is hardly ever less than there are in the table.
    pub fn at_most(&self) -> i64 {
        let rows = self.rows as f64;
        // Nothing in the sample is what one expects of up to three in as many pages.
        if self.is_all() { self.rows } else { ((rows + DOUBT * rows.sqrt() + DOUBT) * self.scale) as i64 }
    }
}
