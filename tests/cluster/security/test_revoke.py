"""totp_revoke takes what totp_grant gives, and nothing that another capability needs. Both are audited."""

from contextlib import closing

import pytest
from capabilities import OURS
from psycopg import sql
from totp import NOON, enroll, error_of, fix_clock

CAPABILITIES = ["verify", "enroll", "admin", "audit"]

# Every privilege that a role has on what the extension made, and on the schema of its functions.
RIGHTS = """
SELECT p.oid::regprocedure::text, a.privilege_type FROM pg_proc p CROSS JOIN aclexplode(p.proacl) a WHERE a.grantee = %(role)s::regrole
UNION ALL SELECT c.oid::regclass::text, a.privilege_type FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
           WHERE c.relnamespace = 'totp'::regnamespace AND a.grantee = %(role)s::regrole
UNION ALL SELECT 'schema ' || n.nspname, a.privilege_type FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) a WHERE a.grantee = %(role)s::regrole"""


@pytest.fixture(scope="module")
def database(cluster):
    """The extension in a schema of its own, as install.md says."""
    database = cluster.create_database(extension=False)
    database.execute(f"CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa; ALTER DATABASE {database.name} SET search_path = mfa, public")
    yield database
    database.drop()


@pytest.fixture
def dba(database):
    """A superuser's session. Its warnings, with their DETAIL, are in dba.warnings."""
    with closing(database.connect()) as session:
        session.execute("DELETE FROM totp.audit_log")
        fix_clock(session, NOON)
        warnings = []
        session.add_notice_handler(lambda notice: warnings.append((notice.message_primary, notice.message_detail)))
        session.warnings = warnings
        yield session


@pytest.fixture
def role(database) -> str:
    return database.create_role()


def rights(session, role) -> set[tuple[str, str]]:
    return set(session.execute(RIGHTS, {"role": f'"{role}"'}).fetchall())


def grant(session, role, *capabilities) -> None:
    for capability in capabilities:
        session.execute("SELECT totp_grant(%s, %s)", [role, capability])


def revoke(session, role, *capabilities) -> None:
    for capability in capabilities:
        session.execute("SELECT totp_revoke(%s, %s)", [role, capability])


def may_call(session, role) -> set[str]:
    query = f"SELECT p.proname FROM pg_proc p WHERE has_function_privilege(%s, p.oid, 'EXECUTE') AND p.oid IN ({OURS.replace('p.proname', 'p.oid')})"
    return {name for [name] in session.execute(query, [role])}


# --- What goes, and what stays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_revoke_takes_everything_that_the_grant_gave(dba, role, capability):
    assert rights(dba, role) == set()
    grant(dba, role, capability)
    assert len(rights(dba, role)) > 3
    revoke(dba, role, capability)
    assert rights(dba, role) == set() and may_call(dba, role) == set() and dba.warnings == []


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_role_itself_is_out(database, dba, role, capability):
    grant(dba, role, capability)
    with closing(database.connect(user=role)) as session:
        call = "SELECT * FROM mfa.totp_stats()" if capability == "audit" else "SELECT mfa.totp_verify('nobody', '123456')"
        session.execute(call)
        revoke(dba, role, capability)
        assert error_of(session, call).sqlstate == "42501"
        assert error_of(session, "SELECT * FROM totp.audit_log").sqlstate == "42501"


KEPT = {  # granted, revoked: what the rights are then the same as of
    (("verify", "audit"), "verify"): ("audit",), (("verify", "audit"), "audit"): ("verify",),
    (("enroll", "audit"), "audit"): ("enroll",), (("enroll", "audit"), "enroll"): ("audit",),
    (("admin", "audit"), "admin"): ("audit",), (("admin", "audit"), "audit"): ("admin",),
    # A capability includes the smaller ones: privileges do not tell whether these were granted too.
    (("verify", "enroll"), "enroll"): (), (("verify", "enroll", "admin"), "admin"): (), (tuple(CAPABILITIES), "admin"): ("audit",),
}


@pytest.mark.parametrize(("granted", "revoked"), KEPT, ids=lambda what: "+".join(what) if isinstance(what, tuple) else what)
def test_what_another_capability_needs_stays(database, dba, role, granted, revoked):
    grant(dba, role, *granted)
    revoke(dba, role, revoked)
    like = database.create_role()
    grant(dba, like, *KEPT[granted, revoked])
    assert rights(dba, role) == rights(dba, like) and dba.warnings == []


