//! Verification: reads every seal and every row once, in order, and reports what differs.
//!
//! Owns the findings and their words. Must never change anything, nor hold more than one seal and one chunk of rows.
//!
//! A row in a hole is judged later: a later seal may have it as late. Such ids are pending until a seal closes their hole.

use std::collections::VecDeque;
use std::rc::Rc;

use pgrx::datum::datetime_support::ToIsoString;
use seal::trail::RowsMac;
use seal::{IdRange, IdSet, KeyId, MacKey};

use super::anchor::Anchor;
use super::expected::Expected;
use super::{here, promoted_at};
use crate::error::Error;
use crate::keyring;
use crate::store::audit_seals::{self, Place, StoredSeal};
use crate::store::spi::Snapshot;
use crate::store::{audit_keys, audit_rows};
use crate::timestamp::Timestamp;

/// A NOTICE comes after each of so many rows.
const PROGRESS: i64 = 1_000_000;
/// Most ranges of ids in a sentence.
const NAMED: usize = 10;

/// One row of the answer.
pub struct Finding {
    pub seal_id: Option<i64>,
    pub first_id: Option<i64>,
    pub last_id: Option<i64>,
    pub status: &'static str,
    pub problem: Option<String>,
}

/// What the next seal must follow.
struct Before {
    seal_id: i64,
    /// `None` if it is not known.
    last: Option<BeforeThat>,
}

struct BeforeThat {
    last_id: i64,
    mac: Vec<u8>,
    place: Option<Place>,
}

/// Rows in holes of a seal that may be late.
struct Pending {
    seal_id: i64,
    ids: IdSet,
}

/// A key, or why there is none.
type Key = Result<MacKey, String>;

/// A verification under way. It runs as its findings are fetched, so that they need no memory.
pub struct Verification {
    anchor: Option<Anchor>,
    before: Before,
    last_id: i64,
    pruned_seal: i64,
    pending: Vec<Pending>,
    key: Option<(KeyId, Rc<Key>)>,
    rows: i64,
    findings: VecDeque<Finding>,
    is_complete: bool,
}

impl Verification {
    /// Begins with a seal, or with the first one that is not pruned.
    pub fn begin(anchor: Option<Anchor>, since_seal: Option<i64>) -> Result<Self, Error> {
        let snapshot = Snapshot::of_statement();
        let pruned_seal = audit_seals::last(&snapshot)?.map_or(0, |last| last.pruned_seal);
        let first = since_seal.unwrap_or(1).max(pruned_seal).max(1);
        let last = if first == 1 {
            Some(BeforeThat { last_id: 0, mac: vec![0; 32], place: None })
        } else {
            // The one before the last pruned one is gone.
            audit_seals::find(&snapshot, first - 1)?.map(|seal| BeforeThat::of(&seal))
        };
        let last_id = last.as_ref().map_or(0, |last| last.last_id);
        let mut this = Self {
            anchor,
            before: Before { seal_id: first - 1, last },
            last_id,
            pruned_seal,
            pending: vec![],
            key: None,
            rows: 0,
            findings: VecDeque::new(),
            is_complete: false,
        };
        if first == pruned_seal.max(1) {
            this.look_below(&snapshot)?;
        }
        Ok(this)
    }

    /// Returns the next finding.
    pub fn next_finding(&mut self) -> Result<Option<Finding>, Error> {
        let snapshot = Snapshot::of_statement();
        while self.findings.is_empty() && !self.is_complete {
            match audit_seals::next(&snapshot, self.before.seal_id.saturating_add(1))? {
                Some(seal) => self.verify(&snapshot, &seal)?,
                None => self.end(&snapshot)?,
            }
        }
        Ok(self.findings.pop_front())
    }

