"""The same sign-in by an application in Python: psycopg, cryptography, pyotp, over tables of the same shape.

Both sides are driven by the same number of Python processes with psycopg, since a client has its price too.
"""

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from hmac import compare_digest

import fixture
import psycopg
import pyotp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROCESSES = 8
CALLS = fixture.scaled(1_000, 10)  # of each process in a round
ROUNDS = 5
KEY = bytes(range(32))  # of the application
SELECT = "SELECT secret_id, sealed, digits, period FROM app_secrets WHERE user_id = %s AND device = 'default' AND slot = 'active'"
# One row or none: a step counts once, even if others try it at the same time.
BURN = """
INSERT INTO {} AS u (time_step, used_at, uses, recovery_mask, secret_id, user_id) VALUES (%s, now(), 1, 0, %s, %s)
ON CONFLICT (user_id, secret_id) DO UPDATE SET time_step = EXCLUDED.time_step, used_at = EXCLUDED.used_at, uses = u.uses + 1
 WHERE u.time_step < EXCLUDED.time_step"""


def ours(conn, user_id: str, code: str) -> bool:
    return conn.execute("SELECT totp_verify(%s, %s)", [user_id, code]).fetchone()[0]


def in_transaction(conn, user_id: str, code: str) -> bool:
    with conn.transaction():
        return _sign_in(conn, user_id, code, "app_used")


def in_autocommit(conn, user_id: str, code: str) -> bool:
    return _sign_in(conn, user_id, code, "app_used_autocommit")


def _sign_in(conn, user_id: str, code: str, used: str) -> bool:
    secret_id, sealed, digits, period = conn.execute(SELECT, [user_id]).fetchone()
    secret = AESGCM(KEY).decrypt(sealed[:12], sealed[12:], user_id.encode()).decode()
    totp, now = pyotp.TOTP(secret, digits=digits, interval=period), int(time.time()) // period
    matching = [step for step in (now - 1, now, now + 1) if compare_digest(totp.generate_otp(step), code)]
    return bool(matching) and conn.execute(BURN.format(used), [max(matching), secret_id, user_id]).rowcount == 1


WAYS = (ours, in_transaction, in_autocommit)
USED = ("totp.used_codes", "app_used", "app_used_autocommit")


def measure(compare, figure):
    users = PROCESSES * CALLS * (ROUNDS + 1)
    with fixture.server(fsync="on", synchronous_commit="on") as cluster:
        database = cluster.create_database()
        fixture.make_users(database, users + 10)
        make_application(database)
        trips = [_round_trips(database, way, users + 1) for way in WAYS]
        tps = list(zip(*[_round(database, round_) for round_ in range(ROUNDS + 1)][1:], strict=True))
        for table in USED:
            assert database.value(f"SELECT sum(uses) FROM {table}") == users + 10, f"a code was not accepted: {table}"
        lines = []
        for i, name in ((1, "SELECT and upsert in a transaction"), (2, "the two in autocommit")):
            lines.append(figure(f"round trips of a sign-in; other: {name}", f"{trips[0]}", f"{trips[i]}", trips[0] / trips[i],
                                "< 1", trips[0] < trips[i]))
            lines.append(compare(f"sign-ins per second, {PROCESSES} clients; other: {name}", tps[0], tps[i], "tps", 1.0, at_least=True))
        return fixture.version(cluster), lines


def make_application(database) -> None:
    """Creates tables of the same shape, with secrets that the application has sealed."""
    fixture.say("sealing the application's secrets")
    database.psql("CREATE TABLE app_secrets AS SELECT * FROM totp.secrets LIMIT 0")
    cipher = AESGCM(KEY)
    with closing(database.connect()) as conn, closing(database.connect()) as target:
        rows = conn.execute("SELECT * FROM totp.secrets")
        names = [column.name for column in rows.description]
        user, sealed = names.index("user_id"), names.index("sealed")
        with target.cursor().copy("COPY app_secrets FROM STDIN") as copy:
            for row in rows:
                nonce = os.urandom(12)
                box = nonce + cipher.encrypt(nonce, fixture.SECRET.encode(), row[user].encode())
                copy.write_row([*row[:sealed], box, *row[sealed + 1:]])
    database.psql("ALTER TABLE app_secrets ADD PRIMARY KEY (user_id, device, slot); CREATE INDEX ON app_secrets (key_id);")
    for table in USED[1:]:
        database.psql(f"CREATE TABLE {table} AS SELECT * FROM totp.used_codes; ALTER TABLE {table} ADD PRIMARY KEY (user_id, secret_id);")
    database.psql("VACUUM (ANALYZE); CHECKPOINT;")


def _round_trips(database, way, first: int) -> int:
    """Counts how often the server is ready for a query again, during one sign-in of a session that has everything prepared."""
    code = fixture.now().good
    with closing(database.connect()) as conn, tempfile.TemporaryFile("w+") as trace:
        for n in range(first, first + 9):
            assert way(conn, f"u{n}", code)
        conn.pgconn.trace(trace.fileno())
        assert way(conn, f"u{first + 9}", code)
        conn.pgconn.untrace()
        trace.seek(0)
        return trace.read().count("ReadyForQuery")


def _round(database, round_: int) -> list[float]:
    """Measures sign-ins per second of each way, over users who have not signed in before."""
    fixture.say(f"round {round_} of {ROUNDS}")
    tps = [0.0] * len(WAYS)
    for i in range(len(WAYS)):
        side = (i + round_) % len(WAYS)
        database.psql("VACUUM app_used, app_used_autocommit")
        tps[side] = _run(database, side, 1 + round_ * PROCESSES * CALLS)
    return tps


def _run(database, side: int, first: int) -> float:
    fork = multiprocessing.get_context("fork")
    code, where = fixture.now(ahead=1).good, (str(database.cluster.folder), database.name)
    with ProcessPoolExecutor(PROCESSES, fork, _remember, [fork.Barrier(PROCESSES)]) as pool:
        clients = [pool.submit(_client, where, side, first + i * CALLS, code) for i in range(PROCESSES)]
        began, ended = zip(*[client.result() for client in clients], strict=True)
    return PROCESSES * CALLS / (max(ended) - min(began))


def _remember(barrier) -> None:
    """Sets, in each process, the barrier at which they wait, so that they begin together."""
    global together
    together = barrier


def _client(where: tuple[str, str], side: int, first: int, code: str) -> tuple[float, float]:
    folder, database = where
    with closing(psycopg.connect(host=folder, dbname=database, user="postgres", autocommit=True)) as conn:
        together.wait(60)
        began = time.monotonic()
        for n in range(first, first + CALLS):
            if not WAYS[side](conn, f"u{n}", code):
                raise AssertionError(f"{WAYS[side].__name__}: the code of u{n} was not accepted")
        return began, time.monotonic()
