"""The clock is wrong: back or ahead, by seconds, hours or a year; a leap second; a transaction that stays open.

No code is accepted twice, nobody is locked out forever, and totp_health() says what is wrong.
"""

import random
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from binding import check_confirm
from totp import LEVELS, NO_CODE, NOON, SECRET, check, code_at, enroll, fix_clock, import_secret, verify, wrong_codes

STEP = timedelta(seconds=30)
JUMPS = {"seconds": timedelta(seconds=7), "hours": timedelta(hours=3), "a year": timedelta(days=365)}
BOTH_WAYS = [sign * jump for jump in JUMPS.values() for sign in (1, -1)]
# The longest that a lock may last, by the defaults, beyond what the policy says: the clock may be wrong by less than an hour
# without being seen to be.
PATIENCE = timedelta(hours=2)

by_jump = pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)


@pytest.fixture
def alice(conn):
    """The session of `conn`, with a user who came the day before."""
    fix_clock(conn, NOON - timedelta(days=1))
    import_secret(conn, "alice", SECRET)
    fix_clock(conn, NOON)
    return conn


def at(conn, when, user_id="alice", secret=SECRET):
    """The answer to this user's code of that time, at that time."""
    fix_clock(conn, when)
    return check(conn, user_id, code_at(secret, when))


def health(conn, when) -> dict[str, str]:
    """The checks that are not in order at that time; that the clock is set is one of them, always."""
    fix_clock(conn, when)
    conn.execute("SET log_parameter_max_length_on_error = 0")
    found = dict(conn.execute("SELECT check_name, status FROM totp_health(true) WHERE status <> 'ok'").fetchall())
    assert found.pop("test_clock") == "fail"
    return found


# --- nothing twice ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_code_is_accepted_twice_whatever_the_clock_does(quick_db, alice, seed):
    """The clock jumps back and forth in two sessions. After each jump they try the codes of all steps around, and all used ones; some roll back."""
    chance = random.Random(seed)
    recovery = [code for [code] in alice.execute("SELECT totp_reset_recovery_codes('alice', 20)")]
    used: set[int] = set()
    recovered: set[str] = set()
    with closing(quick_db.connect()) as other:
        now = NOON
        for _ in range(60):
            now = chance.choice([now + STEP, now + chance.choice(BOTH_WAYS), NOON + chance.choice(BOTH_WAYS), NOON])
            conn = chance.choice([alice, other])
            fix_clock(conn, now)
            here = int(now.timestamp()) // 30
            steps = [here + n for n in (-2, -1, 0, 1, 2)]
            for step in chance.sample(steps, 5) + list(used):
                [drift] = alice.execute("SELECT drift FROM totp_status('alice')").fetchone()  # learned from what was accepted so far
                with conn.transaction(force_rollback=chance.random() < 0.3):
                    if verify(conn, "alice", code_at(SECRET, step * 30)):
                        assert abs(step - here - drift) <= 1 and step > max(used, default=0)
                        used.add(step)
            code = chance.choice(recovery)
            if conn.execute("SELECT totp_recover('alice', %s)", [code]).fetchone() == (True,):
                assert code not in recovered
                recovered.add(code)
            alice.execute("SELECT totp_unlock('alice')")  # codes of other times are wrong ones
    assert len(used) > 5 and len(recovered) > 5


@by_jump
def test_after_the_clock_went_back_a_user_waits_until_it_is_where_it_was(alice, jump):
    """Codes that may have been used are refused, not charged; as soon as the clock has caught up all is as before."""
    assert at(alice, NOON).reason == "accepted"
    for behind in (jump, jump / 2, timedelta(seconds=1)):
        answer = at(alice, NOON - behind)
        assert (answer.reason, answer.attempts_left) == ("replayed", 5)
    assert at(alice, NOON).reason == "replayed"
    assert at(alice, NOON + STEP).reason == "accepted"


@by_jump
def test_a_user_whose_code_was_used_under_a_clock_that_was_ahead_gets_in_again(alice, jump):
    """That code must not count again, so the old secret waits; recovery codes and a new secret do not."""
    [[recovery_code], [proof], *_] = alice.execute("SELECT totp_reset_recovery_codes('alice')").fetchall()
    ahead = at(alice, NOON + jump)
    assert ahead.reason == "accepted"
    assert at(alice, NOON - STEP).reason == "replayed"
    assert alice.execute("SELECT totp_recover('alice', %s)", [recovery_code]).fetchone() == (True,)
    again = enroll(alice, "alice")
    assert check_confirm(alice, code_at(again, NOON), proof=proof).reason == "accepted"
    [[after_reset]] = alice.execute("SELECT secret FROM totp_reset('alice')").fetchall()
    assert check(alice, "alice", code_at(after_reset, NOON)).reason == "accepted"
    assert check(alice, "alice", code_at(SECRET, NOON + jump)).reason == "wrong"


