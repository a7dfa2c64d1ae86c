//! Making seals, and the pruning of what they cover.
//!
//! Owns the order: the writers, the snapshot, the rows, the writers again. Must never close a hole that a transaction may
//! still fill, nor prune a row that is not sealed.

use pgrx::datum::Interval;
use seal::trail::{AuditRow, RowsMac};
use seal::{IdRange, IdSet, KeyId, MacKey};

use super::{here, writers};
use crate::error::Error;
use crate::store::audit_rows;
use crate::store::audit_seals::{self, Open, Place, StoredSeal};
use crate::store::spi::Snapshot;
use crate::timestamp::Timestamp;
use crate::{backend, clock, keyring};

/// Most rows of one seal.
const MAX_ROWS: i64 = 1_000_000;

/// What a step has done.
pub enum Step {
    /// Another session seals.
    Busy,
    /// Every row is sealed.
    Nothing,
    Sealed {
        seal_id: i64,
        /// There may be more rows.
        is_full: bool,
    },
}

/// Seals what is committed and not sealed yet, at most a million rows.
pub fn step() -> Result<Step, Error> {
    if !audit_seals::try_lock() {
        return Ok(Step::Busy);
    }
    let last = Last::find()?;
    let open = audit_seals::open(&Snapshot::latest(), last.closed_seal)?;
    // Before the snapshot of the rows, so that it sees what those have done who have ended.
    let closable = closable(&open, writers::oldest()?, here());
    let (key_id, key) = keyring::current_mac_key()?;

    let snapshot = Snapshot::latest();
    let mut taken = Taken::nothing(&key, last.last_id);
    let holes = holes(&open);
    let late = audit_rows::ids_in(&snapshot, &holes, MAX_ROWS)?;
    for range in late.ranges() {
        audit_rows::each(&snapshot, *range, MAX_ROWS, |row| taken.add_late(row))?;
    }
    let is_late_cut = taken.count >= MAX_ROWS;
    if !is_late_cut {
        let new = IdRange { first: last.last_id.saturating_add(1), last: i64::MAX };
        audit_rows::each(&snapshot, new, MAX_ROWS - taken.count, |row| taken.add_new(row))?;
    }
    let closed_seal = if is_late_cut { last.closed_seal } else { last.closed_seal.max(closable) };
    if taken.count == 0 && !closes_a_hole(&open, closed_seal) {
        return Ok(Step::Nothing);
    }
    let is_full = taken.count >= MAX_ROWS;
    let next_xid = writers::all_below()?;
    drop(snapshot);
    let seal_id = last.store(taken, late, closed_seal, last.pruned_seal, next_xid, (key_id, &key))?;
    // The line in the server log names it.
    backend::force_sync_commit();
    Ok(Step::Sealed { seal_id, is_full })
}

/// Deletes the rows of seals that have only rows older than that, the oldest seals first, and seals that. Returns how many
/// rows. `None` if there is no seal.
pub fn prune(now: Timestamp, older_than: Interval) -> Result<Option<i64>, Error> {
    if !audit_seals::exist() || audit_seals::last(&Snapshot::latest())?.is_none() {
        return Ok(None);
    }
    audit_seals::lock();
    let last = Last::find()?;
    let old = audit_seals::first_young(now, older_than)?.map_or(i64::MAX, |young| young.saturating_sub(1));
    // In an open hole there may be a row that is not sealed.
    let pruned_seal = old.min(last.closed_seal);
    if pruned_seal <= last.pruned_seal {
        return Ok(Some(0));
    }
    let pruned = audit_seals::find(&Snapshot::latest(), pruned_seal)?.ok_or(Error::RowsAltered)?;
    let rows = audit_rows::prune(pruned.last_id, pruned_seal)?;
    let (key_id, key) = keyring::current_mac_key()?;
    let nothing = Taken::nothing(&key, last.last_id);
    last.store(nothing, IdSet::default(), last.closed_seal, pruned_seal, None, (key_id, &key))?;
    audit_seals::delete_before(pruned_seal)?;
    Ok(Some(rows))
}

/// What the next seal follows.
struct Last {
    seal_id: i64,
    last_id: i64,
    closed_seal: i64,
    pruned_seal: i64,
    mac: Vec<u8>,
}

