//! Sets of ids, as sorted ranges with gaps between them.
//!
//! Owns the arithmetic, and the text of PostgreSQL's `int8multirange`. Must never keep two ranges that touch.

use std::fmt::{self, Write};

/// Ids, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first one.
    pub first: i64,
    /// The last one.
    pub last: i64,
}

impl IdRange {
    /// Returns how many ids it has.
    pub fn count(self) -> i64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }
}

/// A set of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdSet(Vec<IdRange>);

impl IdSet {
    /// Adds ids above all that are there. Ids that are not above are left out.
    pub fn push(&mut self, first: i64, last: i64) {
        let first = match self.0.last_mut() {
            Some(end) if end.last >= first.saturating_sub(1) => {
                end.last = end.last.max(last);
                return;
            }
            _ => first,
        };
        if first <= last {
            self.0.push(IdRange { first, last });
        }
    }

    /// Returns its ranges, in order.
    pub fn ranges(&self) -> &[IdRange] {
        &self.0
    }

    /// Returns whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many ids it has.
    pub fn count(&self) -> i64 {
        self.0.iter().fold(0, |sum: i64, range| sum.saturating_add(range.count()))
    }

    /// Returns the first and the last id.
    pub fn bounds(&self) -> Option<IdRange> {
        Some(IdRange { first: self.0.first()?.first, last: self.0.last()?.last })
    }

    /// Returns whether it has an id.
    pub fn contains(&self, id: i64) -> bool {
        let after = self.0.partition_point(|range| range.first <= id);
        after.checked_sub(1).and_then(|index| self.0.get(index)).is_some_and(|range| id <= range.last)
    }

    /// Returns the ids of either.
    pub fn union(&self, other: &IdSet) -> IdSet {
        let mut all: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable_by_key(|range| range.first);
        let mut union = IdSet::default();
        all.iter().for_each(|range| union.push(range.first, range.last));
        union
    }

    /// Returns the ids that the other set does not have.
    pub fn minus(&self, other: &IdSet) -> IdSet {
        let mut left = IdSet::default();
        let mut others = other.0.iter().peekable();
        for range in &self.0 {
            let mut first = range.first;
            while let Some(gap) = others.peek().filter(|gap| gap.first <= range.last) {
                left.push(first, range.last.min(gap.first.saturating_sub(1)));
                first = first.max(gap.last.saturating_add(1));
                if gap.last > range.last {
                    break;
                }
                others.next();
            }
            left.push(first, range.last);
        }
        left
    }

    /// Reads the text of an `int8multirange`. `None` for any other text, or for a range without an end.
    pub fn parse(text: &str) -> Option<IdSet> {
        let mut set = IdSet::default();
        let body = text.strip_prefix('{')?.strip_suffix('}')?;
        for part in body.split_terminator(')').map(|part| part.trim_start_matches(',')) {
            let (first, end) = part.strip_prefix('[')?.split_once(',')?;
            set.push(first.parse().ok()?, end.parse::<i64>().ok()?.checked_sub(1)?);
        }
        Some(set)
    }
}

/// The text of an `int8multirange`.
impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (index, IdRange { first, last }) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}[{first},{})", last.saturating_add(1))?;
        }
        f.write_char('}')
    }
}
