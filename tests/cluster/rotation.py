"""What the tests of key rotation share: many users at once, what must be true of every sealed row, a session that waits."""

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime

import psycopg
import pytest
from server import PATIENCE_SECONDS, Database, wait_until
from totp import NOON, code_at, fix_clock

AT_ONCE = "SELECT * FROM totp_rotate_key()"
ONLINE = "CALL totp_rotate_key_online(1)"
both_kinds = pytest.mark.parametrize("rotate", [AT_ONCE, ONLINE], ids=["at once", "online"])

GUARD = "SET statement_timeout = '60s'"  # against a test that hangs; no measure of speed

# The four bytes after the version byte of a sealed value name its data key.
NOT_UNDER_ITS_KEY = """
SELECT count(*)
  FROM (SELECT key_id, sealed FROM totp.secrets UNION ALL SELECT key_id, sealed FROM totp.recovery_codes) AS s
 WHERE substr(sealed, 2, 4) <> int4send(key_id) OR NOT EXISTS (SELECT FROM totp.data_keys k WHERE k.key_id = s.key_id)"""


def secret_of(user_id: str) -> str:
    """The base32 secret that a test gives to this user."""
    return base64.b32encode(hashlib.sha1(user_id.encode()).digest()).decode()


def import_users(conn: psycopg.Connection, size: int, first: int = 0, prefix: str = "user") -> list[str]:
    """Active users with the secrets of secret_of(), imported in one statement; their ids."""
    users = [f"{prefix}-{number:06}" for number in range(first, first + size)]
    query = "SELECT count(totp_import(u, s, confirmed => true)) FROM unnest(%s::text[], %s::text[]) AS given(u, s)"
    assert conn.execute(query, [users, [secret_of(user) for user in users]]).fetchone() == (size,)
    return users


def sign_in_all(conn: psycopg.Connection, users: list[str], when: datetime) -> int:
    """Sign in each of these users with the code of that time, in one statement; how many got in."""
    fix_clock(conn, when)
    codes = [code_at(secret_of(user), when) for user in users]
    query = "SELECT count(*) FROM unnest(%s::text[], %s::text[]) AS given(u, c) WHERE totp_verify(u, c)"
    return conn.execute(query, [users, codes]).fetchone()[0]


def keys(conn: psycopg.Connection) -> list[tuple[int, str]]:
    """Number and state of each data key."""
    return conn.execute("SELECT key_id, state FROM totp_keys()").fetchall()


def open_everything(conn: psycopg.Connection) -> tuple[int, int]:
    """Open every secret and every set of recovery codes, each under the one data key that it names; how many there are.

    A row that does not open, or whose data key is not there, is an error.
    """
    assert conn.execute(NOT_UNDER_ITS_KEY).fetchone() == (0,)
    with conn.transaction(force_rollback=True):  # a rotation opens everything, and nothing else does
        [[key, secrets]] = conn.execute(AT_ONCE).fetchall() if keys(conn) else [[0, 0]]
        [[under, elsewhere]] = conn.execute("SELECT count(*) FILTER (WHERE key_id = %s), count(*) FILTER (WHERE key_id <> %s) FROM totp.recovery_codes", [key, key])
    assert elsewhere == 0
    return secrets, under


def session(db: Database, when: datetime = NOON, **options) -> closing:
    """A superuser's session in which it is that time: `with session(db) as conn`."""
    conn = db.connect(**options)
    fix_clock(conn, when)
    return closing(conn)


class Background:
    """A statement that runs in a session of its own. At the end of the block it must have succeeded: see `answer`."""

    def __init__(self, db: Database, query: str) -> None:
        self.db, self.query = db, query

    def __enter__(self) -> "Background":
        self._stack = ExitStack()
        self.conn = self._stack.enter_context(session(self.db))
        self.conn.execute(GUARD)
        self.future = self._stack.enter_context(ThreadPoolExecutor(1)).submit(self.conn.execute, self.query)
        return self

    def __exit__(self, *_) -> None:
        with self._stack:
            cursor = self.future.result(PATIENCE_SECONDS)
            self.answer = cursor.fetchall() if cursor.description else []

    def wait_until_blocked(self, conn) -> None:
        """Until it waits for a lock that another session holds."""
        query = "SELECT cardinality(pg_blocking_pids(%s)) > 0"

        def is_blocked() -> bool:
            return conn.execute(query, [self.conn.info.backend_pid]).fetchone()[0]

        wait_until(lambda: is_blocked() or self.future.done(), "the session to wait for a lock")
        assert not self.future.done()