impl Last {
    fn find() -> Result<Self, Error> {
        let nothing = Self { seal_id: 0, last_id: 0, closed_seal: 0, pruned_seal: 0, mac: vec![0; 32] };
        Ok(audit_seals::last(&Snapshot::latest())?.map_or(nothing, |seal| Self {
            seal_id: seal.seal_id,
            last_id: seal.last_id,
            closed_seal: seal.closed_seal,
            pruned_seal: seal.pruned_seal,
            mac: seal.mac,
        }))
    }

    /// Stores the next seal. Returns its number.
    fn store(
        &self,
        taken: Taken,
        late: IdSet,
        closed_seal: i64,
        pruned_seal: i64,
        next_xid: Option<i64>,
        (key_id, key): (KeyId, &MacKey),
    ) -> Result<i64, Error> {
        let mut seal = StoredSeal {
            seal_id: self.seal_id.saturating_add(1),
            first_id: self.last_id.saturating_add(1),
            last_id: taken.last_id,
            row_count: taken.count,
            newest_at: taken.newest_at.map(Timestamp),
            rows_mac: taken.mac.finish().to_vec(),
            holes: taken.holes,
            late,
            closed_seal,
            pruned_seal,
            next_xid,
            place: here(),
            key: key_id,
            sealed_at: clock::now()?,
            previous_mac: self.mac.clone(),
            mac: vec![],
        };
        seal.mac = seal.covered().mac(key).to_vec();
        audit_seals::insert(&seal)?;
        Ok(seal.seal_id)
    }
}

/// The rows of a seal that is being made.
struct Taken {
    mac: RowsMac,
    count: i64,
    newest_at: Option<i64>,
    last_late_id: i64,
    last_id: i64,
    holes: IdSet,
}

impl Taken {
    fn nothing(key: &MacKey, last_id: i64) -> Self {
        Self {
            mac: RowsMac::new(key),
            count: 0,
            newest_at: None,
            last_late_id: i64::MIN,
            last_id,
            holes: IdSet::default(),
        }
    }

    /// Adds a row in a hole of an earlier seal.
    fn add_late(&mut self, row: &AuditRow) -> Result<(), Error> {
        if row.id > self.last_late_id {
            self.last_late_id = row.id;
            self.add(row);
        }
        Ok(())
    }

    /// Adds a row above all that are sealed. Of two with one id, which no primary key allows, verification reports the second.
    fn add_new(&mut self, row: &AuditRow) -> Result<(), Error> {
        if row.id > self.last_id {
            self.holes.push(self.last_id.saturating_add(1), row.id.saturating_sub(1));
            self.last_id = row.id;
            self.add(row);
        }
        Ok(())
    }

    fn add(&mut self, row: &AuditRow) {
        self.mac.add(row);
        self.count += 1;
        self.newest_at = self.newest_at.max(row.at);
    }
}

/// Returns the ids in open holes that no later seal has taken.
fn holes(open: &[Open]) -> IdSet {
    let (mut holes, mut late) = (IdSet::default(), IdSet::default());
    for seal in open {
        seal.holes.ranges().iter().for_each(|range| holes.push(range.first, range.last));
        late = late.union(&seal.late);
    }
    holes.minus(&late)
}

/// Returns the last seal whose holes no transaction can fill any more.
fn closable(open: &[Open], oldest_writer: i64, here: Place) -> i64 {
    let mut next_xid = None;
    for seal in open.iter().rev() {
        // That of a later seal is good for one without.
        next_xid = seal.next_xid.or(next_xid);
        // The transactions of another cluster or database never commit here.
        let is_elsewhere =
            (seal.place.system_identifier, seal.place.database) != (here.system_identifier, here.database);
        if is_elsewhere || next_xid.is_some_and(|next_xid| next_xid <= oldest_writer) {
            return seal.seal_id;
        }
    }
    0
}

/// Returns whether a seal that closes the holes of seals up to `closed_seal` changes anything.
fn closes_a_hole(open: &[Open], closed_seal: i64) -> bool {
    open.iter().any(|seal| seal.seal_id <= closed_seal && !seal.holes.is_empty())
}
