//! The rows of `totp.audit_log` in the order of their ids, as seals cover them, and who is writing them.
//!
//! Owns these reads. Must never hold more than a chunk of rows in memory, nor wait for a writer.

use std::collections::HashMap;

use pgrx::{IntoDatum, datum::Interval};
use seal::trail::AuditRow;
use seal::{IdRange, IdSet};

use super::row::Row;
use super::spi::{Snapshot, int8, statement, text, time};
use crate::backend;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// Rows in memory at a time.
const CHUNK: i64 = 10_000;

statement!(reads IN_ORDER(INT8OID, INT8OID, INT8OID), c"
SELECT id, at, event, user_id, device, actor, db_user::text, pg_catalog.inet_send(client_addr), application_name, detail::text
  FROM totp.audit_log
 WHERE id >= $1 AND id <= $2
 ORDER BY id LIMIT $3");
// LATERAL and LIMIT make it one look into the index for each hole. As a plain join it may compare each row with each hole.
statement!(reads IDS_IN(TEXTOID, INT8OID), c"
SELECT found.id
  FROM pg_catalog.unnest($1::pg_catalog.int8multirange) AS hole(ids)
 CROSS JOIN LATERAL (SELECT id FROM totp.audit_log
                      WHERE id >= pg_catalog.lower(hole.ids) AND id < pg_catalog.upper(hole.ids)
                      ORDER BY id LIMIT $2) AS found
 LIMIT $2");
statement!(reads AFTER(INT8OID), c"
SELECT pg_catalog.count(*), pg_catalog.min(at), pg_catalog.max(id) FROM totp.audit_log WHERE id > $1");
statement!(reads FIRST_AFTER(INT8OID), c"SELECT at FROM totp.audit_log WHERE id > $1 ORDER BY id LIMIT 1");
// Besides who writes the table, every transaction that has an id: one look at the locks, so that both fit together.
statement!(reads LOCKS(INT8OID), c"
SELECT l.virtualtransaction, l.transactionid::text::bigint
  FROM pg_catalog.pg_locks l
 WHERE l.granted
   AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
   AND (l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock'
        OR l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.database::bigint = $1
           AND l.relation = 'totp.audit_log'::pg_catalog.regclass)");
statement!(reads CACHE(), c"
SELECT seqcache FROM pg_catalog.pg_sequence WHERE seqrelid = 'totp.audit_ids'::pg_catalog.regclass");
// The rows of pruned seals, but for those in their holes, which later seals cover.
statement!(writes PRUNE(INT8OID, INT8OID), c"
DELETE FROM totp.audit_log
 WHERE id <= $1
   AND NOT id <@ (SELECT coalesce(pg_catalog.range_agg(s.late), '{}'::pg_catalog.int8multirange)
                    FROM totp.audit_seals s WHERE s.seal_id > $2)");

/// Reads at most `max` rows of a range, in order. Returns how many. An id that is there twice comes twice.
pub fn each(
    snapshot: &Snapshot,
    range: IdRange,
    max: i64,
    mut read: impl FnMut(&AuditRow) -> Result<(), Error>,
) -> Result<i64, Error> {
    let (mut first, mut count) = (range.first, 0);
    // The chunk after the first one begins with the last row again: if the primary key is gone, another row may have its id.
    let mut again = None;
    while count < max && first <= range.last {
        pgrx::check_for_interrupts!();
        let wanted = CHUNK.min(max - count) + i64::from(again.is_some());
        let mut found = 0;
        let args = [int8(first), int8(range.last), int8(wanted)];
        let mut last = first;
        IN_ORDER.with(|s| {
            s.rows(snapshot, &args, |row| {
                found += 1;
                last = row.word(1)?;
                if again.take() == Some(last) {
                    Ok(())
                } else {
                    count += 1;
                    read(&audit_row(row, last))
                }
            })
        })?;
        if found < wanted {
            break;
        }
        // A chunk of one id alone would be read forever.
        (first, again) = if last > first { (last, Some(last)) } else { (last.saturating_add(1), None) };
    }
    Ok(count)
}

fn audit_row<'a>(row: &'a Row, id: i64) -> AuditRow<'a> {
    AuditRow {
        id,
        at: row.time_or_null(2).map(|at| at.0),
        event: row.text_or_null(3),
        user_id: row.text_or_null(4),
        device: row.text_or_null(5),
        actor: row.text_or_null(6),
        db_user: row.text_or_null(7),
        client_addr: row.bytes_or_null(8),
        application_name: row.text_or_null(9),
        detail: row.text_or_null(10),
    }
}

/// Returns ids of a set that have a row, at most `max`.
pub fn ids_in(snapshot: &Snapshot, set: &IdSet, max: i64) -> Result<IdSet, Error> {
    let mut found = IdSet::default();
    if !set.is_empty() {
        let args = [text(&set.to_string()), int8(max)];
        let mut ids = IDS_IN.with(|s| s.rows(snapshot, &args, |row| row.word(1)))?;
        ids.sort_unstable();
        ids.iter().for_each(|id| found.push(*id, *id));
    }
    Ok(found)
}

/// Rows above an id.
pub struct Rest {
    pub count: i64,
    pub oldest_at: Option<Timestamp>,
    pub last_id: Option<i64>,
}

/// Returns what is known of the rows with a higher id.
pub fn after(snapshot: &Snapshot, id: i64) -> Result<Rest, Error> {
    let read = |row: &Row| Ok(Rest { count: row.word(1)?, oldest_at: row.time_or_null(2), last_id: row.get(3) });
    AFTER.with(|s| s.first(snapshot, &[int8(id)], read))?.ok_or(Error::RowsAltered)
}

/// Returns the time of the row with the next higher id.
pub fn first_after(snapshot: &Snapshot, id: i64) -> Result<Option<Timestamp>, Error> {
    FIRST_AFTER.with(|s| s.first(snapshot, &[int8(id)], |row| row.time(1)))
}

/// Returns how many ids a session takes from the sequence at a time.
pub fn sequence_cache() -> Result<i64, Error> {
    CACHE.with(|s| s.first(&Snapshot::latest(), &[], |row| row.word(1)))?.ok_or(Error::RowsAltered)
}

/// Deletes the rows of pruned seals. Returns how many.
pub fn prune(last_id: i64, last_seal: i64) -> Result<i64, Error> {
    Ok(PRUNE.with(|s| s.count(&[int8(last_id), int8(last_seal)]))?.cast_signed())
}

/// Returns the transactions that write the audit log now, and the id of each that has one.
pub fn writers() -> Result<HashMap<String, Option<u32>>, Error> {
    let (mut writers, mut ids) = (HashMap::new(), HashMap::<String, Vec<u32>>::new());
    let database = i64::from(backend::database().to_u32());
    LOCKS.with(|s| {
        s.rows(&Snapshot::latest(), &[int8(database)], |row| {
            let transaction: String = row.must(1)?;
            match row.get::<i64>(2) {
                Some(id) => {
                    ids.entry(transaction).or_default().push(u32::try_from(id).map_err(|_| Error::RowsAltered)?)
                }
                None => drop(writers.insert(transaction, None)),
            }
            Ok(())
        })
    })?;
    for (transaction, id) in &mut writers {
        // The lowest one is that of the transaction, others are of its subtransactions.
        *id = ids.get(transaction).and_then(|ids| ids.iter().copied().reduce(backend::older_transaction));
    }
    Ok(writers)
}

/// Makes the arguments of an age.
pub fn age(now: Timestamp, older_than: Interval) -> [super::spi::Arg; 2] {
    [time(now), older_than.into_datum()]
}