    /// Looks at rows that no seal has, unless as late ones: those of pruned seals, and those before the first id.
    fn look_below(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let end = audit_seals::find(snapshot, self.pruned_seal)?.map_or(0, |pruned| pruned.last_id);
        let mut ids = IdSet::default();
        audit_rows::each(snapshot, IdRange { first: i64::MIN, last: end }, i64::MAX, |row| {
            ids.push(row.id, row.id);
            Ok(())
        })?;
        self.hold(self.pruned_seal, ids);
        Ok(())
    }

    fn hold(&mut self, seal_id: i64, ids: IdSet) {
        if !ids.is_empty() {
            self.pending.push(Pending { seal_id, ids });
        }
    }

    fn verify(&mut self, snapshot: &Snapshot, seal: &StoredSeal) -> Result<(), Error> {
        self.check_that_none_is_missing(seal);
        let key = self.key(snapshot, seal.key);
        let is_pruned = seal.seal_id <= self.pruned_seal;
        let mut rows =
            RowsOf { mac: key.as_ref().as_ref().ok().map(RowsMac::new), count: 0, missing: IdSet::default() };
        let mut twice = IdSet::default();
        if !is_pruned {
            let no_holes = IdSet::default();
            for range in seal.late.ranges() {
                let seen = self.read(snapshot, *range, &no_holes, &mut rows)?;
                twice = twice.union(&seen.twice);
            }
            for pending in &mut self.pending {
                pending.ids = pending.ids.minus(&seal.late);
            }
            let range = IdRange { first: seal.first_id, last: seal.last_id };
            let seen = self.read(snapshot, range, &seal.holes, &mut rows)?;
            twice = twice.union(&seen.twice);
            self.hold(seal.seal_id, seen.in_holes);
        }
        let is_sound = match key.as_ref() {
            Ok(key) => self.follows(seal) && seal.covered().is_mac(key, &seal.mac),
            Err(problem) => {
                self.report(seal, "unverifiable", Some(problem.clone()));
                true
            }
        };
        if !is_sound {
            self.report(seal, "changed", Some("The seal was changed.".into()));
        }
        if let Some(bounds) = rows.missing.bounds() {
            let problem = format!(
                "{}: {}.",
                counted(rows.missing.count(), "row is missing", "rows are missing"),
                listed(&rows.missing)
            );
            self.report_ids(seal.seal_id, bounds, "missing", problem);
        } else if let Some(bounds) = twice.bounds() {
            self.report_ids(seal.seal_id, bounds, "filled", format!("Ids that are there twice: {}.", listed(&twice)));
        } else if !is_pruned
            && is_sound
            && rows.mac.is_some_and(|mac| !mac.is(&seal.rows_mac) || rows.count != seal.row_count)
        {
            self.report(
                seal,
                "changed",
                Some(format!("At least one of {} was changed.", counted(seal.row_count, "row", "rows"))),
            );
        } else if is_sound && key.is_ok() {
            let status = if is_pruned { "pruned" } else { "ok" };
            self.report(seal, status, self.moved(seal));
        }
        self.close(seal.closed_seal);
        self.before = Before { seal_id: seal.seal_id, last: Some(BeforeThat::of(seal)) };
        self.last_id = self.last_id.max(seal.last_id);
        Ok(())
    }

