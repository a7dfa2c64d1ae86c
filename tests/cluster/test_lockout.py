"""Guesses: charged before their outcome is told, out of reach of every ROLLBACK, and counted exactly by many sessions at once."""

from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import islice

import psycopg
import pytest
from totp import LEVELS, NOON, code_at, enroll, fix_clock, import_secret, parallel, verify, wrong_codes

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)  # stands for infinity, which Python does not know


def user_with_wrong_code(conn, user_id="alice", **parameters) -> tuple[str, str]:
    """An active user: the secret, and a code that is wrong at NOON and for the minute after it."""
    secret = enroll(conn, user_id, **parameters)
    assert verify(conn, user_id, code_at(secret, NOON.timestamp() - 30)) is True
    return secret, next(wrong_codes(secret, NOON))


def check(conn, code, user_id="alice"):
    return conn.execute("SELECT reason, attempts_left, retry_at FROM totp_check(%s, %s)", [user_id, code]).fetchone()


def failures(conn, user_id="alice") -> int:
    return conn.execute("SELECT failures FROM totp_status(%s)", [user_id]).fetchone()[0]


def test_five_wrong_codes_lock_and_each_later_one_locks_twice_as_long(conn):
    secret, wrong = user_with_wrong_code(conn)
    for left in (4, 3, 2, 1):
        assert check(conn, wrong) == ("wrong", left, None)
    now, lock = NOON, timedelta(seconds=30)
    assert check(conn, wrong) == ("wrong", 0, now + lock)
    for _ in range(10):
        assert check(conn, wrong) == ("locked", 0, now + lock)
        assert check(conn, code_at(secret, now)) == ("locked", 0, now + lock)
        fix_clock(conn, now + lock - timedelta(microseconds=1))
        assert check(conn, wrong)[0] == "locked"
        now += lock
        fix_clock(conn, now)
        lock = min(2 * lock, timedelta(hours=1))
        assert check(conn, "garbage")[:2] == ("malformed", 1)
        assert check(conn, next(wrong_codes(secret, now))) == ("wrong", 0, now + lock)
    assert lock == timedelta(hours=1)


def test_a_good_code_after_the_lock_clears_the_failures(conn):
    secret, wrong = user_with_wrong_code(conn)
    for _ in range(5):
        check(conn, wrong)
    later = NOON + timedelta(seconds=30)
    fix_clock(conn, later)
    assert check(conn, code_at(secret, later)) == ("accepted", 5, None)
    assert failures(conn) == 0
    assert check(conn, wrong)[:2] == ("wrong", 4)


def test_a_good_code_is_not_used_up_while_locked(conn):
    secret, wrong = user_with_wrong_code(conn)
    for _ in range(5):
        check(conn, wrong)
    code = code_at(secret, NOON.timestamp() + 30)
    assert check(conn, code)[0] == "locked"
    fix_clock(conn, NOON + timedelta(seconds=30))
    assert check(conn, code)[0] == "accepted"


def test_a_replayed_code_is_not_charged(conn):
    secret, _ = user_with_wrong_code(conn)
    for _ in range(10):
        assert check(conn, code_at(secret, NOON.timestamp() - 30))[:2] == ("replayed", 5)
    assert failures(conn) == 0


def test_failures_of_all_devices_add_up(conn):
    phone, _ = user_with_wrong_code(conn, device="phone")
    secret = enroll(conn, "alice", device="tablet")
    wrong = min(set(islice(wrong_codes(phone, NOON), 20)) & set(islice(wrong_codes(secret, NOON), 20)))
    for device in ("phone", "tablet", "phone", "tablet"):
        assert verify(conn, "alice", wrong, device) is False
    assert check(conn, wrong)[:2] == ("wrong", 0)
    assert check(conn, code_at(secret, NOON))[0] == "locked"


