"""What docs/design/capacity.md reckons with: bytes of a user, WAL and flushes of a sign-in, WAL and time of a rotation."""

import os
from contextlib import closing

import fixture

USERS = int(os.environ.get("CAPACITY_USERS", 100_000))
CALLS = 1_000
STRIDE = USERS // CALLS  # far enough apart that each call has pages of its own
TABLES = ("secrets", "used_codes", "attempts", "audit_log")
LOOP = "DO $do$ BEGIN FOR i IN 1 .. {calls} LOOP PERFORM totp_verify((SELECT user_id FROM users WHERE n = i * {stride}), '{code}'); COMMIT; END LOOP; END $do$"


def measure(compare, figure):
    # With fsync, or PostgreSQL counts no flush.
    with fixture.server(fsync="on") as cluster:
        database = cluster.create_database()
        with closing(database.connect()) as conn:
            lines = list(_measure(conn, figure))
        return fixture.version(cluster), lines


def _measure(conn, figure):
    clock = fixture.START
    conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
    # User ids as UUIDs are: 36 characters, in no order.
    conn.execute("CREATE TABLE users AS SELECT n::int AS n, gen_random_uuid()::text AS user_id FROM generate_series(1, %s) n", [USERS])
    conn.execute("ALTER TABLE users ADD PRIMARY KEY (n)")
    conn.execute("SELECT count(totp_import(user_id, %s, account_name => 'user' || n || '@example.com', issuer => 'Example',"
                 " confirmed => true)) FROM users", [fixture.SECRET])
    conn.execute("VACUUM (ANALYZE)")
    for table in TABLES:
        heap, index, rows = conn.execute(f"SELECT pg_table_size('totp.{table}'), pg_indexes_size('totp.{table}'), count(*) FROM totp.{table}").fetchone()
        yield figure(f"bytes of a row of totp.{table}, heap + indexes", f"{heap / rows:,.0f} + {index / rows:,.0f}")

    conn.execute("SELECT count(c) FROM users, totp_recovery_codes(user_id) c WHERE n <= %s", [CALLS])
    conn.execute("VACUUM totp.recovery_codes")
    heap, index = conn.execute("SELECT pg_table_size('totp.recovery_codes'), pg_indexes_size('totp.recovery_codes')").fetchone()
    yield figure("bytes of a row of totp.recovery_codes, heap + indexes", f"{heap / CALLS:,.0f} + {index / CALLS:,.0f}")

    # Each kind leaves what the next one needs: a used code, failures below the lock, a lock.
    for name, wrong, compression in (("accepted", False, "lz4"), ("accepted", False, "off"), ("replayed", False, "off"), ("wrong", True, "off")):
        if name == "accepted":
            clock += 600
        conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
        conn.execute(f"SET wal_compression = {compression}")
        yield from _sign_ins(conn, figure, name if compression == "off" else f"{name}, wal_compression = {compression}", clock, wrong)
    for _ in range(5):
        conn.execute(_loop(clock, True))
    yield from _sign_ins(conn, figure, "refused, locked", clock, True)

    for label, statement in (("totp_rotate_key()", "SELECT totp_rotate_key()"), ("totp_rotate_key_online(10000)", "CALL totp_rotate_key_online(10000)")):
        conn.execute("VACUUM totp.secrets")
        conn.execute("CHECKPOINT")
        start, lsn = conn.execute("SELECT clock_timestamp(), pg_current_wal_insert_lsn()").fetchone()
        conn.execute(statement)
        seconds, wal = conn.execute("SELECT EXTRACT(epoch FROM clock_timestamp() - %s)::float, pg_current_wal_insert_lsn() - %s", [start, lsn]).fetchone()
        yield figure(f"{label}, {USERS:,} secrets: seconds, WAL bytes of a secret", f"{seconds:.1f}, {float(wal) / USERS:,.0f}")


def _loop(clock: int, wrong: bool) -> str:
    good = fixture.code(clock)
    code = f"{(int(good) + 500_000) % 1_000_000:06}" if wrong else good
    return LOOP.format(calls=CALLS, stride=STRIDE, code=code)


def _sign_ins(conn, figure, name: str, clock: int, wrong: bool):
    """WAL, flushes and transaction ids of a call: the first to touch its pages after a checkpoint, and a later one."""
    for when in ("first after a checkpoint", "later"):
        if when == "later" and name.startswith("accepted"):
            clock += 120
            conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
        if when != "later":
            conn.execute("CHECKPOINT")
        before = _counters(conn)
        conn.execute(_loop(clock, wrong))
        after = _counters(conn)
        wal, images, flushes, ids = (round(b - a, 3) for a, b in zip(before, after, strict=True))
        yield figure(f"{name}, {when}: WAL bytes, page images, flushes, transaction ids of a call",
                     f"{wal / CALLS:,.0f}, {images / CALLS:.1f}, {flushes / CALLS:.2f}, {ids / CALLS:.1f}")


def _counters(conn) -> tuple[float, ...]:
    conn.execute("SELECT pg_stat_force_next_flush()")
    return tuple(float(value) for value in conn.execute(
        "SELECT pg_current_wal_insert_lsn() - '0/0', wal_fpi, wal_sync, pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM pg_stat_wal").fetchone())
