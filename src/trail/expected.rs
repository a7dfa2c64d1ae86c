//! The ids that a seal must have, compared with the rows that are there, in order.
//!
//! Owns this comparison. Must never need more memory than the ranges that it found.

use seal::{IdRange, IdSet};

/// Where the comparison stands.
pub struct Expected<'a> {
    holes: &'a [IdRange],
    next: i64,
    last: i64,
    /// Ids that have no row.
    pub missing: IdSet,
    /// Rows with an id that had none.
    pub in_holes: IdSet,
    /// Ids that have more than one row.
    pub twice: IdSet,
}

impl<'a> Expected<'a> {
    /// Expects all ids of a range but those in holes.
    pub fn new(range: IdRange, holes: &'a IdSet) -> Self {
        let nothing = IdSet::default;
        Self {
            holes: holes.ranges(),
            next: range.first,
            last: range.last,
            missing: nothing(),
            in_holes: nothing(),
            twice: nothing(),
        }
    }

    /// Notes the next row. Returns whether it is expected.
    pub fn note(&mut self, id: i64) -> bool {
        if id < self.next {
            self.twice.push(id, id);
            return false;
        }
        self.skip_to(id);
        self.next = id.saturating_add(1);
        let is_expected = self.holes.first().is_none_or(|hole| hole.first > id);
        if !is_expected {
            self.in_holes.push(id, id);
        }
        is_expected
    }

    /// Notes that there are no more rows.
    pub fn end(&mut self) {
        self.skip_to(self.last.saturating_add(1));
    }

    /// Ids before this one have no row: what is not a hole is missing. Drops the holes before it.
    fn skip_to(&mut self, id: i64) {
        while let Some((hole, rest)) = self.holes.split_first().filter(|(hole, _)| hole.first < id) {
            self.missing.push(self.next, hole.first.saturating_sub(1));
            self.next = self.next.max(hole.last.saturating_add(1)).min(id);
            if hole.last >= id {
                return;
            }
            self.holes = rest;
        }
        self.missing.push(self.next, id.saturating_sub(1));
    }
}