# --- nobody is locked out forever ------------------------------------------------------------------------------


def lock(conn, when, failures: int) -> datetime:
    """So many wrong codes, each as soon as the last lock has run out, and wrong recovery codes; when the last one was."""
    for code in islice(wrong_codes(SECRET, when), failures):
        fix_clock(conn, when)
        answer = check(conn, "alice", code)
        assert answer.reason == "wrong"
        conn.execute("SELECT totp_recover('alice', %s)", [NO_CODE])
        last, when = when, answer.retry_at or when
    assert answer.retry_at is not None
    return last


@pytest.mark.parametrize("failures", [5, 15], ids=["first lock", "longest lock"])
@by_jump
def test_a_lock_set_while_the_clock_was_ahead_ends(alice, jump, failures):
    """A server that starts with a wrong clock finds every code wrong. When it is set right, nobody waits until the wrong time."""
    [[recovery_code], *_] = alice.execute("SELECT totp_reset_recovery_codes('alice')").fetchall()
    now = lock(alice, NOON + jump, failures) - jump  # the right time of that moment
    answer = at(alice, now)
    if answer.reason == "locked":
        assert answer.retry_at <= now + PATIENCE
        answer = at(alice, answer.retry_at)
    assert answer.reason == "accepted"
    recover = "SELECT totp_recover('alice', %s)"
    if alice.execute(recover, [recovery_code]).fetchone() == (False,):
        fix_clock(alice, now + PATIENCE)
        assert alice.execute(recover, [recovery_code]).fetchone() == (True,)


def test_the_lock_after_one_that_was_set_far_ahead_is_an_ordinary_one(alice):
    lock(alice, NOON + JUMPS["a year"], 5)
    fix_clock(alice, NOON)
    answer = check(alice, "alice", next(wrong_codes(SECRET, NOON)))
    assert (answer.reason, answer.retry_at) == ("wrong", NOON + timedelta(seconds=60))
    assert at(alice, NOON).reason == "locked"
    assert at(alice, NOON + timedelta(seconds=60)).reason == "accepted"


@by_jump
def test_a_lock_ends_early_if_the_clock_jumps_ahead_and_its_count_goes_on(alice, jump):
    """A clock that is set ahead shortens the wait. It gives no guess back."""
    now = lock(alice, NOON, 5)
    for guess in range(3):
        now += max(jump, timedelta(hours=1))
        fix_clock(alice, now)
        answer = check(alice, "alice", next(wrong_codes(SECRET, now)))
        assert answer.retry_at == now + timedelta(seconds=60 * 2 ** guess)
    assert alice.execute("SELECT failures FROM totp_status('alice')").fetchone() == (8,)


NEW_IDENTITY = "UPDATE totp.floor SET floor_at = '-infinity', system_identifier = 0"  # as after a restore: nothing was judged under it


@pytest.mark.parametrize("same_session", [True, False], ids=["same session", "another session"])
@by_jump
def test_a_floor_set_while_the_clock_was_ahead_ends(quick_db, alice, jump, same_session):
    """A standby is promoted with a wrong clock, and that is set right: then it is as if it had been promoted now."""
    alice.execute(NEW_IDENTITY)
    with closing(quick_db.connect()) as first, closing(quick_db.connect()) as second:
        assert at(first, NOON + jump).reason == "replayed"
        conn = first if same_session else second
        answer = at(conn, NOON)
        assert answer.reason == "replayed" and answer.retry_at <= NOON + PATIENCE
        assert at(conn, answer.retry_at).reason == "accepted"
        assert at(first, answer.retry_at).reason == at(second, answer.retry_at).reason == "replayed"


@by_jump
def test_who_enrolls_under_a_floor_of_a_clock_that_was_ahead_gets_in(quick_db, alice, jump):
    alice.execute(NEW_IDENTITY)
    with closing(quick_db.connect()) as conn:
        at(conn, NOON + jump)
        fix_clock(conn, NOON)
        secret = enroll(conn, "carol")
        first = at(conn, NOON, "carol", secret)
        assert first.reason == "accepted" or at(conn, NOON + timedelta(minutes=2), "carol", secret).reason == "accepted"


