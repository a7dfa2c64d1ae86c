"""Transactions whose snapshot is older than the row: at REPEATABLE READ a plain UPDATE of such a row would silently change nothing."""

from contextlib import closing
from datetime import timedelta

import pytest
from server import wait_until
from totp import LEVELS, NOON, active_user, code_at, enroll, fix_clock, parallel, states, verify, wrong_codes


pytestmark = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture
def old(quick_db, level):
    """A session in a transaction that has its snapshot before the test begins."""
    with closing(quick_db.connect()) as session:
        fix_clock(session, NOON)
        session.execute(f"BEGIN ISOLATION LEVEL {level}")
        session.execute("SELECT 1 FROM pg_class")
        yield session


@pytest.mark.parametrize("query", ["SELECT totp_confirm('alice', %s)", "SELECT totp_verify('alice', %s)",
                                   "SELECT accepted FROM totp_check('alice', %s, 'default')"])
def test_confirm_what_was_enrolled_since(conn, old, query):
    secret = enroll(conn, "alice")
    assert old.execute(query, [code_at(secret, NOON)]).fetchone() == (True,)
    assert states(old) == [("default", "active", 1)]
    old.execute("COMMIT")
    assert states(conn) == [("default", "active", 1)]
    assert verify(conn, "alice", code_at(secret, NOON)) is False


@pytest.mark.parametrize("query", ["SELECT totp_confirm('alice', %s)", "SELECT totp_verify('alice', %s)"])
def test_confirm_a_replacement_that_was_staged_since(conn, old, query):
    first = active_user(conn)
    second = enroll(conn, "alice")
    assert old.execute(query, [code_at(second, NOON)]).fetchone() == (True,)
    assert states(old) == [("default", "active", 2)]
    old.execute("COMMIT")
    assert states(conn) == [("default", "active", 2)]
    assert verify(conn, "alice", code_at(first, NOON)) is False
    assert verify(conn, "alice", code_at(second, NOON.timestamp() + 30)) is True


def test_sign_in_with_what_was_confirmed_since(conn, old):
    secret = active_user(conn)
    assert verify(old, "alice", code_at(secret, NOON)) is True
    assert verify(conn, "alice", code_at(secret, NOON)) is False
    old.execute("COMMIT")


def test_a_code_used_since_is_refused(conn, old):
    secret = active_user(conn)
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    assert old.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(secret, NOON)]).fetchone() == ("replayed",)


def test_a_code_used_since_the_last_call_of_the_session_is_refused(conn, old):
    secret = active_user(conn)
    assert verify(old, "alice", code_at(secret, NOON.timestamp() - 30)) is False
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    assert old.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(secret, NOON)]).fetchone() == ("replayed",)


def test_a_lock_set_since_is_obeyed(conn, old):
    secret = active_user(conn)
    wrong = next(wrong_codes(secret, NOON))
    for session in (conn, old, conn, old, conn):
        assert session.execute("SELECT reason FROM totp_check('alice', %s)", [wrong]).fetchone() == ("wrong",)
    for session in (conn, old):
        assert session.execute("SELECT reason, attempts_left FROM totp_check('alice', %s)", [code_at(secret, NOON)]).fetchone() == ("locked", 0)


def test_a_removed_user_does_not_sign_in(conn, old):
    secret = active_user(conn)
    assert states(old) == [("default", "active", 1)]
    assert conn.execute("SELECT totp_remove('alice')").fetchone() == (1,)
    assert old.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(secret, NOON)]).fetchone() == ("not_enrolled",)
    assert old.execute("SELECT totp_enabled('alice')").fetchone() == (False,)
    assert states(old) == []


def test_a_replaced_secret_does_not_sign_in(conn, old):
    first = active_user(conn)
    assert verify(old, "alice", code_at(first, NOON)) is True
    second = enroll(conn, "alice", keep_current=False)
    assert verify(old, "alice", code_at(first, NOON.timestamp() + 30)) is False
    assert verify(old, "alice", code_at(second, NOON)) is True
    old.execute("COMMIT")
    assert states(conn) == [("default", "active", 2)]


def test_enroll_over_a_pending_secret_made_since(conn, old):
    first = enroll(conn, "alice")
    second = enroll(old, "alice")
    old.execute("COMMIT")
    assert states(conn) == [("default", "pending", 2)]
    assert verify(conn, "alice", code_at(first, NOON)) is False
    assert verify(conn, "alice", code_at(second, NOON)) is True


@pytest.mark.parametrize("keep_current", [True, False])
def test_enroll_over_an_active_secret_made_since(conn, old, keep_current):
    first = active_user(conn)
    enroll(conn, "alice")
    third = enroll(old, "alice", keep_current=keep_current)
    old.execute("COMMIT")
    assert [state for _, state, _ in states(conn)] == (["active", "pending"] if keep_current else ["pending"])
    assert verify(conn, "alice", code_at(first, NOON)) is keep_current
    assert verify(conn, "alice", code_at(third, NOON.timestamp())) is True


