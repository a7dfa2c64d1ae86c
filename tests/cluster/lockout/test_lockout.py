"""Guesses are charged before the answer, many sessions at once are counted exactly, and the limit holds however guesses are spread."""

from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
import totp
from totp import (LEVELS, MAX_ATTEMPTS, NOON, NO_CODE, code_at, counters, enroll, events, fix_clock, import_secret, parallel, recover, recovery_codes, verify,
                  wrong_codes)



def user_with_wrong_code(conn, user_id="alice", **parameters) -> tuple[str, str]:
    """An active user: the secret, and a code that is wrong at NOON and for the minute after it."""
    secret = enroll(conn, user_id, **parameters)
    assert verify(conn, user_id, code_at(secret, NOON.timestamp() - 30)) is True
    return secret, next(wrong_codes(secret, NOON))


def check(conn, code, user_id="alice"):
    return conn.execute("SELECT reason, attempts_left, retry_at FROM totp_check(%s, %s)", [user_id, code]).fetchone()


def failures(conn, user_id="alice") -> int:
    return conn.execute("SELECT failures FROM totp_status(%s)", [user_id]).fetchone()[0]


def test_users_are_locked_one_by_one(conn):
    _, wrong = user_with_wrong_code(conn)
    secret, _ = user_with_wrong_code(conn, "bob")
    for _ in range(5):
        check(conn, wrong)
    assert check(conn, code_at(secret, NOON), "bob")[0] == "accepted"


@pytest.fixture
def sessions(quick_db):
    """Fifty sessions."""
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(quick_db.connect())) for _ in range(50)]
        for session in opened:
            fix_clock(session, NOON)
        yield opened


def all_at_once(sessions, ask, level, end):
    """The answers of ask(i, session) in as many transactions of this level, which have their snapshot and end so."""
    def begin(i):
        sessions[i].execute(f"BEGIN ISOLATION LEVEL {level}")
        sessions[i].execute("SELECT count(*) FROM pg_class")

    def work(i, _):
        answer = ask(i, sessions[i])
        sessions[i].execute(end)
        return answer

    return without_errors(parallel(len(sessions), work, prepare=begin))


def without_errors(answers):
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_fifty_sessions_get_as_many_answers_as_one(conn, sessions, level, end):
    for round in range(10):
        user_id = f"user {round}"
        secret, _ = user_with_wrong_code(conn, user_id)
        codes = list(islice(wrong_codes(secret, NOON), 50))
        answers = all_at_once(sessions, lambda i, session: check(session, codes[i], user_id), level, end)
        assert sorted(left for reason, left, _ in answers if reason == "wrong") == [0, 1, 2, 3, 4]
        assert [retry_at for reason, left, retry_at in answers if reason == "wrong" and left == 0] == [NOON + timedelta(seconds=30)]
        assert [left for reason, left, _ in answers if reason == "locked"] == [0] * 45
        assert failures(conn, user_id) == 5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_fifty_sessions_get_as_many_guesses_at_recovery_codes_as_one(conn, alice, sessions, level, end):
    code, *_ = recovery_codes(conn)
    answers = all_at_once(sessions, lambda _, session: recover(session, NO_CODE), level, end)
    assert answers == [False] * 50
    assert counters(conn) == (0, MAX_ATTEMPTS, False, True)
    assert len(events(conn, "failed")) == (MAX_ATTEMPTS if end == "COMMIT" else 0)
    assert recover(conn, code) is False


def test_a_right_code_among_fifty_guesses_gets_in_before_the_lock_or_not_at_all(conn, sessions):
    """Whatever the order: at most five wrong answers before the lock or before the good code, which clears, and five after it."""
    for round in range(10):
        user_id = f"user {round}"
        secret, wrong = user_with_wrong_code(conn, user_id)
        answers = without_errors(parallel(50, lambda i: check(sessions[i], code_at(secret, NOON) if i == 25 else wrong, user_id)))
        reasons = [reason for reason, _, _ in answers]
        accepted = reasons.count("accepted")
        assert accepted == (answers[25][0] == "accepted")
        assert 5 <= reasons.count("wrong") <= (9 if accepted else 5)
        assert failures(conn, user_id) == 5
        audited = conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'failed' AND user_id = %s", [user_id]).fetchone()[0]
        assert audited == reasons.count("wrong")


@pytest.mark.parametrize("window, limit", [(0, 100), (1, 33), (2, 20)])
def test_many_secrets_lower_the_hard_limit(conn, window, limit):
    """A guess is compared with ten secrets: this many guesses find a code with a probability of one in a thousand."""
    secrets = [chr(ord('A') + number) * 31 + "Q" for number in range(10)]  # no hexadecimal digits
    for secret in secrets:
        import_secret(conn, "alice", secret, device=secret[0])
    conn.execute(f"SET totp.window_steps = {window}")
    clock, guesses, retry_at, attempts_left = NOON, 0, None, 1
    while retry_at or attempts_left:
        clock = retry_at or clock
        fix_clock(conn, clock)
        near = {code_at(secret, clock.timestamp() + 30 * step) for secret in secrets for step in range(-2, 3)}
        wrong = next(code for code in (f"{number:06}" for number in range(100)) if code not in near)
        _, reason, _, attempts_left, retry_at, _ = totp.check(conn, "alice", wrong)
        assert reason == "wrong"
        guesses += 1
    assert guesses == limit


NAMED = {"all": lambda guess: True, "all but the first": lambda guess: guess > 0, "the first": lambda guess: guess == 0}


@pytest.mark.parametrize("is_named", NAMED.values(), ids=NAMED)
def test_naming_a_device_gives_no_more_guesses(conn, is_named):
    """Ten devices and a window of two: a guess at all of them is compared with 50 codes, one at a named device with 5."""
    secrets = [f"{letter * 31}Q" for letter in "ABCDEFGHIJ"]
    for secret in secrets:
        import_secret(conn, "alice", secret, device=secret[0])
    conn.execute("SET totp.window_steps = 2")
    clock, guesses, compared, is_last = NOON, 0, 0, False
    while not is_last:
        fix_clock(conn, clock)
        near = {code_at(secret, clock.timestamp() + 30 * step) for secret in secrets for step in range(-2, 3)}
        wrong = next(code for code in (f"{number:06}" for number in range(100)) if code not in near)
        answer = totp.check(conn, "alice", wrong, "A" if is_named(guesses) else None)
        assert answer.reason == "wrong"
        compared += 5 if is_named(guesses) else 50
        guesses, clock = guesses + 1, answer.retry_at or clock
        is_last = answer.attempts_left == 0 and answer.retry_at is None
    assert compared <= 1000, f"{compared} codes by {guesses} guesses"
