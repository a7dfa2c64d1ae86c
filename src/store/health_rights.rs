//! Facts for `totp_health()` about who could take over what the rights of the extension protect.
//!
//! Owns one statement per subject. Must never write a sentence or choose a status: `api::health` does. All statements read
//! PostgreSQL's catalogs, whose size does not depend on the number of users. Superusers, and roles that may SET ROLE to one,
//! are not looked for: they may do everything anyway.

use super::spi::{Row, Snapshot, Statement, statement};
use crate::error::Error;

/// A routine that is not a member of the extension and has the name of one.
pub struct OtherRoutine {
    pub signature: String,
    pub owner: String,
    pub is_of_superuser: bool,
}

/// Someone who is not a superuser and can create objects in a schema of the extension.
pub struct SchemaRight {
    pub schema: String,
    pub is_of_functions: bool,
    pub is_owner: bool,
    pub is_database_owner: bool,
    pub holder: Grantee,
}

/// A role, or `None` for PUBLIC.
pub type Grantee = Option<String>;

/// A privilege on an object that someone other than its owner has.
pub struct Grant {
    pub object: String,
    pub grantee: Grantee,
}

/// How many objects name roles that are gone, and the OIDs of these roles.
pub struct GoneRoles {
    pub initial: i64,
    pub current: i64,
    pub oids: Vec<String>,
}

