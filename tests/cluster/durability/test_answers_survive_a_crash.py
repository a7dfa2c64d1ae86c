"""Every answer survives a restart, a crash of a backend or the server, and a promotion, even if its transaction is rolled back or open.

The servers here leave the WAL in memory for as long as PostgreSQL allows, so that only what the extension flushes itself
survives a kill right after the answer.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import islice
from pathlib import Path

import psycopg
import pytest
from crash_load import LAZY
from server import wait_until
from totp import (MAX_ATTEMPTS, NO_CODE, NOON, SECRET, check, code_at, codes_left, counters, fix_clock, good, import_secret, recover, recovery_codes, verify,
                  wrong_codes)

ROUNDS = 2
SETUPS = {  # of the transaction that gets the answer; only autocommit ends it
    "autocommit": "SELECT",
    "open": "BEGIN",
    "asynchronous": "SET synchronous_commit = off",
    "asynchronous, open": "SET synchronous_commit = off; BEGIN",
    "serializable, open": "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT FROM totp.secrets",
}


@pytest.fixture(scope="module")
def lazy_cluster(make_module_cluster):
    """A server that flushes no WAL by itself."""
    return make_module_cluster(**LAZY)


@pytest.fixture
def lazy_db(lazy_cluster):
    database = lazy_cluster.create_database()
    yield database
    database.drop()


def session(db, when=NOON, **options):
    conn = db.connect(**options)
    fix_clock(conn, when)
    if not conn.autocommit:
        conn.commit()
    return conn


def crash(db):
    db.cluster.kill9()
    db.cluster.start()


def wait_for_flush(db):
    """Wait until the WAL writer has flushed all that is in the WAL by now."""
    with closing(db.connect()) as conn:
        [target] = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        wait_until(lambda: conn.execute("SELECT pg_current_wal_flush_lsn() >= %s", [target]).fetchone()[0], "the WAL writer")


def answers_to_wrong_codes(conn, number, when=NOON, user_id="alice"):
    return [check(conn, user_id, code) for code in islice(wrong_codes(SECRET, when), number)]


# --- told, and killed at once --------------------------------------------------------------

@pytest.mark.parametrize("setup", ["autocommit", "open", "asynchronous"])
def test_a_reported_lock_survives_a_kill(lazy_db, setup):
    """The first one, and each that makes it longer, whatever happens to the transaction that got the answer."""
    now = NOON
    with closing(session(lazy_db)) as conn:
        import_secret(conn, "alice", SECRET)
    for round in range(ROUNDS):
        conn = session(lazy_db, now)
        conn.execute(SETUPS[setup])
        last = answers_to_wrong_codes(conn, MAX_ATTEMPTS if round == 0 else 1, now)[-1]
        crash(lazy_db)
        assert (last.reason, last.attempts_left, last.retry_at) == ("wrong", 0, now + timedelta(seconds=30 * 2 ** round))
        with closing(session(lazy_db, now)) as conn:
            assert check(conn, "alice", code_at(SECRET, now)) == (False, "locked", None, 0, last.retry_at, 30 * 2 ** round)
            assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (MAX_ATTEMPTS + round,)
        now = last.retry_at


def test_a_lock_of_recovery_codes_survives_a_kill(lazy_db):
    """As that of codes. An answer of false does not show it, but it must last as long."""
    now = NOON
    with closing(session(lazy_db)) as conn:
        import_secret(conn, "alice", SECRET)
        code = recovery_codes(conn)[0]
    for round in range(ROUNDS):
        conn = session(lazy_db, now, autocommit=False)
        told = [recover(conn, NO_CODE) for _ in range(MAX_ATTEMPTS if round == 0 else 1)]
        crash(lazy_db)
        assert set(told) == {False}
        until = now + timedelta(seconds=30 * 2 ** round)
        with closing(session(lazy_db, now)) as conn:
            stored = conn.execute("SELECT recovery_failures, nullif(recovery_locked_until, '-infinity') FROM totp.attempts").fetchone()
            assert stored == (MAX_ATTEMPTS + round, until)
            assert recover(conn, code) is False
        now = until
    with closing(session(lazy_db, now)) as conn:
        assert recover(conn, code) is True


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("first", [False, True], ids=["any code", "first code"])
def test_an_accepted_code_stays_used_over_a_kill(lazy_db, first, setup):
    """A first code activates its secret too, but only if its transaction has ended."""
    with closing(session(lazy_db)) as conn:
        import_secret(conn, "alice", SECRET, confirmed=not first)
    conn = session(lazy_db)
    conn.execute(SETUPS[setup])
    accepted = verify(conn, "alice", good())
    crash(lazy_db)
    assert accepted is True
    with closing(session(lazy_db)) as conn:
        assert check(conn, "alice", good()).reason == "replayed"
        state = "pending" if first and "open" in setup else "active"
        assert conn.execute("SELECT state, uses FROM totp_status('alice')").fetchone() == (state, 1)
        assert verify(conn, "alice", good(1)) is True


def test_an_unlock_and_a_used_recovery_code_survive_a_kill(lazy_db):
    with closing(session(lazy_db)) as conn:
        import_secret(conn, "alice", SECRET)
        codes = recovery_codes(conn)
        answers_to_wrong_codes(conn, MAX_ATTEMPTS)
    conn = session(lazy_db, autocommit=False)
    assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
    crash(lazy_db)
    with closing(session(lazy_db)) as conn:
        assert check(conn, "alice", "malformed").attempts_left == MAX_ATTEMPTS
        conn.execute("CHECKPOINT")
    for number, setup in enumerate(("asynchronous", "asynchronous, open")):
        conn = session(lazy_db)
        conn.execute(SETUPS[setup])
        used = recover(conn, codes[number])
        crash(lazy_db)
        assert used is True
        with closing(session(lazy_db)) as conn:
            assert recover(conn, codes[number]) is False
            assert codes_left(conn) == 9 - number
    with closing(session(lazy_db)) as conn:
        assert recover(conn, codes[2]) is True


# --- charged, in a transaction that is still open ----------------------------------------------

def test_the_wal_writer_flushes_a_failure_of_an_open_transaction(make_cluster):
    """A failure that sets no lock is left to it, and nothing else on this quiet server has anything to flush.

    No standby, or the background writer would note its running transactions; no page that is full, which the WAL writer
    flushes unasked. The audit row comes after the failure and is not flushed: so the position waited for is the page's.
    """
    db = make_cluster(wal_level="minimal", max_wal_senders=0, checkpoint_timeout="1d", bgwriter_lru_maxpages=0, autovacuum="off").create_database()
    guesses = [lambda conn: answers_to_wrong_codes(conn, 1), lambda conn: recover(conn, NO_CODE)]
    with closing(session(db)) as conn:
        import_secret(conn, "alice", SECRET)
        recovery_codes(conn)
        conn.execute("CREATE EXTENSION pageinspect")
        for guess in guesses:  # the first of each kind reads and writes other things too: not later
            guess(conn)
    watch = db.connect()
    flushed = "SELECT pg_current_wal_flush_lsn() >= (SELECT lsn FROM page_header(get_raw_page('totp.attempts', 0)))"
    for query in (flushed, flushed, "SELECT pg_switch_wal()"):
        watch.execute(query)
    conn = session(db, autocommit=False)
    for guess in guesses:
        guess(conn)
        wait_until(lambda: watch.execute(flushed).fetchone()[0], "the WAL writer to flush a failure")
    crash(db)
    with closing(session(db)) as conn:
        assert counters(conn) == (2, 2, False, False)


# --- charged, and rolled back --------------------------------------------------------------

def test_rolled_back_charges_are_there_after_every_kind_of_end(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    with closing(session(db)) as conn:
        import_secret(conn, "alice", SECRET)
        import_secret(conn, "bob", SECRET)
        assert verify(conn, "bob", code_at(SECRET, NOON)) is True

    def charge():
        with closing(session(db, autocommit=False)) as conn:
            [answer] = answers_to_wrong_codes(conn, 1)
            conn.rollback()
        wait_for_flush(db)
        return answer.attempts_left

    ends = [fresh_cluster.restart, lambda: fresh_cluster.restart("immediate"), lambda: crash(db)]
    for left, end in zip((4, 3, 2), ends, strict=True):
        assert charge() == left
        end()
        with closing(session(db)) as conn:
            assert check(conn, "alice", "malformed").attempts_left == left
            assert check(conn, "bob", code_at(SECRET, NOON)).reason == "replayed"

    standby = make_standby(fresh_cluster)
    assert charge() == 1
    standby.wait_for_replay(fresh_cluster)
    assert not has_our_library(standby)
    with closing(standby.connect(db.name)) as conn:
        assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (4,)
    fresh_cluster.kill9()
    standby.promote()
    promoted = session(db := type(db)(standby, db.name))
    with closing(promoted) as conn:
        assert check(conn, "bob", code_at(SECRET, NOON)).reason == "replayed"
        [last] = answers_to_wrong_codes(conn, 1)
        assert (last.reason, last.attempts_left, last.retry_at) == ("wrong", 0, NOON + timedelta(seconds=30))
    crash(db)
    with closing(session(db)) as conn:
        assert check(conn, "alice", code_at(SECRET, NOON)).reason == "locked"


def has_our_library(standby):
    """Whether the process that replays the WAL has loaded pg_totp."""
    with closing(standby.connect()) as conn:
        [pid] = conn.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'").fetchone()
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "postgres" in maps
    return "pg_totp.so" in maps


def test_a_charge_survives_the_kill_of_its_backend_inside_verify_and_then_of_the_server(fresh_cluster):
    """The backend is stopped between the charge and the answer: its audit row waits for a lock."""
    db = fresh_cluster.create_database()
    with closing(session(db)) as conn:
        import_secret(conn, "alice", SECRET)
        answers_to_wrong_codes(conn, MAX_ATTEMPTS - 2)
    # A lock is killed at once; what only the WAL writer flushes, when it has.
    for failures in (MAX_ATTEMPTS - 1, MAX_ATTEMPTS):
        blocker = db.connect(autocommit=False)
        blocker.execute("LOCK TABLE totp.audit_log IN SHARE MODE")
        victim = session(db)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(answers_to_wrong_codes, victim, 1)
            wait_until_it_waits(db, victim)
            if failures < MAX_ATTEMPTS:
                wait_for_flush(db)
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                answer.result()
        wait_until(lambda: is_gone(blocker), "the server to see that a backend was killed")  # until then it takes connections
        wait_until(lambda: is_up(db), "the server to recover")
        assert failures_of_alice(db) == failures
        crash(db)
        assert failures_of_alice(db) == failures
    with closing(session(db)) as conn:
        assert check(conn, "alice", code_at(SECRET, NOON)).reason == "locked"


def failures_of_alice(db):
    return db.value("SELECT DISTINCT failures FROM totp_status('alice')")


def is_gone(conn):
    try:
        conn.execute("SELECT")
    except psycopg.OperationalError:
        return True
    return False


def is_up(db):
    try:
        db.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def wait_until_it_waits(db, conn, kind="Lock"):
    """Wait until the session waits, for a lock or another kind of event."""
    with closing(db.connect()) as watch:
        wait_until(lambda: watch.execute("SELECT wait_event_type = %s OR wait_event = %s FROM pg_stat_activity WHERE pid = %s",
                                         [kind, kind, conn.info.backend_pid]).fetchone()[0], f"session to wait for {kind}")


# --- synchronous standbys --------------------------------------------------------------------

def test_what_was_reported_is_on_the_synchronous_standby(make_cluster, make_standby):
    primary = make_cluster(**LAZY)
    db = primary.create_database()
    with closing(session(db)) as conn:
        import_secret(conn, "alice", SECRET)
        import_secret(conn, "bob", SECRET)
    standby = make_standby(primary)
    primary.make_synchronous()

    # Both wait for the standby in a transaction that is still open, while it is away.
    def accept(conn):
        return verify(conn, "alice", code_at(SECRET, NOON))

    def lock(conn):
        return answers_to_wrong_codes(conn, MAX_ATTEMPTS, user_id="bob")[-1].reason

    for judge, answer in ((accept, True), (lock, "wrong")):
        standby.stop()
        with closing(session(db, autocommit=False)) as conn, ThreadPoolExecutor(1) as pool:
            told = pool.submit(judge, conn)
            wait_until_it_waits(db, conn, "SyncRep")
            assert not told.done()
            standby.start()
            assert told.result() == answer

    # A wait that is canceled ends as that of a COMMIT does: in a warning, with the answer.
    standby.stop()
    with closing(session(db, NOON + timedelta(seconds=30))) as conn:
        warnings = []
        conn.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(verify, conn, "alice", code_at(SECRET, NOON.timestamp() + 30))
            wait_until_it_waits(db, conn, "SyncRep")
            db.execute("SELECT pg_cancel_backend(%s)", [conn.info.backend_pid])
            assert told.result() is True
        assert "canceling wait for synchronous replication due to user request" in warnings

    # A session that does not wait for standbys at COMMIT does not wait here, but the code is flushed.
    with closing(session(db, NOON + timedelta(seconds=60))) as conn:
        conn.execute("SET synchronous_commit = local")
        assert verify(conn, "alice", code_at(SECRET, NOON.timestamp() + 60)) is True

    standby.start()
    standby.wait_for_replay(primary)
    primary.kill9()
    standby.promote()
    with closing(standby.connect(db.name)) as conn:
        fix_clock(conn, NOON + timedelta(seconds=60))
        assert conn.execute("SELECT uses FROM totp_status('alice')").fetchone() == (3,)
        fix_clock(conn, NOON)
        assert check(conn, "bob", code_at(SECRET, NOON)).reason == "locked"
