//! What `totp_health()` reads: one statement per subject, with rows of check name, status, and detail.
//!
//! Some statements read every row of a table: call it every few minutes, not every second.

use super::shape;
use super::spi::{Arg, Snapshot, Statement, int8, statement, text};
use crate::error::Error;
use crate::timestamp::Timestamp;

/// A row of `totp_health()`.
pub struct Check {
    pub name: String,
    pub status: String,
    pub detail: String,
}

statement!(reads VERSION(TEXTOID), c"
SELECT 'version', CASE WHEN extversion = $1 THEN 'ok' ELSE 'warn' END,
       CASE WHEN extversion = $1 THEN extversion || '; nothing to do'
            ELSE 'the SQL has version ' || extversion || ', the library of this session has version ' || $1
                 || ': run ALTER EXTENSION pg_totp UPDATE, and end sessions that are older than the files' END
  FROM pg_catalog.pg_extension
 WHERE extname = 'pg_totp'");

// src/inplace relies on the access method and the columns, and on no index on them and no trigger.
statement!(reads TABLES(), c"
WITH expected(name, words) AS (VALUES
  ('attempts', ARRAY['locked_until', 'recovery_locked_until', 'last_failed_at', 'failures', 'recovery_failures']),
  ('used_codes', ARRAY['time_step', 'used_at', 'uses', 'recovery_mask', 'secret_id']),
  ('floor', ARRAY['floor_at', 'system_identifier', 'control_inode', 'database', 'timeline'])),
found AS (
  SELECT e.name, e.words, c.oid, c.relkind, c.relpersistence, m.amname
    FROM expected e
    LEFT JOIN pg_catalog.pg_class root ON root.relname = e.name AND root.relnamespace = 'totp'::pg_catalog.regnamespace
    LEFT JOIN LATERAL (SELECT root.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(root.oid)) AS part(relid) ON true
    LEFT JOIN pg_catalog.pg_class c ON c.oid = part.relid
    LEFT JOIN pg_catalog.pg_am m ON m.oid = c.relam),
faults AS (
  SELECT name, 'it is missing' AS fault FROM found WHERE oid IS NULL
  UNION ALL
  SELECT f.name, 'it is not a logged table of access method heap'
    FROM found f WHERE f.relkind = 'r' AND (f.relpersistence <> 'p' OR f.amname IS DISTINCT FROM 'heap')
  UNION ALL
  SELECT f.name, 'its first five columns have changed'
    FROM found f
   WHERE f.oid IS NOT NULL
     AND f.words IS DISTINCT FROM (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
                                     FROM pg_catalog.pg_attribute a
                                    WHERE a.attrelid = f.oid AND a.attnum BETWEEN 1 AND 5 AND a.attnotnull
                                      AND a.atttypid IN ('int8'::pg_catalog.regtype, 'timestamptz'::pg_catalog.regtype))
  UNION ALL
  SELECT f.name, 'index ' || i.indexrelid::pg_catalog.regclass || ' is on a column that changes in place: drop it'
    FROM found f
    JOIN pg_catalog.pg_index i ON i.indrelid = f.oid
   WHERE EXISTS (SELECT FROM pg_catalog.pg_depend d
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = f.oid AND a.attnum = d.refobjsubid
                  WHERE d.classid = 'pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid
                    AND d.refclassid = 'pg_class'::pg_catalog.regclass AND d.refobjid = f.oid
                    AND d.refobjsubid BETWEEN 1 AND 5 AND a.attname <> 'secret_id')
  UNION ALL
  SELECT f.name, 'trigger ' || pg_catalog.quote_ident(t.tgname) || ' would not see its changes: drop it'
    FROM found f JOIN pg_catalog.pg_trigger t ON t.tgrelid = f.oid AND NOT t.tgisinternal
  UNION ALL
  SELECT f.name, 'publication ' || pg_catalog.quote_ident(p.pubname) || ' would not see its changes: remove the table from it'
    FROM found f
    JOIN pg_catalog.pg_class c ON c.oid = f.oid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_publication_tables p ON p.schemaname = n.nspname AND p.tablename = c.relname)
SELECT 'table_' || e.name, CASE WHEN count(x.fault) = 0 THEN 'ok' ELSE 'fail' END,
       coalesce(pg_catalog.string_agg('table totp.' || e.name || ': ' || x.fault, '; ' ORDER BY x.fault),
                'changes in place as it should; nothing to do')
  FROM expected e LEFT JOIN faults x USING (name)
 GROUP BY e.name
 ORDER BY e.name");

statement!(reads ROWS(), c"
SELECT 'rows', CASE WHEN n = 0 THEN 'ok' ELSE 'fail' END,
       CASE WHEN n = 0 THEN 'every secret has its rows; nothing to do'
            ELSE n || CASE n WHEN 1 THEN ' secret or recovery set lacks' ELSE ' secrets or recovery sets lack' END
                 || ' a row in totp.attempts or totp.used_codes: restore the rows, or enroll the users again' END
  FROM (SELECT count(*) AS n
          FROM (SELECT user_id, secret_id FROM totp.secrets
                 UNION ALL SELECT user_id, set_id FROM totp.recovery_codes) AS s
         WHERE NOT EXISTS (SELECT FROM totp.attempts a WHERE a.user_id = s.user_id)
            OR NOT EXISTS (SELECT FROM totp.used_codes u WHERE u.user_id = s.user_id AND u.secret_id = s.secret_id)) AS x
UNION ALL
SELECT 'data_keys', CASE WHEN n = 0 THEN 'ok' ELSE 'fail' END,
       CASE WHEN n = 0 THEN 'every secret has its data key; nothing to do'
            ELSE n || CASE n WHEN 1 THEN ' secret or recovery set is' ELSE ' secrets or recovery sets are' END
                 || ' sealed under a data key that does not exist: restore totp.data_keys' END
  FROM (SELECT count(*) AS n
          FROM (SELECT key_id FROM totp.secrets UNION ALL SELECT key_id FROM totp.recovery_codes) AS s
         WHERE NOT EXISTS (SELECT FROM totp.data_keys k WHERE k.key_id = s.key_id)) AS x");

statement!(reads KEY_AGE(TIMESTAMPTZOID), c"
SELECT 'key_rotation',
       CASE WHEN pg_catalog.bool_or(state = 'retiring') OR min(created_at) < $1 - interval '1 year' THEN 'warn' ELSE 'ok' END,
       CASE WHEN pg_catalog.bool_or(state = 'retiring') THEN 'a rotation is half way: CALL totp_rotate_key_online()'
            WHEN min(created_at) < $1 - interval '1 year' THEN 'the data key is more than a year old: SELECT totp_rotate_key()'
            ELSE 'no data key is older than a year; nothing to do' END
  FROM totp.data_keys");

statement!(reads SERVER(), c"
SELECT 'wal_consistency_checking', CASE WHEN on_ THEN 'fail' ELSE 'ok' END,
       CASE WHEN on_ THEN 'it would abort crash recovery and stop standbys: remove generic and all from it' ELSE 'off for generic WAL; nothing to do' END
  FROM (SELECT pg_catalog.current_setting('wal_consistency_checking') ~ '(generic|all)'
            OR EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) AS setting
                        WHERE setting ~ '^wal_consistency_checking=.*(generic|all)') AS on_) AS x
UNION ALL
SELECT 'log_parameters', CASE WHEN logged THEN 'warn' ELSE 'ok' END,
       CASE WHEN logged THEN 'the server log may show codes that are sent as parameters: set log_parameter_max_length and log_parameter_max_length_on_error to 0'
            ELSE 'the server log shows no parameters; nothing to do' END
  FROM (SELECT pg_catalog.current_setting('log_parameter_max_length_on_error') <> '0'
            OR (pg_catalog.current_setting('log_parameter_max_length') <> '0'
                AND (pg_catalog.current_setting('log_statement') = 'all'
                     OR pg_catalog.current_setting('log_duration') = 'on'
                     OR pg_catalog.current_setting('log_min_duration_statement') <> '-1'
                     OR pg_catalog.current_setting('log_min_duration_sample') <> '-1'
                     OR pg_catalog.current_setting('log_transaction_sample_rate') <> '0'))
            OR EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) AS setting
                        WHERE setting ~ '^(log_statement=all|log_duration=on|log_min_duration_(statement|sample)=[0-9]|log_transaction_sample_rate=0?[.]?[1-9]|log_parameter_max_length_on_error=(-1|[1-9]))')
               AS logged) AS x");

statement!(reads RIGHTS(), c"
SELECT 'rights', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'fail' END,
       CASE WHEN count(*) = 0 THEN 'PUBLIC has no rights; nothing to do'
            ELSE 'PUBLIC has rights on ' || pg_catalog.string_agg(DISTINCT name, ', ') || ': revoke them' END
  FROM (SELECT p.oid::pg_catalog.regprocedure::text AS name, a.grantee
          FROM pg_catalog.pg_proc p
          JOIN pg_catalog.pg_depend d ON d.classid = 'pg_proc'::pg_catalog.regclass AND d.objid = p.oid
                                     AND d.refclassid = 'pg_extension'::pg_catalog.regclass
          JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_totp'
         CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
         UNION ALL
        SELECT c.oid::pg_catalog.regclass::text, a.grantee
          FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
         WHERE c.relnamespace = 'totp'::pg_catalog.regnamespace
         UNION ALL
        SELECT c.oid::pg_catalog.regclass || ' (' || a.attname || ')', x.grantee
          FROM pg_catalog.pg_attribute a
          JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relnamespace = 'totp'::pg_catalog.regnamespace
         CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) x
         UNION ALL
        SELECT 'schema totp', a.grantee
          FROM pg_catalog.pg_namespace n CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a
         WHERE n.nspname = 'totp') AS granted
 WHERE grantee = 0");

// Roles that can write to every table, except superusers.
statement!(reads WRITERS(), c"
SELECT rolname::text FROM pg_catalog.pg_roles
 WHERE NOT rolsuper AND rolname <> 'pg_write_all_data' AND pg_catalog.pg_has_role(oid, 'pg_write_all_data', 'MEMBER')
 ORDER BY rolname");

// The users that locked_users counts, latest first.
statement!(reads NEAR_A_LOCK(TIMESTAMPTZOID), c"
SELECT user_id FROM totp.attempts
 WHERE greatest(locked_until, recovery_locked_until) > $1
    OR greatest(failures, recovery_failures) >= greatest(pg_catalog.current_setting('totp.max_attempts')::integer - 1, 1)
 ORDER BY last_failed_at DESC, user_id LIMIT 10");

statement!(reads FLOOR(TIMESTAMPTZOID), c"
SELECT 'clock', CASE WHEN floor_at > $1 OR used > 0 THEN 'fail' WHEN locked > 0 THEN 'warn' ELSE 'ok' END,
       CASE WHEN floor_at > $1 THEN 'the clock was ahead when this cluster first judged a code, or is behind now: codes of older secrets are refused until ' || floor_at
            WHEN used > 0 THEN 'the clock was ahead, or is behind now: correct it; '
                 || used || CASE used WHEN 1 THEN ' secret or recovery set in totp.used_codes was' ELSE ' secrets or recovery sets in totp.used_codes were' END
                 || ' used later than now, the last at ' || last_used
                 || ', and such secrets are refused until then: call totp_reset() for users who cannot wait'
            WHEN locked > 0 THEN 'the clock was ahead, or is behind now: correct it; '
                 || locked || CASE locked WHEN 1 THEN ' lock in totp.attempts ends later than any lock can, and is'
                                          ELSE ' locks in totp.attempts end later than any lock can, and are' END
                 || ' ignored: call totp_unlock() for these users'
            ELSE 'the clock is not behind any time seen before; nothing to do' END
  FROM totp.floor
 CROSS JOIN (SELECT count(*) AS used, max(used_at) AS last_used
               FROM totp.used_codes
              -- Sign-ins continue while this reads, so a use may be a little later than $1.
              WHERE used_at > $1 + (pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp()) + interval '1 minute') AS u
 CROSS JOIN (SELECT count(*) AS locked
               FROM totp.attempts, pg_catalog.unnest(ARRAY[locked_until, recovery_locked_until]) AS lock(ends)
              WHERE ends < 'infinity'
                AND ends > $1 + (pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp()) + interval '1 hour'
                              + greatest(pg_catalog.current_setting('totp.lockout')::interval,
                                         pg_catalog.current_setting('totp.lockout_max')::interval)) AS l
UNION ALL
SELECT 'recovery_after_restore', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
       CASE WHEN count(*) = 0 THEN 'no recovery codes are older than the last failover or restore; nothing to do'
            ELSE count(*) || CASE count(*) WHEN 1 THEN ' set of recovery codes is' ELSE ' sets of recovery codes are' END || ' older than the last failover or restore, and a code used just before it may be good again: create new ones with totp_recovery_codes()' END
  FROM totp.recovery_codes r, totp.floor f WHERE r.created_at < f.floor_at");

// Signs of an attack, and users who need help.
statement!(reads SIGNALS(TIMESTAMPTZOID), c"
SELECT 'locked_users', CASE WHEN forever > 0 THEN 'warn' ELSE 'ok' END,
       locked || CASE locked WHEN 1 THEN ' user is' ELSE ' users are' END || ' locked, ' || forever || ' of them until totp_unlock(), and '
       || near || CASE near WHEN 1 THEN ' is' ELSE ' are' END || ' one wrong code away: '
       || CASE WHEN forever > 0 THEN 'unlock the users that you know' ELSE 'nothing to do' END
  FROM (SELECT count(*) FILTER (WHERE greatest(locked_until, recovery_locked_until) > $1) AS locked,
               count(*) FILTER (WHERE 'infinity' IN (locked_until, recovery_locked_until)) AS forever,
               count(*) FILTER (WHERE greatest(locked_until, recovery_locked_until) <= $1) AS near
          FROM totp.attempts
         -- A lock may be older than a raise of totp.max_attempts.
         WHERE greatest(locked_until, recovery_locked_until) > $1
            OR greatest(failures, recovery_failures)
               >= greatest(pg_catalog.current_setting('totp.max_attempts')::integer - 1, 1)) AS x
UNION ALL
SELECT 'failures_over_many_users', CASE WHEN spraying THEN 'warn' ELSE 'ok' END,
       failing || CASE failing WHEN 1 THEN ' user' ELSE ' users' END || ' had a wrong code in the last hour, and '
       || used || CASE used WHEN 1 THEN ' secret was' ELSE ' secrets were' END || ' used: '
       || CASE WHEN spraying THEN 'this looks like password spraying; look at client_addr in totp.audit_log'
               ELSE 'nothing to do' END
  -- Few users mistype. The number of tries per user does not matter: an attacker chooses it.
  FROM (SELECT failing, used, failing >= 20 AND failing * 10 > used AS spraying
          FROM (SELECT count(*) AS failing FROM totp.attempts WHERE last_failed_at > $1 - interval '1 hour') AS f
         CROSS JOIN (SELECT count(*) AS used FROM totp.used_codes WHERE used_at > $1 - interval '1 hour') AS u) AS x
UNION ALL
SELECT 'replays', CASE WHEN n >= 10 THEN 'warn' ELSE 'ok' END,
       n || CASE n WHEN 1 THEN ' used code was' ELSE ' used codes were' END || ' tried again in the last hour, in transactions that committed: '
       || CASE WHEN n >= 10 THEN 'a client sends codes twice, or someone intercepts them; look at totp.audit_log' ELSE 'nothing to do' END
  FROM (SELECT count(*) AS n FROM totp.audit_log WHERE event = 'replayed' AND at > $1 - interval '1 hour') AS x
UNION ALL
SELECT 'unconfirmed_devices', 'ok',
       n || CASE n WHEN 1 THEN ' device was enrolled and never confirmed, and its secret has' ELSE ' devices were enrolled and never confirmed, and their secrets have' END
       || ' expired: ' || CASE WHEN n > 0 THEN 'enroll again, or call totp_remove()' ELSE 'nothing to do' END
  FROM (SELECT count(*) AS n FROM totp.secrets WHERE slot = 'pending' AND enforced_since IS NULL AND expires_at <= $1) AS x
UNION ALL
SELECT 'recovery_codes_low', 'ok',
       n || CASE n WHEN 1 THEN ' user has' ELSE ' users have' END || ' two or fewer recovery codes left: '
       || CASE WHEN n > 0 THEN 'ask for a new set' ELSE 'nothing to do' END
  FROM (SELECT count(*) AS n
          FROM totp.recovery_codes r JOIN totp.used_codes u ON u.user_id = r.user_id AND u.secret_id = r.set_id
         WHERE r.count - pg_catalog.bit_count(u.recovery_mask::bit(64)) <= 2) AS x
UNION ALL
SELECT 'recovery_codes_alone', 'ok',
       n || CASE n WHEN 1 THEN ' user has' ELSE ' users have' END || ' recovery codes and no device: '
       || CASE WHEN n > 0 THEN 'call totp_remove() for users who should no longer sign in' ELSE 'nothing to do' END
  FROM (SELECT count(*) AS n FROM totp.recovery_codes r
         WHERE NOT EXISTS (SELECT FROM totp.secrets s WHERE s.user_id = r.user_id)) AS x");

/// Makes the checks that read PostgreSQL's catalog and settings.
pub fn of_catalog() -> Result<Vec<Check>, Error> {
    let snapshot = Snapshot::latest();
    let mut checks = VERSION.with(|s| read(s, &snapshot, &[text(env!("CARGO_PKG_VERSION"))]))?;
    for statement in [&TABLES, &SERVER, &RIGHTS] {
        checks.extend(statement.with(|s| read(s, &snapshot, &[]))?);
    }
    Ok(checks)
}

/// Makes the checks that read the tables. Errors: XX001 if one is [altered](altered_tables).
pub fn of_rows(now: Timestamp) -> Result<Vec<Check>, Error> {
    let snapshot = Snapshot::latest();
    let mut checks = ROWS.with(|s| read(s, &snapshot, &[]))?;
    for statement in [&KEY_AGE, &FLOOR, &SIGNALS] {
        checks.extend(statement.with(|s| read(s, &snapshot, &[int8(now.0)]))?);
    }
    Ok(checks)
}

/// Makes a failed check for each table that cannot be read.
pub fn altered_tables() -> Vec<Check> {
    let check = |table| Check {
        name: format!("table_{table}"),
        status: "fail".into(),
        detail: format!("table totp.{table}: it is missing, or its columns have changed: restore it"),
    };
    shape::altered().into_iter().map(check).collect()
}

/// Returns the last ten users who are locked or one wrong code away.
pub fn users_near_a_lock(now: Timestamp) -> Result<Vec<String>, Error> {
    NEAR_A_LOCK.with(|s| names(s, &[int8(now.0)]))
}

/// Returns the roles that can write to every table, except superusers.
pub fn writers_of_all_data() -> Result<Vec<String>, Error> {
    WRITERS.with(|s| names(s, &[]))
}

fn names(statement: &Statement, args: &[Arg]) -> Result<Vec<String>, Error> {
    statement.rows(&Snapshot::latest(), args, |row| row.must(1))
}

fn read(statement: &Statement, snapshot: &Snapshot, args: &[Arg]) -> Result<Vec<Check>, Error> {
    statement.rows(snapshot, args, |row| Ok(Check { name: row.must(1)?, status: row.must(2)?, detail: row.must(3)? }))
}
