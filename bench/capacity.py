"""The figures that docs/design/capacity.md uses: bytes of a user, WAL and flushes of a sign-in, WAL and time of a rotation."""

from contextlib import closing

import fixture

USERS = fixture.scaled(100_000, 2_000)
CALLS = 1_000
STRIDE = USERS // CALLS  # far enough apart that each call touches separate pages
TABLES = ("secrets", "used_codes", "attempts", "audit_log")
LOOP = "DO $do$ BEGIN FOR i IN 1 .. {calls} LOOP PERFORM totp_verify((SELECT user_id FROM users WHERE n = i * {stride}), '{code}'); COMMIT; END LOOP; END $do$"


def measure(compare, figure):
    # With fsync on: otherwise PostgreSQL counts no flush.
    with fixture.server(fsync="on") as cluster:
        database = cluster.create_database()
        with closing(database.connect()) as conn:
            lines = list(_measure(conn, figure))
        return fixture.version(cluster), lines


def _measure(conn, figure):
    clock = fixture.START
    conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
    # User ids like UUIDs: 36 characters, in random order.
    conn.execute("CREATE TABLE users AS SELECT n::int AS n, gen_random_uuid()::text AS user_id FROM generate_series(1, %s) n", [USERS])
    conn.execute("ALTER TABLE users ADD PRIMARY KEY (n)")
    conn.execute("SELECT count(totp_import(user_id, %s, account_name => 'user' || n || '@example.com', issuer => 'Example',"
                 " confirmed => true)) FROM users", [fixture.SECRET])
    conn.execute(f"VACUUM (ANALYZE) {', '.join('totp.' + table for table in TABLES)}")  # not the tables that are still empty
    for table in TABLES:
        yield _row(conn, figure, table)

    # Each kind leaves the state that the next one needs: a used code, failures below the lock, a lock.
    for name, wrong, compression in (("accepted", False, "lz4"), ("accepted", False, "off"), ("replayed", False, "off"), ("wrong", True, "off")):
        if name == "accepted":
            clock += 600
        conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
        conn.execute(f"SET wal_compression = {compression}")
        yield from _sign_ins(conn, figure, name if compression == "off" else f"{name}, wal_compression = {compression}", clock, wrong)
    for _ in range(5):
        conn.execute(_loop(clock, True))
    yield from _sign_ins(conn, figure, "refused, locked", clock, True)

    yield from _rotations(conn, figure, f"{USERS:,} secrets", "totp.secrets")
    fixture.say("a set of recovery codes for each user")
    conn.execute("SELECT count(c) FROM users, totp_reset_recovery_codes(user_id) c")
    conn.execute("VACUUM (ANALYZE)")
    yield _row(conn, figure, "recovery_codes")
    yield from _rotations(conn, figure, f"{USERS:,} secrets and as many sets of ten recovery codes", "totp.secrets, totp.recovery_codes")


def _row(conn, figure, table: str):
    heap, index, rows = conn.execute(f"SELECT pg_table_size('totp.{table}'), pg_indexes_size('totp.{table}'), count(*) FROM totp.{table}").fetchone()
    return figure(f"bytes of a row of totp.{table}, heap + indexes", f"{heap / rows:,.0f} + {index / rows:,.0f}")


def _rotations(conn, figure, what: str, tables: str):
    """Measures both ways to rotate, each with vacuumed tables at the beginning of a checkpoint interval."""
    for call in ("SELECT totp_rotate_key()", "CALL totp_rotate_key_online(10000)"):
        conn.execute(f"VACUUM (ANALYZE) {tables}")
        conn.execute("CHECKPOINT")
        start, lsn = conn.execute("SELECT clock_timestamp(), pg_current_wal_insert_lsn()").fetchone()
        conn.execute(call)
        seconds, wal = conn.execute("SELECT EXTRACT(epoch FROM clock_timestamp() - %s)::float, pg_current_wal_insert_lsn() - %s", [start, lsn]).fetchone()
        yield figure(f"{call.split(' ')[1]}, {what}: seconds, WAL bytes of a user", f"{seconds:.1f}, {float(wal) / USERS:,.0f}")


def _loop(clock: int, wrong: bool) -> str:
    good = fixture.code(clock)
    code = f"{(int(good) + 500_000) % 1_000_000:06}" if wrong else good
    return LOOP.format(calls=CALLS, stride=STRIDE, code=code)


def _sign_ins(conn, figure, name: str, clock: int, wrong: bool):
    """Measures WAL, flushes and transaction ids of a call: of the first on its pages after a checkpoint, and of a later one."""
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


def flushes(conn) -> str:
    """Returns the view in which this server counts flushes of the WAL: since PostgreSQL 18 that of all I/O."""
    return "wal_sync" if conn.info.server_version < 180000 else "(SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal')"


def _counters(conn) -> tuple[float, ...]:
    conn.execute("SELECT pg_stat_force_next_flush()")
    return tuple(float(value) for value in conn.execute(
        f"SELECT pg_current_wal_insert_lsn() - '0/0', wal_fpi, {flushes(conn)}, pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        "  FROM pg_stat_wal").fetchone())
