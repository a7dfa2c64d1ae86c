//! Facts for `totp_health()` about the tables and the users: counts, flags, names, times.
//!
//! Owns one statement per subject; `health_rights` and `health_settings` have those about rights and settings. Must never write
//! a sentence or choose a status: `api::health` does. The statements of the cheap checks come first: they read no table whose
//! size depends on the number of users, but by index, or a sample.

use pgrx::IntoDatum;
use pgrx::pg_sys;

use super::attempts::Attempts;
use super::audited_hour::{self, Counted};
use super::counters::Counts;
use super::floor::Floor;
use super::shape;
use super::spi::{Arg, Row, Snapshot, Statement, int8, statement};
use super::used_codes::UsedCode;
use crate::error::Error;
use crate::inplace::InPlace;
use crate::random;
use crate::timestamp::Timestamp;

/// A table that changes in place, and what is wrong with it.
pub struct InPlaceTable {
    pub name: &'static str,
    pub faults: Vec<Fault>,
}

/// Why a table cannot change in place as it should. Names are quoted as SQL needs it.
pub enum Fault {
    Missing,
    /// It is not a logged table of access method heap.
    Storage,
    /// Its first columns are not those that change in place.
    Columns,
    /// An index on a column that changes in place.
    Index(String),
    Trigger(String),
    /// A publication that has the table: by itself, with its schema, or with all tables.
    Publication(String),
    PublicationOfSchema(String),
    PublicationOfAllTables(String),
    /// A subscription that writes to the table.
    Subscription(String),
    /// The table, or a partition of it, that REPACK (CONCURRENTLY) would take.
    ReplicaIdentity(String),
}

/// A table that cannot be read.
pub struct UnreadableTable {
    pub name: &'static str,
    /// Citus has taken it. Otherwise it is missing, or its columns have changed.
    pub is_distributed: bool,
}

/// How many secrets and sets of recovery codes lack something.
pub struct Incomplete {
    /// A row in `totp.attempts` or `totp.used_codes`.
    pub without_row: i64,
    pub without_data_key: i64,
}

/// The state of the data keys.
pub struct DataKeys {
    pub is_rotation_half_way: bool,
    pub is_older_than_a_year: bool,
}

/// The floor. The text is as PostgreSQL shows times.
pub struct FloorSeen {
    pub at: String,
    pub is_future: bool,
    /// There were recovery codes when it was set, and nobody has acknowledged it.
    pub is_to_acknowledge: bool,
}

/// Stored times that a clock which was never ahead, and is not behind now, cannot have written.
pub struct FutureTimes {
    /// How many secrets and sets of recovery codes were used later than now.
    pub used: i64,
    /// The last of these uses, as PostgreSQL shows times.
    pub last_used_at: Option<String>,
    /// How many locks end later than any lock can.
    pub locks: i64,
}

/// How many users are in a lock or near one.
pub struct Locks {
    pub locked: i64,
    /// Of these, until `totp_unlock()`.
    pub forever: i64,
    /// One wrong code away.
    pub near: i64,
}

/// What the audit log has of the last hour, of each event the last `AUDIT_ROWS` rows.
pub struct AuditedHour {
    /// Users in the rows about wrong codes.
    pub failing_users: i64,
    /// Rows about used codes that were tried again.
    pub replays: i64,
}

const HOUR: i64 = 3_600_000_000;

/// What a sample of two tables has of the last hour.
pub struct SampledHour {
    /// Users who had a wrong code.
    pub failing_users: Sampled,
    pub used_secrets: Sampled,
}

/// A number of rows in a sample of the pages of a table.
#[derive(Clone, Copy)]
pub struct Sampled {
    pub rows: i64,
    /// How many pages of the table there are for each page of the sample.
    pub scale: f64,
}

/// How many users need help.
pub struct Help {
    /// Devices that were never confirmed, and whose secret has expired.
    pub unconfirmed_devices: i64,
    /// Users who have two or fewer recovery codes left.
    pub few_recovery_codes: i64,
    /// Users who have recovery codes and no device.
    pub recovery_codes_alone: i64,
}

/// Largest number of audit rows of an event that are counted.
pub const AUDIT_ROWS: i64 = audited_hour::MOST;

/// Largest number of pages that a sample has.
const SAMPLE_PAGES: u32 = 32;

statement!(reads VERSION(), c"SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pg_totp'");

