"""totp_resync: two codes in a row measure how far the clock of a token has drifted. Both are used up; nobody is signed in."""

from contextlib import closing
from datetime import timedelta
from itertools import islice

import pytest
from binding import web_session
from crash_load import LAZY
from server import Database
from sessions import session
from tokens import PERIOD, code_of, drift, resync, resync_at
from totp import (LEVELS, MAX_ATTEMPTS, NOON, SECRET, check, code_at, counters, enroll, error_of, events, fix_clock, good, import_secret, parallel,
                  recover, recovery_codes, stage, states, verify)

WRONG = list(islice((code for code in map("{:06}".format, range(10**6)) if code not in {good(step) for step in range(-70, 70)}), 20))


@pytest.fixture
def token(conn):
    """Alice's token, imported when its clock was right."""
    import_secret(conn, "alice", SECRET)
    return SECRET


# --- what fits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [8, -8, 19, 20, -18])
def test_a_token_that_has_drifted_signs_in_after_it(conn, token, steps):
    assert check(conn, "alice", good(steps)).reason == "wrong"
    assert resync_at(conn, NOON, steps) is True
    assert drift(conn) == steps
    when = NOON + timedelta(seconds=PERIOD)
    fix_clock(conn, when)
    assert check(conn, "alice", code_of(when, steps)).reason == "accepted"


def test_the_window_moves_with_it(conn, token):
    assert resync_at(conn, NOON, 8) is True
    later = NOON + timedelta(minutes=10)
    for steps, reason in [(6, "wrong"), (7, "accepted"), (9, "accepted"), (10, "wrong"), (0, "wrong"), (-1, "wrong")]:
        fix_clock(conn, later)
        assert (steps, check(conn, "alice", code_of(later, steps)).reason) == (steps, reason)


def test_a_second_one_measures_again(conn, token):
    assert resync_at(conn, NOON, 8) is True
    later = NOON + timedelta(hours=1)
    fix_clock(conn, later)
    assert resync_at(conn, later, -3) is True
    assert drift(conn) == -3
    # Codes that are far ahead of what was used stay used.
    assert resync(conn, code_of(NOON, 7), code_of(NOON, 8)) is False


def test_every_algorithm_length_and_period(conn):
    for number, (algorithm, digits, period) in enumerate([("SHA1", 8, 30), ("SHA256", 7, 60), ("SHA512", 6, 15), ("SHA1", 6, 120)]):
        parameters = {"algorithm": algorithm, "digits": digits, "period": period}
        import_secret(conn, f"user {number}", SECRET, **parameters)
        codes = [code_at(SECRET, NOON.timestamp() + steps * period, **parameters) for steps in (8, 9)]
        assert resync(conn, *codes, user_id=f"user {number}") is True
        assert drift(conn, user_id=f"user {number}") == 9


# --- both codes are used up -----------------------------------------------------------------------


def test_neither_code_signs_in(conn, token):
    assert resync_at(conn, NOON, 1) is True
    assert [check(conn, "alice", good(steps)).reason for steps in (0, 1)] == ["replayed", "replayed"]
    assert check(conn, "alice", good(2)).reason == "accepted"
    assert resync_at(conn, NOON, 1) is False


@pytest.mark.parametrize("level", LEVELS)
def test_a_rollback_gives_nothing_back(quick_db, conn, token, level):
    with session(quick_db) as other:
        other.execute(f"BEGIN ISOLATION LEVEL {level}")
        other.execute("SELECT count(*) FROM pg_class")
        assert resync_at(other, NOON, 1) is True
        other.execute("ROLLBACK")
    assert (drift(conn), resync_at(conn, NOON, 1)) == (1, False)
    assert [check(conn, "alice", good(steps)).reason for steps in (0, 1)] == ["replayed", "replayed"]


def test_one_of_twenty_sessions_is_told_true(quick_db, conn, token):
    for round in range(5):
        when = NOON + timedelta(minutes=10 * round)
        answers = parallel(20, lambda i, other: resync_at(other, when, 5), prepare=lambda i: connect(quick_db, when))
        assert sorted(answers) == [False] * 19 + [True]
    assert counters(conn)[0] == 0


def connect(db, when):
    conn = db.connect()
    fix_clock(conn, when)
    return conn


def test_it_survives_a_kill(make_cluster):
    """On a server that flushes nothing by itself, in a transaction that never ends."""
    cluster = make_cluster(**LAZY)
    db = cluster.create_database()
    with session(db) as conn:
        import_secret(conn, "alice", SECRET)
    conn = connect(db, NOON)
    conn.execute("BEGIN")
    assert resync_at(conn, NOON, 1) is True
    cluster.kill9()
    cluster.start()
    with session(db) as conn:
        assert drift(conn) == 1
        assert [check(conn, "alice", good(steps)).reason for steps in (0, 1, 2)] == ["replayed", "replayed", "accepted"]


