"""In the server: one transaction per call, fsync = off on both sides, so that what is left is the work itself."""

from contextlib import closing

import fixture

USERS = 10_000
CALLS = 10_000
ROUNDS = 7


def measure(compare, figure):
    # FATAL: the log line of a failure is switched off, as the bare side has none.
    with fixture.server(log_min_messages="fatal") as cluster:
        database = cluster.create_database()
        fixture.make_users(database, USERS)
        database.psql("""
            CREATE PROCEDURE each_user(call text, rounds int) LANGUAGE plpgsql AS $$
            BEGIN
              FOR n IN 1 .. rounds LOOP
                EXECUTE call USING 'u' || n;
                COMMIT;
              END LOOP;
            END $$;
        """)
        lines = []
        for subject, ours, bare, target in _pairs():
            lines.append(compare(subject, *_interleaved(database, ours, bare), "µs", target))
        return fixture.version(cluster), lines


def _pairs():
    verify = "DO $do$ BEGIN FOR n IN 1 .. %d LOOP PERFORM totp_verify('u' || n, '{code}'); COMMIT; END LOOP; END $do$" % CALLS
    bare = "DO $do$ BEGIN FOR n IN 1 .. %d LOOP PERFORM {call}; COMMIT; END LOOP; END $do$" % CALLS
    return [
        ("accepted, server loop", verify.replace("{code}", "{good}"), bare.replace("{call}", "bare_sign_in('u' || n, {step})"), 0.9),
        ("wrong code, server loop", verify.replace("{code}", "{bad}"), bare.replace("{call}", "bare_failure('u' || n)"), 1.0),
        ("locked, server loop", "LOCKED", bare.replace("{call}", "bare_select('u' || n)"), 1.2),
    ]


def _interleaved(database, ours: str, bare: str) -> tuple[list[float], list[float]]:
    times_ours, times_bare = [], []
    _interleaved.clock = getattr(_interleaved, "clock", fixture.START)
    with closing(database.connect()) as conn:
        if ours == "LOCKED":
            _lock_everyone(conn)
            ours = "DO $do$ BEGIN FOR n IN 1 .. %d LOOP PERFORM totp_verify('u' || n, '{bad}'); COMMIT; END LOOP; END $do$" % CALLS
        for _ in range(ROUNDS):
            if "{bad}" not in ours or not times_ours:
                _interleaved.clock += 10 * fixture.STEP
            clock = _interleaved.clock
            conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
            good = fixture.code(clock)
            values = {"good": good, "bad": f"{(int(good) + 500_000) % 1_000_000:06}", "step": clock // fixture.STEP}
            times_ours.append(_time(conn, _fill(ours, values)))
            times_bare.append(_time(conn, _fill(bare, values)))
            conn.execute("VACUUM bare_used, bare_attempts")
        if "{bad}" in ours:
            conn.execute("SELECT count(totp_unlock('u' || n)) FROM generate_series(1, %s) n", [USERS])
    return times_ours, times_bare


def _lock_everyone(conn) -> None:
    clock = _interleaved.clock + 10 * fixture.STEP
    conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
    bad = f"{(int(fixture.code(clock)) + 500_000) % 1_000_000:06}"
    for _ in range(20):
        conn.execute("SELECT count(totp_verify('u' || n, %s)) FROM generate_series(1, %s) n", [bad, USERS])
        clock += 1
    _interleaved.clock = clock - 10 * fixture.STEP - 20


def _fill(statement: str, values: dict) -> str:
    for name, value in values.items():
        statement = statement.replace("{" + name + "}", str(value))
    return statement


def _time(conn, statement: str) -> float:
    """Microseconds per call, by the server's own clock."""
    before = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    conn.execute(statement)
    after = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    return (after - before).total_seconds() * 1e6 / CALLS
