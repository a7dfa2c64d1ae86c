"""totp_rotate_key() over a million secrets, against a bare UPDATE that rewrites the same column of the same rows."""

import os
from contextlib import closing

import fixture

ROWS = int(os.environ.get("ROTATION_ROWS", 1_000_000))
ROUNDS = 3


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        with closing(database.connect()) as conn:
            fixture.set_clock(database, fixture.START)
            conn.execute("SELECT count(totp_import('u' || n, %s, confirmed => true)) FROM generate_series(1, %s) n",
                         [fixture.SECRET, ROWS])
            ours, bare = [], []
            for _ in range(ROUNDS):
                # Each side finds the table as the other left it, and leaves it vacuumed.
                bare.append(_time(conn, "UPDATE totp.secrets SET sealed = sealed || ''::bytea, key_id = key_id"))
                ours.append(_time(conn, "SELECT totp_rotate_key()"))
            moved = conn.execute("SELECT sum(secrets) FROM totp_keys()").fetchone()[0]
            assert moved == ROWS, moved
            lines = [compare(f"totp_rotate_key(), {ROWS:,} secrets", ours, bare, "s", 1.5)]
            online = _time(conn, "CALL totp_rotate_key_online(10000)")
            lines.append(figure(f"totp_rotate_key_online(10000), {ROWS:,} secrets", f"{online:,.1f} s"))
        return fixture.version(cluster), lines


def _time(conn, statement: str) -> float:
    conn.execute("VACUUM totp.secrets")
    conn.execute("CHECKPOINT")
    before = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    conn.execute(statement)
    after = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    return (after - before).total_seconds()
