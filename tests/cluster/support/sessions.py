"""A session at a given time, and a statement that runs in another session."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime

from server import PATIENCE_SECONDS, Database, wait_until
from totp import NOON, fix_clock

GUARD = "SET statement_timeout = '60s'"  # against a test that hangs; no measure of speed


def session(db: Database, when: datetime = NOON, **options) -> closing:
    """A superuser's session in which it is that time: `with session(db) as conn`."""
    conn = db.connect(**options)
    fix_clock(conn, when)
    return closing(conn)


class Background:
    """A statement that runs in its own session. At the end of the block it must have succeeded: see `answer`."""

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