def test_enroll_a_user_removed_since(conn, old):
    active_user(conn)
    assert states(old) == [("default", "active", 1)]
    conn.execute("SELECT totp_remove('alice')")
    secret = enroll(old, "alice")
    old.execute("COMMIT")
    assert states(conn) == [("default", "pending", 1)]
    assert verify(conn, "alice", code_at(secret, NOON)) is True


def test_the_limit_of_devices_counts_those_made_since(conn, old):
    old.execute("SET LOCAL totp.max_devices = 2")
    for device in ("phone", "tablet"):
        enroll(conn, "alice", device=device)
    with pytest.raises(Exception, match="too many devices") as caught:
        enroll(old, "alice", device="watch")
    assert caught.value.sqlstate == "54000"


@pytest.mark.parametrize("device, count", [(None, 2), ("phone", 1)])
def test_remove_what_was_made_since(conn, old, device, count):
    active_user(conn, device="phone")
    enroll(conn, "alice", device="phone")
    enroll(conn, "alice", device="tablet")
    assert old.execute("SELECT totp_remove('alice', %s)", [device]).fetchone() == (count,)
    old.execute("COMMIT")
    assert states(conn) == ([] if device is None else [("tablet", "pending", 1)])
    for table in ("secrets", "used_codes", "attempts"):
        assert conn.execute(f"SELECT count(*) FROM totp.{table}").fetchone() == (0 if device is None else 1,), table


def test_a_transaction_sees_what_it_did_itself(conn, old):
    secret = enroll(old, "alice")
    assert states(old) == [("default", "pending", 1)]
    assert states(conn) == []
    assert verify(conn, "alice", code_at(secret, NOON)) is False  # not committed: not there
    assert verify(old, "alice", code_at(secret, NOON)) is True
    assert verify(old, "alice", code_at(secret, NOON)) is False
    again = enroll(old, "alice", keep_current=False)
    assert verify(old, "alice", code_at(secret, NOON.timestamp() + 30)) is False
    assert verify(old, "alice", code_at(again, NOON)) is True
    assert old.execute("SELECT totp_remove('alice')").fetchone() == (1,)
    assert states(old) == []
    last = enroll(old, "alice")
    old.execute("COMMIT")
    assert states(conn) == [("default", "pending", 1)]
    assert verify(conn, "alice", code_at(last, NOON)) is True


def test_a_long_transaction_signs_in_many_times(conn, old):
    secret = active_user(conn)
    for step in range(1, 30):
        when = NOON + timedelta(seconds=30 * step)
        fix_clock(old, when)
        assert verify(old, "alice", code_at(secret, when)) is True
        assert verify(old, "alice", code_at(secret, when)) is False
    old.execute("ROLLBACK")
    assert conn.execute("SELECT uses FROM totp_status('alice')").fetchone() == (30,)


def test_a_sign_in_does_not_see_and_not_wait_for_an_open_enrollment(conn, old):
    """An idle transaction that has enrolled again holds row locks of the user; sign-ins with the old secret go on."""
    secret = active_user(conn)
    enroll(old, "alice")
    conn.execute("SET statement_timeout = '30s'")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    old.execute("ROLLBACK")
    assert states(conn) == [("default", "active", 1)]


def test_a_sign_in_waits_for_an_open_removal_and_then_obeys_it(quick_db, conn, old):
    secret = active_user(conn)
    old.execute("SELECT totp_remove('alice')")

    def commit_when_the_other_waits():
        waiting = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        with closing(quick_db.connect()) as watcher:
            wait_until(lambda: watcher.execute(waiting, [conn.info.backend_pid]).fetchone() == ("Lock",), "the sign-in to wait")
        old.execute("COMMIT")

    work = [commit_when_the_other_waits, lambda: conn.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(secret, NOON)]).fetchone()]
    done, answer = parallel(2, lambda i: work[i]())
    assert (done, answer) == (None, ("not_enrolled",))


def test_a_sign_in_goes_on_after_a_removal_that_was_rolled_back(quick_db, conn, old):
    secret = active_user(conn)
    old.execute("SELECT totp_remove('alice')")

    def give_up_when_the_other_waits():
        waiting = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        with closing(quick_db.connect()) as watcher:
            wait_until(lambda: watcher.execute(waiting, [conn.info.backend_pid]).fetchone() == ("Lock",), "the sign-in to wait")
        old.execute("ROLLBACK")

    work = [give_up_when_the_other_waits, lambda: verify(conn, "alice", code_at(secret, NOON))]
    assert parallel(2, lambda i: work[i]()) == [None, True]
