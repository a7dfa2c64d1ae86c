"""What accepted codes teach about the clock of a token: it runs fast or slow, or its user types slowly."""

from datetime import timedelta

import pytest
from sessions import session
from tokens import PERIOD, Token, code_of, drift, resync, resync_at
from totp import NOON, OTHER_SECRET, SECRET, check, code_at, error_of, fix_clock, import_secret, states, verify

DAY = timedelta(days=1)


def sign_in(conn, token, when, typed_after=0.0):
    """The reason of a sign-in with what the token showed so many seconds before."""
    fix_clock(conn, when)
    return check(conn, "alice", token.code(when - timedelta(seconds=typed_after))).reason


def days_of_sign_ins(conn, token, days):
    """Three sign-ins a day, each at another second of its step. Who typed a wrong code types the next one. The day on which that was
    wrong too, or None, and how many first codes were wrong."""
    wrong = 0
    for number in range(3, 3 * days):
        when = token.start + number * DAY / 3 + timedelta(seconds=number * 7 % token.period + 0.5)
        if sign_in(conn, token, when) == "accepted":
            continue
        wrong += 1
        if sign_in(conn, token, when + timedelta(seconds=token.period)) != "accepted":
            return number // 3, wrong
    return None, wrong


def new_token(conn, ppm, period=PERIOD):
    """A token that runs fast; or one that runs slow, and was measured on its first day, one step behind. It is imported without its drift."""
    token = Token(NOON, ppm, seconds=0 if ppm > 0 else -period, period=period)
    import_secret(conn, "alice", SECRET, period=period)
    if ppm < 0:
        fix_clock(conn, NOON)
        assert resync(conn, token.code(NOON - timedelta(seconds=period)), token.code(NOON)) is True
    return token


# --- a token over the years -------------------------------------------------------------------------

YEARS = 3 * 365


@pytest.mark.parametrize("ppm, period", [(5, 30), (-5, 30), (50, 120), (-50, 120)])
def test_a_token_that_runs_fast_or_slow_signs_in_for_three_years(conn, ppm, period):
    """5 ppm are 16 steps in three years; 50 are 39 of the longest period."""
    token = new_token(conn, ppm, period)
    failed_on, wrong = days_of_sign_ins(conn, token, YEARS)
    assert (failed_on, wrong <= YEARS // 100) == (None, True)
    assert abs(drift(conn) * period - (token.seconds + YEARS * 86400 * ppm / 1e6)) <= 1.5 * period


@pytest.mark.parametrize("ppm", [50, -50])
def test_a_bad_clock_is_followed_for_sixty_steps(conn, ppm):
    """50 ppm are sixty steps of 30 seconds in 417 days. There it ends: such a token is replaced."""
    failed_on, _ = days_of_sign_ins(conn, new_token(conn, ppm), YEARS)
    assert 405 < failed_on < 430
    assert drift(conn) == (60 if ppm > 0 else -60)
    assert resync_at(conn, NOON + 430 * DAY, 61 if ppm > 0 else -61) is False


def test_one_that_is_used_rarely_needs_to_be_measured(conn):
    """At 50 ppm, after a month without a sign-in it is 4 steps ahead."""
    token = Token(NOON, 50)
    import_secret(conn, "alice", SECRET)
    later = NOON + 30 * DAY
    assert sign_in(conn, token, later) == "wrong"
    assert resync(conn, token.code(later - timedelta(seconds=PERIOD)), token.code(later)) is True
    assert sign_in(conn, token, later + timedelta(seconds=PERIOD)) == "accepted"


# --- who types slowly -------------------------------------------------------------------------------


def test_a_phone_of_a_slow_typist_is_not_moved_backward(conn):
    """Each code is typed when the next one is shown already."""
    phone = Token(NOON)
    import_secret(conn, "alice", SECRET)
    for day in range(60):
        assert sign_in(conn, phone, NOON + day * DAY + timedelta(seconds=5), typed_after=10) == "accepted"
    assert drift(conn) == 0
    assert sign_in(conn, phone, NOON + 60 * DAY) == "accepted"


def test_a_measured_token_of_a_slow_typist_goes_on_to_work(conn):
    """It is moved one step back, where both the slow and the quick are inside of the window; and forward again."""
    token = Token(NOON, seconds=8 * PERIOD)
    import_secret(conn, "alice", SECRET, drift=8)
    for day in range(200):
        slow = day % 50 < 40
        assert sign_in(conn, token, NOON + day * DAY + timedelta(seconds=5), typed_after=10 if slow else 0) == "accepted"
        assert drift(conn) in (7, 8)


def test_a_phone_that_was_ahead_and_is_right_again_goes_on_to_work(conn):
    phone = Token(NOON, seconds=PERIOD)
    import_secret(conn, "alice", SECRET)
    for day in range(10):
        assert sign_in(conn, phone, NOON + day * DAY) == "accepted"
    assert drift(conn) == 1
    phone.seconds = 0
    for day in range(10, 20):
        assert sign_in(conn, phone, NOON + day * DAY) == "accepted"
    assert drift(conn) == 1


def test_wrong_and_used_codes_teach_nothing(conn):
    import_secret(conn, "alice", SECRET)
    for day in range(2):
        assert sign_in(conn, Token(NOON, seconds=PERIOD), NOON + day * DAY) == "accepted"
        assert sign_in(conn, Token(NOON, seconds=PERIOD), NOON + day * DAY) == "replayed"
        assert sign_in(conn, Token(NOON, seconds=90), NOON + day * DAY) == "wrong"
    assert drift(conn) == 0
    assert sign_in(conn, Token(NOON, seconds=PERIOD), NOON + 2 * DAY) == "accepted"
    assert drift(conn) == 1


def test_a_rollback_takes_nothing_back_that_was_learned(quick_db, conn):
    import_secret(conn, "alice", SECRET)
    for day in range(3):
        with session(quick_db) as other:
            other.execute("BEGIN")
            assert sign_in(other, Token(NOON, seconds=PERIOD), NOON + day * DAY) == "accepted"
            other.execute("ROLLBACK")
    assert drift(conn) == 1


def test_the_setting_ends_learning_and_keeps_what_was_learned(make_cluster):
    cluster = make_cluster(**{"totp.learn_drift": "off"})
    db = cluster.create_database()
    with session(db) as conn:
        import_secret(conn, "alice", SECRET, drift=4)
        for day in range(10):
            assert sign_in(conn, Token(NOON, seconds=5 * PERIOD), NOON + day * DAY) == "accepted"
        assert drift(conn) == 4


# --- imported drift ---------------------------------------------------------------------------------


def test_an_import_knows_the_drift(conn):
    import_secret(conn, "alice", SECRET, drift=-12)
    assert drift(conn) == -12
    assert [check(conn, "alice", code_of(NOON, steps)).reason for steps in (-14, -12, -11)] == ["wrong", "accepted", "accepted"]


@pytest.mark.parametrize("value, message", [(61, "invalid drift"), (-61, "invalid drift"), (2**31 - 1, "invalid drift"), (None, 'argument "drift" must not be null')])
def test_a_drift_of_more_than_sixty_steps_is_refused(conn, value, message):
    error = error_of(conn, "SELECT totp_import('alice', %s, drift => %s)", [SECRET, value])
    assert (error.sqlstate, error.diag.message_primary) == ("22023", message)


def test_an_import_of_the_same_secret_keeps_the_drift_unless_it_knows_better(conn):
    import_secret(conn, "alice", SECRET)
    assert resync_at(conn, NOON, 8) is True
    import_secret(conn, "alice", SECRET)
    assert drift(conn) == 8
    assert [check(conn, "alice", code_of(NOON, steps)).reason for steps in (7, 8)] == ["replayed", "replayed"]
    import_secret(conn, "alice", SECRET, drift=9)
    assert drift(conn) == 9
    import_secret(conn, "alice", SECRET, period=60)
    assert drift(conn) == 4


def test_another_secret_has_no_drift(conn):
    import_secret(conn, "alice", SECRET, drift=8)
    import_secret(conn, "alice", OTHER_SECRET)
    assert drift(conn) == 0


def test_it_follows_the_device_and_the_user(conn):
    import_secret(conn, "stock", SECRET, drift=8, device="token 1")
    conn.execute("SELECT totp_move_device('stock', 'token 1', 'alice', 'token')")
    assert drift(conn, "token") == 8
    conn.execute("SELECT totp_rename_device('alice', 'token', 'default', %s)", [code_of(NOON, 7)])
    conn.execute("SELECT totp_rename_user('alice', 'carol')")
    assert drift(conn, user_id="carol") == 8
    assert check(conn, "carol", code_of(NOON, 8)).reason == "accepted"
    conn.execute("SELECT totp_rotate_key()")
    assert drift(conn, user_id="carol") == 8


@pytest.mark.parametrize("steps", [-60, 60])
def test_a_removed_token_that_is_imported_again_has_no_code_a_second_time(conn, steps):
    """Of the longest period: its used codes are two hours away from now."""
    import_secret(conn, "alice", SECRET, drift=steps, period=120)
    code = code_at(SECRET, NOON.timestamp() + 120 * steps, period=120)
    assert verify(conn, "alice", code) is True
    conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "alice", SECRET, drift=steps, period=120)
    assert check(conn, "alice", code).reason == "replayed"
    assert states(conn) == [("default", "active", 1)]