@pytest.mark.parametrize("ahead", [timedelta(minutes=5), *JUMPS.values()])
def test_a_secret_made_while_the_clock_was_ahead_is_not_new_under_a_floor_of_the_right_time(quick_db, conn, ahead):
    """What is lost is the use of a code after the clock was set right, as in a failover then."""
    fix_clock(conn, NOON - timedelta(days=1))
    import_secret(conn, "long since", SECRET)
    fix_clock(conn, NOON + ahead)
    import_secret(conn, "imported", SECRET)
    pending = enroll(conn, "enrolled")
    conn.execute(NEW_IDENTITY)
    with closing(quick_db.connect()) as promoted:
        now = NOON + timedelta(seconds=5)
        answers = {at(promoted, now, user_id, secret) for user_id, secret in [("long since", SECRET), ("imported", SECRET), ("enrolled", pending)]}
        assert {answer.reason for answer in answers} == {"replayed"}
        [until] = {answer.retry_at for answer in answers}
        assert until - now <= 4 * STEP
        for user_id, secret in [("imported", SECRET), ("enrolled", pending)]:
            assert at(promoted, until, user_id, secret).reason == "accepted"


def test_a_floor_is_not_taken_back_if_the_clock_went_back_a_little(quick_db, alice):
    """By an hour, just after a failover: then codes of that hour may still have been used on the lost server."""
    alice.execute(NEW_IDENTITY)
    with closing(quick_db.connect()) as conn:
        for now in (NOON, NOON - timedelta(minutes=59), NOON):
            assert at(conn, now).reason == "replayed"


def test_a_pending_secret_goes_when_the_clock_is_ahead_and_another_takes_its_place(alice):
    """An hour is its life by default. Back in time it is there again, until it is replaced."""
    secret = enroll(alice, "bob")
    assert at(alice, NOON + JUMPS["hours"], "bob", secret).reason == "not_enrolled"
    again = enroll(alice, "bob")
    fix_clock(alice, NOON)
    assert not verify(alice, "bob", code_at(secret, NOON))
    assert verify(alice, "bob", code_at(again, NOON))


# --- health -------------------------------------------------------------------------------------------


@by_jump
def test_health_reports_codes_used_in_the_future(alice, jump):
    assert at(alice, NOON).reason == "accepted"
    assert health(alice, NOON) == {}
    assert at(alice, NOON + jump).reason == ("accepted" if jump > STEP else "replayed")
    assert health(alice, NOON) == ({"future_times": "fail"} if jump > timedelta(minutes=1) else {})
    assert "future_times" not in health(alice, NOON + jump)


@by_jump
def test_health_reports_locks_that_end_later_than_any_can(alice, jump):
    lock(alice, NOON + jump, 5)
    assert health(alice, NOON) == ({"future_times": "warn"} if jump > PATIENCE else {})
    assert "future_times" not in health(alice, NOON + jump)
    alice.execute("SELECT totp_unlock('alice')")
    assert health(alice, NOON) == {}


@by_jump
def test_health_reports_a_floor_in_the_future(quick_db, alice, jump):
    alice.execute(NEW_IDENTITY)
    with closing(quick_db.connect()) as conn:
        at(conn, NOON + jump)
        assert health(conn, NOON)["clock"] == "fail"


# --- a leap second ------------------------------------------------------------------------------------


@pytest.fixture
def midnight(conn):
    """The end of 2016, which had a leap second; alice came the day before."""
    midnight = datetime(2017, 1, 1, tzinfo=UTC)
    fix_clock(conn, midnight - timedelta(days=1))
    conn.execute(NEW_IDENTITY)
    import_secret(conn, "alice", SECRET)
    return midnight


def test_a_second_that_comes_twice_brings_no_code_back(conn, midnight):
    """Linux steps back at its end: the last second of the year came twice, and a time step began after it."""
    before, last, repeated = (midnight - timedelta(milliseconds=ms) for ms in (1500, 100, 900))
    assert at(conn, before).reason == "accepted"
    assert at(conn, last).reason == "replayed"
    assert at(conn, repeated).reason == "replayed"
    # A device that counted it once is a second ahead, and shows the next code.
    fix_clock(conn, repeated)
    assert check(conn, "alice", code_at(SECRET, midnight)).reason == "accepted"
    for when in (last, repeated, midnight, midnight + timedelta(milliseconds=500)):
        assert at(conn, when).reason == "replayed"
        assert check(conn, "alice", code_at(SECRET, midnight)).reason == "replayed"
    assert at(conn, midnight + STEP).reason == "accepted"


