"""The server and the tables that the benchmarks share."""

from contextlib import closing, contextmanager

import pyotp
from server import Cluster, Database

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
START = 1_800_000_000  # Unix seconds; rounds move on from there, since each code counts once
STEP = 30


@contextmanager
def server(**settings):
    """A server of its own, removed afterwards."""
    cluster = Cluster()
    try:
        cluster.init()  # with fsync = off; what is configured last counts
        cluster.configure(shared_buffers="512MB", max_wal_size="8GB", checkpoint_timeout="1h", autovacuum="off", **settings)
        yield cluster.start()
    finally:
        cluster.remove()


def version(cluster: Cluster) -> str:
    with closing(cluster.connect()) as conn:
        return "PostgreSQL " + conn.execute("SHOW server_version").fetchone()[0]


def set_clock(database: Database, unix_seconds: int) -> None:
    """Fixes the clock of every new session."""
    database.execute(f"ALTER DATABASE {database.name} SET totp.clock = '{iso(unix_seconds)}'")


def iso(unix_seconds: int) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(unix_seconds, timezone.utc).isoformat()


def code(unix_seconds: int) -> str:
    return pyotp.TOTP(SECRET).at(unix_seconds)


def make_users(database: Database, count: int) -> None:
    """Users u1 … un with one secret, so that one code is good for each; and tables of the same shape for the bare side."""
    set_clock(database, START)
    database.execute(
        "SELECT count(totp_import('u' || n, %s, confirmed => true)) FROM generate_series(1, %s) n", [SECRET, count])
    database.psql("""
        CREATE TABLE bare_secrets AS SELECT * FROM totp.secrets;
        ALTER TABLE bare_secrets ADD PRIMARY KEY (user_id, device, slot);
        CREATE TABLE bare_used AS SELECT * FROM totp.used_codes;
        ALTER TABLE bare_used ADD PRIMARY KEY (user_id, secret_id);
        CREATE TABLE bare_attempts AS SELECT * FROM totp.attempts;
        ALTER TABLE bare_attempts ADD PRIMARY KEY (user_id);
        CREATE TABLE bare_audit (LIKE totp.audit_log INCLUDING ALL);
        CREATE FUNCTION bare_sign_in(who text, step bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE s bare_secrets;
        BEGIN
          SELECT * INTO s FROM bare_secrets WHERE user_id = who AND device = 'default' AND slot = 'active';
          INSERT INTO bare_used AS u (time_step, used_at, uses, recovery_mask, secret_id, user_id)
          VALUES (step, clock_timestamp(), 1, 0, s.secret_id, who)
          ON CONFLICT (user_id, secret_id) DO UPDATE SET time_step = EXCLUDED.time_step, used_at = EXCLUDED.used_at,
                                                         uses = u.uses + 1;
          RETURN FOUND;
        END $$;
        CREATE FUNCTION bare_failure(who text) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE s bare_secrets;
        BEGIN
          SELECT * INTO s FROM bare_secrets WHERE user_id = who AND device = 'default' AND slot = 'active';
          INSERT INTO bare_attempts AS a (locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures, user_id)
          VALUES ('-infinity', '-infinity', clock_timestamp(), 1, 0, who)
          ON CONFLICT (user_id) DO UPDATE SET failures = a.failures + 1, last_failed_at = EXCLUDED.last_failed_at;
          INSERT INTO bare_audit (at, event, user_id, actor, db_user, client_addr, application_name)
          VALUES (clock_timestamp(), 'failed', who, session_user, session_user, inet_client_addr(), current_setting('application_name'));
          RETURN false;
        END $$;
        CREATE FUNCTION bare_select(who text) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE s bare_secrets;
        BEGIN
          SELECT * INTO s FROM bare_secrets WHERE user_id = who AND device = 'default' AND slot = 'active';
          RETURN false;
        END $$;
        VACUUM (ANALYZE);
        CHECKPOINT;
    """)
