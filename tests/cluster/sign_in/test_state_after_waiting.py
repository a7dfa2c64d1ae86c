"""After a wait, a call reads again what it waited for, and judges by the state and the clock of that moment.

A new session has no floor and no data key in memory, so it waits for the session that locked these tables. It has looked
the user up before that.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from server import wait_until
from totp import (MAX_ATTEMPTS, NOON, NO_CODE, OTHER_SECRET, SECRET, check, code_at, counters, enabled, enroll, fix_clock, good, import_secret, is_waiting, recover,
                  recovery_codes, reset, verify, wrong)

PENDING, REPLACEMENT = OTHER_SECRET, "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U"
TABLES = ["floor", "data_keys", "attempts", "used_codes", "secrets", "recovery_codes"]


@pytest.fixture(scope="module")
def cluster(make_module_cluster):
    """A server with no standby, though a session may ask for one."""
    return make_module_cluster(synchronous_standby_names="nobody", synchronous_commit="local")


@pytest.fixture
def open_session(quick_db):
    """A function that opens a session in which it is noon."""
    opened = []

    def session():
        opened.append(quick_db.connect())
        fix_clock(opened[-1], NOON)
        return opened[-1]

    yield session
    for conn in opened:
        conn.close()


@pytest.fixture
def conn(open_session):
    conn = open_session()
    import_secret(conn, "alice", SECRET)
    import_secret(conn, "alice", PENDING, device="phone", confirmed=False)
    check(conn, "alice", wrong())  # it knows floor and data keys from here on
    conn.execute("SELECT totp_unlock('alice')")
    return conn


@contextmanager
def waiting(watch, session, ask, *arguments):
    """The call of a session that waits, at the beginning of the block, for a lock that others hold."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, session, *arguments)
        try:
            wait_until(lambda: answer.done() or is_waiting(watch, session), "the call to wait")
            assert not answer.done(), answer.result()
            yield answer
        finally:
            watch.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [session.info.backend_pid])


def reason(session, code):
    return check(session, "alice", code).reason


def confirm(session, code):
    return session.execute("SELECT totp_confirm('alice', %s, 'phone')", [code]).fetchone()[0]


def use(conn):
    assert verify(conn, "alice", good()) is True


def fail(conn):
    for number in range(MAX_ATTEMPTS):
        assert reason(conn, wrong(number)) == "wrong"


