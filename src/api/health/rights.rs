//! The checks about rights: who could take over what the extension guards.
//!
//! Owns their sentences. Must never show the name of a role that is not quoted.

use super::check::{Check, Status, counted, listed, quoted};
use crate::error::Error;
use crate::store::health_rights::{self, Grant, Grantee, SchemaRight};

/// Returns one row per check.
pub fn checks() -> Result<Vec<Check>, Error> {
    Ok(vec![
        write_all_data()?,
        other_routines()?,
        function_schema()?,
        owner_functions()?,
        maintain()?,
        initial_privileges()?,
    ])
}

/// Checks that PUBLIC has no rights.
pub fn open_to_public() -> Result<Check, Error> {
    const NAME: &str = "rights";
    let names = health_rights::open_to_public()?;
    if names.is_empty() {
        return Ok(Check::ok(NAME, "PUBLIC has no rights; nothing to do"));
    }
    Ok(Check::fail(NAME, format!("PUBLIC has rights on {}: revoke them", names.join(", "))))
}

fn write_all_data() -> Result<Check, Error> {
    const NAME: &str = "write_all_data";
    let roles = health_rights::writers_of_all_data()?;
    if roles.is_empty() {
        return Ok(Check::ok(NAME, "no role is in pg_write_all_data; nothing to do"));
    }
    let named = listed(roles.iter().map(quoted));
    let detail = format!("{named} can change every table, totp.audit_log too: revoke pg_write_all_data");
    Ok(Check::warn(NAME, detail))
}

fn other_routines() -> Result<Check, Error> {
    const NAME: &str = "other_routines";
    let routines = health_rights::other_routines()?;
    if routines.is_empty() {
        return Ok(Check::ok(NAME, "no other routine has a name of pg_totp; nothing to do"));
    }
    // A superuser may have wanted it, and needs no such trick.
    let status = if routines.iter().all(|r| r.is_of_superuser) { Status::Warn } else { Status::Fail };
    let named = listed(routines.iter().map(|r| format!("{} of {}", quoted(&r.signature), quoted(&r.owner))));
    let what = if routines.len() == 1 {
        "is not a member of the extension, and may be called instead of its routine of that name: drop or rename it"
    } else {
        "are not members of the extension, and may be called instead of its routines of those names: drop or rename them"
    };
    Ok(Check::new(NAME, status, format!("{named} {what}")))
}

fn function_schema() -> Result<Check, Error> {
    const NAME: &str = "function_schema";
    let rights = health_rights::schema_rights()?;
    if rights.is_empty() {
        let detail = "only superusers own the schemas of pg_totp and can create in them; nothing to do";
        return Ok(Check::ok(NAME, detail));
    }
    // The owner of the database can do it in other ways too, such as a search_path for the database.
    let status = if rights.iter().all(|r| r.is_database_owner) { Status::Warn } else { Status::Fail };
    let of_one_kind = |a: &SchemaRight, b: &SchemaRight| (&a.schema, a.is_owner) == (&b.schema, b.is_owner);
    let parts: Vec<_> = rights.chunk_by(of_one_kind).map(schema_right).collect();
    Ok(Check::new(NAME, status, parts.join("; ")))
}

/// Describes the owner of a schema, or all roles that may create in it.
fn schema_right(rights: &[SchemaRight]) -> String {
    let schema = quoted(&rights[0].schema);
    let holders = listed(rights.iter().map(|r| {
        let of_database = if r.is_database_owner { " (the owner of the database)" } else { "" };
        grantee(&r.holder) + of_database
    }));
    let make = "make a function there that is called instead of one of pg_totp";
    if !rights[0].is_owner {
        return format!("schema {schema} is open for CREATE to {holders}, which is enough to {make}: revoke it");
    }
    let drop = if rights[0].is_of_functions { "drop it with every enrollment, or " } else { "" };
    format!(
        "schema {schema} belongs to {holders}, who is not a superuser and can {drop}{make}: ALTER SCHEMA OWNER TO a superuser"
    )
}

fn owner_functions() -> Result<Check, Error> {
    const NAME: &str = "owner_functions";
    let grants = health_rights::owner_functions()?;
    if grants.is_empty() {
        return Ok(Check::ok(NAME, "nobody else may execute the owner's functions; nothing to do"));
    }
    let detail = format!(
        "EXECUTE is granted on functions that only their owner should execute, {}: revoke it",
        granted(&grants)
    );
    Ok(Check::warn(NAME, detail))
}

fn maintain() -> Result<Check, Error> {
    const NAME: &str = "maintain";
    let grants = health_rights::maintained()?;
    let members = health_rights::maintainers()?;
    let mut found = vec![];
    if !grants.is_empty() {
        found.push(format!("MAINTAIN is granted on {}", granted(&grants)));
    }
    if !members.is_empty() {
        let are = if members.len() == 1 { "is" } else { "are" };
        found.push(format!("{} {are} in pg_maintain", listed(members.iter().map(quoted))));
    }
    if found.is_empty() {
        return Ok(Check::ok(NAME, "nobody else has MAINTAIN on tables that change in place; nothing to do"));
    }
    let detail = format!(
        "{}, which is enough to lock and rewrite tables that change in place, while sign-ins wait or fail: revoke it",
        found.join("; ")
    );
    Ok(Check::warn(NAME, detail))
}

fn initial_privileges() -> Result<Check, Error> {
    const NAME: &str = "initial_privileges";
    let gone = health_rights::gone_roles()?;
    if gone.oids.is_empty() {
        let detail = "no privilege on the extension's objects is of a role that is gone; nothing to do";
        return Ok(Check::ok(NAME, detail));
    }
    let of_objects =
        |number: i64, kind: &str| (number > 0).then(|| format!("{kind} of {}", counted(number, "object", "objects")));
    let privileges = [of_objects(gone.initial, "initial privileges"), of_objects(gone.current, "privileges")];
    let (a_role, oid, the_role) = match gone.oids.len() {
        1 => ("a role that is gone", "OID", "the role"),
        _ => ("roles that are gone", "OIDs", "roles"),
    };
    // A superuser can correct the initial privileges. The others need a role of that name before a restore.
    let repair = if gone.initial > 0 {
        "put a role that exists into pg_init_privs, as backup-and-restore.md says, or "
    } else {
        ""
    };
    let detail = format!(
        "{} name {a_role} ({oid} {}), which pg_dump writes as a name, so that a restore fails there or loses grants: \
         {repair}create {the_role} {} before a restore",
        privileges.into_iter().flatten().collect::<Vec<_>>().join(" and "),
        listed(gone.oids.iter()),
        listed(gone.oids.iter().map(quoted)),
    );
    Ok(Check::warn(NAME, detail))
}

fn granted(grants: &[Grant]) -> String {
    listed(grants.iter().map(|g| format!("{} to {}", quoted(&g.object), grantee(&g.grantee))))
}

/// Quotes the name of a role, but not PUBLIC.
fn grantee(role: &Grantee) -> String {
    role.as_ref().map_or_else(|| "PUBLIC".into(), quoted)
}