def test_users_are_locked_one_by_one(conn):
    _, wrong = user_with_wrong_code(conn)
    secret, _ = user_with_wrong_code(conn, "bob")
    for _ in range(5):
        check(conn, wrong)
    assert check(conn, code_at(secret, NOON), "bob")[0] == "accepted"


def test_guesses_at_a_pending_secret_are_charged_too(conn):
    secret = enroll(conn, "alice")
    wrong = next(wrong_codes(secret, NOON))
    for _ in range(5):
        assert conn.execute("SELECT totp_confirm('alice', %s)", [wrong]).fetchone() == (False,)
    assert conn.execute("SELECT totp_confirm('alice', %s)", [code_at(secret, NOON)]).fetchone() == (False,)
    assert check(conn, code_at(secret, NOON))[0] == "locked"


def test_enrolling_again_clears_neither_failures_nor_lock(conn):
    _, wrong = user_with_wrong_code(conn)
    for _ in range(5):
        check(conn, wrong)
    for keep_current in (True, False):
        secret = enroll(conn, "alice", keep_current=keep_current)
        assert check(conn, code_at(secret, NOON))[:2] == ("locked", 0)
        assert failures(conn) == 5


WAYS_BACK = {
    "rollback": "BEGIN; SELECT totp_verify('alice', '{wrong}'); ROLLBACK",
    "savepoint": "BEGIN; SAVEPOINT s; SELECT totp_verify('alice', '{wrong}'); ROLLBACK TO s; COMMIT",
    "exception block": "DO $$ BEGIN PERFORM totp_verify('alice', '{wrong}'); RAISE EXCEPTION 'x'; EXCEPTION WHEN OTHERS THEN END $$",
    "failing statement": "SELECT totp_verify('alice', '{wrong}'), 1 / (random() < 0)::int",
    "failing transaction": "BEGIN; SELECT totp_verify('alice', '{wrong}'); SELECT 1 / 0; COMMIT",
    "serializable": "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT totp_verify('alice', '{wrong}'); ROLLBACK",
    "repeatable read": "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class; SELECT totp_verify('alice', '{wrong}'); ROLLBACK",
}


@pytest.mark.parametrize("way", WAYS_BACK.values(), ids=WAYS_BACK.keys())
def test_no_way_gives_a_guess_back(quick_db, conn, way):
    secret, wrong = user_with_wrong_code(conn)
    with closing(quick_db.connect()) as session:
        fix_clock(session, NOON)
        for count in range(1, 6):
            try:
                session.execute(way.format(wrong=wrong))
            except psycopg.errors.DivisionByZero:
                session.execute("ROLLBACK")
            assert failures(conn) == count
    assert check(conn, code_at(secret, NOON)) == ("locked", 0, NOON + timedelta(seconds=30))


def test_a_rolled_back_loop_gets_five_guesses(quick_db, conn):
    """A session that rolls back each guess, as fast as it can, in one round trip."""
    _, wrong = user_with_wrong_code(conn)
    with closing(quick_db.connect()) as session:
        fix_clock(session, NOON)
        session.execute(f"DO $$ DECLARE tries int := 0; BEGIN WHILE tries < 1000 LOOP tries := tries + 1;"
                        f" BEGIN PERFORM totp_verify('alice', '{wrong}'); RAISE EXCEPTION 'x'; EXCEPTION WHEN OTHERS THEN END; END LOOP; END $$")
    assert failures(conn) == 5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_fifty_sessions_get_as_many_answers_as_one(quick_db, conn, level, end):
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(50)]
        for session in sessions:
            fix_clock(session, NOON)
        for round in range(10):
            user_id = f"user {round}"
            _, wrong = user_with_wrong_code(conn, user_id)

            def begin(i):
                sessions[i].execute(f"BEGIN ISOLATION LEVEL {level}")
                sessions[i].execute("SELECT count(*) FROM pg_class")

            def guess(i, _):
                answer = check(sessions[i], wrong, user_id)
                sessions[i].execute(end)
                return answer

            answers = parallel(50, guess, prepare=begin)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            assert sorted(left for reason, left, _ in answers if reason == "wrong") == [0, 1, 2, 3, 4]
            assert [reason for reason, _, _ in answers].count("locked") == 45
            assert failures(conn, user_id) == 5


