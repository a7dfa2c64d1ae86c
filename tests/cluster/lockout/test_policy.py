"""What a wrong code costs, when it locks and for how long, what clears it, and what does not."""

import math
from contextlib import closing
from datetime import timedelta
from itertools import islice

import pytest
from totp import (MAX_ATTEMPTS, NOON, NO_CODE, OTHER_SECRET, SECRET, check, code_at, counters, enroll, error_of, fix_clock, good, import_secret, recover, recovery_codes,
                  stage, verify, wrong_codes)

SECOND = timedelta(seconds=1)
FOREVER = "forever"


@pytest.fixture
def conn(quick_db):
    with closing(quick_db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        yield conn


def fail(conn, times, user_id="alice", when=NOON):
    """Gives this many wrong codes. Returns the answer to the last."""
    answers = [check(conn, user_id, code) for code in islice(wrong_codes(SECRET, when), times)]
    assert {answer.reason for answer in answers} == {"wrong"}
    return answers[-1]


def attempts(conn, user_id=None):
    """Everything that totp.attempts holds, of all users or one."""
    return conn.execute("SELECT user_id, failures, locked_until::text, recovery_failures, recovery_locked_until::text,"
                        "       last_failed_at::text, ctid, xmin FROM totp.attempts WHERE %s::text IS NULL OR user_id = %s ORDER BY user_id", [user_id, user_id]).fetchall()


# --- when it locks ---------------------------------------------------------------------

def follow_the_policy(conn, max_attempts, lockout, lockout_max, hard_limit):
    """Fails until the hard limit, and checks each lock one second and one microsecond before and after its end."""
    now = NOON + timedelta(microseconds=123456)
    for failures in range(1, hard_limit + 1):
        fix_clock(conn, now)
        answer = fail(conn, 1, when=now)
        if failures == hard_limit:
            end = FOREVER
        elif failures >= max_attempts:
            end = now + SECOND * min(lockout * 2 ** (failures - max_attempts), max(lockout, lockout_max))
        else:
            end = None
        finite = None if end == FOREVER else end
        after = None if finite is None else math.ceil((end - now) / SECOND)
        assert (answer.accepted, answer.matched_device, answer.retry_at, answer.retry_after) == (False, None, finite, after), failures
        assert answer.attempts_left == (min(max_attempts, hard_limit) - failures if end is None else 0)
        status = conn.execute("SELECT failures, locked, locked_until FROM totp_status('alice')")
        assert status.fetchone() == (failures, end is not None, finite)
        if end is None:
            continue
        instants = [now, *((NOON + timedelta(days=36500),) if end == FOREVER else (end - SECOND, end - timedelta(microseconds=1)))]
        for instant in instants:
            fix_clock(conn, instant)
            for code in (code_at(SECRET, instant), next(wrong_codes(SECRET, instant)), code_at(SECRET, instant)):
                after = None if finite is None else math.ceil((end - instant) / SECOND)
                assert check(conn, "alice", code) == (False, "locked", None, 0, finite, after)
        if end != FOREVER:
            for instant in (end, end + timedelta(microseconds=1), end + SECOND):
                fix_clock(conn, instant)
                assert check(conn, "alice", "malformed") == (False, "malformed", None, 1, None, None)
            now = end + [timedelta(0), SECOND][failures % 2]


def test_locks_double_up_to_the_longest_and_end_at_the_hard_limit(conn):
    follow_the_policy(conn, max_attempts=5, lockout=30, lockout_max=3600, hard_limit=100)
    # Only this helps, and it returns true only if there was something to clear.
    assert [conn.execute("SELECT totp_unlock('alice')").fetchone()[0] for _ in range(2)] == [True, False]
    later = NOON + timedelta(days=36500)
    fix_clock(conn, later)
    assert check(conn, "alice", code_at(SECRET, later)).reason == "accepted"


def test_locks_follow_the_settings(fresh_cluster):
    db = fresh_cluster.create_database()
    for max_attempts, lockout, lockout_max, hard_limit in [(3, 10, 60, 8), (1, 1, 1, 3), (100, 30, 3600, 2), (4, 100, 10, 7)]:
        fresh_cluster.configure(totp__max_attempts=max_attempts, totp__lockout=lockout, totp__lockout_max=lockout_max,
                                totp__hard_limit=hard_limit)
        fresh_cluster.restart()
        with closing(db.connect()) as conn:
            fix_clock(conn, NOON)
            import_secret(conn, "alice", SECRET)
            follow_the_policy(conn, max_attempts, lockout, lockout_max, hard_limit)
            assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)


