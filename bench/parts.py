"""Where the time of a sign-in goes: calls that end earlier, each with one part less. One transaction per call, fsync = off."""

import statistics
from contextlib import closing

import fixture

BLOCK = 500
BLOCKS = fixture.scaled(60, 3)


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        fixture.make_users(database, BLOCK * (BLOCKS + 1))
        with closing(database.connect()) as conn:
            lines = _parts(conn, figure)
        assert fixture.uses(database) == BLOCK * (BLOCKS + 1), "a code was not accepted"
        return fixture.version(cluster), lines


def _parts(conn, figure):
    fixture.say("parts")
    parts = {
        "the loop, a function of PostgreSQL's, the commit": lambda code: "length('u' || n) > 0",
        "SECURITY DEFINER with SET: a user that is NULL": lambda code: f"totp_verify(NULL, '{code}')",
        "three tables opened and searched: an unknown user": lambda code: f"totp_verify('x' || n, '{code}')",
        "their rows read: a code of five digits": lambda code: f"totp_verify('u' || n, '{code[:5]}')",
        "the secret opened, codes compared, both rows judged, WAL written: accepted": lambda code: f"totp_verify('u' || n, '{code}')",
    }
    times: list[list[float]] = [[] for _ in parts]
    for block in range(BLOCKS + 1):
        first = 1 + block * BLOCK
        code = fixture.now().good
        for i in range(len(parts)):
            side = (i + block) % len(parts)
            call = list(parts.values())[side](code)
            times[side].append(fixture.loop_microseconds(conn, call, first, first + BLOCK - 1))
    medians = [statistics.median(each[1:]) for each in times]
    before = [0.0, *medians]
    return [figure(f"with {name}", f"{time:.1f} µs", f"{time - less:+.1f} µs") for name, time, less in zip(parts, medians, before, strict=False)]
