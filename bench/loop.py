"""In the server: one transaction per call, fsync = off on both sides, so that only the work itself is measured: CPU time.

Tables and indexes of both sides are equally long, those of the audit log too. The bare statements run in two forms: in a
PL/pgSQL function, as ours is a function; and written out in the loop, which spares that call.
"""

from contextlib import closing

import fixture

BLOCK = 250  # calls of one side before it is the other's turn: short, so that all meet the same noise
BLOCKS = fixture.scaled(240, 4)
VACUUM_EVERY = 20
USED = BLOCK * (BLOCKS + 1)  # each block has separate users, since a code counts once; one more block to warm up
USERS = max(4 * USED, fixture.scaled(1_000_000))
STRIDE = (USERS - USED) // USED  # from one user to the next if they are far apart


def measure(compare, figure):
    # FATAL: without the log line of a failure, since the bare side has none. Whole pages go into the WAL on both sides, as often
    # as checkpoints are near: sign_in measures that.
    with fixture.server(log_min_messages="fatal", totp__lockout="1h", shared_buffers="3GB", full_page_writes="off") as cluster:
        database = cluster.create_database()
        fixture.make_users(database, USERS)
        fixture.make_bare(database)
        with closing(database.connect()) as conn:
            lines = [
                *_lines(compare, "accepted", "bare SELECT and upsert", 0.8, _accepted(conn)),
                *_lines(compare, "wrong code", "bare SELECT, upsert, audit row", 1.0, _wrong(conn)),
                _other_way(compare, "wrong code", "bare SELECT, upsert, audit row", _wrong(conn, _in_another_way)),
                *_lines(compare, "locked", "bare SELECT", 1.2, _locked(conn)),
                _other_way(compare, "locked", "bare SELECT without a column", _locked(conn, _in_another_way)),
                *_lines(compare, "accepted, users far apart", "bare SELECT and upsert", None, _accepted(conn, USED, STRIDE)),
            ]
        assert fixture.uses(database) == 2 * USED, "a code was not accepted"
        return fixture.version(cluster), lines


def _lines(compare, what: str, bare: str, target: float | None, times):
    ours, in_function, written_out = times
    yield compare(f"{what}, in the server; other: {bare}, in a function", ours, in_function, "µs", target)
    yield compare(f"{what}, in the server; other: {bare}, written out", ours, written_out, "µs", target)


def _other_way(compare, what: str, bare: str, times):
    return compare(f"{what}, called by PERFORM, with its log line; other: {bare}, written out", *times, "µs")


def _accepted(conn, skip: int = 0, stride: int = 1) -> list[list[float]]:
    """One code of each user. Users with numbers in a row share pages, so less of them is read from memory."""
    fixture.say("accepted")

    def sides():
        now = fixture.now()
        return (f"r := totp_verify('u' || n, '{now.good}');", f"r := bare_sign_in('u' || n, {now.step});",
                fixture.bare_statements("sign_in", now.step))

    return _interleaved(conn, sides, skip, stride)


def _wrong(conn, way=None) -> list[list[float]]:
    """One wrong code of each user, which locks nobody."""
    fixture.say("wrong code")
    return (way or _interleaved)(conn, lambda: _refused("failure"))


def _refused(bare: str) -> tuple[str, str, str]:
    return f"r := totp_verify('u' || n, '{fixture.now().bad}');", f"r := bare_{bare}('u' || n);", fixture.bare_statements(bare)


def _in_another_way(conn, sides) -> list[list[float]]:
    """As a caller may write it, who has the default settings: PERFORM runs a query around the call, and a failure writes a line to
    the server log, which the bare side has not."""

    def two_sides():
        ours, _, written_out = sides()
        return ours.replace("r :=", "PERFORM"), written_out.replace("SELECT * INTO s", "PERFORM")

    conn.execute("SET log_min_messages = 'warning'")
    times = _interleaved(conn, two_sides)
    conn.execute("RESET log_min_messages")
    return times


def _locked(conn, way=None) -> list[list[float]]:
    """Locks them for an hour before it begins."""
    fixture.say("locked")
    bad = fixture.now().bad
    for _ in range(4):  # five, with the wrong codes before
        conn.execute("SELECT count(totp_verify('u' || n, %s)) FROM generate_series(1, %s) n", [bad, USED])
    locked = "SELECT count(*) FROM totp.attempts WHERE locked_until > clock_timestamp()"
    assert conn.execute(locked).fetchone()[0] == USED, "not everyone is locked"
    times = (way or _interleaved)(conn, lambda: _refused("select"))
    assert conn.execute(locked).fetchone()[0] == USED, "a lock has run out"
    return times


def _interleaved(conn, sides, skip: int = 0, stride: int = 1) -> list[list[float]]:
    """Returns microseconds per call of each side, in turns; the first block is not counted."""
    times: list[list[float]] = [[] for _ in sides()]
    for block in range(BLOCKS + 1):
        first = skip + 1 + block * BLOCK * stride
        statements = sides()
        for turn in range(len(statements)):
            side = (turn + block) % len(statements)
            times[side].append(fixture.statements_microseconds(
                conn, statements[side], first, first + (BLOCK - 1) * stride, "r boolean; s bare_secrets;", stride))
        if block % VACUUM_EVERY == 0:
            conn.execute("VACUUM bare_used, bare_attempts")
    return [each[1:] for each in times]