def test_a_success_clears_the_failures(conn):
    for round in range(3):
        assert fail(conn, MAX_ATTEMPTS - 1).attempts_left == 1
        assert check(conn, "alice", code_at(SECRET, NOON.timestamp() + 30 * (round - 1))).attempts_left == MAX_ATTEMPTS
    assert fail(conn, 1).attempts_left == MAX_ATTEMPTS - 1


def test_a_success_after_a_lock_clears_the_lock_and_its_length(conn):
    fail(conn, MAX_ATTEMPTS)
    later = NOON + timedelta(seconds=30)
    fix_clock(conn, later)
    assert fail(conn, 1, when=later).retry_at == later + timedelta(seconds=60)
    later += timedelta(seconds=60)
    fix_clock(conn, later)
    assert check(conn, "alice", code_at(SECRET, later)) == (True, "accepted", "default", MAX_ATTEMPTS, None, None)
    assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (0,)
    assert fail(conn, MAX_ATTEMPTS, when=later).retry_at == later + timedelta(seconds=30)


# --- what costs nothing ----------------------------------------------------------------

def test_a_hundred_thousand_calls_during_a_lock_change_nothing(cluster, conn):
    fail(conn, MAX_ATTEMPTS)
    before, audit = attempts(conn), conn.execute("SELECT count(*) FROM totp.audit_log").fetchone()
    log = cluster.log_end()
    codes = [code_at(SECRET, NOON), *islice(wrong_codes(SECRET, NOON), 4)]
    with conn.transaction():
        reasons = conn.execute(
            "SELECT reason, attempts_left, count(*)"
            "  FROM generate_series(1, 100000) AS i, totp_check('alice', (%s::text[])[1 + i %% 5])"
            " GROUP BY 1, 2", [codes]).fetchall()
        assert reasons == [("locked", 0, 100000)]
        assert conn.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)
    assert attempts(conn) == before
    assert conn.execute("SELECT count(*) FROM totp.audit_log").fetchone() == audit
    assert cluster.log_text(log) == ""
    fix_clock(conn, NOON + timedelta(seconds=30))
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True  # refused so often, and not used up


def test_replayed_and_malformed_codes_are_not_charged(conn):
    used = code_at(SECRET, NOON)
    assert verify(conn, "alice", used) is True
    fail(conn, MAX_ATTEMPTS - 1)
    older = code_at(SECRET, NOON.timestamp() - 30)
    for code, reason in [(used, "replayed"), (older, "replayed"), ("12345", "malformed"), ("12345678", "malformed")] * 10:
        answer = check(conn, "alice", code)
        assert (answer.accepted, answer.reason, answer.attempts_left, answer.retry_at) == (False, reason, 1, None)
    for user_id, code in (("nobody", used), (None, used), ("alice", None), (None, None)):
        assert check(conn, user_id, code).accepted is False
    assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (MAX_ATTEMPTS - 1,)
    assert fail(conn, 1).attempts_left == 0


