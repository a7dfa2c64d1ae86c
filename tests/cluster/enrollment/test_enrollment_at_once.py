"""Sessions that enroll, remove and sign in at the same time: one pending secret, nothing left behind."""

import random
from contextlib import ExitStack, closing
from datetime import timedelta

import psycopg
import pytest
from binding import confirm
from server import wait_until
from totp import LEVELS, NOON, ORPHANS, active_user, code_at, enroll, fix_clock, parallel, reset, stage, states, verify, works

WAYS = {
    "enroll": enroll, "import": stage, "reset": reset,
    "at once": lambda conn, user_id: enroll(conn, user_id, keep_current=False),  # as in 0.1.0
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("before", ["nothing", "pending", "active", "active and pending"])
@pytest.mark.parametrize("way", WAYS)
def test_ten_sessions_enroll_one_device(request, quick_db, conn, level, before, way):
    if way == "at once":
        request.getfixturevalue("proof_is_off")
    before = "pending" if (way, before) == ("reset", "nothing") else before  # there must be something to reset
    keeps_current = way in ("enroll", "import")
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(10)]
        for session in sessions:
            fix_clock(session, NOON)
        for round in range(5):
            user_id = f"user {round}"
            old = active_user(conn, user_id) if before.startswith("active") else None
            earlier = [(stage if way == "import" else enroll)(conn, user_id)] if before.endswith("pending") else []

            def begin(i):
                sessions[i].execute(f"BEGIN ISOLATION LEVEL {level}")
                sessions[i].execute("SELECT count(*) FROM pg_class")  # takes the snapshot, and no predicate lock

            def enroll_and_commit(i, _):
                secret = WAYS[way](sessions[i], user_id)
                sessions[i].execute("COMMIT")
                return secret

            answers = parallel(10, enroll_and_commit, prepare=begin)
            # PostgreSQL itself aborts transactions that meet what others wrote at once; their secrets are not stored. At
            # REPEATABLE READ that is the user's first row alone (docs/design/decisions.md).
            may_abort = level == "SERIALIZABLE" or (level == "REPEATABLE READ" and before == "nothing")
            if may_abort:
                for session in sessions:
                    session.execute("ROLLBACK")
                answers = [answer for answer in answers if not isinstance(answer, psycopg.errors.SerializationFailure)]
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            assert len(set(answers)) == (len(answers) if may_abort else 10)
            left = sorted(state for _, state, _ in states(conn, user_id))
            assert left == (["active"] if old and keeps_current else []) + ["pending"]
            if old and keeps_current:
                assert works(conn, old, user_id=user_id) is True
            # Each wrong guess may lock for some seconds, so each is made an hour after the last; nothing may expire meanwhile.
            conn.execute("UPDATE totp.secrets SET expires_at = 'infinity' WHERE slot <> 'active'")

            def counts(secret, when):
                fix_clock(conn, when)
                return confirm(conn, code_at(secret, when), proof=old and code_at(old, when), user_id=user_id)

            alive = [counts(secret, NOON + (number + 2) * 2 * timedelta(hours=1)) for number, secret in enumerate(earlier + answers)]
            assert alive.count(True) == 1 and not (earlier and alive[0])
            assert [state for _, state, _ in states(conn, user_id)] == ["active"]
            fix_clock(conn, NOON)
            assert conn.execute(ORPHANS).fetchall() == []


def test_the_secret_that_commits_last_is_the_stored_one(quick_db, conn):
    """One session enrolls and holds its transaction; a second waits for it and then replaces what it stored."""
    first, second = quick_db.connect(), quick_db.connect()
    with closing(first), closing(second):
        for session in (first, second):
            fix_clock(session, NOON)
        first.execute("BEGIN")
        early = enroll(first, "alice")

        def commit_when_the_other_waits():
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            wait_until(lambda: conn.execute(waiting, [second.info.backend_pid]).fetchone() == (1,), "the second session to wait")
            first.execute("COMMIT")

        _, late = parallel(2, lambda i: [commit_when_the_other_waits, lambda: enroll(second, "alice")][i]())
    assert (works(conn, early), works(conn, late)) == (False, True)


def test_a_removal_that_meets_an_enrollment_reports_what_it_removed(quick_db, conn):
    """The enrollment commits after the removal has begun: it is there afterwards, or counted and audited as removed; never gone without a word."""
    enrolling, blocking, removing = (quick_db.connect() for _ in range(3))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    with closing(enrolling), closing(blocking), closing(removing):
        for session in (enrolling, removing):
            fix_clock(session, NOON)
        enroll(conn, "bob")
        enrolling.execute("BEGIN")
        secret = enroll(enrolling, "alice")

        def block():  # behind the enrollment, and before what the removal reads: so that the commit comes in the middle of the removal
            blocking.execute("BEGIN")
            blocking.execute("LOCK TABLE totp.secrets IN ACCESS EXCLUSIVE MODE")

        def remove():
            wait_until(lambda: conn.execute(waiting, [blocking.info.backend_pid]).fetchone() == (1,), "the table lock to queue")
            answers.append(removing.execute("SELECT totp_remove('alice')").fetchone()[0])

        def commit():
            with closing(quick_db.connect()) as watcher:
                wait_until(lambda: answers or watcher.execute(waiting, [removing.info.backend_pid]).fetchone() == (1,),
                           "the removal to answer, or to wait")
                enrolling.execute("COMMIT")
                wait_until(lambda: watcher.execute(waiting, [blocking.info.backend_pid]).fetchone() == (0,), "the table lock")
                blocking.execute("COMMIT")

        answers = []
        for ended in parallel(3, lambda i: [block, remove, commit][i]()):
            if isinstance(ended, Exception):
                raise ended
        [removed] = answers
        audited = conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'removed' AND user_id = 'alice'").fetchone()[0]
        # A row for the device, and one for the user.
        assert (removed, audited, len(states(conn))) in ((0, 0, 1), (1, 2, 0))
        assert works(conn, secret) is (removed == 0)


def test_enroll_remove_and_sign_in_at_once_leave_nothing_behind(quick_db, conn):
    """Whatever order they come in: no error, and no row without its others."""
    def life(i):
        chance = random.Random(i)
        with closing(quick_db.connect()) as session:
            fix_clock(session, NOON)
            for _ in range(200):
                user_id, device = chance.choice(["alice", "bob"]), chance.choice(["phone", "tablet"])
                action = chance.randrange(6)
                if action < 2:
                    secret = chance.choice([enroll, stage])(session, user_id, device=device)
                    verify(session, user_id, code_at(secret, NOON), device)
                elif action == 2:
                    session.execute("SELECT totp_remove(%s)", [user_id])
                elif action == 3:
                    session.execute("SELECT totp_remove(%s, %s)", [user_id, device])
                elif action == 4:
                    session.execute("SELECT totp_enabled(%s), count(*) FROM totp_status(%s)", [user_id, user_id])
                else:
                    session.execute("BEGIN")
                    enroll(session, user_id, device=device)
                    session.execute("ROLLBACK")

    for answer in parallel(10, life):
        if isinstance(answer, Exception):
            raise answer
    assert conn.execute(ORPHANS).fetchall() == []
    for user_id in ("alice", "bob"):
        conn.execute("SELECT totp_remove(%s)", [user_id])
    for table in ("secrets", "used_codes", "attempts"):
        assert conn.execute(f"SELECT count(*) FROM totp.{table}").fetchone() == (0,)
