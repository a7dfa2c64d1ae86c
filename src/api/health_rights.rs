//! The checks of `totp_health` about rights: who could take over what the extension guards.

use super::health::check;
use crate::error::Error;
use crate::server_log::quoted;
use crate::store::health::Check;
use crate::store::health_rights::{self, Grant, Grantee, SchemaRight};

/// Largest number of names in a detail.
const NAMED: usize = 10;

/// Returns one row per check.
pub fn checks() -> Result<Vec<Check>, Error> {
    Ok(vec![other_routines()?, function_schema()?, owner_functions()?, maintain()?, initial_privileges()?])
}

fn other_routines() -> Result<Check, Error> {
    let routines = health_rights::other_routines()?;
    if routines.is_empty() {
        return Ok(check("other_routines", "ok", "no other routine has a name of pg_totp; nothing to do".into()));
    }
    // A superuser may have wanted it, and needs no such trick.
    let status = if routines.iter().all(|r| r.is_of_superuser) { "warn" } else { "fail" };
    let named = listed(routines.iter().map(|r| format!("{} of {}", quoted(&r.signature), quoted(&r.owner))));
    let what = if routines.len() == 1 {
        "is not a member of the extension, and may be called instead of its routine of that name: drop or rename it"
    } else {
        "are not members of the extension, and may be called instead of its routines of those names: drop or rename them"
    };
    Ok(check("other_routines", status, format!("{named} {what}")))
}

fn function_schema() -> Result<Check, Error> {
    let rights = health_rights::schema_rights()?;
    if rights.is_empty() {
        let detail = "only superusers own the schemas of pg_totp and can create in them; nothing to do";
        return Ok(check("function_schema", "ok", detail.into()));
    }
    // The owner of the database can do it in other ways too, such as a search_path for the database.
    let status = if rights.iter().all(|r| r.is_database_owner) { "warn" } else { "fail" };
    let of_one_kind = |a: &SchemaRight, b: &SchemaRight| (&a.schema, a.is_owner) == (&b.schema, b.is_owner);
    let parts: Vec<_> = rights.chunk_by(of_one_kind).map(schema_right).collect();
    Ok(check("function_schema", status, parts.join("; ")))
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
    let grants = health_rights::owner_functions()?;
    if grants.is_empty() {
        return Ok(check(
            "owner_functions",
            "ok",
            "nobody else may execute the owner's functions; nothing to do".into(),
        ));
    }
    let detail = format!(
        "EXECUTE is granted on functions that only their owner should execute, {}: revoke it",
        granted(&grants)
    );
    Ok(check("owner_functions", "warn", detail))
}

fn maintain() -> Result<Check, Error> {
    let grants = health_rights::maintained()?;
    let members = health_rights::maintainers()?;
    let mut found = vec![];
    if !grants.is_empty() {
        found.push(format!("MAINTAIN is granted on {}", granted(&grants)));
    }
    if !members.is_empty() {
        let are = if members.len() == 1 { "is" } else { "are" };
        found.push(format!("{} {are} in pg_maintain", listed(members.iter().map(|m| quoted(m)))));
    }
    if found.is_empty() {
        return Ok(check(
            "maintain",
            "ok",
            "nobody else has MAINTAIN on tables that change in place; nothing to do".into(),
        ));
    }
    let detail = format!(
        "{}, which is enough to lock and rewrite tables that change in place, while sign-ins wait or fail: revoke it",
        found.join("; ")
    );
    Ok(check("maintain", "warn", detail))
}

fn initial_privileges() -> Result<Check, Error> {
    let gone = health_rights::gone_roles()?;
    if gone.oids.is_empty() {
        let detail = "no privilege on the extension's objects is of a role that is gone; nothing to do";
        return Ok(check("initial_privileges", "ok", detail.into()));
    }
    let of_objects =
        |n: i64, kind: &str| (n > 0).then(|| format!("{kind} of {n} object{}", if n == 1 { "" } else { "s" }));
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
        listed(gone.oids.iter().cloned()),
        listed(gone.oids.iter().map(|oid| quoted(oid))),
    );
    Ok(check("initial_privileges", "warn", detail))
}

fn granted(grants: &[Grant]) -> String {
    listed(grants.iter().map(|g| format!("{} to {}", quoted(&g.object), grantee(&g.grantee))))
}

/// Quotes the name of a role, but not PUBLIC.
fn grantee(role: &Grantee) -> String {
    role.as_ref().map_or_else(|| "PUBLIC".into(), |name| quoted(name))
}

/// Lists the first few names, and says how many more there are.
fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut text = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
