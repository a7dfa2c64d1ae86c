"""Time of a sign-in with 10,000, 1,000,000 and 10,000,000 users; the disk space of a user; the memory of a backend; and the
cost of every function."""

import re
import statistics
from contextlib import closing
from pathlib import Path

import costs
import fixture

SIZES = tuple(fixture.scaled(size, 1_000) for size in (10_000, 1_000_000, 10_000_000))
REAL = min(SIZES)  # users of each size who sign in, spread evenly among the others
ROUNDS = 10
CALLS = REAL // ROUNDS
PASSES = 100  # of the memory measurement, over all real users
# All users, in the order of the ids. Those who do not sign in have rows of the same shape and size, which nobody opens.
FILL = {
    "secrets": """
        SELECT 'u' || to_char(n, 'FM00000000'), t.device, t.slot, coalesce(r.secret_id, 1000000000 + n), t.version, t.key_id,
               coalesce(r.sealed, substr(sha256(int8send(n)) || sha256(int8send(-n)), 1, length(t.sealed))), t.algorithm, t.digits,
               t.period, t.issuer, coalesce(r.account_name, 'u' || to_char(n, 'FM00000000')), t.created_at, t.confirmed_at,
               t.enforced_since, t.expires_at, t.disabled_at""",
    "used_codes": """
        SELECT t.time_step, t.used_at, t.uses, t.recovery_mask, coalesce(r.secret_id, 1000000000 + n), 'u' || to_char(n, 'FM00000000')""",
    "attempts": """
        SELECT t.locked_until, t.recovery_locked_until, t.last_failed_at, t.failures, t.recovery_failures,
               'u' || to_char(n, 'FM00000000')""",
}


