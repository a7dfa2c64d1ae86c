"""docs/operations/logging.md: with pgaudit, the server log has who reads the tables, and who exports."""

import re
from contextlib import closing

import psycopg
import pytest
from documents import block
from health import health
from totp import NOON, SECRET, enroll, fix_clock, good, import_secret, verify

PAGE = "operations/logging.md"


@pytest.fixture(scope="module")
def server(make_module_cluster):
    cluster = make_module_cluster()
    with open(cluster.data / "postgresql.conf", "a") as conf:
        conf.write(block(PAGE, "pgaudit.conf"))
    cluster.restart()
    cluster.psql("CREATE ROLE app LOGIN; CREATE ROLE dba LOGIN SUPERUSER;" + block(PAGE, "pgaudit_roles.sql"))
    return cluster


@pytest.fixture
def db(server):
    database = server.create_database()
    database.psql(block(PAGE, "pgaudit.sql") + "SELECT totp_grant('app', 'enroll')")
    yield database
    database.drop()
    server.psql("DROP ROLE totp_watch")


@pytest.fixture
def conn(db):
    """A superuser's session at noon. alice has a device."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        yield conn


@pytest.fixture
def audited(db):
    """A function that returns what pgaudit has logged since the last call, without its numbers and empty fields."""
    at = db.cluster.log_end()

    def lines() -> list[str]:
        nonlocal at
        begin, at = at, db.cluster.log_end()
        text = db.cluster.log_text(begin, at)
        return [re.sub(r",\d+,\d+,", ",", line).rstrip(",") for line in re.findall(r"AUDIT: (.*?),<not logged>", text)]

    return lines


@pytest.mark.parametrize("statement, logged", [
    ("SELECT FROM totp.secrets", "READ,SELECT,TABLE,totp.secrets"),
    ("COPY totp.data_keys TO '/dev/null'", "READ,{copy},TABLE,totp.data_keys"),
    ("SELECT FROM totp.audit_log", "READ,SELECT,TABLE,totp.audit_log"),
    ("UPDATE totp.audit_log SET actor = 'nobody'", "WRITE,UPDATE,TABLE,totp.audit_log"),
    ("DELETE FROM totp.audit_log", "WRITE,DELETE,TABLE,totp.audit_log"),
])
@pytest.mark.parametrize("user", ["postgres", "dba", "reader"])
def test_who_reads_the_tables_is_logged(db, conn, audited, user, statement, logged):
    """A superuser, and a role that has every right without being one."""
    conn.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN; GRANT pg_read_all_data, pg_write_all_data, pg_write_server_files TO reader")
    assert {name for name, (status, _) in health(conn).items() if status != "ok"} == {"test_clock", "write_all_data"}  # the rights are in order
    audited()
    with closing(db.connect(user=user)) as one:
        one.execute(statement)
    assert f"OBJECT,{logged.format(copy='COPY' if conn.info.server_version >= 190000 else 'SELECT')}" in audited()
    conn.execute("DROP ROLE reader")


def test_an_export_is_logged(db, conn, audited):
    """By the table that it reads; by its name, if the role's functions are logged. The application's calls are not."""
    audited()
    conn.execute("SELECT count(*) FROM totp_export()")
    assert set(audited()) == {"OBJECT,READ,SELECT,TABLE,totp.secrets"}
    with closing(db.connect(user="dba")) as dba:
        dba.execute("SELECT count(*) FROM totp_export()")
        assert {"SESSION,FUNCTION,EXECUTE,FUNCTION,public.totp_export", "OBJECT,READ,SELECT,TABLE,totp.secrets"} <= set(audited())
        dba.execute("SET pgaudit.log = none; SET pgaudit.role = ''")
        dba.execute("SELECT count(*) FROM totp.secrets")
        assert audited() == []  # a superuser can turn it off, and no line says so
    db.execute(f"ALTER DATABASE {db.name} SET totp.clock = '{NOON.isoformat()}'")
    with closing(db.connect(user="app")) as app:
        assert verify(app, "alice", good()) is True
        enroll(app, "alice", device="phone")
        assert audited() == []
        conn.execute("CREATE FUNCTION read() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM totp.secrets'")
        assert app.execute("SELECT read()").fetchone() == (2,)
        assert audited() == []  # a limit of pgaudit


@pytest.mark.parametrize("statements", ["off", "on"])
def test_with_statements_secrets_get_into_the_log(db, conn, statements):
    begin = db.cluster.log_end()
    with closing(psycopg.ClientCursor(conn)) as cursor:  # which sends literals
        cursor.execute(f"SET pgaudit.log = 'function'; SET pgaudit.log_statement = {statements}")
        cursor.execute("SELECT totp_import('carol', %s)", [SECRET])
    assert (SECRET in db.cluster.log_text(begin)) == (statements == "on")
