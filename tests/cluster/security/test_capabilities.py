"""Who may do what: each capability against each function, no table for anyone, nothing for PUBLIC."""

from contextlib import closing

import psycopg
import pytest
from capabilities import FUNCTIONS, HELPERS, OURS
from psycopg import sql
from totp import code_at, enroll, error_of, verify

# Whose functions a role with one capability may call.
ALLOWED = {None: set(), "verify": {"verify"}, "enroll": {"verify", "enroll"}, "admin": {"verify", "enroll", "admin", "audit"}, "audit": {"audit"}}

TABLES = "SELECT c.oid::regclass::text, c.relkind FROM pg_class c WHERE relnamespace = 'totp'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')"


@pytest.fixture(scope="module")
def database(cluster):
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture(scope="module")
def roles(database):
    """One role without any right, and one for each capability."""
    return {capability: database.create_role(*[capability] if capability else []) for capability in ALLOWED}


@pytest.fixture(scope="module")
def owner(database):
    with closing(database.connect()) as session:
        yield session


def sqlstate(session, query, parameters=None) -> str:
    """Of the error that a statement ends in, in a transaction that is rolled back; "00000" for none."""
    try:
        if query.startswith("CALL"):
            session.execute(query, parameters)
        else:
            with session.transaction(force_rollback=True):
                session.execute(query, parameters)
    except psycopg.Error as error:
        return error.sqlstate
    return "00000"


def test_every_function_is_in_the_matrix(database):
    existing = {name for [name] in database.execute(OURS)}
    assert existing <= set(FUNCTIONS) | set(HELPERS)
    assert {"totp_verify", "totp_check", "totp_enroll", "totp_confirm", "totp_remove", "totp_keys", "totp_grant"} <= existing


@pytest.mark.parametrize("capability", ALLOWED, ids=str)
def test_a_capability_opens_its_functions_and_no_other(database, roles, capability):
    existing = {name for [name] in database.execute(OURS)}
    opened, refused = set(), set()
    with closing(database.connect(user=roles[capability])) as session:
        for name in existing & set(FUNCTIONS):
            (refused if sqlstate(session, FUNCTIONS[name][0]) == "42501" else opened).add(name)
    assert opened == {name for name in existing & set(FUNCTIONS) if FUNCTIONS[name][1] in ALLOWED[capability]}
    assert refused == existing & set(FUNCTIONS) - opened


@pytest.mark.parametrize("capability", ALLOWED, ids=str)
def test_helpers_are_open_to_those_who_may_call_their_function(database, roles, capability):
    may = "SELECT p.proname, has_function_privilege(%s, p.oid, 'EXECUTE') FROM pg_proc p WHERE p.oid IN (" + OURS.replace("p.proname", "p.oid") + ")"
    for name, allowed in database.execute(may, [roles[capability]]):
        if name in HELPERS and HELPERS[name] not in ALLOWED[capability]:
            assert not allowed, name


@pytest.mark.parametrize("capability", ALLOWED, ids=str)
def test_no_table_is_open(database, roles, capability):
    with closing(database.connect(user=roles[capability])) as session:
        for name, kind in database.execute(TABLES):
            may_read = name in {"audit": ("totp.audit_log", "totp.audit_seals", "totp.rotation_progress"), "admin": ("totp.rotation_progress",)}.get(capability, ())
            assert sqlstate(session, f"SELECT * FROM {name}") == ("00000" if may_read else "42501"), name
            if kind == "S":
                for query in (f"SELECT nextval('{name}')", f"SELECT setval('{name}', 1)", f"SELECT last_value FROM {name}"):
                    assert sqlstate(session, query) == "42501", query
            elif kind == "r":
                for query in (f"INSERT INTO {name} DEFAULT VALUES", f"DELETE FROM {name}", f"TRUNCATE {name}", f"LOCK {name}",
                              f"SELECT FROM {name} FOR UPDATE", f"COPY {name} TO STDOUT", f"ALTER TABLE {name} ADD COLUMN x int", f"DROP TABLE {name}",
                              f"CREATE TRIGGER t AFTER INSERT ON {name} EXECUTE FUNCTION suppress_redundant_updates_trigger()"):
                    if not (may_read and query.startswith("COPY")):
                        assert sqlstate(session, query) == "42501", query
                columns = [column for [column] in database.execute("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0", [name])]
                for column in columns:
                    assert sqlstate(session, f"UPDATE {name} SET {column} = DEFAULT") == "42501", (name, column)
        assert sqlstate(session, "CREATE TABLE totp.mine ()") == "42501"


def test_verify_alone_signs_users_in_and_reads_no_table(database):
    role = database.create_role("verify")
    with closing(database.connect()) as owner, closing(database.connect(user=role)) as session:
        secret = enroll(owner, "alice")
        now = owner.execute("SELECT extract(epoch FROM clock_timestamp())::bigint").fetchone()[0]
        code = code_at(secret, now)
        assert verify(session, "alice", code) is True
        assert verify(session, "alice", code) is False
        assert session.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
        assert session.execute("SELECT device, state FROM totp_status('alice')").fetchone() == ("default", "active")
        assert error_of(session, "SELECT * FROM totp.secrets").sqlstate == "42501"
        assert error_of(session, "SELECT * FROM totp_enroll('alice')").sqlstate == "42501"
    # What it did stands in the audit under its own name.
    assert database.value("SELECT DISTINCT db_user FROM totp.audit_log WHERE event IN ('confirmed', 'replayed')") == role
    assert database.value("SELECT DISTINCT actor FROM totp.audit_log WHERE event IN ('confirmed', 'replayed')") == role


