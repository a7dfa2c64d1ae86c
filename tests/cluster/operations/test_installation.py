"""CREATE EXTENSION with hostile privileges, in other schemas, and again."""

from contextlib import closing
from datetime import timedelta

import pytest
from health import health
from totp import NOON, code_at, enroll, error_of, fix_clock, verify


EVERYTHING = """
SELECT CASE d.classid WHEN 'pg_proc'::regclass THEN d.objid::regprocedure::text ELSE d.objid::regclass::text END, a.grantee::regrole::text, a.privilege_type
  FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'pg_totp' AND d.deptype = 'e'
  LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
  LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
  LEFT JOIN pg_namespace n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
 CROSS JOIN LATERAL aclexplode(CASE d.classid WHEN 'pg_proc'::regclass THEN coalesce(p.proacl, acldefault('f', p.proowner))
                                              WHEN 'pg_class'::regclass THEN c.relacl ELSE n.nspacl END) AS a
 WHERE a.grantee <> coalesce(p.proowner, c.relowner, n.nspowner)"""


@pytest.fixture
def empty_db(cluster):
    database = cluster.create_database(extension=False)
    yield database
    database.drop()


def test_nothing_is_granted_to_anyone(empty_db):
    empty_db.execute("CREATE EXTENSION pg_totp")
    assert empty_db.execute(EVERYTHING) == []


@pytest.mark.parametrize("where, option", [("", ""), ("IN SCHEMA public", ""), ("", "WITH GRANT OPTION")], ids=["everywhere", "in schema", "with grant option"])
def test_hostile_default_privileges_give_nothing(empty_db, where, option):
    other = empty_db.create_role()
    with closing(empty_db.connect()) as conn:
        for grantee in [other] if option else ["PUBLIC", other]:
            for right, kind in (("ALL", "TABLES"), ("ALL", "SEQUENCES"), ("ALL", "FUNCTIONS"), ("ALL", "TYPES"), ("ALL", "SCHEMAS")):
                if not (where and kind == "SCHEMAS"):
                    conn.execute(f"ALTER DEFAULT PRIVILEGES {where} GRANT {right} ON {kind} TO {grantee} {option}")
        conn.execute("CREATE EXTENSION pg_totp")
        assert conn.execute(EVERYTHING).fetchall() == []
        assert conn.execute("SELECT nspacl FROM pg_namespace WHERE nspname = 'totp' AND nspacl::text LIKE %s", [f"%{other}%"]).fetchall() == []
        with closing(empty_db.connect(user=other)) as session:
            for query in ("SELECT totp_verify('alice', '123456')", "SELECT totp_enroll('alice')", "SELECT * FROM totp.secrets", "SELECT * FROM totp.audit_log",
                          "SELECT nextval('totp.secret_ids')", "CREATE TABLE totp.mine ()"):
                assert error_of(session, query).sqlstate == "42501", query
        conn.execute(f"DROP OWNED BY {other}")


@pytest.mark.parametrize("schema", ["security", "Mixed Case", "with-dash", "select", "Ü"])
def test_it_works_in_another_schema(empty_db, schema):
    quoted = f'"{schema}"'  # PostgreSQL refuses a schema with a quote or a dollar sign in its name
    with closing(empty_db.connect()) as conn:
        conn.execute(f"CREATE SCHEMA {quoted}")
        conn.execute(f"CREATE EXTENSION pg_totp SCHEMA {quoted}")
        fix_clock(conn, NOON)
        secret, _ = conn.execute(f"SELECT * FROM {quoted}.totp_enroll('alice')").fetchone()
        assert conn.execute(f"SELECT {quoted}.totp_verify('alice', %s)", [code_at(secret, NOON)]).fetchone() == (True,)
        assert conn.execute(f"SELECT reason FROM {quoted}.totp_check('alice', %s)", [code_at(secret, NOON)]).fetchone() == ("replayed",)
        role = empty_db.create_role()
        for capability in ("verify", "audit"):
            conn.execute(f"SELECT {quoted}.totp_grant(%s, %s)", [role, capability])
        with closing(empty_db.connect(user=role)) as session:
            assert session.execute(f"SELECT {quoted}.totp_verify('alice', %s)", [code_at(secret, NOON)]).fetchone() == (False,)
            session.execute("SELECT FROM totp.audit_log")
            assert error_of(session, f"SELECT {quoted}.totp_enroll('alice')").sqlstate == "42501"
        stray = conn.execute("SELECT proname FROM pg_proc WHERE proname LIKE 'totp%%' AND pronamespace = 'public'::regnamespace", []).fetchall()
        assert stray == []


