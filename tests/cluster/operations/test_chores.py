"""docs/operations/chores.md: its lines for cron and its jobs for pg_cron do what they say, by roles that are no superusers."""

import re
from contextlib import closing
from typing import NamedTuple

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


class Line(NamedTuple):
    """A line of a crontab."""

    schedule: str
    role: str
    command: str

    def mail(self, app) -> str:
        """What cron would mail of it: both of what it prints and what it complains of."""
        return app.cluster.run("sh", "-c", f"{{ {self.command}\n}} 2>&1", PGHOST=str(app.cluster.folder), PGDATABASE="app", PGUSER=self.role)


def crontab() -> dict[str, Line]:
    """The lines of the page, by what they do."""
    lines = [Line(*found) for found in re.findall(r"^([*/0-9 ]+?)  +(\w+) +(.*psql .*)$", block(PAGE, "crontab"), re.MULTILINE)]
    assert [len(line.schedule.split()) for line in lines] == [5] * 6
    return dict(zip(("health", "seal", "full health", "verify", "prune", "rotate"), lines, strict=True))


def test_the_lines_of_cron(app):
    assert state(app) == (1, 0)
    mails = {name: line.mail(app) for name, line in crontab().items()}
    assert re.fullmatch("NOTICE:  pg_totp: 1 of 1 secrets moved, [0-9]+ per second\nNOTICE:  pg_totp: rotation complete, 1 secrets moved\n", mails.pop("rotate"))
    assert set(mails.values()) == {""}
    assert state(app) == (0, 1)
    app.execute("UPDATE totp.data_keys SET created_at = now() - interval '2 years'")
    assert crontab()["health"].mail(app).startswith("key_rotation|warn|")


def test_nothing_is_mailed_of_a_long_trail_nor_of_two_seals_at_once(app):
    app.execute("""INSERT INTO totp.audit_log (at, event, actor, db_user, application_name)
                   SELECT now(), 'failed', '', '', '' FROM generate_series(1, 1000000)""")
    with closing(app.connect()) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM totp.seal_step()")
        assert crontab()["seal"].mail(app) == ""
        assert app.value("SELECT count(*) FROM totp.audit_seals") == 2  # the other one has the lock
        other.execute("COMMIT")
    assert crontab()["verify"].mail(app) == ""
    app.execute("UPDATE totp.audit_log SET actor = 'mallory' WHERE id = (SELECT max(id) FROM totp.audit_log)")
    assert "|changed|" in crontab()["verify"].mail(app)


def test_the_jobs_of_pg_cron(pg_cron, app):
    """At the start of the server, so that nobody waits until night."""
    run(app, PAGE, "pg_cron.sql")
    unsealed = "SELECT count(*) FROM totp.audit_log WHERE id > (SELECT max(last_id) FROM totp.audit_seals)"
    jobs = {}
    for name, role in (("owner-jobs.sql", "postgres"), ("jobs.sql", "chores")):
        jobs[role] = re.sub(r"'[\d* ]+'", "'@reboot'", block(PAGE, name))
        assert jobs[role].count("@reboot") == 2
    app.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES (now(), 'failed', '', '', '')")
    [[row]] = app.execute("SELECT max(id) FROM totp.audit_log")
    assert state(app) == (1, 0) and app.value(unsealed) == 1
    for role, made in jobs.items():
        app.psql(made, user=role)
    app.cluster.configure(cron__max_running_jobs=1)  # sealing leaves it to the next minute while pruning has the lock
    app.cluster.restart()
    with closing(app.connect()) as conn:
        # Since this start: pg_cron may have been starting when they were made, too.
        ended = """SELECT DISTINCT jobid FROM cron.job_run_details
                    WHERE status IN ('succeeded', 'failed') AND start_time > pg_postmaster_start_time()"""
        wait_until(lambda: conn.execute(ended).rowcount == 4, "the jobs to end")
    run(app, PAGE, "runs.sql")
    assert state(app) == (0, 1)
    assert app.value("SELECT max(last_id) FROM totp.audit_seals") >= row