@pytest.mark.parametrize(("granted", "revoked"), [("enroll", "verify"), ("admin", "verify"), ("admin", "enroll")])
def test_a_part_of_a_capability_that_stays_is_not_revoked(dba, role, granted, revoked):
    grant(dba, role, granted)
    before = rights(dba, role)
    revoke(dba, role, revoked)
    assert rights(dba, role) == before
    assert dba.warnings == [(f'role "{role}" keeps capability {revoked}', f"It is a part of capability {granted}, which the role has.")]
    assert dba.execute("SELECT event FROM totp.audit_log").fetchall() == [("granted",)]  # nothing was revoked, so nothing says so


def test_all_of_them_in_any_order_leave_nothing(dba, role):
    for order in (CAPABILITIES, CAPABILITIES[::-1], ["enroll", "audit", "verify", "admin"]):
        grant(dba, role, *CAPABILITIES)
        revoke(dba, role, *order)
        assert rights(dba, role) == set(), order


def test_a_smaller_capability_can_be_given_in_the_same_transaction(dba, role):
    grant(dba, role, "enroll")
    with dba.transaction():
        revoke(dba, role, "enroll")
        grant(dba, role, "verify")
    assert may_call(dba, role) == {"totp_verify", "totp_check", "totp_recover", "totp_check_recover", "totp_enabled", "totp_status"}


def test_what_was_granted_by_hand_stays(dba, role):
    """A function of no such capability, another table, the schema that other things are in."""
    grant(dba, role, "verify")
    dba.execute(f"GRANT EXECUTE ON FUNCTION mfa.totp_health(boolean) TO {role}; GRANT SELECT ON totp.floor TO {role}")
    revoke(dba, role, "verify")
    assert rights(dba, role) == {("totp_health(boolean)", "EXECUTE"), ("totp.floor", "SELECT"), ("schema mfa", "USAGE")}
    revoke(dba, role, "admin")
    assert rights(dba, role) == {("totp.floor", "SELECT")}