def test_it_works_after_it_was_dropped_and_created_again(empty_db):
    """The same session goes on: kept plans, keys and the like must not outlive the extension."""
    with closing(empty_db.connect()) as conn:
        for round in range(3):
            conn.execute("CREATE EXTENSION pg_totp")
            fix_clock(conn, NOON)
            secret = enroll(conn, "alice")
            assert verify(conn, "alice", code_at(secret, NOON)) is True
            assert verify(conn, "alice", code_at(secret, NOON)) is False
            conn.execute("DROP EXTENSION pg_totp")
            assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'totp'").fetchone() == (0,)


def test_a_rolled_back_create_extension_leaves_nothing(empty_db):
    with closing(empty_db.connect()) as conn:
        conn.execute("BEGIN")
        conn.execute("CREATE EXTENSION pg_totp")
        enroll(conn, "alice")
        conn.execute("ROLLBACK")
        assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'totp'").fetchone() == (0,)
        conn.execute("CREATE EXTENSION pg_totp")
        assert conn.execute("SELECT count(*) FROM totp.secrets").fetchone() == (0,)


TAKEN = {  # who has schema totp, how the extension is to be created, the HINT, and what it says to do
    "a schema of the user": ("CREATE TABLE totp.secrets (mine text)", "CREATE EXTENSION pg_totp",
                             "Rename it with ALTER SCHEMA totp RENAME TO, or drop it if nothing in it is needed.", "ALTER SCHEMA totp RENAME TO mine"),
    "a schema for the functions": ("SELECT", "CREATE EXTENSION pg_totp SCHEMA totp",
                                   "Drop the schema if it is empty, and name another one in CREATE EXTENSION pg_totp SCHEMA.", "DROP SCHEMA totp"),
    "a schema of another extension": ("CREATE EXTENSION citext; ALTER EXTENSION citext ADD SCHEMA totp", "CREATE EXTENSION pg_totp",
                                      "Drop extension citext, or use another database.", "DROP EXTENSION citext"),
}


@pytest.mark.parametrize("content, create, hint, repair", TAKEN.values(), ids=TAKEN)
def test_a_schema_totp_that_is_there_already_is_an_error(empty_db, content, create, hint, repair):
    with closing(empty_db.connect()) as conn:
        conn.execute("CREATE SCHEMA totp")
        conn.execute(content)
        error = error_of(conn, create)
        assert (error.sqlstate, error.diag.message_primary, error.diag.message_hint) == ("42P06", 'schema "totp" already exists', hint)
        assert conn.execute("SELECT count(*) FROM pg_extension WHERE extname = 'pg_totp'").fetchone() == (0,)
        conn.execute(repair)
        conn.execute("CREATE EXTENSION pg_totp")


# --- Another table access method ------------------------------------------------------------------------------------------


def with_another_default(database) -> None:
    """New tables of the database are of an access method that is heap by another name, so not what changes in place."""
    database.execute("CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler")
    database.execute(f"ALTER DATABASE {database.name} SET default_table_access_method = other")
    database.execute("CREATE TABLE mine (id int)")


def signs_in(database, secret, when) -> bool:
    with closing(database.connect()) as conn:
        fix_clock(conn, when)
        faults = [(name, detail) for name, (status, detail) in health(conn).items() if name.startswith("table_") and status != "ok"]
        assert faults == []
        return verify(conn, "alice", code_at(secret, when))


def access_methods(database) -> dict[str, str]:
    return dict(database.execute("SELECT c.oid::regclass::text, amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE relkind = 'r'"
                                 " AND (relnamespace = 'totp'::regnamespace OR relname = 'mine')"))


