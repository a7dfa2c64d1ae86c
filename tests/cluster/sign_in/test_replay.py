"""A code is accepted at most once: by 64 sessions at three isolation levels, by every function. ROLLBACK: lockout/; crashes: durability/."""

from contextlib import ExitStack, closing
from datetime import timedelta

import pytest
from binding import check_confirm, confirm
from totp import LATER, LEVELS, NOON, active_user, check, code_at, codes_left, enroll, fix_clock, parallel, recover, recovery_codes, stage, states, verify

SESSIONS = 64
ROUNDS = 20


def raise_on_errors(answers):
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


# --- Parallel sessions ----------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pending", [False, True], ids=["active", "pending"])
def test_one_of_64_sessions_gets_in(quick_db, conn, level, pending):
    """In a transaction each, which commits or rolls back. The code that confirms a pending secret is used up as any other."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(SESSIONS)]
        for session in sessions:
            fix_clock(session, NOON)
        for round in range(ROUNDS):
            user_id, end = f"user {round}", ["COMMIT", "ROLLBACK"][round % 2]
            secret = enroll(conn, user_id) if pending else active_user(conn, user_id)
            code = code_at(secret, NOON)

            def begin(i):
                sessions[i].execute(f"BEGIN ISOLATION LEVEL {level}")
                sessions[i].execute("SELECT count(*) FROM pg_class")  # takes the snapshot, and no predicate lock

            def sign_in(i, _):
                answer = verify(sessions[i], user_id, code)
                sessions[i].execute(end)
                return answer

            answers = parallel(SESSIONS, sign_in, prepare=begin)
            raise_on_errors(answers)
            assert sorted(answers) == [False] * (SESSIONS - 1) + [True]
            row = conn.execute("SELECT state, uses, failures FROM totp_status(%s)", [user_id]).fetchone()
            assert row == ("pending" if pending and end == "ROLLBACK" else "active", 1 if pending else 2, 0)


def test_one_of_64_single_statements_gets_in(quick_db, conn):
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(SESSIONS)]
        for session in sessions:
            fix_clock(session, NOON)
        for round in range(ROUNDS):
            user_id = f"user {round}"
            secret = active_user(conn, user_id)
            code = code_at(secret, NOON)
            answers = parallel(SESSIONS, lambda i: verify(sessions[i], user_id, code))
            raise_on_errors(answers)
            assert sorted(answers) == [False] * (SESSIONS - 1) + [True]
        assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'replayed'").fetchone() == ((SESSIONS - 1) * ROUNDS,)


def test_each_step_of_the_window_gets_one_in(quick_db, conn):
    """64 sessions give the three codes of the window; steps only go up, so one to three get in, each with another code."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(SESSIONS)]
        for session in sessions:
            fix_clock(session, NOON + timedelta(seconds=60))
        for round in range(ROUNDS):
            user_id = f"user {round}"
            secret = active_user(conn, user_id)
            codes = [code_at(secret, NOON.timestamp() + 30 * step) for step in (1, 2, 3)]
            answers = parallel(SESSIONS, lambda i: verify(sessions[i], user_id, codes[i % 3]) and codes[i % 3])
            raise_on_errors(answers)
            accepted = [answer for answer in answers if answer]
            assert codes[2] in accepted  # nothing is above it
            assert len(accepted) == len(set(accepted))
            assert conn.execute("SELECT uses FROM totp_status(%s)", [user_id]).fetchone() == (1 + len(accepted),)


def test_verify_check_and_confirm_share_one_burnt_step(quick_db, conn):
    """64 single statements."""
    calls = ["SELECT totp_verify(%s, %s)", "SELECT accepted FROM totp_check(%s, %s)", "SELECT totp_verify(%s, %s, 'default')",
             "SELECT totp_confirm(%s, %s)"]
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(SESSIONS)]
        for session in sessions:
            fix_clock(session, NOON)
        for round in range(ROUNDS):
            user_id = f"user {round}"
            code = code_at(enroll(conn, user_id), NOON)
            answers = parallel(SESSIONS, lambda i: sessions[i].execute(calls[i % 4], [user_id, code]).fetchone()[0])
            raise_on_errors(answers)
            assert sorted(answers) == [False] * (SESSIONS - 1) + [True]