def test_a_lock_lasts_over_a_second_that_comes_twice(conn, midnight):
    last = lock(conn, midnight - timedelta(milliseconds=100), 5)
    end = last + timedelta(seconds=30)
    for when in (last, midnight - timedelta(milliseconds=900), midnight, end - timedelta(microseconds=1)):
        answer = at(conn, when)
        assert (answer.reason, answer.retry_at) == ("locked", end)
    assert at(conn, end).reason == "accepted"


def test_the_sixtieth_second_is_the_next_midnight(conn, midnight):
    """PostgreSQL reads 23:59:60 as midnight."""
    conn.execute("SET totp.clock = '2016-12-31 23:59:60+00'")
    assert check(conn, "alice", code_at(SECRET, midnight)).reason == "accepted"


# --- a transaction that is left open -------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_in_a_transaction_left_open_time_goes_on(quick_db, alice, level):
    """Minutes pass in it, and in another session: codes are those of the call's time, a lock runs out, and ROLLBACK brings nothing back."""
    codes = [code_at(SECRET, NOON + STEP * n) for n in range(21)]
    with closing(quick_db.connect()) as left_open:
        fix_clock(left_open, NOON)
        left_open.execute(f"BEGIN ISOLATION LEVEL {level}")
        assert verify(left_open, "alice", codes[0])
        for code in islice(wrong_codes(SECRET, NOON), 5):
            assert check(left_open, "alice", code).reason == "wrong"
        assert check(alice, "alice", codes[1]).reason == "locked"
        fix_clock(alice, NOON + STEP)  # the lock has run out for everyone, with its transaction still open
        assert check(alice, "alice", codes[0]).reason == "replayed"
        assert check(alice, "alice", codes[1]).reason == "accepted"
        fix_clock(left_open, NOON + STEP * 20)
        assert left_open.execute("SELECT now() < clock_timestamp()").fetchone() == (True,)
        assert [check(left_open, "alice", code).reason for code in (codes[0], codes[1], codes[20])] == ["wrong", "wrong", "accepted"]
        left_open.execute("ROLLBACK")  # and takes back its clock
        for conn in (left_open, alice):
            fix_clock(conn, NOON + STEP * 20)
            assert check(conn, "alice", codes[20]).reason == "replayed"


@pytest.mark.parametrize("level", LEVELS)
def test_a_secret_made_in_a_transaction_left_open_expires_in_it(quick_db, conn, level):
    with closing(quick_db.connect()) as left_open:
        fix_clock(left_open, NOON)
        left_open.execute(f"BEGIN ISOLATION LEVEL {level}")
        secret = enroll(left_open, "alice")
        assert at(left_open, NOON + timedelta(minutes=61), secret=secret).reason == "not_enrolled"
        left_open.execute("COMMIT")
    assert at(conn, NOON + timedelta(minutes=61), secret=secret).reason == "not_enrolled"
    assert at(conn, NOON + timedelta(minutes=59), secret=secret).reason == "accepted"


# --- two servers, two clocks ----------------------------------------------------------------------------


def test_a_standby_whose_clock_is_behind_knows_the_time_of_the_last_commit(fresh_cluster, make_standby):
    """The code was used just after it, in WAL that is lost. When the standby's clock gets there, that code is good for nobody."""
    db = fresh_cluster.create_database()
    standby = make_standby(fresh_cluster)
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        standby.wait_for_replay(fresh_cluster)
        standby.cut_off()
        used_at = conn.execute("SELECT clock_timestamp()").fetchone()[0]
        assert check(conn, "alice", code_at(SECRET, used_at)).reason == "accepted"
    fresh_cluster.kill9()
    standby.promote()
    with closing(standby.connect(db.name)) as conn:
        for second in range(-70, 61, 5):
            fix_clock(conn, used_at + timedelta(seconds=second))
            assert check(conn, "alice", code_at(SECRET, used_at)).reason in ("replayed", "wrong")
            conn.execute("SELECT totp_unlock('alice')")
        assert at(conn, used_at + 4 * STEP).reason == "accepted"