    /// Reads the rows of a range and adds those that the seal must have.
    fn read<'a>(
        &mut self,
        snapshot: &Snapshot,
        range: IdRange,
        holes: &'a IdSet,
        rows: &mut RowsOf,
    ) -> Result<Expected<'a>, Error> {
        let mut expected = Expected::new(range, holes);
        audit_rows::each(snapshot, range, i64::MAX, |row| {
            if expected.note(row.id) {
                rows.count += 1;
                rows.mac.iter_mut().for_each(|mac| mac.add(row));
            }
            self.rows += 1;
            if self.rows % PROGRESS == 0 {
                pgrx::notice!("pg_totp: {} audit rows read", self.rows);
            }
            Ok(())
        })?;
        expected.end();
        rows.missing = rows.missing.union(&expected.missing);
        Ok(expected)
    }

    /// Reports seals that are not there. Those before the last pruned one need not be.
    fn check_that_none_is_missing(&mut self, seal: &StoredSeal) {
        let first = self.before.seal_id.saturating_add(1).max(self.pruned_seal);
        if first >= seal.seal_id {
            return;
        }
        let last = seal.seal_id - 1;
        self.findings.push_back(Finding {
            seal_id: Some(first),
            first_id: self.before.last.as_ref().map(|before| before.last_id.saturating_add(1)),
            last_id: Some(seal.first_id.saturating_sub(1)),
            status: "missing",
            problem: Some(format!(
                "{} missing.",
                if first == last { format!("Seal {first} is") } else { format!("Seals {first} to {last} are") }
            )),
        });
        self.before = Before { seal_id: last, last: None };
    }

    /// Returns whether the seal follows the one before, if that is known.
    fn follows(&self, seal: &StoredSeal) -> bool {
        self.before
            .last
            .as_ref()
            .is_none_or(|before| seal.previous_mac == before.mac && seal.first_id == before.last_id.saturating_add(1))
    }

    /// Says that the seal was made in another place than the one before.
    fn moved(&self, seal: &StoredSeal) -> Option<String> {
        let before = self.before.last.as_ref()?.place.filter(|before| *before != seal.place)?;
        let place = seal.place;
        Some(if (before.system_identifier, before.database) == (place.system_identifier, place.database) {
            format!("From here on in timeline {}: after a promotion or a recovery.", place.timeline)
        } else {
            "From here on in another cluster or database: after a restore, an upgrade, or a copy.".into()
        })
    }

    /// Reports the rows in holes that were closed without them.
    fn close(&mut self, closed_seal: i64) {
        let (closed, open): (Vec<_>, Vec<_>) = self
            .pending
            .drain(..)
            .filter(|pending| !pending.ids.is_empty())
            .partition(|pending| pending.seal_id <= closed_seal);
        self.pending = open;
        for Pending { seal_id, ids } in closed {
            if let Some(bounds) = ids.bounds() {
                let rows = counted(ids.count(), "row that no seal has", "rows that no seal has");
                self.report_ids(seal_id, bounds, "filled", format!("{rows}: {}.", listed(&ids)));
            }
        }
    }

    /// Ends: the anchor, and what is not sealed.
    fn end(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.is_complete = true;
        let last = audit_seals::last(snapshot)?;
        if last.is_none() && !audit_keys::all(snapshot)?.is_empty() {
            self.findings.push_back(Finding {
                seal_id: None,
                first_id: None,
                last_id: None,
                status: "missing",
                problem: Some("There is a key of the trail, and no seal.".into()),
            });
        }
        if let Some(anchor) = self.anchor.take() {
            self.check_anchor(snapshot, &anchor, last.as_ref())?;
        }
        let last_id = last.as_ref().map_or(0, |last| last.last_id);
        let rest = audit_rows::after(snapshot, last_id)?;
        let waiting: i64 = self.pending.iter().map(|pending| pending.ids.count()).sum();
        let rows = rest.count.saturating_add(waiting);
        let since = rest.oldest_at.map_or(String::new(), |at| format!(", since {}", shown(at)));
        let sealed = last
            .map_or("There is no seal".into(), |last| format!("Seal {} is of {}", last.seal_id, shown(last.sealed_at)));
        self.findings.push_back(Finding {
            seal_id: None,
            first_id: (rest.count > 0).then(|| last_id.saturating_add(1)),
            last_id: rest.last_id,
            status: "ok",
            problem: Some(format!("{sealed}; {} not sealed{since}.", counted(rows, "row is", "rows are"))),
        });
        Ok(())
    }

    /// Reports an anchor whose seal is not here.
    fn check_anchor(&mut self, snapshot: &Snapshot, anchor: &Anchor, last: Option<&StoredSeal>) -> Result<(), Error> {
        let found = audit_seals::find(snapshot, anchor.seal_id)?;
        if found.as_ref().is_some_and(|seal| anchor.is_of(seal)) {
            return Ok(());
        }
        let last = last.map_or((0, 0), |last| (last.seal_id, last.last_id));
        let (status, problem, first_id) = if found.is_some() {
            ("lost", format!("Another seal has its number{}.", never_here()), None)
        } else if anchor.seal_id < self.pruned_seal {
            // Who has made a new trail and pruned it past the anchor would be believed.
            ("unverifiable", "Its seal was pruned, so this anchor shows nothing: take a later one.".into(), None)
        } else {
            (
                "lost",
                format!("The last seal here is {}: it was cut off{}.", last.0, never_here()),
                Some(last.1.saturating_add(1)),
            )
        };
        self.findings.push_back(Finding {
            seal_id: Some(anchor.seal_id),
            first_id: first_id.filter(|first| *first <= anchor.last_id),
            last_id: Some(anchor.last_id),
            status,
            problem: Some(problem),
        });
        Ok(())
    }

    /// Returns a key. Seals that follow each other mostly have the same.
    fn key(&mut self, snapshot: &Snapshot, id: KeyId) -> Rc<Key> {
        if let Some((_, key)) = self.key.as_ref().filter(|(of, _)| *of == id) {
            return Rc::clone(key);
        }
        let key = Rc::new(match keyring::find_mac_key(snapshot, id) {
            Ok(Some(key)) => Ok(key),
            Ok(None) => Err(format!("Key {} of the trail is not there: forgotten or deleted.", id.get())),
            Err(error) => Err(format!("Key {} of the trail does not open: {error}.", id.get())),
        });
        self.key = Some((id, Rc::clone(&key)));
        key
    }

    fn report(&mut self, seal: &StoredSeal, status: &'static str, problem: Option<String>) {
        // A seal may have late rows alone.
        let own = IdRange { first: seal.first_id, last: seal.last_id };
        let range = if own.first <= own.last { Some(own) } else { seal.late.bounds() };
        self.findings.push_back(Finding {
            seal_id: Some(seal.seal_id),
            first_id: range.map(|range| range.first),
            last_id: range.map(|range| range.last),
            status,
            problem,
        });
    }

    fn report_ids(&mut self, seal_id: i64, ids: IdRange, status: &'static str, problem: String) {
        self.findings.push_back(Finding {
            seal_id: (seal_id > 0).then_some(seal_id),
            first_id: Some(ids.first),
            last_id: Some(ids.last),
            status,
            problem: Some(problem),
        });
    }
}

impl BeforeThat {
    fn of(seal: &StoredSeal) -> Self {
        Self { last_id: seal.last_id, mac: seal.mac.clone(), place: Some(seal.place) }
    }
}

/// The rows of a seal as they are now.
struct RowsOf {
    mac: Option<RowsMac>,
    count: i64,
    missing: IdSet,
}

/// Names the promotion that may have lost a seal.
fn never_here() -> String {
    let timeline = here().timeline;
    let since = promoted_at().map_or(String::new(), |at| format!(" at {}", shown(at)));
    if timeline > 1 {
        format!(", or never here since the promotion to timeline {timeline}{since}")
    } else {
        String::new()
    }
}

fn counted(number: i64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn listed(ids: &IdSet) -> String {
    let name = |range: &IdRange| {
        if range.first == range.last { range.first.to_string() } else { format!("{} to {}", range.first, range.last) }
    };
    let mut text = ids.ranges().iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    let more = ids.ranges().len().saturating_sub(NAMED);
    if more > 0 {
        text.push_str(&format!(", and {more} more ranges"));
    }
    text
}

fn shown(at: Timestamp) -> String {
    at.to_sql().map_or("an unknown time".into(), |at| at.to_iso_string())
}
