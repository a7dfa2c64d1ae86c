"""With ten million users: totp_health(), a page of totp_list(), with and without writes beside them, and after a mass removal."""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import fixture

USERS = fixture.scaled(10_000_000, 2_000)
CALLS = fixture.scaled(50, 5)
REMOVED = USERS // 10
FULL_MEMORY = 32  # MiB; a hash of ten million users would take hundreds
# Rows as the extension writes them, but for what is sealed, which nobody opens. Every user has recovery codes, and one in a hundred
# had a wrong code in the last hour.
ID = "'u' || to_char(n, 'FM00000000')"
FILL = {
    "secrets": f"""
        (user_id, device, slot, secret_id, version, key_id, sealed, algorithm, digits, period, issuer, account_name, created_at, confirmed_at, enforced_since)
        SELECT {ID}, 'default', 'active', n, 1, key_id, sha256(int8send(n)) || sha256(int8send(-n)), 'SHA1', 6, 30, 'Example', {ID}, now(), now(), now()""",
    "recovery_codes": f"""
        (user_id, set_id, count, key_id, sealed, created_at)
        SELECT {ID}, 1000000000 + n, 10, key_id, decode(repeat(encode(sha256(int8send(n)), 'hex'), 11), 'hex'), now()""",
    "used_codes": f"""
        (time_step, used_at, uses, recovery_mask, secret_id, user_id)
        SELECT 0, now() - n % 500 * interval '1 hour', 1, 0, s, {ID}""",
    "attempts": f"""
        (locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures, user_id)
        SELECT '-infinity', '-infinity', CASE n % 100 WHEN 0 THEN now() ELSE '-infinity' END, (n % 100 = 0)::int, 0, {ID}""",
    "audit_log": f"""
        (at, event, user_id, actor, db_user, application_name)
        SELECT now() - n * interval '3 minute', CASE n % 100 WHEN 0 THEN 'failed' ELSE 'imported' END, {ID}, 'app', 'app', 'web'""",
}
# Also the last hour of an attack.
ATTACK = """
INSERT INTO totp.audit_log (at, event, user_id, actor, db_user, application_name)
SELECT now() - n * interval '10 ms', CASE n % 2 WHEN 0 THEN 'failed' ELSE 'replayed' END, 'u' || to_char(n, 'FM00000000'), 'app', 'app', 'web' FROM generate_series(1, 300000) n"""
# Later than those of the attack, and read first.
ROLLED_BACK = """
INSERT INTO totp.audit_log (at, event, user_id, actor, db_user, application_name)
SELECT now() + n * interval '1 ms', %s, 'u' || to_char(n, 'FM00000000'), 'app', 'app', 'web' FROM generate_series(1, 1000000) n"""


def measure(compare, figure):
    with fixture.server(shared_buffers="2GB", wal_level="minimal", max_wal_senders=0, maintenance_work_mem="512MB") as cluster:
        database = cluster.create_database()
        fill(database, USERS)
        lines = list(figures(database, figure))
        return fixture.version(cluster), lines


def fill(database, users: int) -> None:
    """Fills the tables, and then builds the indexes of the extension, which sleep meanwhile."""
    database.execute("SELECT totp_import('alice', %s, confirmed => true), totp_reset_recovery_codes('alice')", [fixture.SECRET])
    for table, select in FILL.items():
        fixture.say(f"{users:,} users: {table}")
        of_both = "CROSS JOIN LATERAL unnest(ARRAY[n, 1000000000 + n]) AS s" if table == "used_codes" else ""
        with closing(database.connect()) as conn, conn.transaction():
            # With wal_level = minimal what is written to a new file is not logged.
            conn.execute(f"CREATE TEMP TABLE before AS SELECT * FROM totp.{table}; TRUNCATE totp.{table}; INSERT INTO totp.{table} SELECT * FROM before; DROP TABLE before")
            conn.execute(f"UPDATE pg_index SET indisready = false, indisvalid = false WHERE indrelid = 'totp.{table}'::regclass")
            conn.execute(f"INSERT INTO totp.{table} {select} FROM generate_series(1, {users}) n {of_both} CROSS JOIN (SELECT max(key_id) AS key_id FROM totp.data_keys) k")
            conn.execute(f"REINDEX TABLE totp.{table}")
    fixture.say("VACUUM")
    database.psql("VACUUM (ANALYZE); CHECKPOINT;")