def test_wrong_codes_of_every_device_and_function_count_together(conn):
    stage(conn, "alice", device="phone")
    wrong = islice(wrong_codes(SECRET, NOON), MAX_ATTEMPTS)
    assert check(conn, "alice", next(wrong)).attempts_left == 4
    assert check(conn, "alice", next(wrong), "default").attempts_left == 3
    assert check(conn, "alice", next(wrong), "phone").attempts_left == 2
    assert conn.execute("SELECT totp_confirm('alice', %s, 'phone')", [next(wrong)]).fetchone() == (False,)
    assert check(conn, "alice", next(wrong)).attempts_left == 0
    assert conn.execute("SELECT DISTINCT failures, locked_until FROM totp_status('alice')").fetchall() == [
        (MAX_ATTEMPTS, NOON + timedelta(seconds=30))]
    assert check(conn, "alice", code_at(SECRET, NOON)).reason == "locked"


# --- what clears it, and what does not -------------------------------------------------

@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_unlock_clears_both_counters_and_no_used_code(quick_db, conn, end):
    """It changes in place, as the failures do: it counts before it is committed, and no ROLLBACK brings a lock back."""
    codes = recovery_codes(conn)
    assert (verify(conn, "alice", good()), recover(conn, codes[0])) == (True, True)
    fail(conn, MAX_ATTEMPTS)
    for _ in range(MAX_ATTEMPTS):
        assert recover(conn, NO_CODE) is False
    assert counters(conn) == (MAX_ATTEMPTS, MAX_ATTEMPTS, True, True)
    with closing(quick_db.connect()) as support:
        fix_clock(support, NOON)
        support.execute("BEGIN")
        assert support.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
        assert counters(conn) == (0, 0, False, False)
        support.execute(end)
    assert [check(conn, "alice", good(step)).reason for step in (0, 1)] == ["replayed", "accepted"]
    assert [recover(conn, code) for code in codes[:2]] == [False, True]


@pytest.mark.parametrize("call", [
    "totp_enroll('alice')", "totp_enroll('alice', keep_current => false)", "totp_enroll('alice', device => 'phone')", "totp_reset('alice')",
    "totp_move_device('alice', 'default', 'bob', 'default')", "totp_move_device('stock', 'token', 'alice', 'token')", "totp_reset_recovery_codes('alice')",
    f"totp_import('alice', '{SECRET}')", f"totp_import('alice', '{SECRET}', confirmed => true)",
    "totp_import('alice', 'KRSXG5CTMVRXEZLUKN2XAZLSKRSXG5CT')", "totp_import('alice', 'KRSXG5CTMVRXEZLUKN2XAZLSKRSXG5CT', confirmed => true)",
    "totp_disable('alice')", "totp_enable('alice')", "totp_remove('alice', 'old phone')", "totp_remove('alice', 'default')",
    "totp_rename_user('alice', 'carol')", "totp_rotate_key()", "totp_rotate_key_online()"])
@pytest.mark.parametrize("failures", [MAX_ATTEMPTS - 1, MAX_ATTEMPTS])
def test_no_change_to_a_device_clears_failures(conn, call, failures):
    enroll(conn, "alice", device="old phone")
    import_secret(conn, "stock", OTHER_SECRET, device="token")
    if "totp_enable" in call:
        conn.execute("SELECT totp_disable('alice')")
        conn.execute("SELECT totp_enable('alice')")
    fail(conn, failures)
    [before] = attempts(conn, "alice")
    proof_is_required = "keep_current" in call
    if proof_is_required:
        assert error_of(conn, f"SELECT {call}").sqlstate == "42501"
    else:
        conn.execute(f"{'CALL' if 'online' in call else 'SELECT'} {call}")
    [after] = attempts(conn, "carol" if "rename_user" in call else "alice")
    assert after[1:6] == before[1:6]
    left = check(conn, after[0], "malformed").attempts_left
    assert left == (MAX_ATTEMPTS - failures)


def test_the_last_device_gone_and_back_keeps_the_failures(conn):
    fail(conn, MAX_ATTEMPTS)
    conn.execute("SELECT totp_remove('alice', 'default')")
    # The lock comes first, whatever the user has.
    assert check(conn, "alice", code_at(SECRET, NOON)).reason == "locked"
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", code_at(SECRET, NOON)).reason == "locked"
