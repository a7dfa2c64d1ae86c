"""What the benchmarks share: the server, its users, the bare side, a code that is valid for a whole round, timing."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyotp
from server import DISK, Cluster, Database

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
START = 1_800_000_000  # Unix seconds, if a subject fixes the clock; rounds move on from there, since each code counts once
STEP = 30
PERIOD = 120  # of the users that are measured by the real clock, so that a code outlives the round
CORES = os.cpu_count() or 1
SCALE = float(os.environ.get("BENCH_SCALE", 1))  # to try a change of these files: 0.01 is quick, and its figures mean nothing


def scaled(full: int, least: int = 1) -> int:
    """Returns a number of rows or calls: `full`, or less if BENCH_SCALE is set."""
    return max(least, int(full * min(1.0, SCALE)))


def say(what: str) -> None:
    """Prints a line of progress."""
    print(f"    {datetime.now():%H:%M:%S} {what}", file=sys.stderr, flush=True)


@contextmanager
def server(**settings):
    """A separate server, removed afterwards."""
    cluster = Cluster(place=DISK)
    try:
        cluster.init()  # with fsync = off; what is configured last counts
        defaults = {"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h", "autovacuum": "off"}
        cluster.configure(**defaults | settings)
        yield cluster.start()
    finally:
        cluster.remove()


def version(cluster: Cluster) -> str:
    with closing(cluster.connect()) as conn:
        return "PostgreSQL " + conn.execute("SHOW server_version").fetchone()[0]


def set_clock(database: Database, unix_seconds: int) -> None:
    """Fixes the clock of every new session. Not for timing against a bare side: the setting is parsed at each call."""
    database.execute(f"ALTER DATABASE {database.name} SET totp.clock = '{iso(unix_seconds)}'")


def iso(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat()


def code(unix_seconds: int) -> str:
    return pyotp.TOTP(SECRET).at(unix_seconds)


def code_of_period(unix_seconds: int) -> str:
    """Returns the code of a user of `make_users` at that time."""
    return pyotp.TOTP(SECRET, interval=PERIOD).at(unix_seconds)


class Now(NamedTuple):
    """The codes that a user of `make_users` can enter now."""

    step: int  # the bare side stores it
    good: str  # for 120 to 240 seconds; for 240 to 360 with ahead = 1
    bad: str  # for longer than any round


def now(ahead: int = 0) -> Now:
    """Returns codes of the current step, or of the next one, which the window accepts too."""
    step = int(time.time()) // PERIOD + ahead
    totp = pyotp.TOTP(SECRET, interval=PERIOD)
    near = {totp.generate_otp(step + n) for n in range(-5, 10)}
    bad = next(code for code in (f"{n:06}" for n in range(100)) if code not in near)
    return Now(step, totp.generate_otp(step), bad)


def make_users(database: Database, count: int) -> None:
    """Creates users u1 … un with one secret, so that one code is valid for all. A session per core imports them."""
    say(f"importing {count:,} users")

    def work(first: int, last: int) -> None:
        with closing(database.connect()) as conn:
            conn.execute("SELECT count(totp_import('u' || n, %s, confirmed => true, period => %s)) FROM generate_series(%s::int, %s) n",
                         [SECRET, PERIOD, first, last])

    bounds = [count * i // CORES for i in range(CORES + 1)]
    in_parallel(work, [(first + 1, last) for first, last in zip(bounds, bounds[1:], strict=False)])
    database.psql("VACUUM (ANALYZE); CHECKPOINT;")


def in_parallel(work, arguments: list[tuple]) -> list:
    """Calls work(*arguments[i]), each in a thread; returns the results."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(lambda each: work(*each), arguments))


# The bare statements that do the same work, with a variable `s` for the row of the secret.
_BARE_SELECT = "SELECT * INTO s FROM bare_secrets WHERE user_id = {who} AND device = 'default' AND slot = 'active';"
BARE = {
    "sign_in": _BARE_SELECT + """
        INSERT INTO bare_used AS u (time_step, used_at, uses, recovery_mask, secret_id, user_id)
        VALUES ({step}, clock_timestamp(), 1, 0, s.secret_id, {who})
        ON CONFLICT (user_id, secret_id) DO UPDATE SET time_step = EXCLUDED.time_step, used_at = EXCLUDED.used_at,
                                                       uses = u.uses + 1;""",
    "failure": _BARE_SELECT + """
        INSERT INTO bare_attempts AS a (locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures, user_id)
        VALUES ('-infinity', '-infinity', clock_timestamp(), 1, 0, {who})
        ON CONFLICT (user_id) DO UPDATE SET failures = a.failures + 1, last_failed_at = EXCLUDED.last_failed_at;
        INSERT INTO bare_audit (at, event, user_id, actor, db_user, client_addr, application_name)
        VALUES (clock_timestamp(), 'failed', {who}, session_user, session_user, inet_client_addr(), current_setting('application_name'));""",
    "select": _BARE_SELECT,
}