@pytest.mark.parametrize("other", ["TABLE mfa.t ()", "FUNCTION mfa.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "TYPE mfa.e AS ENUM ()", "EXTENSION pgcrypto SCHEMA mfa"])
def test_a_schema_with_other_things_in_it_stays_open(dba, role, other):
    kind, name = other.split()[:2]
    with dba.transaction(force_rollback=True):
        dba.execute(f"CREATE {other}")
        grant(dba, role, "verify")
        revoke(dba, role, "verify")
        assert rights(dba, role) == {("schema mfa", "USAGE")}, (kind, name)


def test_the_owner_of_the_schema_keeps_it(dba, role):
    with dba.transaction(force_rollback=True):
        dba.execute(f"ALTER SCHEMA mfa OWNER TO {role}")
        grant(dba, role, "verify", "audit")
        revoke(dba, role, "verify", "audit")
        assert rights(dba, role) == {("schema mfa", "USAGE"), ("schema mfa", "CREATE")}


def test_revoking_twice_or_from_nobody_is_no_error(dba, role):
    for capability in CAPABILITIES * 2:
        revoke(dba, role, capability)
    assert rights(dba, role) == set()


def test_a_rolled_back_revoke_takes_nothing(dba, role):
    grant(dba, role, "verify")
    before = rights(dba, role)
    with dba.transaction(force_rollback=True):
        revoke(dba, role, "verify")
        assert rights(dba, role) == set()
    assert rights(dba, role) == before


# --- What the role can do even so is told ---------------------------------------------------------------------------------


def of_another_role(session, role, other):
    session.execute(f"GRANT EXECUTE ON FUNCTION totp_verify TO {other} WITH GRANT OPTION; GRANT USAGE ON SCHEMA mfa TO {other}")
    session.execute(f"SET ROLE {other}; GRANT EXECUTE ON FUNCTION mfa.totp_verify TO {role}; RESET ROLE")
    return f'Role "{other}" granted that.'


def of_a_group(session, role, other):
    grant(session, other, "verify")
    session.execute(f"GRANT {other} TO {role}")
    return "It is a superuser, or may do so through another role or PUBLIC."


def of_public(session, role, other):
    session.execute("GRANT EXECUTE ON FUNCTION totp_verify TO PUBLIC")
    return "It is a superuser, or may do so through another role or PUBLIC."


def of_a_superuser(session, role, other):
    session.execute(f"ALTER ROLE {role} SUPERUSER")
    return "It is a superuser, or may do so through another role or PUBLIC."


@pytest.mark.parametrize("way", [of_another_role, of_a_group, of_public, of_a_superuser], ids=lambda way: way.__name__)
def test_a_way_that_is_left_is_told(database, dba, role, way):
    other = database.create_role()
    with dba.transaction(force_rollback=True):
        grant(dba, role, "verify")
        detail = way(dba, role, other)
        revoke(dba, role, "verify")
        [(message, told)] = dba.warnings
        assert message.startswith(f'role "{role}" can still call mfa.totp_') and told == detail
        if way is of_another_role:
            assert may_call(dba, role) == {"totp_verify"}


def test_a_way_to_the_audit_log_that_is_left_is_told(dba, role):
    with dba.transaction(force_rollback=True):
        grant(dba, role, "audit")
        dba.execute(f"GRANT pg_read_all_data TO {role}")
        revoke(dba, role, "audit")
    assert [message for message, _ in dba.warnings] == [f'role "{role}" can still read totp.audit_log']


def test_what_the_role_has_passed_on_is_in_the_way(database, dba, role):
    """PostgreSQL's own rule. totp_grant gives no grant option; someone did by hand."""
    other = database.create_role()
    grant(dba, role, "verify")
    dba.execute(f"GRANT EXECUTE ON FUNCTION totp_verify TO {role} WITH GRANT OPTION")
    with dba.transaction():
        dba.execute(f"SET LOCAL ROLE {role}")
        dba.execute(f"GRANT EXECUTE ON FUNCTION mfa.totp_verify TO {other}")
    before = rights(dba, role)
    error = error_of(dba, "SELECT totp_revoke(%s, 'verify')", [role])
    assert error.sqlstate == "2BP01" and rights(dba, role) == before
    dba.execute(f"REVOKE EXECUTE ON FUNCTION totp_verify FROM {role} CASCADE")
    revoke(dba, role, "verify")
    assert rights(dba, role) == rights(dba, other) == set()


# --- Who may revoke, and from which role ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_a_dba(cluster):
    """A database whose extension belongs to a role that is not a superuser any more."""
    database = cluster.create_database(extension=False)
    owner = database.create_role()
    database.execute(f"ALTER ROLE {owner} SUPERUSER")
    with closing(database.connect(user=owner)) as session:
        session.execute("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa")
    database.execute(f"ALTER ROLE {owner} NOSUPERUSER; ALTER DATABASE {database.name} SET search_path = mfa, public")
    yield database, owner
    database.drop()


@pytest.mark.parametrize("who", ["superuser", "owner", "member"])
def test_the_owner_its_members_and_superusers_grant_and_revoke(of_a_dba, who):
    database, owner = of_a_dba
    role, member = database.create_role(), database.create_role()
    database.execute(f"GRANT {owner} TO {member}; DELETE FROM totp.audit_log")
    name = {"superuser": "postgres", "owner": owner, "member": member}[who]
    with closing(database.connect(user=name)) as session:
        for capability in CAPABILITIES:
            grant(session, role, capability)
            assert len(rights(session, role)) > 3
            revoke(session, role, capability)
            assert rights(session, role) == set()
    assert database.execute("SELECT DISTINCT db_user FROM totp.audit_log") == [(name,)]


def test_nobody_else_grants_revokes_or_records(database, dba, acts):
    """Not even with EXECUTE on all functions: neither row nor line can be forged."""
    other, victim = database.create_role(*CAPABILITIES), database.create_role("verify")
    dba.execute(f"GRANT USAGE ON SCHEMA totp TO {other}; GRANT EXECUTE ON ALL ROUTINES IN SCHEMA mfa, totp TO {other}")
    before = dba.execute("SELECT count(*) FROM totp.audit_log").fetchone()
    calls = [f"mfa.totp_grant('{other}', 'admin')", *(f"mfa.totp_revoke('{victim}', '{c}')" for c in CAPABILITIES),
             *(f"totp.record_right({granted}, 'postgres', 'admin')" for granted in ("true", "false"))]
    acts()
    with closing(database.connect(user=other)) as session:
        session.execute(f"CREATE FUNCTION pg_temp.mine(granted boolean) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ SELECT totp.record_right(granted, 'x', 'admin') $$")
        for call in [*calls, "pg_temp.mine(true)"]:
            error = error_of(session, f"SELECT {call}")
            assert error.sqlstate == "42501" and error.diag.message_primary.startswith("permission denied"), call
    assert dba.execute("SELECT count(*) FROM totp.audit_log").fetchone() == before and acts() == []
    assert may_call(dba, victim) >= {"totp_verify"}


def test_a_copy_of_the_function_that_is_security_definer_records_nothing(database, dba):
    """A superuser can lend it, but not so that someone else's call looks like the owner's."""
    other = database.create_role()
    with dba.transaction(force_rollback=True):
        dba.execute("ALTER FUNCTION totp.record_right(boolean, text, text) SECURITY DEFINER")
        assert error_of(dba, f"SELECT totp_grant('{other}', 'verify')").sqlstate == "42501"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nothing_is_revoked_from_an_owner(of_a_dba, capability):
    """The functions run with the owner's privileges."""
    database, owner = of_a_dba
    with closing(database.connect()) as session:
        before = rights(session, owner)
        error = error_of(session, "SELECT totp_revoke(%s, %s)", [owner, capability])
        assert error.sqlstate == "22023" and error.diag.message_primary == f'role "{owner}" owns functions of the extension'
        assert rights(session, owner) == before
        enroll(session, "alice")


@pytest.mark.parametrize("function", ["totp_grant", "totp_revoke"])
@pytest.mark.parametrize("name", ["public", "Public", "nobody_of_this_name", "", "current_user", "a, b", "x" * 63, "'; DROP TABLE t; --"])
def test_an_unknown_role_is_named(dba, function, name):
    for capability in CAPABILITIES:
        error = error_of(dba, f"SELECT {function}(%s, %s)", [name, capability])
        assert error.sqlstate == "42704" and error.diag.message_primary == f'role "{name}" does not exist'
        assert "PUBLIC" in error.diag.message_hint


@pytest.mark.parametrize("capability", [None, "", "all", "VERIFY", "verify "])
def test_an_unknown_capability_is_refused(dba, role, capability):
    assert error_of(dba, "SELECT totp_revoke(%s, %s)", [role, capability]).sqlstate == "22023"
    assert error_of(dba, "SELECT totp_revoke(NULL, 'verify')").sqlstate == "22023"


@pytest.mark.parametrize("suffix", [" with spaces", '"quoted"', "'quote", "ÄÖ", "CamelCase", "%I", "public"])
def test_a_role_may_have_any_name(database, dba, suffix):
    name = f"{database.name}{suffix}"
    dba.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
    try:
        grant(dba, name, *CAPABILITIES)
        assert may_call(dba, name) >= {"totp_verify", "totp_stats"}
        revoke(dba, name, *CAPABILITIES)
        assert may_call(dba, name) == set()
    finally:
        dba.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


# --- Audit ----------------------------------------------------------------------------------------------------------------


def test_both_have_a_row_and_a_line(dba, role, acts):
    dba.execute("SET totp.actor = 'ticket 42'")
    for function in ("totp_grant", "totp_revoke"):
        with dba.transaction():
            dba.execute(f"SELECT {function}(%s, 'audit')", [role])
            [[xid]] = dba.execute("SELECT pg_current_xact_id()::xid::text").fetchall()
        event = "granted" if function == "totp_grant" else "revoked"
        assert dba.execute("SELECT event, user_id, device, actor, db_user, at, detail, xmin::text FROM totp.audit_log ORDER BY id DESC LIMIT 1").fetchall() == [
            (event, None, None, "ticket 42", "postgres", NOON, {"role": role, "capability": "audit"}, xid)]
        assert acts() == [f'event={event} actor="ticket 42" role="{role}" capability="audit" xid={xid}']


@pytest.mark.parametrize("function", ["totp_grant", "totp_revoke"])
def test_a_rolled_back_call_leaves_its_line(dba, role, acts, function):
    with dba.transaction(force_rollback=True):
        dba.execute(f"SELECT {function}(%s, 'verify')", [role])
    [line] = acts()
    assert line.startswith(f'event={"granted" if function == "totp_grant" else "revoked"} role="{role}" capability="verify" xid=')
    assert dba.execute("SELECT count(*) FROM totp.audit_log").fetchone() == (0,)


def test_no_role_is_changed_without_its_row(database, dba, role):
    with closing(database.connect()) as other:
        other.execute("BEGIN; LOCK TABLE totp.audit_log")
        dba.execute("SET lock_timeout = '10ms'")
        assert error_of(dba, "SELECT totp_grant(%s, 'verify')", [role]).sqlstate == "55P03"
    assert rights(dba, role) == set()


# --- Keys for auditors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_audit_and_admin_watch_keys_and_rotations(database, dba, capability):
    role = database.create_role(capability)
    dba.execute("SELECT totp_rotate_key()") if dba.execute("SELECT count(*) FROM totp.data_keys").fetchone() != (0,) else enroll(dba, "alice")
    dba.execute("SELECT totp.rotation_begin(10)")
    with closing(database.connect(user=role)) as session:
        queries = ("SELECT count(*) > 0 FROM mfa.totp_keys()", "SELECT count(*) = 1 FROM totp.rotation_progress")
        for query in queries:
            if capability in ("audit", "admin"):
                assert session.execute(query).fetchone() == (True,)
            else:
                assert error_of(session, query).sqlstate == "42501"
