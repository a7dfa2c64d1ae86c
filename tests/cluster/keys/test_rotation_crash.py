"""kill -9 of the server at random moments of each kind of rotation: every secret opens under exactly one data key."""

import os
import random
import signal
import threading
from datetime import timedelta

import psycopg
import pytest
from amounts import SEED, amount
from many_users import import_users, keys, open_everything, sign_in_all
from sessions import session
from totp import NOON, enroll

USERS = 2_000
PENDING = 100
RECOVERY_SETS = 100
KILLS = amount("KILLS", 20, light=4)


@pytest.fixture
def populated(fresh_cluster):
    """A server with a database of 2,000 users, some of them with recovery codes, and 100 who are about to enroll."""
    db = fresh_cluster.create_database()
    with session(db) as conn:
        users = import_users(conn, USERS)
        conn.execute("SELECT count(code) FROM unnest(%s::text[]) AS given(u), totp_reset_recovery_codes(u) AS code", [users[:RECOVERY_SETS]])
        for number in range(PENDING):
            enroll(conn, f"pending-{number}")
    return fresh_cluster, db, users


def wal_position(conn) -> int:
    return conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0]


def wal_of(db, rotate) -> int:
    """How much WAL a whole rotation writes right after a checkpoint, as after a restart. The first ones write more."""
    with session(db) as conn:
        written = []
        for _ in range(4):
            conn.execute("CHECKPOINT")
            before = wal_position(conn)
            conn.execute(rotate)
            written.append(int(wal_position(conn) - before))
        return min(written)


def share_left(db) -> float:
    """How much of a rotation is to be done yet: all of it, if none is half way."""
    with session(db) as conn:
        left = conn.execute("SELECT remaining::float / (done + remaining) FROM totp.rotation_progress").fetchone()
    return left[0] if left else 1.0


def kill_in_rotation(cluster, db, rotate, wal: float) -> bool:
    """Kill the server when the rotation has written so much WAL, or has ended; whether it had ended."""
    ended = []

    def work(conn):
        try:
            conn.execute(rotate)
            ended.append(True)
        except psycopg.OperationalError:
            pass  # the connection broke

    with session(db) as conn, session(db) as watcher:
        watcher.execute("CHECKPOINT")  # as when it was measured
        start = wal_position(watcher)
        rotation = threading.Thread(target=work, args=[conn])
        rotation.start()
        while rotation.is_alive() and wal_position(watcher) - start < wal:
            pass
        os.kill(conn.info.backend_pid, signal.SIGSTOP)  # kill9 takes its time to find every process
        cluster.kill9()
        rotation.join()
    cluster.start()
    return bool(ended)


@pytest.mark.parametrize("rotate", ["SELECT * FROM totp_rotate_key()", "CALL totp_rotate_key_online(50)"], ids=["at once", "online"])
def test_every_secret_opens_after_a_crash_at_any_moment(populated, rotate, capsys):
    cluster, db, users = populated
    whole = wal_of(db, rotate)
    numbers = random.Random(SEED)
    # One in each part of the rotation, as many parts as kills.
    moments = [whole * (part + numbers.random()) / KILLS for part in numbers.sample(range(KILLS), KILLS)]
    print(f"seed {SEED}, {whole} bytes of WAL")
    ended = half_way = 0
    for number, moment in enumerate(moments, start=1):
        ended += kill_in_rotation(cluster, db, rotate, moment * share_left(db))
        when = NOON + timedelta(minutes=number)
        with session(db, when) as conn:
            states = [state for _, state in keys(conn)]
            if "online" in rotate:
                assert states in (["current"], ["retiring", "current"])
                half_way += len(states) == 2
            else:
                assert states == ["current"]
            assert open_everything(conn) == (USERS + PENDING, RECOVERY_SETS)
            assert sign_in_all(conn, users, when) == USERS
            if len(states) == 2 and number % 2:
                conn.execute(rotate)  # the next one begins again; else it goes on, and is killed in that
    with capsys.disabled():
        print(f"\n  {rotate}: {KILLS} kills, {KILLS - ended} of them before it had ended, {half_way} left it half way; all secrets open")
    assert KILLS - ended >= KILLS // 2
    assert half_way >= KILLS // 4 or "online" not in rotate
    with session(db) as conn:
        conn.execute(rotate)
        assert [state for _, state in keys(conn)] == ["current"]
        assert open_everything(conn) == (USERS + PENDING, RECOVERY_SETS)
        assert conn.execute("SELECT count(*) FROM totp.rotation_progress").fetchone() == (0,)
        assert sign_in_all(conn, users, when + timedelta(minutes=1)) == USERS
