"""Enrollments, imports and QR codes per second.

BENCH_BASELINE=/path/to/libpg_totp.so: a library of commit 5f6266e, before imports got cheaper. Its imports take turns with ours,
each in a separate database. The user of the server must be able to read it.
"""

import os
from contextlib import closing

import fixture

ROWS = fixture.scaled(20_000, 100)
QR_CODES = fixture.scaled(200, 20)
ROUNDS = 8
BASELINE = os.environ.get("BENCH_BASELINE")


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        with closing(database.connect()) as conn:
            _make_legacy(conn)
            uri = "otpauth://totp/ACME:alice%40example.com?secret=" + fixture.SECRET + "&issuer=ACME"
            lines = [
                figure("imports per second, one statement", _rate(
                    conn, "SELECT count(totp_import(user_id, secret, confirmed => true)) FROM legacy", ROWS)),
                figure("enrollments per second, one statement", _rate(
                    conn, f"SELECT count(t.secret) FROM generate_series(1, {ROWS}) n, totp_enroll('new' || n) t", ROWS)),
            ]
            for kind in ("svg", "png", "text"):
                call = f"SELECT count(totp_qr_{kind}('{uri}' || n)) FROM generate_series(1, {QR_CODES}) n"
                lines.append(figure(f"QR codes per second, {kind}", _rate(conn, call, QR_CODES)))
        if BASELINE:
            lines.append(_beside_baseline(cluster, compare))
        return fixture.version(cluster), lines


def _make_legacy(conn) -> None:
    """Creates a table of users and secrets of another system."""
    conn.execute("""
        CREATE TABLE legacy AS
        SELECT 'user' || n AS user_id,
               'X' || upper(translate(substr(encode(sha256(n::text::bytea), 'hex'), 1, 31), '0189', 'GHIJ')) AS secret  -- X is no digit of hex
          FROM generate_series(1, %s) n""" % ROWS)


def _beside_baseline(cluster, compare):
    """Imports the same users in both databases, in turns."""
    fixture.say("imports beside the baseline")
    with closing(cluster.create_database().connect()) as ours, closing(cluster.create_database().connect()) as theirs:
        theirs.execute(f"""
            CREATE FUNCTION import_of_baseline(text, text, text, text, text, text, int, int, boolean, boolean, text) RETURNS text
            LANGUAGE c SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS '{BASELINE}', 'totp_import_v2_wrapper'""")
        calls = ("totp_import({who}, secret, confirmed => true)",
                 "import_of_baseline({who}, secret, NULL, NULL, 'default', 'SHA1', 6, 30, true, false, NULL)")
        times: tuple[list[float], list[float]] = ([], [])
        for conn in (ours, theirs):
            _make_legacy(conn)
        for round_ in range(ROUNDS + 1):
            for side in fixture.turns(round_):
                call = calls[side].format(who=f"user_id || '-{round_}'")
                taken = fixture.cpu_seconds((ours, theirs)[side], f"SELECT count({call}) FROM legacy")
                times[side].append(taken * 1e6 / ROWS)
        return compare("an import, one statement; other: at commit 5f6266e", times[0][1:], times[1][1:], "µs", 2, times_faster=True)


def _rate(conn, statement: str, rows: int) -> str:
    before = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    done = conn.execute(statement).fetchone()[0]
    after = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    assert done == rows, (statement, done)
    return f"{rows / (after - before).total_seconds():,.0f}"
