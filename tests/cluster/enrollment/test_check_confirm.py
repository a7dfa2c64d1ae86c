"""totp_check_confirm says why a confirmation was refused, and can make the first set of recovery codes."""

from datetime import timedelta

import pytest
from totp import (MAX_ATTEMPTS, NOON, OTHER_SECRET, code_at, codes_left, enroll, error_of, events, fix_clock, import_secret, recover, recovery_codes,
                  verify, wrong_codes)

PENDING = OTHER_SECRET


@pytest.fixture
def secret(conn):
    """The secret of a device of alice that waits for its first code."""
    fix_clock(conn, NOON)
    return enroll(conn, "alice")


def confirm(conn, code, user_id="alice", device="default", count=0):
    """The row of totp_check_confirm."""
    return conn.execute("SELECT * FROM totp_check_confirm(%s, %s, %s, recovery_codes => %s)", [user_id, code, device, count]).fetchone()


def test_a_good_code_activates(conn, secret):
    assert confirm(conn, code_at(secret, NOON)) == (True, "accepted", "default", 5, None, None, None)
    assert conn.execute("SELECT state FROM totp_status('alice')").fetchone() == ("active",)
    assert codes_left(conn) == 0


def test_every_refusal_has_its_reason(conn, secret):
    wrong = wrong_codes(secret, NOON)
    assert confirm(conn, next(wrong)) == (False, "wrong", None, 4, None, None, None)
    for malformed in ("", "12345", None):
        assert confirm(conn, malformed) == (False, "malformed", None, 4, None, None, None)
    for user_id, device, reason in [("nobody", "default", "not_enrolled"), (None, "default", "not_enrolled"), ("alice", "tablet", "nothing_pending"),
                                    ("alice", None, "not_enrolled")]:
        assert confirm(conn, code_at(secret, NOON), user_id, device)[:3] == (False, reason, None)
    for _ in range(MAX_ATTEMPTS - 1):
        last = confirm(conn, next(wrong))
    assert last == (False, "wrong", None, 0, NOON + timedelta(seconds=30), 30, None)
    assert confirm(conn, code_at(secret, NOON)) == (False, "locked", None, 0, NOON + timedelta(seconds=30), 30, None)


def test_an_expired_secret_is_told_from_none(conn, secret):
    later = NOON + timedelta(hours=1)
    fix_clock(conn, later)
    assert confirm(conn, code_at(secret, later))[1] == "expired"
    conn.execute("SELECT totp_remove('alice', 'default')")
    assert confirm(conn, code_at(secret, later))[1] == "not_enrolled"


def test_an_active_device_has_nothing_to_confirm(conn, secret):
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    next_step = NOON + timedelta(seconds=30)
    fix_clock(conn, next_step)
    assert confirm(conn, code_at(secret, next_step))[1] == "nothing_pending"
    assert verify(conn, "alice", code_at(secret, next_step)) is True  # the code was not judged


def test_a_disabled_device_is_named_as_such(conn, secret):
    conn.execute("SELECT totp_disable('alice')")
    assert confirm(conn, code_at(secret, NOON))[1] == "disabled"


def test_a_used_code_is_replayed(conn, secret):
    conn.execute("BEGIN")
    assert confirm(conn, code_at(secret, NOON))[1] == "accepted"
    conn.execute("ROLLBACK")
    assert confirm(conn, code_at(secret, NOON))[:3] == (False, "replayed", "default")


@pytest.mark.parametrize("count", [1, 10, 20])
def test_recovery_codes_come_with_the_confirmation(conn, secret, count):
    accepted, *_, codes = confirm(conn, code_at(secret, NOON), count=count)
    assert accepted and len(codes) == len(set(codes)) == codes_left(conn) == count
    assert all(recover(conn, code) for code in codes)
    assert [event for event, *_ in events(conn, "confirmed", "recovery_codes_created")] == ["confirmed", "recovery_codes_created"]


def test_the_old_set_dies_with_an_accepted_code_only(conn, secret):
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    old = recovery_codes(conn, count=3)
    import_secret(conn, "alice", PENDING, confirmed=False)
    assert confirm(conn, next(wrong_codes(PENDING, NOON)), count=10)[-1] is None
    assert recover(conn, old[0]) is True
    new = confirm(conn, code_at(PENDING, NOON), count=10)[-1]
    assert recover(conn, old[1]) is False and recover(conn, new[0]) is True
    assert codes_left(conn) == 9


def test_a_rollback_takes_the_new_set_back_but_not_the_used_code(conn, secret):
    conn.execute("BEGIN")
    codes = confirm(conn, code_at(secret, NOON), count=10)[-1]
    conn.execute("ROLLBACK")
    assert recover(conn, codes[0]) is False
    assert confirm(conn, code_at(secret, NOON), count=10)[1::5] == ("replayed", None)


@pytest.mark.parametrize("count", [-1, 21, 2**31 - 1, None])
def test_a_bad_count_is_an_error(conn, secret, count):
    error = error_of(conn, "SELECT totp_check_confirm('alice', %s, recovery_codes => %s)", [code_at(secret, NOON), count])
    assert error.sqlstate == "22023"
    assert confirm(conn, code_at(secret, NOON))[1] == "accepted"  # it was not judged