def figures(database, figure):
    fixture.say("calls")
    yield from _calls(database, figure, "alone")
    with _beside(database):
        yield from _calls(database, figure, "beside sign-ins, imports and removals")
    database.execute(ATTACK)
    yield from _calls(database, figure, "in the hour of an attack")
    for event in ("failed", "replayed"):
        with closing(database.connect()) as conn, conn.transaction(force_rollback=True):
            conn.execute(ROLLED_BACK, [event])
    yield from _calls(database, figure, "after two million guesses that were rolled back")
    fixture.say(f"removing {REMOVED:,} users")
    for table in FILL.keys() - {"audit_log"}:
        database.execute(f"DELETE FROM totp.{table} WHERE user_id < 'u' || to_char({REMOVED}, 'FM00000000') AND user_id <> 'alice'")
    for when in ("first", "next"):
        with closing(database.connect()) as conn:
            conn.execute("SELECT totp_enabled('alice')")
            yield figure(f"ms of a page of totp_list() over {REMOVED:,} dead users before VACUUM, the {when} time",
                         f"{fixture.seconds(conn, 'SELECT count(*) FROM totp_list()') * 1000:,.1f}")
            yield figure(f"ms of totp_health() then, the {when} time", f"{fixture.seconds(conn, 'SELECT count(*) FROM totp_health()') * 1000:,.1f}")
    yield from _full(database, figure)


def _full(database, figure):
    """Also the memory of that backend, without what it shares: the most that there was in any hundredth of a second."""
    with closing(database.connect()) as conn, ThreadPoolExecutor(1) as other:
        conn.execute("SELECT totp_enabled('alice')")
        before = _memory_of(conn)
        call = other.submit(fixture.seconds, conn, "SELECT count(*) FROM totp_health(true)")
        most = before
        while not call.done():
            most = max(most, _memory_of(conn))
            time.sleep(0.01)
    yield figure("seconds of totp_health(full => true)", f"{call.result():,.1f}")
    taken = (most - before) / 2**20
    yield figure("MiB of memory that it takes", f"{taken:,.1f}", target=f"≤ {FULL_MEMORY}", met=taken <= FULL_MEMORY)


def _memory_of(conn) -> int:
    """Bytes of the backend's own memory."""
    [line] = [line for line in Path(f"/proc/{conn.info.backend_pid}/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def _calls(database, figure, how: str):
    """Limits are in milliseconds."""
    calls = {
        "totp_health()": (lambda call: "SELECT count(*) FROM totp_health()", 50),
        "totp_metrics()": (lambda call: "SELECT count(*) FROM totp_metrics()", 10),
        "a page of totp_list(), 100 users": (lambda call: f"SELECT count(*) FROM totp_list('u{call * 7919 % USERS * 101 % USERS:08}')", 5),
    }
    for measured, (statement, limit) in calls.items():
        with closing(database.connect()) as conn:
            first = fixture.seconds(conn, statement(0)) * 1000
            taken = [fixture.seconds(conn, statement(call)) * 1000 for call in range(CALLS)]
        median = statistics.median(taken)
        yield figure(f"ms of {measured} with {USERS:,} users, {how}", f"{median:,.2f}",
                     f"max {max(taken):,.1f}, first of a session {first:,.1f}", None, f"≤ {limit}", median <= limit)


@contextmanager
def _beside(database):
    """While it lasts, sessions sign in, import and remove. One core is left for what is measured."""
    stop = threading.Event()

    def work(number: int) -> None:
        with closing(database.connect()) as conn:
            turn = 0
            while not stop.is_set():
                turn += 1
                user = f"w{number}-{turn % 100}"
                conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [user, fixture.SECRET])
                conn.execute("SELECT totp_verify(%s, '000000')", [user])
                conn.execute("SELECT totp_remove(%s)", [user])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(max(1, fixture.CORES - 1))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
