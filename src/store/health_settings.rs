//! Facts for `totp_health()` about settings: of the server, and of roles and databases.
//!
//! Owns one statement per subject. Must never write a sentence or choose a status: `api::health` does.

use super::spi::{Row, Snapshot, statement};
use crate::error::Error;

/// Settings of the server, also those of a role or a database.
pub struct ServerSettings {
    /// `wal_consistency_checking` is on for generic WAL.
    pub checks_generic_wal: bool,
    pub logs_parameters: bool,
}

/// Where a setting has a value, and the value. Its encoding may be any.
pub struct Configured {
    pub place: Place,
    pub value: Vec<u8>,
}

/// Where a value is set.
pub enum Place {
    File,
    /// `ALTER ROLE`, `ALTER DATABASE`, or both. A name that is not there stands for all.
    Catalog {
        role: Option<String>,
        database: Option<String>,
    },
}

statement!(reads SERVER(), c"
SELECT pg_catalog.current_setting('wal_consistency_checking') ~ '(generic|all)'
       OR EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) AS setting
                   WHERE setting ~ '^wal_consistency_checking=.*(generic|all)'),
       pg_catalog.current_setting('log_parameter_max_length_on_error') <> '0'
       OR (pg_catalog.current_setting('log_parameter_max_length') <> '0'
           AND (pg_catalog.current_setting('log_statement') = 'all'
                OR pg_catalog.current_setting('log_duration') = 'on'
                OR pg_catalog.current_setting('log_min_duration_statement') <> '-1'
                OR pg_catalog.current_setting('log_min_duration_sample') <> '-1'
                OR pg_catalog.current_setting('log_transaction_sample_rate') <> '0'))
       OR EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) AS setting
                   WHERE setting ~ '^(log_statement=all|log_duration=on|log_min_duration_(statement|sample)=[0-9]|log_transaction_sample_rate=0?[.]?[1-9]|log_parameter_max_length_on_error=(-1|[1-9]))')");

// Of this database and of all.
statement!(reads ISSUERS(), c"
SELECT setting, r.rolname::text, d.datname::text
  FROM pg_catalog.pg_db_role_setting s
 CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS setting
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
  LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
 WHERE pg_catalog.starts_with(setting, 'totp.issuer=')
   AND (s.setdatabase = 0 OR d.datname = pg_catalog.current_database())
 ORDER BY d.datname NULLS FIRST, r.rolname NULLS FIRST");

statement!(reads MAY_READ_FILE(), c"
SELECT pg_catalog.has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')");

// The last line of a name counts.
statement!(reads FILE(), c"
SELECT name, setting FROM pg_catalog.pg_show_all_file_settings()
 WHERE pg_catalog.octet_length(name) = 11 AND setting IS NOT NULL
 ORDER BY seqno DESC");

/// Reads the server's settings.
pub fn server_settings() -> Result<ServerSettings, Error> {
    SERVER
        .with(|s| {
            s.first(&Snapshot::latest(), &[], |row| {
                Ok(ServerSettings { checks_generic_wal: row.must(1)?, logs_parameters: row.must(2)? })
            })
        })?
        .ok_or(Error::RowsAltered)
}

/// Returns the values that `totp.issuer` has outside of this session.
pub fn issuers() -> Result<Vec<Configured>, Error> {
    let mut found = ISSUERS.with(|s| s.rows(&Snapshot::latest(), &[], issuer_of_catalog))?;
    if let Some(value) = issuer_of_file()? {
        found.insert(0, Configured { place: Place::File, value });
    }
    Ok(found)
}

fn issuer_of_catalog(row: &Row) -> Result<Configured, Error> {
    let value = row.text_bytes(1)?.split_off("totp.issuer=".len());
    Ok(Configured { place: Place::Catalog { role: row.get(2), database: row.get(3) }, value })
}

/// Returns the value of the configuration files, if there is one and the owner of the extension may read them.
fn issuer_of_file() -> Result<Option<Vec<u8>>, Error> {
    if MAY_READ_FILE.with(|s| s.first(&Snapshot::latest(), &[], |row| row.must(1)))? != Some(true) {
        return Ok(None);
    }
    let lines = FILE.with(|s| s.rows(&Snapshot::latest(), &[], |row| Ok((row.text_bytes(1)?, row.text_bytes(2)?))))?;
    Ok(lines.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(b"totp.issuer")).map(|(_, value)| value))
}