// The functions of the extension, and schema totp with its tables and their columns.
statement!(reads OPEN_TO_PUBLIC(), c"
SELECT DISTINCT name
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
 WHERE grantee = 0
 ORDER BY name");

statement!(reads WRITERS(), c"
SELECT rolname::text FROM pg_catalog.pg_roles
 WHERE NOT rolsuper AND rolname <> 'pg_write_all_data' AND pg_catalog.pg_has_role(oid, 'pg_write_all_data', 'MEMBER')
 ORDER BY rolname");

// Uses the index on proname. PostgreSQL does not look for functions in pg_temp. Helpers in schema totp are called with the
// schema. A routine that needs more arguments than ours has is never called instead, as those of examples/scale-out.
statement!(reads OTHER_ROUTINES(), c"
WITH ours AS (
  SELECT p.oid, p.proname, p.pronamespace, p.pronargs, e.extnamespace
    FROM pg_catalog.pg_extension e
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
                               AND d.classid = 'pg_proc'::pg_catalog.regclass AND d.deptype = 'e'
    JOIN pg_catalog.pg_proc p ON p.oid = d.objid
   WHERE e.extname = 'pg_totp')
SELECT p.oid::pg_catalog.regprocedure::text, r.rolname::text, r.rolsuper
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace AND n.nspname !~ '^pg_temp_'
  JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
 WHERE p.proname = ANY (ARRAY(SELECT proname FROM ours))
   AND p.oid <> ALL (ARRAY(SELECT oid FROM ours))
   AND EXISTS (SELECT FROM ours o
                WHERE o.proname = p.proname AND o.pronamespace IN (o.extnamespace, p.pronamespace)
                  AND p.pronargs - p.pronargdefaults <= o.pronargs)
 ORDER BY r.rolsuper, 1");

// pg_database_owner, who owns schema public since PostgreSQL 15, is the owner of the database.
statement!(reads SCHEMA_RIGHTS(), c"
WITH place AS (
  SELECT n.nspname, n.nspowner, n.nspacl, e.oid IS NOT NULL AS is_of_functions
    FROM pg_catalog.pg_namespace n
    LEFT JOIN pg_catalog.pg_extension e ON e.extname = 'pg_totp' AND e.extnamespace = n.oid
   WHERE n.nspname = 'totp' OR e.oid IS NOT NULL),
holder(schema, is_of_functions, is_owner, role) AS (
  SELECT nspname, is_of_functions, true, nspowner FROM place
   UNION
  SELECT nspname, is_of_functions, false, a.grantee
    FROM place CROSS JOIN LATERAL pg_catalog.aclexplode(nspacl) a
   WHERE a.privilege_type = 'CREATE' AND a.grantee <> nspowner)
SELECT h.schema::text, h.is_of_functions, h.is_owner, coalesce(r.oid = d.datdba, false),
       CASE WHEN h.role <> 0 THEN coalesce(r.rolname, pg_catalog.pg_get_userbyid(h.role))::text END
  FROM holder h
  JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = CASE h.role WHEN 'pg_database_owner'::pg_catalog.regrole THEN d.datdba ELSE h.role END
 WHERE r.rolsuper IS NOT TRUE
 ORDER BY 1, 3 DESC, 5 NULLS FIRST");

// The functions that totp_grant() never grants: those that are reserved in sql/rights.sql.
statement!(reads OWNER_FUNCTIONS(), c"
SELECT DISTINCT p.oid::pg_catalog.regprocedure::text, CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END
  FROM pg_catalog.pg_extension e
  JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
                             AND d.classid = 'pg_proc'::pg_catalog.regclass AND d.deptype = 'e'
  JOIN pg_catalog.pg_proc p ON p.oid = d.objid
 CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
 WHERE e.extname = 'pg_totp' AND a.grantee <> p.proowner
   AND p.proname IN ('totp_grant', 'totp_revoke', 'totp_prune_audit', 'totp_forget_unreadable', 'totp_acknowledge_restore', 'totp_export',
                     'totp_audit_seal',
                     'routines_of', 'record_right', 'seal_step', 'seal_line',
                     'reseal', 'reseal_recovery_codes')
 ORDER BY 1, 2 NULLS FIRST");

// Before PostgreSQL 17 there is no such privilege, and so no row.
statement!(reads MAINTAINED(), c"
SELECT DISTINCT c.oid::pg_catalog.regclass::text, CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END
  FROM pg_catalog.pg_namespace n
  JOIN pg_catalog.pg_class root ON root.relnamespace = n.oid AND root.relname IN ('attempts', 'used_codes', 'floor', 'counters')
 CROSS JOIN LATERAL (SELECT root.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(root.oid)) AS part(relid)
  JOIN pg_catalog.pg_class c ON c.oid = part.relid
 CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
 WHERE n.nspname = 'totp' AND a.privilege_type = 'MAINTAIN' AND a.grantee <> c.relowner
 ORDER BY 1, 2 NULLS FIRST");

statement!(reads MAINTAINERS(), c"
WITH RECURSIVE member(role) AS (
  SELECT m.member
    FROM pg_catalog.pg_roles maintain JOIN pg_catalog.pg_auth_members m ON m.roleid = maintain.oid
   WHERE maintain.rolname = 'pg_maintain'
   UNION
  SELECT m.member FROM member JOIN pg_catalog.pg_auth_members m ON m.roleid = member.role)
SELECT r.rolname::text FROM member JOIN pg_catalog.pg_roles r ON r.oid = member.role WHERE NOT r.rolsuper ORDER BY r.rolname");

// REASSIGN OWNED leaves initial privileges as they are before PostgreSQL 17. A GRANT at the time of a DROP ROLE can leave
// its grantee behind, too.
statement!(reads GONE_ROLES(), c"
WITH member AS (
  SELECT d.classid, d.objid
    FROM pg_catalog.pg_extension e
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid AND d.deptype = 'e'
   WHERE e.extname = 'pg_totp'),
rights(is_initial, classid, objid, acl) AS (
  SELECT true, m.classid, m.objid, i.initprivs
    FROM member m JOIN pg_catalog.pg_init_privs i ON i.classoid = m.classid AND i.objoid = m.objid
   UNION ALL
  SELECT false, m.classid, m.objid, p.proacl
    FROM member m JOIN pg_catalog.pg_proc p ON m.classid = 'pg_proc'::pg_catalog.regclass AND p.oid = m.objid
   UNION ALL
  SELECT false, m.classid, m.objid, c.relacl
    FROM member m JOIN pg_catalog.pg_class c ON m.classid = 'pg_class'::pg_catalog.regclass AND c.oid = m.objid
   UNION ALL
  SELECT false, m.classid, m.objid, a.attacl
    FROM member m JOIN pg_catalog.pg_attribute a ON m.classid = 'pg_class'::pg_catalog.regclass AND a.attrelid = m.objid
   UNION ALL
  SELECT false, m.classid, m.objid, n.nspacl
    FROM member m JOIN pg_catalog.pg_namespace n ON m.classid = 'pg_namespace'::pg_catalog.regclass AND n.oid = m.objid),
gone AS (
  SELECT rights.is_initial, rights.classid, rights.objid, named.role
    FROM rights
   CROSS JOIN LATERAL pg_catalog.aclexplode(rights.acl) a
   CROSS JOIN LATERAL pg_catalog.unnest(ARRAY[a.grantee, a.grantor]) AS named(role)
   WHERE named.role <> 0 AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = named.role))
SELECT count(DISTINCT (classid, objid)) FILTER (WHERE is_initial),
       count(DISTINCT (classid, objid)) FILTER (WHERE NOT is_initial),
       ARRAY(SELECT DISTINCT role FROM gone ORDER BY role)::text[]
  FROM gone");

/// Returns what of the extension PUBLIC has rights on.
pub fn open_to_public() -> Result<Vec<String>, Error> {
    rows(&OPEN_TO_PUBLIC, |row| row.must(1))
}

/// Returns the roles that can write to every table, except superusers.
pub fn writers_of_all_data() -> Result<Vec<String>, Error> {
    rows(&WRITERS, |row| row.must(1))
}

/// Returns the routines that may be called instead of ours. Those that no superuser owns come first.
pub fn other_routines() -> Result<Vec<OtherRoutine>, Error> {
    rows(&OTHER_ROUTINES, |row| {
        Ok(OtherRoutine { signature: row.must(1)?, owner: row.must(2)?, is_of_superuser: row.must(3)? })
    })
}

/// Returns who owns, or may create in, the schema of the functions and schema `totp`, except superusers.
pub fn schema_rights() -> Result<Vec<SchemaRight>, Error> {
    rows(&SCHEMA_RIGHTS, |row| {
        Ok(SchemaRight {
            schema: row.must(1)?,
            is_of_functions: row.must(2)?,
            is_owner: row.must(3)?,
            is_database_owner: row.must(4)?,
            holder: row.get(5),
        })
    })
}

/// Returns the grants of EXECUTE on functions that only their owner should execute.
pub fn owner_functions() -> Result<Vec<Grant>, Error> {
    rows(&OWNER_FUNCTIONS, grant)
}

/// Returns the grants of MAINTAIN on the tables that change in place.
pub fn maintained() -> Result<Vec<Grant>, Error> {
    rows(&MAINTAINED, grant)
}

/// Returns the members of pg_maintain, who have MAINTAIN on every table, except superusers.
pub fn maintainers() -> Result<Vec<String>, Error> {
    rows(&MAINTAINERS, |row| row.must(1))
}

/// Counts the objects of the extension with privileges of roles that are gone.
pub fn gone_roles() -> Result<GoneRoles, Error> {
    let found =
        rows(&GONE_ROLES, |row| Ok(GoneRoles { initial: row.must(1)?, current: row.must(2)?, oids: row.must(3)? }))?;
    found.into_iter().next().ok_or(Error::RowsAltered)
}

fn grant(row: &Row) -> Result<Grant, Error> {
    Ok(Grant { object: row.must(1)?, grantee: row.get(2) })
}

fn rows<T>(
    statement: &'static std::thread::LocalKey<Statement>,
    read: impl FnMut(&Row) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    statement.with(|s| s.rows(&Snapshot::latest(), &[], read))
}