// src/inplace relies on the access method and the columns, and on no index on them and no trigger. $2 has the columns of all
// tables of $1, five of each. Partitions are found in pg_inherits: for pg_partition_tree() PostgreSQL plans a thousand rows
// each, and then compiles the statement by JIT, which takes longer than all checks.
statement!(reads TABLE_FAULTS(TEXTARRAYOID, TEXTARRAYOID), c"
WITH RECURSIVE expected AS (
  SELECT t.name, $2[5 * t.number - 4 : 5 * t.number] AS columns
    FROM pg_catalog.unnest($1) WITH ORDINALITY AS t(name, number)),
part AS (
  SELECT e.name, c.oid
    FROM expected e JOIN pg_catalog.pg_class c ON c.relname = e.name AND c.relnamespace = 'totp'::pg_catalog.regnamespace
   UNION
  SELECT p.name, i.inhrelid FROM part p JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid),
found AS (
  SELECT e.name, e.columns, c.oid, c.relkind, c.relpersistence, c.relreplident, m.amname
    FROM expected e
    LEFT JOIN part p ON p.name = e.name
    LEFT JOIN pg_catalog.pg_class c ON c.oid = p.oid
    LEFT JOIN pg_catalog.pg_am m ON m.oid = c.relam)
SELECT f.name, 'missing', NULL FROM found f WHERE f.oid IS NULL
UNION ALL
SELECT f.name, 'storage', NULL
  FROM found f WHERE f.relkind = 'r' AND (f.relpersistence <> 'p' OR f.amname IS DISTINCT FROM 'heap')
UNION ALL
SELECT f.name, 'columns', NULL
  FROM found f
 WHERE f.oid IS NOT NULL
   AND f.columns IS DISTINCT FROM (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
                                     FROM pg_catalog.pg_attribute a
                                    WHERE a.attrelid = f.oid AND a.attnum BETWEEN 1 AND 5 AND a.attnotnull
                                      AND a.atttypid IN ('int8'::pg_catalog.regtype, 'timestamptz'::pg_catalog.regtype))
UNION ALL
SELECT f.name, 'index', i.indexrelid::pg_catalog.regclass::text
  FROM found f
  JOIN pg_catalog.pg_index i ON i.indrelid = f.oid
 WHERE EXISTS (SELECT FROM pg_catalog.pg_depend d
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = f.oid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid
                  AND d.refclassid = 'pg_class'::pg_catalog.regclass AND d.refobjid = f.oid
                  AND d.refobjsubid BETWEEN 1 AND 5 AND a.attname <> 'secret_id')
UNION ALL
SELECT f.name, 'trigger', pg_catalog.quote_ident(t.tgname)
  FROM found f JOIN pg_catalog.pg_trigger t ON t.tgrelid = f.oid AND NOT t.tgisinternal
UNION ALL
SELECT f.name,
       CASE WHEN p.puballtables THEN 'publication of all tables'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = p.oid AND s.pnnspid = n.oid)
            THEN 'publication of schema'
            ELSE 'publication' END,
       pg_catalog.quote_ident(p.pubname)
  FROM found f
  JOIN pg_catalog.pg_class c ON c.oid = f.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
  JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
UNION ALL
SELECT f.name, 'subscription', pg_catalog.quote_ident(s.subname)
  FROM found f
  JOIN pg_catalog.pg_subscription_rel r ON r.srrelid = f.oid
  JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid
UNION ALL
SELECT f.name, 'replica identity', f.oid::pg_catalog.regclass::text
  FROM found f
 WHERE f.relkind = 'r' AND f.relreplident <> 'n'
   AND pg_catalog.current_setting('server_version_num')::integer >= 190000");