def test_audit_reads_the_log_and_does_nothing_else(database):
    role = database.create_role("audit")
    database.execute("SELECT totp_enroll('bob')")
    with closing(database.connect(user=role)) as session:
        assert session.execute("SELECT event FROM totp.audit_log WHERE user_id = 'bob'").fetchall() == [("enrolled",)]
        assert error_of(session, "DELETE FROM totp.audit_log").sqlstate == "42501"
        assert error_of(session, "SELECT totp_verify('bob', '123456')").sqlstate == "42501"


def test_capabilities_add_up(database):
    role = database.create_role("verify", "audit")
    with closing(database.connect(user=role)) as session:
        assert session.execute("SELECT totp_verify('nobody', '123456')").fetchone() == (False,)
        session.execute("SELECT FROM totp.audit_log")
        assert error_of(session, "SELECT totp_enroll('x')").sqlstate == "42501"


def test_a_capability_is_inherited_by_members_of_the_role(database):
    group, member = database.create_role("verify"), database.create_role()
    database.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(member)))
    with closing(database.connect(user=member)) as session:
        assert session.execute("SELECT totp_verify('nobody', '123456')").fetchone() == (False,)


# --- totp_grant ---------------------------------------------------------------------------


def test_grant_by_another_role_is_42501_even_with_execute(database):
    """SECURITY INVOKER: the right to call it is no right to grant. A GRANT without the right would only warn and go on."""
    role, other = database.create_role("admin"), database.create_role()
    database.execute(sql.SQL("GRANT EXECUTE ON FUNCTION totp_grant(name, text) TO {}").format(sql.Identifier(role)))
    with closing(database.connect(user=role)) as session:
        for grantee in (role, other):
            for capability in ("verify", "enroll", "admin", "audit"):
                assert error_of(session, "SELECT totp_grant(%s, %s)", [grantee, capability]).sqlstate == "42501"
    with closing(database.connect(user=other)) as session:
        assert error_of(session, "SELECT totp_verify('nobody', '123456')").sqlstate == "42501"


@pytest.mark.parametrize("name", ["public", "PUBLIC", "Public", '"public"', "nobody_of_this_name", "", " ", "current_user", "session_user", "postgres, public",
                                  "x" * 63])
@pytest.mark.parametrize("capability", ["verify", "enroll", "admin", "audit"])
def test_a_grant_to_an_unknown_role_is_refused(database, owner, name, capability):
    error = error_of(owner, "SELECT totp_grant(%s, %s)", [name, capability])
    assert error.sqlstate == "42704"
    assert database.value("SELECT count(*) FROM pg_proc p, aclexplode(p.proacl) a WHERE a.grantee = 0 AND p.proname LIKE 'totp%%'", []) == 0


@pytest.mark.parametrize("capability", [None, "", "root", "verify ", "verify,enroll", "VERIFY ", "'; DROP TABLE totp.secrets", "all", "x" * 1_000_000],
                         ids=lambda capability: repr(capability)[:16])
def test_a_grant_of_an_unknown_capability_is_refused(owner, roles, capability):
    error = error_of(owner, "SELECT totp_grant(%s, %s)", [roles[None], capability])
    assert error.sqlstate == "22023" and error.diag.message_detail


@pytest.mark.parametrize("capability", ["verify", None])
def test_a_grant_to_null_is_refused(owner, capability):
    error = error_of(owner, "SELECT totp_grant(NULL, %s)", [capability])
    assert error.sqlstate == "22023" and error.diag.message_detail


@pytest.mark.parametrize("suffix", [" with spaces", '"quoted"', "'quote", "; DROP TABLE totp.secrets; --", "ÄÖ", "CamelCase", " select", "%I"])
def test_a_role_may_have_any_name(database, suffix):
    name = f"{database.name}{suffix}"
    identifier = sql.Identifier(name)
    with closing(database.connect()) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(identifier))
        try:
            for capability in ("verify", "enroll", "admin", "audit"):
                owner.execute("SELECT totp_grant(%s, %s)", [name, capability])
            with closing(database.connect(user=name)) as session:
                assert session.execute("SELECT totp_verify('nobody', '123456')").fetchone() == (False,)
                session.execute("SELECT FROM totp.audit_log")
        finally:
            owner.execute(sql.SQL("DROP OWNED BY {}").format(identifier))
            owner.execute(sql.SQL("DROP ROLE {}").format(identifier))


def test_grant_twice_is_no_error(database):
    role = database.create_role("enroll", "enroll", "verify")
    with closing(database.connect(user=role)) as session:
        session.execute("SELECT totp_enroll('carol')")


def test_a_rolled_back_grant_gives_nothing(database):
    role = database.create_role()
    with closing(database.connect(autocommit=False)) as owner:
        owner.execute("SELECT totp_grant(%s, 'verify')", [role])
        owner.rollback()
    with closing(database.connect(user=role)) as session:
        assert error_of(session, "SELECT totp_verify('nobody', '123456')").sqlstate == "42501"
