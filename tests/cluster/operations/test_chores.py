"""docs/operations/chores.md: its lines for cron and its jobs for pg_cron do what they say, by roles that are no superusers."""

import re
from contextlib import closing

import pytest
from documents import block, block_with, run
from libraries import skip_without
from server import wait_until
from totp import SECRET, import_secret

PAGE = "operations/chores.md"
ROLES = block_with(PAGE, "CREATE ROLE %I LOGIN")


@pytest.fixture
def pg_cron(fresh_cluster):
    """The server has pg_cron, which runs nothing yet."""
    skip_without("pg_cron")
    with open(fresh_cluster.data / "postgresql.conf", "a") as conf:
        conf.write(block(PAGE, "pg_cron.conf"))
    fresh_cluster.configure(cron__max_running_jobs=0)
    fresh_cluster.restart()


@pytest.fixture
def app(fresh_cluster):
    """The database of the document, with its roles, an audit row that is two years old, and a secret."""
    db = fresh_cluster.create_database("app", extension=False)
    db.psql("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa; ALTER DATABASE app SET search_path = public, mfa")
    with closing(db.connect()) as conn:
        conn.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES (now() - interval '2 years', 'failed', '', '', '')")
        conn.execute("CALL totp_audit_seal()")  # two years ago: pruning takes whole seals
    db.psql(ROLES)
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        conn.execute("CALL totp_audit_seal()")
    yield db


def test_the_roles_are_made_once_for_all_databases_of_a_server(app):
    """Those of the page, and the one of monitoring.md: each page is for every database."""
    other = app.cluster.create_database("other", extension=False)
    other.psql("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa; ALTER DATABASE other SET search_path = public, mfa")
    other.psql(ROLES)
    for db in (app, other):
        db.psql(block_with("operations/monitoring.md", "CREATE ROLE monitor LOGIN"))
        assert db.psql("SELECT totp_chores.prune_audit()", user="chores") in ("0\n", "1\n")
        assert int(db.psql("SELECT count(*) FROM mfa.totp_health()", user="monitor")) > 0


def state(db) -> tuple[int, int]:
    """The number of old audit rows, and of rotations."""
    old = "SELECT count(*) FROM totp.audit_log WHERE at < now() - interval '400 days'"
    return db.value(old), db.value("SELECT count(*) FROM totp.audit_log WHERE event = 'key_rotated'")


def test_the_lines_of_cron(app):
    lines = re.findall(r"^([*/0-9 ]+?)  +(\w+) +(.*psql .*)$", block(PAGE, "crontab"), re.MULTILINE)
    assert [len(schedule.split()) for schedule, _, _ in lines] == [5] * 6
    assert state(app) == (1, 0)
    for _, role, command in lines:
        environment = {"PGHOST": str(app.cluster.folder), "PGDATABASE": "app", "PGUSER": role}
        assert app.cluster.run("sh", "-c", command, **environment) == ""
    assert state(app) == (0, 1)
    app.execute("UPDATE totp.data_keys SET created_at = now() - interval '2 years'")
    assert app.cluster.run("sh", "-c", lines[0][2], **environment | {"PGUSER": "monitor"}).startswith("key_rotation|warn|")


def test_the_jobs_of_pg_cron(pg_cron, app):
    """At the start of the server, so that nobody waits until night."""
    run(app, PAGE, "pg_cron.sql")
    jobs = re.sub(r"'[\d* ]+'", "'@reboot'", block(PAGE, "jobs.sql"))
    assert jobs.count("@reboot") == 2
    assert state(app) == (1, 0)
    app.psql(jobs, user="chores")
    app.cluster.configure(cron__max_running_jobs=2)
    app.cluster.restart()
    with closing(app.connect()) as conn:
        wait_until(lambda: conn.execute("SELECT FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')").rowcount == 2, "the jobs to end")
    run(app, PAGE, "runs.sql")
    assert state(app) == (0, 1)