def test_what_is_stored_by_hand_does_no_harm(conn):
    """Every number is some drift or none, and a set of recovery codes keeps its mask."""
    import_secret(conn, "alice", SECRET)
    conn.execute("SELECT totp_reset_recovery_codes('alice')")
    for number, stored in enumerate([-1, 2**63 - 1, -(2**63), 61, 0xFF, 0x02000008]):
        conn.execute("UPDATE totp.used_codes SET recovery_mask = %s WHERE secret_id = (SELECT secret_id FROM totp.secrets)", [stored])
        when = NOON + number * DAY
        fix_clock(conn, when)
        assert check(conn, "alice", code_of(when, 0)).reason == "accepted"
        assert drift(conn) == (0 if stored != 0xFF else -1)
    assert conn.execute("SELECT DISTINCT recovery_codes_left FROM totp_status('alice')").fetchall() == [(10,)]


@pytest.mark.parametrize("again", [{"drift": 1}, {"period": 15}], ids=["a lower drift", "another period"])
def test_after_a_failover_an_import_gives_no_code_back(quick_db, conn, again):
    """What may have been used in lost WAL was used under the old drift. An import that lowers it does not lower the floor."""
    import_secret(conn, "alice", SECRET, drift=50)
    conn.execute("UPDATE totp.floor SET timeline = 0")  # as after a promotion
    with session(quick_db, NOON + timedelta(seconds=1)) as promoted:
        assert check(promoted, "alice", code_of(NOON, 50)).reason == "replayed"
        import_secret(promoted, "alice", SECRET, **again)
        import_secret(promoted, "alice", SECRET)
        for steps in range(60):
            when = NOON + timedelta(seconds=steps * PERIOD)
            fix_clock(promoted, when)
            assert check(promoted, "alice", code_of(NOON, 50)).reason != "accepted", steps
            promoted.execute("SELECT totp_unlock('alice')")