statement!(reads DATA_KEYS(TIMESTAMPTZOID), c"
SELECT coalesce(pg_catalog.bool_or(state = 'retiring'), false),
       coalesce(pg_catalog.min(created_at) < $1 - interval '1 year', false)
  FROM totp.data_keys");

statement!(reads FLOOR(TIMESTAMPTZOID), c"SELECT floor_at::text, floor_at > $1, timeline < 0 FROM totp.floor");

// Where `audited_hour` has no index, or the rows are in partitions. The last rows of an event, by the index on (event, at). A
// comparison of rows, and this order, fit no other index: by the one on (at) it would read the rows of all events.
statement!(probes AUDITED_HOUR(TIMESTAMPTZOID, INT8OID, INT8OID), c"
SELECT (SELECT pg_catalog.count(DISTINCT user_id)
          FROM (SELECT user_id FROM totp.audit_log
                 WHERE (event, at) > ('failed', $1 - interval '1 hour') AND (event, at) <= ('failed', 'infinity')
                 ORDER BY event DESC, at DESC LIMIT $2) AS failed),
       (SELECT pg_catalog.count(*)
          FROM (SELECT FROM totp.audit_log
                 WHERE (event, at) > ('replayed', $1 - interval '1 hour') AND (event, at) <= ('replayed', 'infinity')
                 ORDER BY event DESC, at DESC LIMIT $3) AS replayed)");

// A partitioned table has its pages in its partitions.
statement!(reads PAGES(), c"
SELECT (SELECT pg_catalog.sum(pg_catalog.pg_relation_size(relid))
          FROM (SELECT 'totp.attempts'::pg_catalog.regclass AS relid
                 UNION SELECT relid FROM pg_catalog.pg_partition_tree('totp.attempts')) AS part)::bigint,
       (SELECT pg_catalog.sum(pg_catalog.pg_relation_size(relid))
          FROM (SELECT 'totp.used_codes'::pg_catalog.regclass AS relid
                 UNION SELECT relid FROM pg_catalog.pg_partition_tree('totp.used_codes')) AS part)::bigint");

// TABLESAMPLE would compute a number for every page of the table.
statement!(probes SAMPLED_HOUR(TIMESTAMPTZOID, INT8ARRAYOID, INT8ARRAYOID), c"
SELECT (SELECT coalesce(pg_catalog.sum(number), 0)::bigint
          FROM pg_catalog.unnest($2) AS page
         CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS number FROM totp.attempts
                              WHERE ctid BETWEEN pg_catalog.format('(%s,0)', page)::tid AND pg_catalog.format('(%s,65535)', page)::tid
                                AND last_failed_at > $1 - interval '1 hour') AS failed),
       (SELECT coalesce(pg_catalog.sum(number), 0)::bigint
          FROM pg_catalog.unnest($3) AS page
         CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS number FROM totp.used_codes
                              WHERE ctid BETWEEN pg_catalog.format('(%s,0)', page)::tid AND pg_catalog.format('(%s,65535)', page)::tid
                                AND used_at > $1 - interval '1 hour') AS used)");

// What follows reads whole tables. Joins and sorts of more than work_mem use temporary files: EXISTS under OR would not.
statement!(reads INCOMPLETE(), c"
SELECT pg_catalog.count(*) FILTER (WHERE a.user_id IS NULL OR u.user_id IS NULL),
       pg_catalog.count(*) FILTER (WHERE k.key_id IS NULL)
  FROM (SELECT user_id, secret_id, key_id FROM totp.secrets
         UNION ALL SELECT user_id, set_id, key_id FROM totp.recovery_codes) AS s
  LEFT JOIN totp.attempts a ON a.user_id = s.user_id
  LEFT JOIN totp.used_codes u ON u.user_id = s.user_id AND u.secret_id = s.secret_id
  LEFT JOIN totp.data_keys k ON k.key_id = s.key_id");

// Sign-ins continue while this reads, so a use may be a little later than $1.
statement!(reads FUTURE_TIMES(TIMESTAMPTZOID), c"
SELECT used, last_used_at::text, locks
  FROM (SELECT pg_catalog.count(*) AS used, pg_catalog.max(used_at) AS last_used_at
          FROM totp.used_codes
         WHERE used_at > $1 + (pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp()) + interval '1 minute') AS u
 CROSS JOIN (SELECT pg_catalog.count(*) AS locks
               FROM totp.attempts, pg_catalog.unnest(ARRAY[locked_until, recovery_locked_until]) AS lock(ends)
              WHERE ends < 'infinity'
                AND ends > $1 + (pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp()) + interval '1 hour'
                              + greatest(pg_catalog.current_setting('totp.lockout')::interval,
                                         pg_catalog.current_setting('totp.lockout_max')::interval)) AS l");

statement!(reads OLDER_THAN_FLOOR(), c"
SELECT pg_catalog.count(*) FROM totp.recovery_codes r, totp.floor f WHERE r.created_at < f.floor_at");

// A lock may be older than a raise of totp.max_attempts.
statement!(reads LOCKS(TIMESTAMPTZOID), c"
SELECT pg_catalog.count(*) FILTER (WHERE greatest(locked_until, recovery_locked_until) > $1),
       pg_catalog.count(*) FILTER (WHERE 'infinity' IN (locked_until, recovery_locked_until)),
       pg_catalog.count(*) FILTER (WHERE greatest(locked_until, recovery_locked_until) <= $1)
  FROM totp.attempts
 WHERE greatest(locked_until, recovery_locked_until) > $1
    OR greatest(failures, recovery_failures) >= greatest(pg_catalog.current_setting('totp.max_attempts')::integer - 1, 1)");

// The users that LOCKS counts, latest first.
statement!(reads NEAR_A_LOCK(TIMESTAMPTZOID), c"
SELECT user_id FROM totp.attempts
 WHERE greatest(locked_until, recovery_locked_until) > $1
    OR greatest(failures, recovery_failures) >= greatest(pg_catalog.current_setting('totp.max_attempts')::integer - 1, 1)
 ORDER BY last_failed_at DESC, user_id LIMIT 10");

statement!(reads HELP(TIMESTAMPTZOID), c"
SELECT (SELECT pg_catalog.count(DISTINCT (user_id, device)) FROM totp.secrets
         WHERE slot <> 'active' AND enforced_since IS NULL AND expires_at <= $1),
       (SELECT pg_catalog.count(*)
          FROM totp.recovery_codes r JOIN totp.used_codes u ON u.user_id = r.user_id AND u.secret_id = r.set_id
         WHERE r.count - pg_catalog.bit_count(u.recovery_mask::bit(64)) <= 2),
       (SELECT pg_catalog.count(*) FROM totp.recovery_codes r
         WHERE NOT EXISTS (SELECT FROM totp.secrets s WHERE s.user_id = r.user_id))");

/// Returns the version of the extension's SQL in this database.
pub fn version() -> Result<Option<String>, Error> {
    VERSION.with(|s| s.first(&Snapshot::latest(), &[], |row| row.must(1)))
}

/// Returns the tables that change in place, by name.
pub fn in_place_tables() -> Result<[InPlaceTable; 4], Error> {
    let names = [Attempts::TABLE, Counts::TABLE, Floor::TABLE, UsedCode::TABLE];
    let columns = [Attempts::COLUMNS, Counts::COLUMNS, Floor::COLUMNS, UsedCode::COLUMNS].concat();
    let mut tables = names.map(|name| InPlaceTable { name, faults: vec![] });
    let args = [names.to_vec().into_datum(), columns.into_datum()];
    TABLE_FAULTS.with(|s| {
        s.rows(&Snapshot::latest(), &args, |row| {
            let (name, fault) = (row.text(1)?, fault(row)?);
            let table = tables.iter_mut().find(|table| table.name == name).ok_or(Error::RowsAltered)?;
            table.faults.push(fault);
            Ok(())
        })
    })?;
    Ok(tables)
}

fn fault(row: &Row) -> Result<Fault, Error> {
    Ok(match row.text(2)? {
        "missing" => Fault::Missing,
        "storage" => Fault::Storage,
        "columns" => Fault::Columns,
        "index" => Fault::Index(row.must(3)?),
        "trigger" => Fault::Trigger(row.must(3)?),
        "publication" => Fault::Publication(row.must(3)?),
        "publication of schema" => Fault::PublicationOfSchema(row.must(3)?),
        "publication of all tables" => Fault::PublicationOfAllTables(row.must(3)?),
        "subscription" => Fault::Subscription(row.must(3)?),
        "replica identity" => Fault::ReplicaIdentity(row.must(3)?),
        _ => return Err(Error::Internal("name a fault of a table")),
    })
}

/// Returns the names of all tables.
pub fn tables() -> impl Iterator<Item = &'static str> {
    shape::names()
}

/// Returns the tables whose rows cannot be read: what reads one of them raises an error.
pub fn unreadable_tables() -> Vec<UnreadableTable> {
    let is_distributed = |error| matches!(error, Error::TableDistributed(_));
    shape::unusable()
        .into_iter()
        .map(|(name, error)| UnreadableTable { name, is_distributed: is_distributed(error) })
        .collect()
}

/// Reads the state of the data keys.
pub fn data_keys(now: Timestamp) -> Result<DataKeys, Error> {
    one(&DATA_KEYS, &[int8(now.0)], |row| {
        Ok(DataKeys { is_rotation_half_way: row.must(1)?, is_older_than_a_year: row.must(2)? })
    })
}

/// Reads the floor. `None` if it has no row.
pub fn floor(now: Timestamp) -> Result<Option<FloorSeen>, Error> {
    FLOOR.with(|s| {
        s.first(&Snapshot::latest(), &[int8(now.0)], |row| {
            Ok(FloorSeen { at: row.must(1)?, is_future: row.must(2)?, is_to_acknowledge: row.must(3)? })
        })
    })
}

/// Counts the signs of an attack that the audit log has. Replays are counted until there are `enough_replays`.
pub fn audited_hour(now: Timestamp, enough_replays: i64) -> Result<AuditedHour, Error> {
    let since = Timestamp(now.0.saturating_sub(HOUR));
    let failed = audited_hour::count("failed", since, AUDIT_ROWS)?;
    let replayed = audited_hour::count("replayed", since, enough_replays)?;
    if let (Some(Counted { users: failing_users, .. }), Some(Counted { rows: replays, .. })) = (failed, replayed) {
        return Ok(AuditedHour { failing_users, replays });
    }
    one(&AUDITED_HOUR, &[int8(now.0), int8(AUDIT_ROWS), int8(enough_replays)], |row| {
        Ok(AuditedHour { failing_users: row.must(1)?, replays: row.must(2)? })
    })
}

/// Looks at some pages of the tables that also have what was rolled back: at all of them, if there are few.
pub fn sampled_hour(now: Timestamp) -> Result<SampledHour, Error> {
    let (attempts, used_codes) = one(&PAGES, &[], |row| Ok((pages(row.must(1)?), pages(row.must(2)?))))?;
    let (of_attempts, of_used_codes) = (sample(attempts)?, sample(used_codes)?);
    let scale = |pages: u32, sample: &[u32]| f64::from(pages.max(1)) / sample.len().max(1) as f64;
    let (scale_attempts, scale_used_codes) = (scale(attempts, &of_attempts), scale(used_codes, &of_used_codes));
    one(&SAMPLED_HOUR, &[int8(now.0), numbers(&of_attempts), numbers(&of_used_codes)], |row| {
        Ok(SampledHour {
            failing_users: Sampled { rows: row.must(1)?, scale: scale_attempts },
            used_secrets: Sampled { rows: row.must(2)?, scale: scale_used_codes },
        })
    })
}

fn pages(bytes: i64) -> u32 {
    u32::try_from(bytes / i64::from(pg_sys::BLCKSZ)).unwrap_or(u32::MAX)
}

/// Chooses pages of a table by chance: all, if there are few.
fn sample(pages: u32) -> Result<Vec<u32>, Error> {
    if pages <= SAMPLE_PAGES {
        return Ok((0..pages).collect());
    }
    let by_chance = |_| random::bytes().map(|bytes| (u64::from_ne_bytes(bytes) % u64::from(pages)) as u32);
    let mut chosen = (0..SAMPLE_PAGES).map(by_chance).collect::<Result<Vec<_>, _>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Makes an argument with the numbers of these pages.
fn numbers(pages: &[u32]) -> Arg {
    pages.iter().map(|page| i64::from(*page)).collect::<Vec<_>>().into_datum()
}

/// Counts secrets and sets of recovery codes that lack something.
pub fn incomplete() -> Result<Incomplete, Error> {
    one(&INCOMPLETE, &[], |row| Ok(Incomplete { without_row: row.must(1)?, without_data_key: row.must(2)? }))
}

/// Looks for times in the future.
pub fn future_times(now: Timestamp) -> Result<FutureTimes, Error> {
    one(&FUTURE_TIMES, &[int8(now.0)], |row| {
        Ok(FutureTimes { used: row.must(1)?, last_used_at: row.get(2), locks: row.must(3)? })
    })
}

/// Counts the sets of recovery codes that are older than the last failover or restore.
pub fn recovery_sets_older_than_floor() -> Result<i64, Error> {
    one(&OLDER_THAN_FLOOR, &[], |row| row.must(1))
}

/// Counts the users in a lock, and near one.
pub fn locks(now: Timestamp) -> Result<Locks, Error> {
    one(&LOCKS, &[int8(now.0)], |row| Ok(Locks { locked: row.must(1)?, forever: row.must(2)?, near: row.must(3)? }))
}

/// Returns the last ten users in a lock or near one.
pub fn users_near_a_lock(now: Timestamp) -> Result<Vec<String>, Error> {
    NEAR_A_LOCK.with(|s| s.rows(&Snapshot::latest(), &[int8(now.0)], |row| row.must(1)))
}

/// Counts the users who need help.
pub fn help(now: Timestamp) -> Result<Help, Error> {
    one(&HELP, &[int8(now.0)], |row| {
        Ok(Help {
            unconfirmed_devices: row.must(1)?,
            few_recovery_codes: row.must(2)?,
            recovery_codes_alone: row.must(3)?,
        })
    })
}

/// Runs a statement that returns one row.
fn one<T>(
    statement: &'static std::thread::LocalKey<Statement>,
    args: &[Arg],
    read: impl FnOnce(&Row) -> Result<T, Error>,
) -> Result<T, Error> {
    statement.with(|s| s.first(&Snapshot::latest(), args, read))?.ok_or(Error::RowsAltered)
}
