"""In the server: one transaction per call, fsync = off on both sides, so that only the work itself is measured."""

from contextlib import closing

import fixture

BLOCK = 500  # calls of one side before it is the other's turn: short, so that both meet the same noise
BLOCKS = fixture.scaled(120, 4)
VACUUM_EVERY = 20
USERS = BLOCK * (BLOCKS + 1)  # each block has separate users, since a code counts once; one more block to warm up
LOCKED = BLOCK * 4


def measure(compare, figure):
    # FATAL: without the log line of a failure, since the bare side has none.
    with fixture.server(log_min_messages="fatal", totp__lockout="1h") as cluster:
        database = cluster.create_database()
        fixture.make_users(database, USERS)
        fixture.make_bare(database)
        with closing(database.connect()) as conn:
            lines = [
                compare("accepted, in the server; other: bare SELECT and upsert", *_accepted(conn), "µs", 0.9),
                compare("wrong code, in the server; other: bare SELECT, upsert, audit row", *_wrong(conn), "µs", 1.0),
                compare("locked, in the server; other: bare SELECT", *_locked(conn), "µs", 1.2),
            ]
        assert fixture.uses(database) == USERS, "a code was not accepted"
        return fixture.version(cluster), lines


def _accepted(conn) -> tuple[list[float], list[float]]:
    fixture.say("accepted")

    def calls():
        now = fixture.now()
        return f"totp_verify('u' || n, '{now.good}')", f"bare_sign_in('u' || n, {now.step})"

    return _interleaved(conn, calls, USERS)


def _wrong(conn) -> tuple[list[float], list[float]]:
    """One wrong code of each user, which locks nobody."""
    fixture.say("wrong code")
    return _interleaved(conn, lambda: (f"totp_verify('u' || n, '{fixture.now().bad}')", "bare_failure('u' || n)"), USERS)


def _locked(conn) -> tuple[list[float], list[float]]:
    """Locks some users for an hour before it begins."""
    fixture.say("locked")
    bad = fixture.now().bad
    for _ in range(5):
        conn.execute("SELECT count(totp_verify('u' || n, %s)) FROM generate_series(1, %s) n", [bad, LOCKED])
    locked = "SELECT count(*) FROM totp.attempts WHERE locked_until > clock_timestamp()"
    assert conn.execute(locked).fetchone()[0] == LOCKED, "not everyone is locked"
    times = _interleaved(conn, lambda: (f"totp_verify('u' || n, '{bad}')", "bare_select('u' || n)"), LOCKED)
    assert conn.execute(locked).fetchone()[0] == LOCKED, "a lock has run out"
    return times


def _interleaved(conn, calls, users: int) -> tuple[list[float], list[float]]:
    """Returns microseconds per call of pg_totp and of the bare side, in turns; the first block is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for block in range(BLOCKS + 1):
        first = 1 + block * BLOCK % users
        both = calls()
        for side in fixture.turns(block):
            times[side].append(fixture.loop_microseconds(conn, both[side], first, first + BLOCK - 1))
        if block % VACUUM_EVERY == 0:
            conn.execute("VACUUM bare_used, bare_attempts")
    return times[0][1:], times[1][1:]
