"""Calls in a transaction whose snapshot is older than the row. At REPEATABLE READ a plain UPDATE of such a row would change nothing."""

from contextlib import closing
from datetime import timedelta

import pytest
from binding import confirm
from totp import LATER, LEVELS, NOON, active_user, code_at, enroll, fix_clock, reset, stage, states, verify


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
def test_what_was_enrolled_since_is_confirmed(conn, old, query):
    secret = enroll(conn, "alice")
    assert old.execute(query, [code_at(secret, NOON)]).fetchone() == (True,)
    assert states(old) == [("default", "active", 1)]
    old.execute("COMMIT")
    assert conn.execute("SELECT state, uses FROM totp_status('alice')").fetchall() == [("active", 1)]
    assert verify(conn, "alice", code_at(secret, NOON)) is False


@pytest.mark.parametrize("make, query", [(enroll, "SELECT totp_confirm('alice', %(code)s, proof => %(proof)s)"), (stage, "SELECT totp_confirm('alice', %(code)s)"),
                                         (stage, "SELECT totp_verify('alice', %(code)s)")])
def test_a_replacement_that_was_staged_since_is_confirmed(conn, old, make, query):
    first = active_user(conn)
    second = make(conn, "alice")
    assert verify(old, "alice", code_at(first, NOON)) is True
    assert old.execute(query, {"code": code_at(second, NOON), "proof": code_at(first, LATER)}).fetchone() == (True,)
    assert states(old) == [("default", "active", 2)]
    old.execute("COMMIT")
    assert states(conn) == [("default", "active", 2)]
    assert verify(conn, "alice", code_at(first, NOON.timestamp() + 30)) is False
    assert verify(conn, "alice", code_at(second, NOON.timestamp() + 30)) is True


def test_what_was_confirmed_since_signs_in(conn, old):
    secret = active_user(conn)
    assert verify(old, "alice", code_at(secret, NOON)) is True
    assert verify(conn, "alice", code_at(secret, NOON)) is False
    old.execute("COMMIT")


def test_an_enrollment_replaces_a_pending_secret_made_since(conn, old):
    first = enroll(conn, "alice")
    second = enroll(old, "alice")
    old.execute("COMMIT")
    assert states(conn) == [("default", "pending", 2)]
    assert verify(conn, "alice", code_at(first, NOON)) is False
    assert verify(conn, "alice", code_at(second, NOON)) is True


@pytest.mark.parametrize("keep_current", [True, False])
def test_an_enrollment_stages_beside_an_active_secret_made_since_or_replaces_it(request, conn, old, keep_current):
    if not keep_current:
        request.getfixturevalue("proof_is_off")
    first = active_user(conn)
    enroll(conn, "alice")
    third = enroll(old, "alice", keep_current=keep_current)
    old.execute("COMMIT")
    assert [state for _, state, _ in states(conn)] == (["active", "pending"] if keep_current else ["pending"])
    assert verify(conn, "alice", code_at(first, NOON)) is keep_current
    assert confirm(conn, code_at(third, NOON), proof=code_at(first, LATER)) is True


def test_a_reset_replaces_an_active_secret_made_since(conn, old):
    first, staged = active_user(conn), enroll(conn, "alice")
    new = reset(old)
    old.execute("COMMIT")
    assert states(conn) == [("default", "pending", 3)]
    assert [verify(conn, "alice", code_at(secret, NOON)) for secret in (first, staged, new)] == [False, False, True]


def test_a_user_who_was_removed_since_enrolls_as_a_new_one(conn, old):
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
        stage(conn, "alice", device=device)
    with pytest.raises(Exception, match="too many devices") as caught:
        stage(old, "alice", device="watch")
    assert caught.value.sqlstate == "54000"


def test_the_oldest_that_was_staged_since_makes_room(conn, old):
    old.execute("SET LOCAL totp.max_devices = 2")
    for device in ("phone", "tablet"):
        enroll(conn, "alice", device=device)
    enroll(old, "alice", device="watch")
    assert states(old) == [("tablet", "pending", 1), ("watch", "pending", 1)]


@pytest.mark.parametrize("device, count", [(None, 2), ("phone", 1)])
def test_a_removal_removes_what_was_made_since(conn, old, device, count):
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
    for _ in range(2):
        again = reset(old)
        assert verify(old, "alice", code_at(secret, NOON.timestamp() + 30)) is False
        assert verify(old, "alice", code_at(again, NOON)) is True
        secret = again
    again = enroll(old, "alice")
    assert confirm(old, code_at(again, NOON), proof=code_at(secret, LATER)) is True
    assert verify(old, "alice", code_at(secret, LATER)) is False
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
