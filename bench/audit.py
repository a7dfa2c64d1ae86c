"""What totp.audit_success costs: accepted codes with an audit row each, beside accepted codes without."""

from contextlib import closing

import fixture

BLOCK = 500  # calls of one side before it is the other's turn: short, so that both meet the same noise
BLOCKS = fixture.scaled(60, 4)
CALLS = BLOCK * (BLOCKS + 1)  # of each side, each by a separate user; one more block to warm up


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        fixture.make_users(database, 2 * CALLS)
        with closing(database.connect()) as on, closing(database.connect()) as off:
            on.execute("LOAD 'pg_totp'; SET totp.audit_success = on")
            fixture.say("accepted, with and without a row")
            times, wal = _interleaved((on, off))
        rows = database.value("SELECT count(*) FROM totp.audit_log WHERE event = 'verified'")
        assert (fixture.uses(database), rows) == (2 * CALLS, CALLS), "a code was not accepted, or has no row"
        return fixture.version(cluster), [
            compare("accepted, in the server, audit_success on; other: off", *times, "µs"),
            compare("the same, WAL of a sign-in", *wal, "bytes", decimals=0),
        ]


def _interleaved(sides) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Returns microseconds and bytes of WAL per call of both sides, in turns; the first block is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    wal: tuple[list[float], list[float]] = ([], [])
    for block in range(BLOCKS + 1):
        good = fixture.now().good
        for side in fixture.turns(block):
            first = 1 + (2 * block + side) * BLOCK
            conn = sides[side]
            before = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]
            times[side].append(fixture.loop_microseconds(conn, f"totp_verify('u' || n, '{good}')", first, first + BLOCK - 1))
            wal[side].append(float(conn.execute("SELECT pg_current_wal_insert_lsn() - %s", [before]).fetchone()[0]) / BLOCK)
    return (times[0][1:], times[1][1:]), (wal[0][1:], wal[1][1:])
