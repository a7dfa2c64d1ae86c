"""Wrong recovery codes have their own counter and lock. Many sessions at once, and ROLLBACK: lockout/."""

from datetime import UTC, datetime, timedelta

from totp import MAX_ATTEMPTS, NOON, NO_CODE, code_at, codes_left, counters, fix_clock, recover, recovery_codes, verify, wrong_codes

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


def test_wrong_codes_do_not_lock_recovery(conn, alice):
    codes = recovery_codes(conn)
    wrong = next(wrong_codes(alice, NOON))
    for _ in range(MAX_ATTEMPTS):
        assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [wrong]).fetchone() == ("wrong",)
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)
    assert recover(conn, codes[0]) is True
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)  # and a recovery code does not clear that counter
    assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(alice, NOON)]).fetchone() == ("locked",)


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
            break
    assert failures == 100
    fix_clock(conn, now + timedelta(days=3650))
    assert recover(conn, codes[0]) is False
    assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
    assert recover(conn, codes[0]) is True