def measure(compare, figure):
    # Large enough for the rows of all who sign in: the look-up is measured, not the disk. With "minimal" the filling of the
    # tables is not logged.
    with fixture.server(shared_buffers="3GB", wal_level="minimal", max_wal_senders=0) as cluster:
        databases = [_make(cluster, size) for size in SIZES]
        lines = list(_times(databases, compare))
        lines += _sizes(databases, figure)
        lines += _memory(databases[0], figure)
        lines += costs.measure(databases, SIZES, [size // REAL for size in SIZES], figure)
        return fixture.version(cluster), lines


def _make(cluster, size: int):
    """Creates a database with that many users. REAL of them (number stride, 2 × stride and so on) can sign in."""
    fixture.say(f"{size:,} users")
    stride = size // REAL
    database = cluster.create_database()
    database.execute("SELECT count(totp_import('u' || to_char(n::bigint * %s, 'FM00000000'), %s, confirmed => true, period => %s))"
                     " FROM generate_series(1, %s) n", [stride, fixture.SECRET, fixture.PERIOD, REAL])

    def fill(table: str, select: str) -> None:
        with closing(database.connect()) as conn, conn.transaction():
            conn.execute(f"CREATE TABLE real_{table} AS SELECT * FROM totp.{table}")
            conn.execute(f"ANALYZE real_{table}")
            conn.execute(f"TRUNCATE totp.{table}")
            conn.execute(f"""
                INSERT INTO totp.{table} {select}
                  FROM generate_series(1, {size}) n
                  LEFT JOIN real_{table} r ON r.user_id = 'u' || to_char(n, 'FM00000000')
                 CROSS JOIN (SELECT * FROM real_{table} LIMIT 1) t""")

    fixture.in_parallel(fill, list(FILL.items()))
    database.psql("ANALYZE")
    return database


def _times(databases, compare):
    """Rounds of one session each, in which some users sign in twice. Only the second time counts: by then their pages are
    logged whole and mapped into the process. What PostgreSQL itself needs to find the same rows is shown by a SELECT."""
    fixture.say("rounds")
    ours, read = ([[] for _ in SIZES] for _ in range(2))
    for round_ in range(ROUNDS):
        for i in range(len(SIZES)):
            side = (i + round_) % len(SIZES)
            if round_ == 0:
                databases[side].psql("CHECKPOINT")
            for times, taken in zip((ours, read), _run(databases[side], SIZES[side] // REAL, round_ * CALLS), strict=True):
                times[side].append(taken)
    for database in databases:
        assert fixture.uses(database) == 2 * ROUNDS * CALLS, "a code was not accepted"
    for larger in (1, 2):
        yield compare(f"a sign-in, end to end, with {SIZES[larger]:,} users; other: {SIZES[0]:,}", ours[larger], ours[0], "µs", 1.5)
        yield compare("the same, a SELECT of the three rows", read[larger], read[0], "µs")


def _run(database, stride: int, skip: int) -> tuple[float, float]:
    """Microseconds of a sign-in and of a SELECT as pgbench sees them: medians. One after the other lie far apart."""
    script = f"""\\set n (1 + (({skip} + :k % {CALLS}) * 7919) % {REAL}) * {stride}
\\if :k <= {CALLS}
SELECT totp_verify('u' || lpad(:n::text, 8, '0'), :first);
\\elif :k <= 2 * {CALLS}
SELECT totp_verify('u' || lpad(:n::text, 8, '0'), :second);
\\else
SELECT s.sealed, u.time_step, a.failures FROM totp.secrets s JOIN totp.used_codes u USING (user_id, secret_id)
  JOIN totp.attempts a USING (user_id) WHERE s.user_id = 'u' || lpad(:n::text, 8, '0');
\\endif"""
    codes = {"first": fixture.now().good, "second": fixture.now(ahead=1).good}
    taken = fixture.latencies(database, 3 * CALLS, script, **codes)
    return statistics.median(taken[CALLS:2 * CALLS]), statistics.median(taken[2 * CALLS:])


def _sizes(databases, figure):
    for database, size in zip(databases, SIZES, strict=True):
        heap, index = (0, 0)
        parts = []
        for table in FILL:
            row = database.execute(f"SELECT pg_table_size('totp.{table}'), pg_indexes_size('totp.{table}')")[0]
            heap, index = heap + row[0], index + row[1]
            parts.append(f"{table} {row[0] / size:,.0f} + {row[1] / size:,.0f}")
        yield figure(f"bytes of a user, heap + indexes, {size:,} users", f"{heap / size:,.0f} + {index / size:,.0f}", ", ".join(parts))


def _memory(database, figure):
    """Measures one backend that signs in all users again and again. The clock moves between the passes."""
    fixture.say(f"memory over {PASSES * REAL:,} sign-ins")
    clock = fixture.START + 1_000_000_000
    with closing(database.connect()) as conn:
        secrets = conn.execute("SELECT count(*) FROM totp.secrets").fetchone()[0]
        rows_before, bytes_before = _used_codes(conn)
        uses, taken = fixture.uses(database), []
        for pass_ in range(1, PASSES + 1):
            clock += 10 * fixture.PERIOD
            conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
            code = fixture.code_of_period(clock)
            fixture.loop_microseconds(conn, f"totp_verify('u' || to_char(n, 'FM00000000'), '{code}')", 1, REAL)
            if pass_ in (PASSES // 10, PASSES):
                taken.append(_kilobytes(conn))
        assert fixture.uses(database) - uses == PASSES * REAL, "a code was not accepted"
        rows_after, bytes_after = _used_codes(conn)
    (resident, contexts), (resident_after, contexts_after) = taken
    early, late = f"{PASSES // 10 * REAL:,}", f"{PASSES * REAL:,}"
    flat = contexts_after <= contexts and resident_after - resident <= 256
    yield figure(f"memory of a backend after {late} sign-ins; other: after {early}: RssAnon, memory contexts",
                 f"{resident_after:,} kB, {contexts_after:,} kB", f"{resident:,} kB, {contexts:,} kB", resident_after / resident,
                 "flat: no context grows, RssAnon by at most 256 kB", flat)
    yield figure("rows of totp.used_codes after them; other: secrets", f"{rows_after:,}", f"{secrets:,}", rows_after / secrets,
                 "= 1", rows_after == secrets == rows_before)
    yield figure("bytes of totp.used_codes with its index after them; other: before", f"{bytes_after:,}", f"{bytes_before:,}",
                 bytes_after / bytes_before, "= 1", bytes_after == bytes_before)


def _kilobytes(conn) -> tuple[int, int]:
    """Returns the private memory of the session's process, and how much of it PostgreSQL's memory contexts hold."""
    status = Path(f"/proc/{conn.info.backend_pid}/status").read_text()
    contexts = conn.execute("SELECT sum(total_bytes)::bigint / 1024 FROM pg_backend_memory_contexts").fetchone()[0]
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]), contexts


def _used_codes(conn) -> tuple[int, int]:
    return conn.execute("SELECT count(*), pg_total_relation_size('totp.used_codes') FROM totp.used_codes").fetchone()
