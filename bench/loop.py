"""In the server: one transaction per call, fsync = off on both sides, so that what is left is the work itself."""

from contextlib import closing

import fixture

CALLS = 10_000  # one for each of as many users
ROUNDS = 7
LOOP = "DO $do$ BEGIN FOR n IN 1 .. %d LOOP PERFORM {}; COMMIT; END LOOP; END $do$" % CALLS


def measure(compare, figure):
    # FATAL: the log line of a failure is switched off, as the bare side has none.
    with fixture.server(log_min_messages="fatal") as cluster:
        database = cluster.create_database()
        fixture.make_users(database, CALLS)
        with closing(database.connect()) as conn:
            lines = [
                compare("accepted, server loop", *_interleaved(conn, "bare_sign_in('u' || n, {step})", "{good}"), "µs", 0.9),
                compare("wrong code, server loop", *_interleaved(conn, "bare_failure('u' || n)", "{bad}", pause=120), "µs", 1.0),
                compare("locked, server loop", *_locked(conn), "µs", 1.2),
            ]
        return fixture.version(cluster), lines


def _locked(conn) -> tuple[list[float], list[float]]:
    """Everyone is locked for an hour before it begins, and the clock stands still."""
    clock = _Clock.now + 7_200
    for _ in range(20):
        _set(conn, clock := clock + 3_600)
        conn.execute("SELECT count(totp_verify('u' || n, %s)) FROM generate_series(1, %s) n", [_values()["bad"], CALLS])
    assert conn.execute("SELECT count(*) FROM totp.attempts WHERE locked_until > %s", [fixture.iso(clock)]).fetchone()[0] == CALLS
    return _interleaved(conn, "bare_select('u' || n)", "{bad}", pause=0)


def _interleaved(conn, bare: str, code: str, pause: int = 300) -> tuple[list[float], list[float]]:
    """Microseconds per call of ours and of the bare side, in turns. Between rounds the clock moves on by `pause`."""
    ours_times, bare_times = [], []
    for _ in range(ROUNDS):
        _set(conn, _Clock.now + pause)
        ours_times.append(_time(conn, f"totp_verify('u' || n, '{code}')"))
        bare_times.append(_time(conn, bare))
        conn.execute("VACUUM bare_used, bare_attempts")
        if code == "{bad}" and pause:
            # So that no round meets a lock.
            conn.execute("SELECT count(totp_unlock('u' || n)) FROM generate_series(1, %s) n", [CALLS])
    return ours_times, bare_times


class _Clock:
    now = fixture.START


def _set(conn, unix_seconds: int) -> None:
    _Clock.now = unix_seconds
    conn.execute(f"SET totp.clock = '{fixture.iso(unix_seconds)}'")


def _values() -> dict[str, str]:
    good = fixture.code(_Clock.now)
    return {"good": good, "bad": f"{(int(good) + 500_000) % 1_000_000:06}", "step": str(_Clock.now // fixture.STEP)}


def _time(conn, call: str) -> float:
    statement = LOOP.format(call.format(**_values()))
    before = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    conn.execute(statement)
    after = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    return (after - before).total_seconds() * 1e6 / CALLS
