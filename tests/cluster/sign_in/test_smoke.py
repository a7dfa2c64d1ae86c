"""The shortest test: enroll, sign in once, not twice; after a crash, on a standby."""

from contextlib import closing

import psycopg
import pytest
from totp import NOON, code_at, enroll, fix_clock, parallel, verify, wrong_codes


def test_a_code_is_accepted_once(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        code = code_at(secret, NOON)
        assert verify(conn, "alice", code) is True
        assert verify(conn, "alice", code) is False


def test_a_wrong_code_is_refused(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        assert verify(conn, "alice", next(wrong_codes(secret, NOON))) is False


def test_one_of_ten_sessions_gets_in(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        assert verify(conn, "alice", code_at(secret, NOON.timestamp() - 30)) is True  # it is active now

    def session(_):
        conn = db.connect()
        fix_clock(conn, NOON)
        return conn

    def sign_in(_, conn):
        with closing(conn):
            return verify(conn, "alice", code_at(secret, NOON))

    answers = parallel(10, sign_in, prepare=session)
    assert sorted(answers) == [False] * 9 + [True]


def test_a_used_code_stays_used_over_a_crash(fresh_cluster):
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        assert verify(conn, "alice", code_at(secret, NOON)) is True
    fresh_cluster.kill9()
    fresh_cluster.start()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        assert verify(conn, "alice", code_at(secret, NOON)) is False


def test_a_standby_refuses_to_judge_until_it_is_promoted(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        assert verify(conn, "alice", code_at(secret, NOON)) is True
    standby = make_standby(fresh_cluster)
    standby.wait_for_replay(fresh_cluster)
    with closing(standby.connect(db.name)) as conn:
        fix_clock(conn, NOON)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            verify(conn, "alice", code_at(secret, NOON))
        fresh_cluster.stop()
        standby.promote()
        assert verify(conn, "alice", code_at(secret, NOON)) is False