def test_a_right_code_among_fifty_guesses(quick_db, conn):
    """Whatever the order: at most five wrong answers before the lock or before the good code, which clears, and five after it."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(50)]
        for session in sessions:
            fix_clock(session, NOON)
        for round in range(10):
            user_id = f"user {round}"
            secret, wrong = user_with_wrong_code(conn, user_id)
            answers = parallel(50, lambda i: check(sessions[i], code_at(secret, NOON) if i == 25 else wrong, user_id))
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            reasons = [reason for reason, _, _ in answers]
            accepted = reasons.count("accepted")
            assert accepted == (answers[25][0] == "accepted")
            assert 5 <= reasons.count("wrong") <= (9 if accepted else 5)
            assert failures(conn, user_id) == 5
            audited = conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'failed' AND user_id = %s", [user_id]).fetchone()[0]
            assert audited == reasons.count("wrong")


def test_an_idle_transaction_blocks_no_sign_in(quick_db, conn):
    """One that holds every row lock there is on the user's rows, as an application that crashed in the middle might."""
    secret, wrong = user_with_wrong_code(conn)
    with closing(quick_db.connect()) as idle:
        idle.execute("BEGIN")
        for table in ("attempts", "used_codes", "secrets"):
            for lock in ("KEY SHARE", "SHARE", "NO KEY UPDATE", "UPDATE"):
                idle.execute(f"SELECT FROM totp.{table} FOR {lock}")
        conn.execute("SET statement_timeout = '30s'")
        assert check(conn, wrong)[:2] == ("wrong", 4)
        assert check(conn, code_at(secret, NOON))[0] == "accepted"
        idle.execute("ROLLBACK")
    assert failures(conn) == 0
    assert check(conn, code_at(secret, NOON))[0] == "replayed"


def test_an_accepted_code_uses_no_transaction_id_and_leaves_no_dead_row(conn):
    secret, _ = user_with_wrong_code(conn)
    rows = "SELECT ctid::text, xmin::text, xmax::text FROM totp.{} ORDER BY ctid"
    before = [conn.execute(rows.format(table)).fetchall() for table in ("attempts", "used_codes", "secrets")]
    for step in range(10):
        when = NOON + timedelta(seconds=30 * step)
        fix_clock(conn, when)
        conn.execute("BEGIN")
        assert verify(conn, "alice", code_at(secret, when)) is True
        assert conn.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)
        conn.execute("COMMIT")
    assert [conn.execute(rows.format(table)).fetchall() for table in ("attempts", "used_codes", "secrets")] == before


@pytest.mark.parametrize("window, limit", [(0, 100), (1, 33), (2, 20)])
def test_many_secrets_lower_the_hard_limit(conn, window, limit):
    """A guess is compared with ten secrets: so many guesses find a code with a probability of one in a thousand."""
    secrets = [f"{chr(ord('A') + number)}" * 32 for number in range(10)]
    for secret in secrets:
        import_secret(conn, "alice", secret, device=secret[0])
    conn.execute(f"SET totp.window_steps = {window}")
    clock, guesses, retry_at = NOON, 0, None
    while retry_at != FOREVER:
        clock = retry_at or clock
        fix_clock(conn, clock)
        near = {code_at(secret, clock.timestamp() + 30 * step) for secret in secrets for step in range(-2, 3)}
        wrong = next(code for code in (f"{number:06}" for number in range(100)) if code not in near)
        reason, _, retry_at = conn.execute(
            "SELECT reason, attempts_left, CASE retry_at WHEN 'infinity' THEN %s ELSE retry_at END FROM totp_check('alice', %s)",
            [FOREVER, wrong]).fetchone()
        assert reason == "wrong"
        guesses += 1
    assert guesses == limit
