//! Gauges for `totp_metrics()`: how many devices there are, and how old the data key is.
//!
//! Owns one statement per gauge. Must never read a table whose size depends on the number of users, but for its first rows.

use super::spi::{Snapshot, int8, statement};
use crate::error::Error;
use crate::timestamp::Timestamp;

// A small table is counted. Of a large one, this is PostgreSQL's own estimate: the rows per page at the last VACUUM or ANALYZE,
// times the pages of today. Before the first one, a page has about 25 rows.
statement!(reads DEVICES(), c"
WITH part AS (
  SELECT pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint AS pages,
         CASE WHEN c.reltuples > 0 AND c.relpages > 0 THEN c.reltuples / c.relpages ELSE 25 END AS density
    FROM (SELECT 'totp.secrets'::pg_catalog.regclass UNION SELECT relid FROM pg_catalog.pg_partition_tree('totp.secrets')) AS part(relid)
    JOIN pg_catalog.pg_class c ON c.oid = part.relid AND c.relkind = 'r')
SELECT CASE WHEN pg_catalog.sum(pages) <= 100
            THEN (SELECT pg_catalog.count(*) FROM (SELECT FROM totp.secrets LIMIT 10000) AS s)::double precision
            ELSE pg_catalog.round(pg_catalog.sum(pages * density)) END
  FROM part");

statement!(reads DATA_KEY_AGE(TIMESTAMPTZOID), c"
SELECT pg_catalog.date_part('epoch', $1 - pg_catalog.max(created_at)) FROM totp.data_keys WHERE state = 'current'");

/// Estimates the number of secrets.
pub fn devices() -> Result<f64, Error> {
    Ok(DEVICES.with(|s| s.first(&Snapshot::latest(), &[], |row| Ok(row.get(1))))?.flatten().unwrap_or(0.0))
}

/// Returns the age of the current data key in seconds, or 0 if there is none.
pub fn data_key_age(now: Timestamp) -> Result<f64, Error> {
    let age = DATA_KEY_AGE.with(|s| s.first(&Snapshot::latest(), &[int8(now.0)], |row| Ok(row.get(1))))?;
    Ok(age.flatten().unwrap_or(0.0))
}
