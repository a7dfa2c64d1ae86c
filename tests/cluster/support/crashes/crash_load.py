"""Sessions that sign in, fail and more under load, and record each answer in the ledger."""

import random
import subprocess
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from crash_ledger import PERIOD, SESSIONS, Ledger, Moment, State, User
from server import Cluster, wait_until
from totp import NO_CODE, code_at, wrong_codes

# A server that flushes no WAL by itself, and writes no page for which it would have to: for tests of what is durable at the answer.
LAZY = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "bgwriter_delay": "10s", "checkpoint_timeout": "1d", "autovacuum": "off"}


@contextmanager
def under_load(ledger: Ledger, maintain: bool = True, **settings):
    """Sessions with these settings that go on until their server dies, or to the end of the block. Yields them."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    running = [Session(ledger, ledger.db.connect(options=options), number) for number in range(SESSIONS)]
    if maintain:
        running.append(Maintenance(ledger, ledger.db.connect(), SESSIONS))
    for session in running:
        session.start()
    try:
        yield running
    finally:
        for session in running:
            session.going_on = False
        for session in running:
            session.join()
            session.conn.close()
        for session in running:
            if session.failed is not None:
                raise session.failed


def more_of(ledger: Ledger, what: str, number: int) -> None:
    """Waits until this has been counted this many more times."""
    target = ledger.counts[what] + number
    wait_until(lambda: ledger.counts[what] >= target, f"{number} more of {what}")


class Session(threading.Thread):
    """One session: sign-ins, failures and the rest, some in transactions that end either way or never."""

    def __init__(self, ledger: Ledger, conn: psycopg.Connection, number: int) -> None:
        super().__init__()
        self.ledger, self.conn, self.number = ledger, conn, number
        self.numbers = random.Random(f"{ledger.seed} {number} {len(ledger.ever_told)}")
        self.going_on = True
        self.in_transaction = False
        self.failed: BaseException | None = None
        self.ended_at = float("inf")

    def run(self) -> None:
        try:
            while self.going_on:
                try:
                    self.work()
                except psycopg.Error as error:
                    self.in_transaction = False
                    if self.conn.closed or self.conn.broken:
                        return
                    self.ledger.count(f"error {error.sqlstate}")
                    self.conn.execute("ROLLBACK")
        except psycopg.OperationalError:
            pass  # the server died in the meantime
        except BaseException as error:
            self.failed = error
        finally:
            self.ended_at = time.monotonic()

    def work(self) -> None:
        if self.numbers.random() < 0.4:
            self.act()
            return
        self.conn.execute("BEGIN")
        self.in_transaction = True
        for _ in range(self.numbers.randint(1, 5)):
            self.act()
        self.conn.execute(self.numbers.choice(["COMMIT", "ROLLBACK"]))
        self.in_transaction = False

    def act(self) -> None:
        """One call."""
        chance = self.numbers.random()
        if chance < 0.15:
            user = self.numbers.choice(self.ledger.hot)
            clock = user.clock = user.clock + self.numbers.choice([0, 0, 0, PERIOD])
            self.ask(user, "right", code_at(user.secret, clock), clock)
            return
        users = self.ledger.users[self.number]
        if chance < 0.17 and not self.in_transaction:
            user = User(f"{self.number}-{len(self.ledger.ever_told)}-{len(users)}", max(user.clock for user in users))
            users.append(user)
            self.enroll(user)
            return
        user = self.numbers.choice([user for user in users if user.secret])
        if chance < 0.21 and user.recovery_codes:
            self.ask(user, "recovery", user.recovery_codes.pop(), user.clock)
        elif chance < 0.24:
            self.ask(user, "unlock", None, user.clock)
        elif user.recovery_codes and (chance < 0.28 or (user is users[1] and chance < 0.7)):  # of one of them the recovery codes are attacked
            self.ask(user, "wrong recovery", NO_CODE, user.clock)
        elif chance < 0.5 or (user is users[0] and chance < 0.9):  # one of them is attacked
            self.ask(user, "wrong", next(wrong_codes(user.secret, user.clock)), user.clock)
        elif chance < 0.60 and user.last_told:
            clock, code = user.last_told
            self.ask(user, "used", code, clock)
        else:
            locks = [state.locked_until or 0 for state in user.possible]
            if min(locks) <= user.clock or self.numbers.random() < 0.5:  # else it does not wait for the end of its lock
                user.clock = max(user.clock + PERIOD, *locks)
            self.ask(user, "right", code_at(user.secret, user.clock), user.clock)

    def ask(self, user: User, kind: str, code: str | None, clock: int) -> None:
        if user not in self.ledger.hot:  # from here on it may be stored
            after = {state.after(kind, clock)[1] for state in user.possible}
            user.history.append(Moment(float("inf"), False, user.possible | after))
        call = "ask" if self.numbers.random() < 0.8 else "ask_in_a_block_that_fails"
        asked = "unlock" if kind == "unlock" else "recovery" if "recovery" in kind else self.way_to_ask(user)
        [answer] = self.conn.execute(f"SELECT {call}(%s, %s, %s, %s)", [clock, asked, user.name, code]).fetchone()
        told_at = time.monotonic()
        if user not in self.ledger.hot:
            user.history.pop()
        self.ledger.note(told_at, user, kind, asked, code, clock, answer)

    def way_to_ask(self, user: User) -> str:
        """Mostly totp_check, which says most; totp_confirm if the secret is certainly pending, since none of its codes was accepted."""
        if user not in self.ledger.hot and all(state is not None and state.uses == 0 for state in user.possible) and self.numbers.random() < 0.5:
            return "confirm"
        return "verify" if self.numbers.random() < 0.3 else "code"

    def enroll(self, user: User) -> None:
        user.history.append(Moment(float("inf"), False, frozenset([None, State()])))
        [user.secret] = self.conn.execute("SELECT ask(%s, 'enroll', %s, NULL)", [user.clock, user.name]).fetchone()
        user.history.append(Moment(time.monotonic(), False, frozenset([State()])))
        self.ledger.count("enrolled")


class Maintenance(Session):
    """What the jobs of a DBA do at the same time."""

    def work(self) -> None:
        self.conn.execute(self.numbers.choice([
            "CHECKPOINT", "VACUUM (FREEZE) totp.attempts", "VACUUM totp.used_codes", "SELECT * FROM totp_rotate_key()",
            "CALL totp_rotate_key_online(10)", "DELETE FROM totp.audit_log"]))
        threading.Event().wait(0.05)


def skip_unless_mountable() -> None:
    """For tests that need their own file system."""
    probe = Cluster()
    try:
        probe.mount("1m")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here, which needs root: {error}")
    finally:
        probe.remove()


def assert_no_corruption(db) -> None:
    """pg_amcheck, and the checksum of every page on disk. The server runs again afterwards."""
    db.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    db.cluster.client("pg_amcheck", "--heapallindexed", db.name)
    db.cluster.stop()
    assert "Bad checksums:  0" in db.cluster.run("pg_checksums", "--check", "-D", db.cluster.data)
    db.cluster.start()
