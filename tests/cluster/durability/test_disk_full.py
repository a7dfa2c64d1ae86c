"""The disk fills under load, and has room again: no answer is lost and nothing is corrupt. On a tmpfs, so for root only."""

import errno
import os
import time
from contextlib import closing

import psycopg
import pytest
from crash_ledger import Ledger
from crash_load import assert_no_corruption, more_of, skip_unless_mountable, under_load
from server import Cluster, wait_until

SIZE = "100m"


@pytest.fixture
def other_disk():
    """A folder on the disk that has room."""
    one = Cluster()
    yield one.folder
    one.remove()


@pytest.fixture
def small_cluster():
    """A function that starts a server whose data directory is on a small disk: small_cluster(option of initdb, ...)."""
    skip_unless_mountable()
    one = Cluster()
    try:
        yield lambda *options: one.mount(SIZE).init(initdb_options=options, totp__enrollment_ttl="30d").start()
    finally:
        one.remove()


def fill(cluster):
    """A file that takes all the room there is."""
    ballast = cluster.volume / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return ballast


def test_if_tables_cannot_grow_calls_fail_and_no_reported_answer_is_lost(other_disk, small_cluster):
    """The WAL has room. Sign-ins go on: they change rows in place. A failure and an enrollment add rows."""
    cluster = small_cluster(f"--waldir={other_disk}/wal")
    db = cluster.create_database()
    ledger = Ledger(db).populate()
    with under_load(ledger, maintain=False):
        more_of(ledger, "wrong: wrong", 50)
        ballast = fill(cluster)
        more_of(ledger, "error 53100", 50)
        more_of(ledger, "right: accepted", 50)
        ballast.unlink()
        more_of(ledger, "wrong: wrong", 50)
        more_of(ledger, "enrolled", 1)
        killed_at = time.monotonic()
        cluster.kill9()
    cluster.start()
    ledger.settle(killed_at)
    print(f"seed {ledger.seed}", *sorted(ledger.counts.items()), sep="\n")
    assert ledger.findings == []
    assert ledger.errors == {"error 53100"}
    assert_no_corruption(db)


def test_if_the_wal_cannot_grow_the_server_stops_and_no_reported_answer_is_lost(small_cluster):
    cluster = small_cluster("--wal-segsize=1")
    db = cluster.create_database()
    ledger = Ledger(db).populate()
    postmaster = cluster.pid()
    with under_load(ledger, maintain=False, synchronous_commit="off") as sessions:
        more_of(ledger, "wrong: wrong", 50)
        ballast = fill(cluster)
        with pytest.raises(psycopg.OperationalError), closing(db.connect()) as conn:
            while True:  # more WAL than the load writes
                conn.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 100000))")
        wait_until(lambda: not cluster.is_running(), "the server to stop")
    os.waitpid(postmaster, 0)
    assert "No space left on device" in cluster.log_text() and "PANIC" in cluster.log_text()
    ballast.unlink()
    cluster.start()
    ledger.settle(min(session.ended_at for session in sessions))
    print(f"seed {ledger.seed}", *sorted(ledger.counts.items()), sep="\n")
    assert ledger.findings == []
    assert ledger.errors <= {"error 53100"}
    assert_no_corruption(db)
