"""Wrong recovery codes have their own counter and lock. Many sessions at once, and ROLLBACK: lockout/."""

from datetime import UTC, datetime, timedelta

import pytest
from binding import confirm
from totp import (MAX_ATTEMPTS, NOON, NO_CODE, check, code_at, codes_left, counters, enroll, fix_clock, recover, recovery_codes, verify,
                  wrong_codes)

SECOND = timedelta(seconds=1)


def test_wrong_entries_lock_their_own_counter_and_no_other(conn, alice):
    codes = recovery_codes(conn)
    for number in range(1, MAX_ATTEMPTS + 1):
        assert recover(conn, NO_CODE) is False
        assert counters(conn) == (0, number, False, number == MAX_ATTEMPTS)
    assert recover(conn, codes[0]) is False  # locked: a good one is refused, and stays good
    assert codes_left(conn) == 10
    assert verify(conn, "alice", code_at(alice, NOON)) is True
    assert counters(conn) == (0, MAX_ATTEMPTS, False, True)  # a good code clears the other counter, not this one
    end = NOON + 30 * SECOND
    fix_clock(conn, end - timedelta(microseconds=1))
    assert recover(conn, codes[0]) is False
    fix_clock(conn, end)
    assert recover(conn, codes[0]) is True
    assert counters(conn) == (0, 0, False, False)


@pytest.mark.parametrize("failures", [1, MAX_ATTEMPTS, 100])
def test_a_good_recovery_code_ends_the_lock_of_codes(conn, alice, failures):
    """Also the lock of the hard limit. A wrong, a used, or a malformed one does not."""
    codes = recovery_codes(conn)
    lock_codes(conn, alice, failures)
    is_locked = failures >= MAX_ATTEMPTS
    assert counters(conn) == (failures, 0, is_locked, False)
    for bad in (NO_CODE, "malformed"):
        assert recover(conn, bad) is False
        assert counters(conn)[::2] == (failures, is_locked)
    assert recover(conn, codes[0]) is True
    assert counters(conn) == (0, 0, False, False)
    later = NOON + timedelta(days=10)
    lock_codes(conn, alice, failures, later)
    assert recover(conn, codes[0]) is False
    assert counters(conn) == (failures, 1, is_locked, False)
    assert recover(conn, codes[1]) is True
    fix_clock(conn, later + timedelta(days=10))
    assert verify(conn, "alice", code_at(alice, later + timedelta(days=10))) is True


def lock_codes(conn, secret, failures, now=NOON):
    """So many wrong codes, each as soon as it is judged."""
    for _ in range(failures):
        fix_clock(conn, now)
        answer = check(conn, "alice", next(wrong_codes(secret, now)))
        assert answer.reason == "wrong"
        now = answer.retry_at or now


def test_after_the_hard_limit_a_new_phone_can_be_confirmed(conn, alice):
    """Recovery codes are enough: one ends the lock, and one is the proof. No desk is needed."""
    codes = recovery_codes(conn)
    lock_codes(conn, alice, 100)
    fix_clock(conn, NOON + timedelta(days=10))
    assert check(conn, "alice", code_at(alice, NOON + timedelta(days=10)))[1:] == ("locked", None, 0, None, None)
    assert conn.execute("SELECT locked, locked_until FROM totp_status('alice')").fetchone() == (True, None)
    assert recover(conn, codes[0]) is True
    new = enroll(conn, "alice")
    assert confirm(conn, code_at(new, NOON + timedelta(days=10)), proof=codes[1]) is True


ROLLED_BACK = ["ROLLBACK", "ROLLBACK TO SAVEPOINT before"]


@pytest.mark.parametrize("end", ROLLED_BACK)
def test_a_rollback_does_not_bring_the_lock_back(conn, alice, end):
    codes = recovery_codes(conn)
    lock_codes(conn, alice, MAX_ATTEMPTS)
    conn.execute("BEGIN")
    conn.execute("SAVEPOINT before")
    assert recover(conn, codes[0]) is True
    conn.execute(end)
    assert counters(conn) == (0, 0, False, False)
    conn.execute("ROLLBACK")
    assert recover(conn, codes[0]) is False


def check_recover(conn, code, user_id="alice"):
    """The row of totp_check_recover."""
    return conn.execute("SELECT * FROM totp_check_recover(%s, %s)", [user_id, code]).fetchone()


def test_check_recover_gives_the_reason(conn, alice):
    codes = recovery_codes(conn)
    assert check_recover(conn, codes[0]) == (True, "accepted", 5, None, None)
    assert check_recover(conn, codes[0]) == (False, "replayed", 4, None, None)
    assert check_recover(conn, NO_CODE) == (False, "wrong", 3, None, None)
    for malformed in ("", "x", codes[1][:-1], None):
        assert check_recover(conn, malformed) == (False, "malformed", 3, None, None)
    for number in (2, 1):
        assert check_recover(conn, NO_CODE)[:3] == (False, "wrong", number)
    assert check_recover(conn, NO_CODE) == (False, "wrong", 0, NOON + 30 * SECOND, 30)
    fix_clock(conn, NOON + timedelta(milliseconds=29001))
    for code in (codes[1], NO_CODE, "malformed", None):
        assert check_recover(conn, code) == (False, "locked", 0, NOON + 30 * SECOND, 1)
    assert codes_left(conn) == 9
    assert conn.execute("SELECT recovery_failures, recovery_locked, recovery_locked_until, locked FROM totp_status('alice')").fetchone() \
        == (5, True, NOON + 30 * SECOND, False)
    fix_clock(conn, NOON + 30 * SECOND)
    assert conn.execute("SELECT recovery_failures, recovery_locked, recovery_locked_until FROM totp_status('alice')").fetchone() == (5, False, None)
    assert check_recover(conn, codes[1]) == (True, "accepted", 5, None, None)


def test_check_recover_knows_nobody_without_a_set(conn, alice):
    nobody = (False, "not_enrolled", None, None, None)
    for user_id in ("alice", "nobody", "", None):
        assert check_recover(conn, NO_CODE, user_id) == nobody
    codes = recovery_codes(conn)
    conn.execute("SELECT totp_disable('alice')")
    assert check_recover(conn, codes[0]) == nobody
    conn.execute("SELECT totp_enable('alice')")
    assert check_recover(conn, codes[0])[1] == "accepted"


def test_a_lock_doubles_and_ends_at_the_hard_limit(conn, alice):
    codes = recovery_codes(conn)
    now, failures = NOON, 0
    while True:
        fix_clock(conn, now)
        assert recover(conn, NO_CODE) is False
        failures += 1
        until = float(conn.execute("SELECT extract(epoch FROM recovery_locked_until) FROM totp.attempts").fetchone()[0])
        if failures < MAX_ATTEMPTS:
            assert until == float("-inf")
        elif failures < 100:
            assert until - now.timestamp() == min(30 * 2 ** (failures - MAX_ATTEMPTS), 3600)
            now = datetime.fromtimestamp(until, UTC)
        else:
            assert until == float("inf")
            assert check_recover(conn, codes[0]) == (False, "locked", 0, None, None)
            assert conn.execute("SELECT recovery_locked, recovery_locked_until FROM totp_status('alice')").fetchone() == (True, None)
            break
    assert failures == 100
    fix_clock(conn, now + timedelta(days=3650))
    assert recover(conn, codes[0]) is False
    assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
    assert recover(conn, codes[0]) is True