def test_it_survives_a_promotion(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    with session(db) as conn:
        import_secret(conn, "alice", SECRET)
        assert resync_at(conn, NOON, 8) is True
    standby = make_standby(fresh_cluster)
    standby.wait_for_replay(fresh_cluster)
    fresh_cluster.stop()
    standby.promote()
    later = NOON + timedelta(minutes=10)
    with session(Database(standby, db.name), later) as conn:
        # What the lost primary may have accepted at the very end: up to two steps around the drift, and one that it learned.
        answers = [check(conn, "alice", code_of(later, steps)) for steps in (7, 8, 9)]
        assert [answer.reason for answer in answers] == ["replayed"] * 3
        assert {answer.retry_at for answer in answers} == {later + timedelta(seconds=4 * PERIOD)}
        for steps, reason in [(3, "replayed"), (4, "accepted")]:
            fix_clock(conn, later + timedelta(seconds=steps * PERIOD))
            assert check(conn, "alice", code_of(later, 8 + steps)).reason == reason


# --- it is no sign-in -----------------------------------------------------------------------------


def test_it_clears_no_count_and_is_no_use(conn, token):
    assert verify(conn, "alice", good(-1)) is True
    before = conn.execute("SELECT last_used_at, uses FROM totp_status('alice')").fetchone()
    check(conn, "alice", WRONG[0])
    recovery_codes(conn)
    recover(conn, "AAAAAA-AAAAAA-AAAAAA-AAAAAA")
    assert resync_at(conn, NOON, 3) is True
    assert counters(conn) == (1, 1, False, False)
    assert conn.execute("SELECT last_used_at, uses FROM totp_status('alice')").fetchone() == before


def test_a_secret_that_support_has_staged_stays_pending(conn):
    secret = stage(conn)
    assert resync_at(conn, NOON, 8, secret) is True
    assert states(conn) == [("default", "pending", 1)]
    assert conn.execute("SELECT totp_enabled('alice')").fetchone() == (False,)
    later = NOON + timedelta(seconds=PERIOD)
    fix_clock(conn, later)
    assert verify(conn, "alice", code_of(later, 8, secret)) is True
    assert drift(conn) == 8


@pytest.mark.parametrize("has_mfa", [False, True])
def test_a_secret_that_nobody_approved_is_not_measured(conn, has_mfa):
    if has_mfa:
        import_secret(conn, "alice", SECRET, device="phone")
    secret = enroll(conn, "alice")
    assert resync_at(conn, NOON, 8, secret) is False
    assert conn.execute("SELECT sum(drift) FROM totp_status('alice')").fetchone() == (0,)


def test_the_audit_log_has_the_drift(conn, token):
    resync_at(conn, NOON, -7)
    assert events(conn, "resynced", "verified") == [("resynced", "alice", "default", {"drift": "-7"})]


# --- what does not fit ----------------------------------------------------------------------------

PAIRS = {  # the steps of the two codes
    "equal": (5, 5), "not in a row": (5, 7), "in the wrong order": (6, 5), "too far ahead": (20, 21), "too far behind": (-21, -20),
}


@pytest.mark.parametrize("pair", [*PAIRS.values()], ids=[*PAIRS])
def test_a_pair_that_does_not_fit_is_charged_once(conn, token, pair):
    assert resync(conn, *map(good, pair)) is False
    assert (counters(conn)[0], drift(conn)) == (1, 0)
    assert [event for event, *_ in events(conn, "failed", "resynced")] == ["failed"]


@pytest.mark.parametrize("codes", [(good(5), WRONG[0]), (WRONG[0], good(5)), (WRONG[0], WRONG[1])], ids=["second wrong", "first wrong", "both wrong"])
def test_one_right_code_of_two_is_worth_nothing(conn, token, codes):
    assert resync(conn, *codes) is False
    assert (counters(conn)[0], drift(conn)) == (1, 0)
    assert check(conn, "alice", good(1)).reason == "accepted"  # nothing was used up


@pytest.mark.parametrize("used", [5, 6, 7])
def test_of_two_codes_neither_may_be_used(conn, token, used):
    """Nor one before the last used one. Not charged, as a code that was used."""
    assert resync_at(conn, NOON, used) is True
    failures = counters(conn)[0]
    assert resync(conn, good(5), good(6)) is False
    assert (counters(conn)[0], drift(conn)) == (failures, used)
    assert [event for event, *_ in events(conn, "replayed")] == ["replayed"]


def test_wrong_pairs_lock_as_wrong_codes_do(conn, token):
    for number in range(MAX_ATTEMPTS - 1):
        assert resync(conn, WRONG[number], WRONG[number + 1]) is False
    check(conn, "alice", WRONG[0])
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)
    assert resync_at(conn, NOON, 1) is False
    assert (counters(conn)[0], drift(conn)) == (MAX_ATTEMPTS, 0)
    fix_clock(conn, NOON + timedelta(seconds=30))
    assert resync_at(conn, NOON, 1) is True  # the right pair was not used up under the lock