CHANGES = {  # what happens during the wait: the answer to a good code after it
    "disabled": (lambda conn: conn.execute("SELECT totp_disable('alice')"), "disabled"),
    "removed": (lambda conn: conn.execute("SELECT totp_remove('alice')"), "not_enrolled"),
    "device removed": (lambda conn: conn.execute("SELECT totp_remove('alice', 'default')"), "wrong"),
    "renamed": (lambda conn: conn.execute("SELECT totp_rename_user('alice', 'carol')"), "not_enrolled"),
    "reset": (reset, "wrong"),
    "replaced": (lambda conn: import_secret(conn, "alice", REPLACEMENT), "wrong"),
    "moved": (lambda conn: conn.execute("SELECT totp_move_device('alice', 'default', 'carol', 'default')"), "wrong"),
    "device renamed": (lambda conn: conn.execute("SELECT totp_rename_device('alice', 'default', 'other', %s)", [good(-1)]), "accepted"),
    "used": (use, "replayed"),
    "locked": (fail, "locked"),
}
CONFIRM_CHANGES = {  # the same for the first code of "phone"
    "disabled": (lambda conn: conn.execute("SELECT totp_disable('alice', 'phone')"), False),
    "removed": (lambda conn: conn.execute("SELECT totp_remove('alice', 'phone')"), False),
    "staged again": (lambda conn: reset(conn, device="phone"), False),
    "staged besides by the user": (lambda conn: enroll(conn, "alice", device="phone"), True),
    "moved": (lambda conn: conn.execute("SELECT totp_move_device('alice', 'phone', 'carol', 'phone')"), False),
    "confirmed": (lambda conn: confirm(conn, good(0, PENDING)), False),
    "locked": (fail, False),
}
RECOVER_CHANGES = {
    "disabled": lambda conn, code: conn.execute("SELECT totp_disable('alice')"),
    "removed": lambda conn, code: conn.execute("SELECT totp_remove('alice')"),
    "replaced": lambda conn, code: recovery_codes(conn),
    "used": lambda conn, code: recover(conn, code),
    "locked": lambda conn, code: [recover(conn, NO_CODE) for _ in range(MAX_ATTEMPTS)],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("table", TABLES[:-1])
def test_a_sign_in_that_waited_judges_by_what_is_there_then(conn, open_session, table, change):
    """The session that has the lock makes the change; for the floor, another one that does not need the floor."""
    change, expected = CHANGES[change]
    locker, late = open_session(), open_session()
    check(locker, "alice", "malformed")
    changer = conn if table == "floor" else locker
    if changer is locker:
        check(locker, "alice", wrong())
        locker.execute("SELECT totp_unlock('alice')")
    locker.execute("BEGIN")
    locker.execute(f"LOCK TABLE totp.{table} IN ACCESS EXCLUSIVE MODE")
    with waiting(conn, late, reason, good()) as answer:
        change(changer)
        locker.execute("COMMIT")
        assert answer.result() == expected
    if expected == "disabled":  # and nothing was used up
        conn.execute("SELECT totp_enable('alice')")
        assert reason(conn, good()) == "accepted"


@pytest.mark.parametrize("change", CONFIRM_CHANGES)
@pytest.mark.parametrize("table", [table for table in TABLES[:-1] if table != "floor"])
def test_a_confirmation_that_waited_judges_by_what_is_there_then(conn, open_session, table, change):
    change, expected = CONFIRM_CHANGES[change]
    locker, late = open_session(), open_session()
    check(locker, "alice", wrong())
    locker.execute("SELECT totp_unlock('alice')")
    locker.execute("BEGIN")
    locker.execute(f"LOCK TABLE totp.{table} IN ACCESS EXCLUSIVE MODE")
    with waiting(conn, late, confirm, good(0, PENDING)) as answer:
        change(locker)
        locker.execute("COMMIT")
        assert answer.result() is expected


def test_a_confirmation_that_waited_for_the_floor_obeys_a_lock(conn, open_session):
    """It holds its user then, so nothing else can change."""
    locker, late = open_session(), open_session()
    locker.execute("BEGIN; LOCK TABLE totp.floor IN ACCESS EXCLUSIVE MODE")
    with waiting(conn, late, confirm, good(0, PENDING)) as answer:
        fail(conn)
        locker.execute("COMMIT")
        assert answer.result() is False
    conn.execute("SELECT totp_unlock('alice')")
    assert confirm(conn, good(0, PENDING)) is True


@pytest.mark.parametrize("change", RECOVER_CHANGES)
@pytest.mark.parametrize("table", [table for table in TABLES if table not in ("floor", "secrets")] + ["secrets"])
def test_a_recovery_that_waited_judges_by_what_is_there_then(conn, open_session, table, change):
    code, *_ = recovery_codes(conn)
    locker, late = open_session(), open_session()
    recover(locker, NO_CODE)
    locker.execute("SELECT totp_unlock('alice')")
    locker.execute("BEGIN")
    locker.execute(f"LOCK TABLE totp.{table} IN ACCESS EXCLUSIVE MODE")
    with waiting(conn, late, recover, code) as answer:
        RECOVER_CHANGES[change](locker, code)
        locker.execute("COMMIT")
        assert answer.result() is False
    if change == "disabled":  # and nothing was used up
        conn.execute("SELECT totp_enable('alice')")
        assert recover(conn, code) is True


@pytest.mark.parametrize("change", [change for change in CHANGES if change not in ("used", "locked")])
def test_a_sign_in_that_waited_for_a_standby_judges_by_what_is_there_then(quick_db, conn, open_session, change):
    """The first code under a new identity sets the floor, which must be safe before it is judged by."""
    change, expected = CHANGES[change]
    late = open_session()
    conn.execute("UPDATE totp.floor SET timeline = 0")  # as after a promotion
    late.execute("SET synchronous_commit = on")
    waits = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(reason, late, good())
        try:
            wait_until(lambda: answer.done() or conn.execute(waits, [late.info.backend_pid]).fetchone()[0], "the sign-in to wait")
            assert not answer.done(), answer.result()
            change(conn)
        finally:
            # A wait for a standby that is canceled ends in a warning; there may be another one after it.
            wait_until(lambda: answer.done() or not conn.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'", [late.info.backend_pid]).fetchone(),
                "the waits for a standby to end")
        assert answer.result() == expected


PERIOD = 15


def test_a_code_whose_time_is_over_after_the_wait_is_wrong(quick_db, conn):
    """By the real clock. One session waits for a data key, one for the floor. The step of the code ends during the wait."""
    with quick_db.connect() as locker, quick_db.connect() as for_key, quick_db.connect() as for_floor:
        conn.execute("RESET totp.clock")
        for user_id in ("bob", "carol"):
            import_secret(conn, user_id, SECRET, period=PERIOD)
        recovery_codes(conn, "carol")
        for session in (for_key, for_floor):
            session.execute("LOAD 'pg_totp'; SET totp.window_steps = 0")
        recover(for_floor, NO_CODE, "carol")  # it knows the data key, not yet the floor

        def now():
            return conn.execute("SELECT extract(epoch FROM clock_timestamp())::float").fetchone()[0]

        locker.execute("BEGIN; LOCK TABLE totp.floor, totp.data_keys IN ACCESS EXCLUSIVE MODE")
        wait_until(lambda: now() % PERIOD < PERIOD / 2, "time enough to begin to wait")
        code = code_at(SECRET, (began := now()), period=PERIOD)
        with (waiting(conn, for_key, lambda session: check(session, "bob", code)) as bobs,
              waiting(conn, for_floor, lambda session: check(session, "carol", code)) as carols):
            assert now() // PERIOD == began // PERIOD
            wait_until(lambda: now() // PERIOD > began // PERIOD, "the step to end")
            locker.execute("COMMIT")
            assert (bobs.result().reason, carols.result().reason) == ("wrong", "wrong")
    assert (counters(conn, "bob")[0], counters(conn, "carol")[0]) == (1, 1)
    assert enabled(conn, "bob")