def make_bare(database: Database) -> None:
    """Creates the bare side: tables and indexes of the same shape with the same rows, and the bare statements as PL/pgSQL
    functions.

    In functions they cost one call and one round trip, as ours do. `bare_statements` has them written out.
    """
    functions = "\n".join(
        f"""CREATE FUNCTION bare_{name}(who text{', step bigint' if 'step' in body else ''}) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE s bare_secrets;
        BEGIN
          {body.format(who='who', step='step')}
          RETURN FOUND;
        END $$;""" for name, body in BARE.items())
    database.psql(f"""
        CREATE TABLE bare_secrets AS SELECT * FROM totp.secrets;
        ALTER TABLE bare_secrets ADD PRIMARY KEY (user_id, device, slot);
        CREATE TABLE bare_used AS SELECT * FROM totp.used_codes;
        ALTER TABLE bare_used ADD PRIMARY KEY (user_id, secret_id);
        CREATE TABLE bare_attempts AS SELECT * FROM totp.attempts;
        ALTER TABLE bare_attempts ADD PRIMARY KEY (user_id);
        CREATE TABLE bare_audit (LIKE totp.audit_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
        INSERT INTO bare_audit SELECT * FROM totp.audit_log ORDER BY id;
        ALTER TABLE bare_audit ADD PRIMARY KEY (id);
        CREATE INDEX ON bare_audit (user_id, at);
        CREATE INDEX ON bare_audit (event, at);
        CREATE INDEX ON bare_audit (at);
        REINDEX SCHEMA totp;
        {functions}
        VACUUM (ANALYZE);
        CHECKPOINT;
    """)


def bare_statements(name: str, step: int = 0) -> str:
    """Returns the bare statements of a user `'u' || n`, for `loop_microseconds`."""
    return BARE[name].format(who="'u' || n", step=step)


def seconds(conn, statement: str) -> float:
    """Returns how long a statement takes, by the server's clock."""
    before = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    conn.execute(statement)
    after = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    return (after - before).total_seconds()


def cpu_seconds(conn, statement: str) -> float:
    """Returns how long a statement runs on a processor: what else the machine does then does not count, nor does a wait."""
    schedstat = Path(f"/proc/{conn.info.backend_pid}/schedstat")  # nanoseconds on a processor, waiting for one, …
    if not schedstat.exists():
        return seconds(conn, statement)
    before = int(schedstat.read_text().split()[0])
    conn.execute(statement)
    return (int(schedstat.read_text().split()[0]) - before) / 1e9


def loop_microseconds(conn, call: str, first: int, last: int) -> float:
    """Returns the CPU time of a call in the server, in microseconds, one transaction each, for `n` from first to last.

    An assignment evaluates only the call, while PERFORM would run a query around it.
    """
    return statements_microseconds(conn, f"r := {call};", first, last)


def statements_microseconds(conn, statements: str, first: int, last: int, declare: str = "r boolean;", by: int = 1,
                            timer=cpu_seconds) -> float:
    """Returns the same for statements of PL/pgSQL, for each `by`th number."""
    statement = f"DO $do$ DECLARE {declare} BEGIN FOR n IN {first} .. {last} BY {by} LOOP {statements} COMMIT; END LOOP; END $do$"
    return timer(conn, statement) * 1e6 / len(range(first, last + 1, by))


def uses(database: Database) -> int:
    """Counts the accepted codes."""
    return int(database.value("SELECT sum(uses) FROM totp.used_codes"))


def pgbench(database: Database, clients: int, per_client: int, script: str, *options: str, mode: str = "prepared", **variables) -> float:
    """Runs a script that many times in each of that many sessions; returns the tps. :k counts a client's turns from 1."""
    cluster = database.cluster
    path = cluster.folder / "script.sql"
    cluster.run("sh", "-c", 'cat >"$1"', "sh", path, stdin=f"\\set k :k + 1\n{script}")
    # Bound as parameters: a value has no quotes.
    given = [f"-D{name}={value}" for name, value in {"k": 0, **variables}.items()]
    out = cluster.client("pgbench", "-n", "-M", mode, "-c", clients, "-j", min(clients, CORES), "-t", per_client,
                         "-f", path, *given, *options, database.name)
    return float(next(line.split()[2] for line in out.splitlines() if line.startswith("tps = ")))


def latencies(database: Database, calls: int, script: str, **variables) -> list[float]:
    """Returns the microseconds of each run of a script in one session, in order."""
    prefix = database.cluster.folder / "pgbench_log"
    pgbench(database, 1, calls, script, "--log", f"--log-prefix={prefix}", **variables)
    [log] = prefix.parent.glob(f"{prefix.name}.*")
    # client, transaction, microseconds, …
    taken = [float(line.split()[2]) for line in log.read_text().splitlines()]
    log.unlink()
    return taken


def turns(round_: int) -> tuple[int, int]:
    """Returns which side goes first in this round: each side as often as the other."""
    return (0, 1) if round_ % 2 == 0 else (1, 0)