# --- After the one ----------------------------------------------------------------------


def test_a_confirming_code_cannot_sign_in(conn):
    code = code_at(enroll(conn, "alice"), NOON)
    assert conn.execute("SELECT totp_confirm('alice', %s)", [code]).fetchone() == (True,)
    assert verify(conn, "alice", code) is False
    assert conn.execute("SELECT reason, matched_device FROM totp_check('alice', %s)", [code]).fetchone() == ("replayed", "default")
    assert conn.execute("SELECT totp_confirm('alice', %s)", [code]).fetchone() == (False,)


def test_an_older_step_is_refused_once_a_newer_one_was_accepted(conn):
    secret = enroll(conn, "alice")
    before, now, after = (code_at(secret, NOON.timestamp() + 30 * step) for step in (-1, 0, 1))
    assert verify(conn, "alice", after) is True
    for code in (before, now, after):
        assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [code]).fetchone() == ("replayed",)
    fix_clock(conn, NOON + timedelta(seconds=30))
    assert verify(conn, "alice", after) is False
    assert verify(conn, "alice", code_at(secret, NOON.timestamp() + 60)) is True


def test_an_aborted_confirmation_leaves_the_device_pending_and_its_code_used(quick_db, conn):
    """The old secret keeps working: the transaction in which it died never was."""
    old = active_user(conn)
    new = stage(conn)
    with closing(quick_db.connect()) as session:
        fix_clock(session, NOON)
        session.execute("BEGIN")
        assert verify(session, "alice", code_at(new, NOON)) is True
        assert verify(session, "alice", code_at(old, NOON)) is False
        session.execute("ROLLBACK")
    assert [state for [state] in conn.execute("SELECT state FROM totp_status('alice')").fetchall()] == ["active", "pending"]
    assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(new, NOON)]).fetchone() == ("replayed",)
    assert verify(conn, "alice", code_at(old, NOON)) is True
    assert verify(conn, "alice", code_at(new, NOON.timestamp() + 30)) is True
    assert conn.execute("SELECT count(*) FROM totp_status('alice')").fetchone() == (1,)


def test_an_aborted_proof_leaves_the_device_pending_and_both_codes_used(quick_db, conn):
    old = active_user(conn)
    new = enroll(conn, "alice")
    with closing(quick_db.connect()) as session:
        fix_clock(session, NOON)
        session.execute("BEGIN")
        assert confirm(session, code_at(new, NOON), proof=code_at(old, NOON)) is True
        session.execute("ROLLBACK")
    assert [state for _, state, _ in states(conn)] == ["active", "pending"]
    assert check_confirm(conn, code_at(new, NOON), proof=code_at(old, LATER)).reason == "replayed"
    assert check_confirm(conn, code_at(new, LATER), proof=code_at(old, NOON)).reason == "proof_replayed"
    assert confirm(conn, code_at(new, LATER), proof=code_at(old, LATER)) is True
    assert [state for _, state, _ in states(conn)] == ["active"]


def test_maintenance_brings_no_code_back(conn, alice):
    code, (used, unused, *_) = code_at(alice, NOON), recovery_codes(conn)
    assert (verify(conn, "alice", code), recover(conn, used)) == (True, True)
    for command in ("VACUUM totp.used_codes", "VACUUM (FREEZE) totp.used_codes", "VACUUM FULL totp.used_codes", "CLUSTER totp.used_codes USING used_codes_pkey",
                    "VACUUM FULL totp.recovery_codes", "VACUUM FULL totp.attempts", "VACUUM (FREEZE) totp.attempts", "REINDEX TABLE totp.used_codes", "CHECKPOINT"):
        conn.execute(command)
        assert check(conn, "alice", code).reason == "replayed", command
        assert recover(conn, used) is False, command
        conn.execute("SELECT totp_unlock('alice')")
    assert codes_left(conn) == 9
    assert (verify(conn, "alice", code_at(alice, NOON.timestamp() + 30)), recover(conn, unused)) == (True, True)
