"""Enrollments, imports and QR codes per second."""

from contextlib import closing

import fixture

ROWS = fixture.scaled(20_000, 100)
QR_CODES = fixture.scaled(200, 20)


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        with closing(database.connect()) as conn:
            conn.execute("""
                CREATE TABLE legacy AS
                SELECT 'user' || n AS user_id,
                       translate(substr(encode(sha256(n::text::bytea), 'hex'), 1, 32), '0189', 'GHIJ') AS secret
                  FROM generate_series(1, %s) n""" % ROWS)
            conn.execute("UPDATE legacy SET secret = upper(secret)")
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
        return fixture.version(cluster), lines


def _rate(conn, statement: str, rows: int) -> str:
    before = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    done = conn.execute(statement).fetchone()[0]
    after = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    assert done == rows, (statement, done)
    return f"{rows / (after - before).total_seconds():,.0f}"