def test_under_a_lock_nothing_is_opened(conn, token):
    """A sealed value that does not open is an error, but not for a user who is locked."""
    conn.execute("UPDATE totp.secrets SET sealed = sealed || '\\x00'::bytea")
    assert error_of(conn, "SELECT totp_resync('alice', %s, %s)", [good(1), good(2)]).sqlstate == "XX001"
    conn.execute("UPDATE totp.attempts SET failures = 5, locked_until = %s", [NOON + timedelta(seconds=30)])
    assert resync_at(conn, NOON, 2) is False


@pytest.mark.parametrize("arguments", [
    (None, good(1)), (good(0), None), ("", good(1)), (good(0), "12345"), (good(0), "1234567"), ("x", "y"), (good(0), good(1), None), (good(0), good(1), "phone"),
    (good(0), good(1), "default", None), (good(0), good(1), "default", "nobody"), (good(0), good(1), "", "alice")], ids=str)
def test_what_cannot_fit_is_false_and_not_charged(conn, token, arguments):
    assert resync(conn, *arguments) is False
    assert counters(conn)[0] == 0


def test_a_disabled_device_is_not_measured(conn, token):
    conn.execute("SELECT totp_disable('alice')")
    assert resync_at(conn, NOON, 8) is False
    conn.execute("SELECT totp_enable('alice')")
    assert (resync_at(conn, NOON, 8), counters(conn)[0]) == (True, 0)


def test_an_expired_secret_is_not_measured(conn):
    secret = stage(conn)
    later = NOON + timedelta(hours=2)
    fix_clock(conn, later)
    assert resync_at(conn, later, 8, secret) is False


def test_of_two_devices_only_the_named_one_counts(conn, token):
    other = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
    import_secret(conn, "alice", other, device="token")
    assert resync(conn, code_of(NOON, 7, other), code_of(NOON, 8, other)) is False
    assert resync(conn, code_of(NOON, 7, other), code_of(NOON, 8, other), "token") is True
    assert (drift(conn), drift(conn, "token")) == (0, 8)


# --- settings and places ----------------------------------------------------------------------------


def test_the_setting_says_how_far_it_searches(make_cluster):
    cluster = make_cluster(**{"totp.resync_steps": 3})
    db = cluster.create_database()
    with session(db) as conn:
        import_secret(conn, "alice", SECRET)
        assert (resync_at(conn, NOON, 4), resync_at(conn, NOON, 3)) == (False, True)
    cluster.configure(**{"totp.resync_steps": 0})
    cluster.reload()
    later = NOON + timedelta(minutes=10)
    with session(db, later) as conn:
        failures = counters(conn)[0]
        assert resync_at(conn, later, 1) is False
        assert counters(conn)[0] == failures, "off: nothing is compared, and nothing charged"
        assert check(conn, "alice", code_of(later, 3)).reason == "accepted"  # what was measured stays


@pytest.mark.parametrize("call, sqlstate", [
    ("SET default_transaction_read_only = on", "25006"), ("SET totp.resync_steps = 60", "55P02"), ("SET totp.learn_drift = off", "55P02")])
def test_no_session_changes_the_rules(conn, token, call, sqlstate):
    if sqlstate == "25006":
        conn.execute(call)
        call = f"SELECT totp_resync('alice', '{good(1)}', '{good(2)}')"
    assert error_of(conn, call).sqlstate == sqlstate


def test_who_may_enroll_may_measure_and_gains_nothing_by_it(quick_db, conn, token):
    """Two right codes are needed, and are gone then: with either, one could have signed in."""
    role = quick_db.create_role("enroll")
    with web_session(quick_db, role) as web:
        for number in range(MAX_ATTEMPTS):
            assert resync(web, WRONG[number], WRONG[number + 1]) is False
        assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)
    with closing(quick_db.connect(user=quick_db.create_role("verify"))) as verifier:
        assert error_of(verifier, "SELECT totp_resync('alice', '1', '2')").sqlstate == "42501"


def test_a_proof_of_a_drifted_token_is_good(conn, token):
    assert resync_at(conn, NOON, 8) is True
    new = enroll(conn, "alice", device="phone")
    assert conn.execute("SELECT totp_confirm('alice', %s, 'phone', %s)", [code_at(new, NOON), good(9)]).fetchone() == (True,)