def test_another_default_table_access_method_does_not_matter(cluster, empty_db):
    """Neither to CREATE EXTENSION nor to a restore."""
    with_another_default(empty_db)
    empty_db.execute("CREATE EXTENSION pg_totp")
    with closing(empty_db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
    assert signs_in(empty_db, secret, NOON)
    methods = access_methods(empty_db)
    assert methods.pop("mine") == "other" and len(methods) == 10 and set(methods.values()) == {"heap"}

    dump, contents = cluster.folder / "other.dump", cluster.folder / "other.list"
    cluster.client("pg_dump", "-d", empty_db.name, "-Fc", "-f", dump)
    entries = cluster.client("pg_restore", "--list", dump).splitlines()
    contents.write_text("\n".join(entry for entry in entries if " ACCESS METHOD " not in entry and " TABLE public mine" not in entry))
    contents.chmod(0o644)
    copy = cluster.create_database(extension=False)
    try:
        with_another_default(copy)
        cluster.client("pg_restore", "--exit-on-error", "-L", contents, "-d", copy.name, dump)
        assert access_methods(copy) == {"mine": "other", **methods}
        assert not signs_in(copy, secret, NOON + timedelta(minutes=10))  # the first code in a restored database sets the floor
        assert signs_in(copy, secret, NOON + timedelta(minutes=20))
    finally:
        copy.drop()


# --- Event triggers --------------------------------------------------------------------------------------------------------

# A function that finds its table only where search_path leads there.
EVENT_TRIGGER = """
CREATE TABLE ddl_log (event text, tag text);
CREATE FUNCTION log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO ddl_log VALUES (tg_event, tg_tag); END';
CREATE EVENT TRIGGER log_{event} ON {event} EXECUTE FUNCTION log_ddl()"""


@pytest.mark.parametrize("event", ["ddl_command_start", "ddl_command_end"])
@pytest.mark.parametrize("extension", ["citext", "pg_totp"])
def test_an_event_trigger_sees_the_path_that_it_sees_with_any_extension(empty_db, extension, event):
    """In the schema of its tables, CREATE EXTENSION runs it to the end. In another schema it stops, unless its function has a path."""
    empty_db.psql(EVENT_TRIGGER.format(event=event))
    with closing(empty_db.connect()) as conn:
        conn.execute("CREATE SCHEMA mfa")
        assert error_of(conn, f"CREATE EXTENSION {extension} SCHEMA mfa").sqlstate == "42P01"
        conn.execute(f"CREATE EXTENSION {extension}")
        assert ("CREATE FUNCTION",) in conn.execute("SELECT DISTINCT tag FROM ddl_log").fetchall()
        conn.execute(f"DROP EXTENSION {extension}")
        conn.execute("ALTER FUNCTION log_ddl() SET search_path = public, pg_temp")
        conn.execute(f"CREATE EXTENSION {extension} SCHEMA mfa")


def test_a_function_of_the_functions_schema_is_not_taken_for_one_of_postgresql(empty_db):
    """The scripts run with that schema in their path, so they qualify every name. pgspot looks at the rest of them."""
    with closing(empty_db.connect()) as conn:
        for trap in ("nextval(text) RETURNS bigint", "octet_length(varchar) RETURNS int", "quote_ident(name) RETURNS text", "format(text, text, text, text) RETURNS text"):
            conn.execute(f"CREATE FUNCTION {trap} LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$")
        conn.execute("CREATE EXTENSION pg_totp")
        fix_clock(conn, NOON)
        enroll(conn, "alice")
        assert conn.execute("SELECT totp_rotate_key() IS NOT NULL").fetchone() == (True,)


def test_only_a_superuser_creates_it(empty_db):
    role = empty_db.create_role()
    empty_db.execute(f"GRANT CREATE ON DATABASE {empty_db.name} TO {role}")
    with closing(empty_db.connect(user=role)) as session:
        assert error_of(session, "CREATE EXTENSION pg_totp").sqlstate == "42501"
    empty_db.execute(f"REVOKE CREATE ON DATABASE {empty_db.name} FROM {role}")


def test_a_database_of_another_encoding_is_refused(cluster):
    with closing(cluster.connect()) as conn:
        conn.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
        try:
            with closing(cluster.connect("latin")) as session:
                error = error_of(session, "CREATE EXTENSION pg_totp")
                assert error.sqlstate == "0A000" and error.diag.message_hint
        finally:
            conn.execute("DROP DATABASE latin")


def test_it_needs_no_preload_no_worker_and_no_restart(empty_db):
    with closing(empty_db.connect()) as conn:
        assert conn.execute("SHOW shared_preload_libraries").fetchone() == ("",)
        workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type NOT IN ('client backend', 'autovacuum worker')"
        before = conn.execute(workers).fetchone()
        conn.execute("CREATE EXTENSION pg_totp")
        assert conn.execute(workers).fetchone() == before
        assert conn.execute("SELECT count(*) FROM pg_settings WHERE name LIKE 'totp.%%' AND (context = 'postmaster' OR pending_restart)", []).fetchone() == (0,)


def test_two_databases_of_one_server_know_nothing_of_each_other(cluster):
    first, second = cluster.create_database(), cluster.create_database()
    try:
        with closing(first.connect()) as one, closing(second.connect()) as two:
            for conn in (one, two):
                fix_clock(conn, NOON)
            secrets = enroll(one, "alice"), enroll(two, "alice")
            assert verify(two, "alice", code_at(secrets[0], NOON)) is False
            assert verify(one, "alice", code_at(secrets[0], NOON)) is True
            assert verify(two, "alice", code_at(secrets[1], NOON)) is True
            assert one.execute("SELECT wrapped FROM totp.data_keys").fetchall() != two.execute("SELECT wrapped FROM totp.data_keys").fetchall()
    finally:
        first.drop()
        second.drop()
