"""REPACK (CONCURRENTLY), new in PostgreSQL 19: it copies a table while others write to it, and learns of their changes by logical
decoding, which does not see what changes in place.

So the tables have no replica identity there, which REPACK needs, and no row changes in place in a table that has one, as after
pg_upgrade from an older PostgreSQL.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import NamedTuple

import psycopg
import pytest
from amounts import amount
from health import health
from server import wait_until
from sessions import GUARD, Background, session
from totp import (NOON, NO_CODE, SECRET, check, code_at, counters, error_of, fix_clock, good, import_secret, is_waiting, recover,
                  recovery_codes, stage, verify, wrong, wrong_codes)

TABLES = ["attempts", "used_codes", "floor", "counters"]
REPACK = "REPACK (CONCURRENTLY) totp.{0}"
REPACKS = [REPACK, "REPACK (CONCURRENTLY) totp.{0} USING INDEX {0}_pkey", "REPACK (CONCURRENTLY, ANALYZE) totp.{0}"]
NOTHING = "ALTER TABLE totp.{0} REPLICA IDENTITY NOTHING"
DEFAULT = "ALTER TABLE totp.{0} REPLICA IDENTITY DEFAULT"  # as pg_upgrade leaves it

USERS = amount("REPACK_USERS", 200, light=40)
STEPS = 10
GUESSES = 4  # one less than the lock
SESSIONS = 8


def test_only_from_19_on_the_tables_have_no_replica_identity(db):
    """Before, a DELETE would fail under a publication that cannot leave them out."""
    nothing = {table for [table] in db.execute("SELECT relname FROM pg_class WHERE relnamespace = 'totp'::regnamespace AND relreplident = 'n' AND relkind = 'r'")}
    assert nothing == (set(TABLES) if has_repack(db) else set())


def has_repack(db) -> bool:
    return int(db.value("SHOW server_version_num")) >= 190000


@pytest.fixture
def db19(db):
    if not has_repack(db):
        pytest.skip("REPACK came with PostgreSQL 19")
    return db


# --- under load --------------------------------------------------------------------------------------


class Load:
    """Sessions, each with users of its own, and what they were told."""

    def __init__(self, db) -> None:
        self.db = db
        self.lock = threading.Lock()
        self.accepted = self.came_back = self.rejected = self.charged = self.refused = 0
        with closing(db.connect()) as conn:
            fix_clock(conn, NOON)
            for number in range(USERS):
                import_secret(conn, f"user-{number}", SECRET)
                import_secret(conn, f"guessed-{number}", SECRET)

    def run(self, dba) -> None:
        """All sessions at once. `dba` gets a connection, and a function that says whether they go on."""
        with ThreadPoolExecutor(SESSIONS) as pool, closing(self.db.connect()) as conn:
            running = [pool.submit(self.session, number) for number in range(SESSIONS)]
            conn.execute(GUARD)
            dba(conn, lambda: not all(one.done() for one in running))
            for one in running:
                one.result()

    def session(self, number: int) -> None:
        """In each time step it signs its users in, and then tries each accepted code again."""
        mine = range(number, USERS, SESSIONS)
        with closing(self.db.connect()) as conn:
            for step in range(1, STEPS + 1):
                now = NOON + timedelta(seconds=30 * step)
                fix_clock(conn, now)
                code = code_at(SECRET, now)
                accepted, rejected = self.transaction(conn, [f"user-{i}" for i in mine], code)
                again, _ = self.transaction(conn, accepted, code)
                guessed = [f"guessed-{i}" for i in mine] if step <= GUESSES else []
                _, charged = self.transaction(conn, guessed, next(wrong_codes(SECRET, now)))
                with self.lock:
                    self.accepted += len(accepted)
                    self.came_back += len(again)
                    self.rejected += len(rejected)
                    self.charged += len(charged)

    def transaction(self, conn, users: list[str], code: str) -> tuple[list[str], list[str]]:
        """Whose code was accepted, and whose not. One who is refused ends the transaction, and takes nothing back."""
        answers: dict[bool, list[str]] = {True: [], False: []}
        conn.execute("BEGIN")
        for user in users:
            try:
                answers[verify(conn, user, code)].append(user)
            except psycopg.errors.ObjectNotInPrerequisiteState as error:
                assert "REPLICA IDENTITY NOTHING" in error.diag.message_hint
                with self.lock:
                    self.refused += 1
                conn.execute("ROLLBACK; BEGIN")
        conn.execute("COMMIT")
        return answers[True], answers[False]

    def lost(self) -> tuple[int, int]:
        """How many used codes came back, and how many charges are gone."""
        return self.came_back, self.charged - self.db.value("SELECT sum(failures) FROM totp.attempts WHERE user_id LIKE 'guessed-%'")


def test_under_load_every_repack_is_refused(db19):
    load = Load(db19)
    done = []

    def repack(conn, sessions_go_on):
        tried = False
        while sessions_go_on() or not tried:
            tried = True
            for statement in (repack.format(table) for table in TABLES for repack in REPACKS):
                try:
                    conn.execute(statement)
                    done.append(statement)
                except psycopg.errors.ObjectNotInPrerequisiteState as error:
                    assert "REPLICA IDENTITY NOTHING" in error.diag.message_detail

    load.run(repack)
    assert load.lost() == (0, 0)
    assert done == []
    assert (load.accepted, load.rejected, load.charged, load.refused) == (USERS * STEPS, 0, USERS * GUESSES, 0)


def test_under_load_nothing_comes_back_from_tables_that_are_repacked(db19):
    """A superuser gives one table after the other its replica identity back, as pg_upgrade leaves it, repacks it, and takes the identity away."""
    load = Load(db19)
    done = []

    def repack(conn, sessions_go_on):
        while sessions_go_on() or len(done) < len(TABLES):
            for table in TABLES:
                for statement in (DEFAULT, REPACK, NOTHING):
                    conn.execute(statement.format(table))
                done.append(table)

    load.run(repack)
    assert load.lost() == (0, 0)
    assert load.rejected == 0 and load.accepted > 0 and load.refused > 0


# --- one after the other -----------------------------------------------------------------------------

PHASES = {  # what another session holds, and what REPACK waits for then
    "before the copy": ("SELECT pg_current_xact_id()", "RepackWorkerExport"),
    "after the copy": ("LOCK TABLE totp.used_codes IN ROW EXCLUSIVE MODE", "relation"),
}


@pytest.mark.parametrize("holds, waits_for", PHASES.values(), ids=PHASES)
def test_a_repack_that_began_before_has_ended_when_the_identity_changes(db19, holds, waits_for):
    """The change needs a lock that REPACK does not let go, and so does a sign-in that finds the changed table. Before the copy REPACK
    waits for every transaction that has an id, the change too: PostgreSQL ends one of them."""
    db19.execute(DEFAULT.format("used_codes"))
    with (session(db19) as holder, session(db19) as watch, session(db19) as late, session(db19) as repacking, session(db19) as altering,
          ThreadPoolExecutor(3) as pool):
        import_secret(watch, "alice", SECRET)
        holder.execute("BEGIN")
        holder.execute(holds)
        repack = pool.submit(ends, repacking, REPACK.format("used_codes"))
        wait_until(lambda: event_of(watch, repacking) == waits_for, "REPACK to wait")
        change = pool.submit(ends, altering, NOTHING.format("used_codes"))
        wait_until(lambda: change.done() or is_waiting(watch, altering), "the change to wait")
        sign_in = pool.submit(told, late, "totp_verify('alice', %s)", good())
        wait_until(lambda: sign_in.done() or is_waiting(watch, late), "the sign-in to wait")
        assert not (repack.done() or change.done() or sign_in.done())
        holder.execute("COMMIT")
        victims = [repack.result(), change.result()].count("40P01")
        assert victims == (1 if waits_for == "RepackWorkerExport" else 0)
        was_changed = change.result() != "40P01"
        assert sign_in.result() == (True if was_changed else "55000")
        altering.execute(NOTHING.format("used_codes"))
        assert check(late, "alice", good()).reason == ("replayed" if was_changed else "accepted")
        assert check(late, "alice", good()).reason == "replayed"


def ends(conn, statement) -> str | None:
    """Runs it. The SQLSTATE if it was the victim of a deadlock."""
    try:
        conn.execute(statement)
    except psycopg.errors.DeadlockDetected as error:
        return error.sqlstate


def event_of(watch, conn) -> str:
    return watch.execute("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", [conn.info.backend_pid]).fetchone()[0]


def test_a_repack_waits_for_who_signed_in_before_the_identity_was_given_back(db19):
    with session(db19) as conn, session(db19) as watch:
        import_secret(watch, "alice", SECRET)
        import_secret(watch, "bob", SECRET)
        conn.execute("BEGIN")
        assert verify(conn, "alice", good()) is True
        with Background(db19, DEFAULT.format("used_codes")) as altering:
            altering.wait_until_blocked(watch)
            assert verify(conn, "bob", good()) is True
            conn.execute("ROLLBACK")
        db19.execute(REPACK.format("used_codes"))
        db19.execute(NOTHING.format("used_codes"))
        assert [check(conn, user, good()).reason for user in ("alice", "bob")] == ["replayed"] * 2


# --- after pg_upgrade --------------------------------------------------------------------------------


class Alice(NamedTuple):
    """She has used the code of noon and one of her recovery codes, and has a wrong code and a wrong recovery code behind her."""

    conn: psycopg.Connection
    used: str
    unused: str

    def lost_nothing(self) -> None:
        assert counters(self.conn) == (1, 1, False, False)
        assert check(self.conn, "alice", good()).reason == "replayed"
        assert recover(self.conn, self.used) is False


@pytest.fixture
def alice(db19):
    with session(db19) as conn:
        import_secret(conn, "alice", SECRET)
        alice = Alice(conn, *recovery_codes(conn, count=2))
        assert (verify(conn, "alice", good()), recover(conn, alice.used)) == (True, True)
        assert (verify(conn, "alice", wrong()), recover(conn, NO_CODE)) == (False, False)
        yield alice


def told(conn, call, code=None):
    """The answer, or the SQLSTATE of an error whose HINT is a statement."""
    try:
        return conn.execute(f"SELECT {call}", [code] if code else None).fetchone()[0]
    except psycopg.Error as error:
        assert error.diag.message_hint.startswith("Run ALTER TABLE totp.") and "REPLICA IDENTITY NOTHING" in error.diag.message_hint
        return error.sqlstate


@pytest.mark.parametrize("tables", [["attempts"], TABLES], ids=" ".join)
def test_with_the_identity_of_an_older_server_nothing_is_judged(db19, alice, tables):
    for table in tables:
        db19.execute(DEFAULT.format(table))
    pending = stage(alice.conn, "alice", device="phone")
    with session(db19) as later:
        for one in (alice.conn, later):
            for call, code in [("totp_verify('alice', %s)", good(1)), ("totp_check('alice', %s)", good(1)), ("totp_verify('alice', %s)", wrong(1)),
                               ("totp_check_confirm('alice', %s, 'phone')", code_at(pending, NOON)), ("totp_recover('alice', %s)", alice.unused),
                               ("totp_recover('alice', %s)", NO_CODE), ("totp_unlock('alice')", None), ("totp_rename_user('alice', 'bob')", None),
                               ("totp_unenroll('alice', %s)", good(1))]:
                assert told(one, call, code) == "55000", call
    for table in tables:
        db19.execute(REPACK.format(table))
        db19.execute(NOTHING.format(table))
    alice.lost_nothing()
    assert check(alice.conn, "alice", good(1)).reason == "accepted"
    assert check(alice.conn, "alice", good(1)).reason == "replayed"


def test_a_right_code_is_refused_if_the_used_codes_could_be_repacked(db19, alice):
    """A wrong one is charged, as it needs nothing but the attempts."""
    db19.execute(DEFAULT.format("used_codes"))
    assert (told(alice.conn, "totp_verify('alice', %s)", good(1)), told(alice.conn, "totp_recover('alice', %s)", alice.unused)) == ("55000", "55000")
    assert (told(alice.conn, "totp_verify('alice', %s)", wrong(1)), counters(alice.conn)) == (False, (2, 1, False, False))


def test_no_floor_is_set_in_a_table_that_could_be_repacked(db19, alice):
    db19.execute(DEFAULT.format("floor"))
    assert verify(alice.conn, "alice", good(-1)) is False  # it is set, and only read
    db19.execute("UPDATE totp.floor SET timeline = 0")  # as after a promotion
    with session(db19) as later:
        assert (told(later, "totp_verify('alice', %s)", good(1)), told(later, "totp_verify('alice', %s)", wrong(1))) == ("55000", "55000")
        db19.execute(NOTHING.format("floor"))
        assert check(later, "alice", good(1)).reason == "accepted"


def test_what_cannot_be_counted_is_counted_later(db19):
    with session(db19) as conn:
        import_secret(conn, "alice", SECRET)
        db19.execute(DEFAULT.format("counters"))
        assert verify(conn, "alice", good()) is True
        assert db19.value("SELECT sum(accepted) FROM totp.counters") == 0
        db19.execute(REPACK.format("counters"))
        db19.execute(NOTHING.format("counters"))
        pid = conn.info.backend_pid
    wait_until(lambda: not db19.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]), "the session to end")
    assert db19.value("SELECT sum(accepted) FROM totp.counters") == 1


PARTITIONED = """
ALTER EXTENSION pg_totp DROP TABLE totp.floor;
ALTER TABLE totp.floor RENAME TO before;
CREATE TABLE totp.floor (LIKE totp.before INCLUDING ALL) PARTITION BY HASH (one);
CREATE TABLE totp."P" PARTITION OF totp.floor FOR VALUES WITH (MODULUS 1, REMAINDER 0);
INSERT INTO totp.floor SELECT * FROM totp.before"""


def test_health_has_the_statement_for_each_table(db19):
    """Also for a partition, whose replica identity is its own. After the statements it says nothing any more, and REPACK is refused."""
    db19.psql(PARTITIONED)
    for table in ("attempts", "used_codes", "counters"):
        db19.execute(DEFAULT.format(table))
    says = "REPACK (CONCURRENTLY) would lose its changes, so it is not changed: "
    with session(db19) as conn:
        found = {name.removeprefix("table_"): answer for name, answer in health(conn).items() if name.startswith("table_")}
        names = {"attempts": "totp.attempts", "used_codes": "totp.used_codes", "floor": 'totp."P"', "counters": "totp.counters"}
        for table, name in names.items():
            status, detail = found.pop(table)
            assert status == ("warn" if table == "counters" else "fail")
            assert detail == f"table totp.{table}: {says}ALTER TABLE {name} REPLICA IDENTITY NOTHING"
            conn.execute(detail.partition(says)[2])
            assert error_of(conn, f"REPACK (CONCURRENTLY) {name}").sqlstate == "55000"
        assert found == {}
        assert {status for name, (status, _) in health(conn).items() if name.startswith("table_")} == {"ok"}


def test_a_publication_for_all_tables_but_those_of_totp_is_in_nobodys_way(db19):
    """One for all tables is: PostgreSQL refuses a DELETE from a table that has no replica identity, and health calls it a failure."""
    with session(db19) as conn:
        import_secret(conn, "alice", SECRET)
        conn.execute("SET client_min_messages = error; CREATE PUBLICATION p FOR ALL TABLES")
        error = error_of(conn, "SELECT totp_remove('alice')")
        assert error.sqlstate == "55000" and "replica identity" in error.diag.message_primary
        assert health(conn)["table_attempts"][0] == "fail"
        tables = [table for [table] in conn.execute("SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'totp'::regnamespace AND relkind = 'r'")]
        conn.execute(f"DROP PUBLICATION p; CREATE PUBLICATION p FOR ALL TABLES EXCEPT (TABLE {', '.join(tables)})")
        assert {status for name, (status, _) in health(conn).items() if name.startswith("table_")} == {"ok"}
        assert conn.execute("SELECT totp_remove('alice')").fetchone() == (1,)
