"""Codes judged in the transaction that makes the extension, with and without a WAL of it."""

from contextlib import closing

import pytest
from totp import NOON, SECRET, check, fix_clock, good, import_secret, verify, wrong

# How PostgreSQL keeps a table that is not in the WAL when the transaction commits: by flushing it, or by logging its pages.
SETTINGS = {"replica": {"wal_level": "replica"},
            "minimal, flushed": {"wal_level": "minimal", "max_wal_senders": 0, "wal_skip_threshold": 0},
            "minimal, logged at commit": {"wal_level": "minimal", "max_wal_senders": 0, "wal_skip_threshold": "1GB"}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_was_judged_there_is_there_after_a_crash(make_cluster, settings):
    cluster = make_cluster(**settings)
    db = cluster.create_database(extension=False)
    with closing(db.connect()) as conn:
        for statement in ("BEGIN", "CREATE EXTENSION pg_totp", "ROLLBACK", "BEGIN", "SAVEPOINT s", "CREATE EXTENSION pg_totp", "RELEASE s"):
            conn.execute(statement)
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        assert check(conn, "alice", wrong()).attempts_left == 4
        assert check(conn, "alice", good()).reason == "accepted"
        assert check(conn, "alice", good()).reason == "replayed"
        assert [check(conn, "alice", wrong()).attempts_left for _ in range(2)] == [4, 3]
        conn.execute("COMMIT")
        cluster.kill9()
    cluster.start()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        assert check(conn, "alice", good()).reason == "replayed"
        assert check(conn, "alice", wrong()).attempts_left == 2
        conn.execute("BEGIN")
        assert verify(conn, "alice", good(1)) is True
        cluster.kill9()
    cluster.start()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        assert check(conn, "alice", good(1)).reason == "replayed"
