"""Sealing and verification beside twenty writers: no false alarm, nobody waits.

PG_TOTP_SEALINGS=600 PG_TOTP_SEAL_PAUSE=1 is one sealing a second for ten minutes.
"""

import random
import threading
from contextlib import closing

import psycopg
from amounts import SEED, amount
from totp import parallel
from trail import check_all, deviations, seal_all, verify_trail

WRITERS = 20
SEALINGS = amount("SEALINGS", full=150, light=30)
PAUSE = amount("SEAL_PAUSE", full=0, light=0)  # seconds between two

INSERT = "INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) SELECT clock_timestamp(), 'failed', %s, '', '' FROM generate_series(1, %s)"
# Whose lock someone waits for, while the session of the sealing is one of the two.
WAITS = """SELECT a.pid, b.pid FROM pg_stat_activity a CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS b(pid)
            WHERE a.wait_event_type = 'Lock' AND %s IN (a.pid, b.pid)"""


class Writer:
    """Transactions of every kind, one after the other. What was committed is counted."""

    def __init__(self, db, number: int) -> None:
        self.db, self.number, self.committed = db, number, 0
        self.random = random.Random(f"{SEED} {number}")
        self.kinds = [self.commit, self.roll_back, self.save, self.waste, self.guess, self.prepare, self.leave, self.hold]
        self.held: list[tuple[psycopg.Connection, int]] = []
        self.connect()

    def connect(self) -> None:
        self.conn = self.db.connect()
        self.conn.execute("SET lock_timeout = '20s'")

    def insert(self, conn, most: int = 5) -> int:
        rows = self.random.randint(1, most)
        conn.execute(INSERT, [f"writer {self.number}", rows])
        return rows

    def run(self, stop: threading.Event) -> int:
        while not stop.is_set():
            self.random.choice(self.kinds)()
        while self.held:
            self.release()
        self.conn.close()
        return self.committed

    def commit(self):
        self.committed += self.insert(self.conn, 50)

    def roll_back(self):
        self.conn.execute("BEGIN")
        self.insert(self.conn)
        self.conn.execute("ROLLBACK")

    def save(self):
        self.conn.execute("BEGIN")
        for _ in range(self.random.randint(1, 4)):
            self.conn.execute("SAVEPOINT s")
            rows = self.insert(self.conn)
            if self.random.random() < 0.5:
                self.conn.execute("ROLLBACK TO s")
            else:
                self.conn.execute("RELEASE s")
                self.committed += rows
        self.conn.execute("COMMIT")

    def waste(self):
        self.conn.execute("SELECT nextval('totp.audit_ids') FROM generate_series(1, %s)", [self.random.randint(1, 40)])

    def guess(self):
        """A real guess, in a transaction that goes either way."""
        self.conn.execute("BEGIN")
        self.conn.execute("SELECT totp_verify(%s, '000000')", [f"user {self.number}"])
        self.conn.execute(self.random.choice(["COMMIT", "ROLLBACK"]))

    def prepare(self):
        name = f"{self.number} {self.random.random()}"
        self.conn.execute("BEGIN")
        rows = self.insert(self.conn)
        self.conn.execute(f"PREPARE TRANSACTION '{name}'")
        self.insert(self.conn, 1)
        self.committed += 1
        if self.random.random() < 0.5:
            self.conn.execute(f"COMMIT PREPARED '{name}'")
            self.committed += rows
        else:
            self.conn.execute(f"ROLLBACK PREPARED '{name}'")

    def leave(self):
        """The session ends in a transaction."""
        if self.random.random() < 0.1:
            self.conn.execute("BEGIN")
            self.insert(self.conn)
            self.conn.close()
            self.connect()

    def hold(self):
        """A transaction that stays open over others, of this session and over sealings."""
        if len(self.held) < 2:
            other = self.db.connect()
            other.execute("BEGIN")
            self.held.append((other, self.insert(other)))
        else:
            self.release()

    def release(self):
        other, rows = self.held.pop(0)
        if self.random.random() < 0.7:
            rows += self.insert(other)
            other.execute("COMMIT")
            self.committed += rows
        other.close()


def test_no_false_alarm_and_nobody_waits(make_cluster):
    cluster = make_cluster(max_prepared_transactions="60", max_connections="150", log_statement="none")
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        for number in range(WRITERS):
            conn.execute("SELECT totp_enroll(%s)", [f"user {number}"])
        before = conn.execute("SELECT count(*) FROM totp.audit_log WHERE actor NOT LIKE 'writer%'").fetchone()[0]
        assert before == WRITERS
    stop = threading.Event()

    def seal(pids):
        with closing(db.connect()) as conn:
            conn.execute("SET lock_timeout = 1")  # a millisecond
            pids.append(conn.info.backend_pid)
            for _ in range(SEALINGS):
                seal_all(conn)
                stop.wait(PAUSE)
        return "sealed"

    def watch(pids):
        verified = 0
        with closing(db.connect()) as conn:
            while not stop.is_set():
                assert deviations(conn) == []
                verified += 1
                assert conn.execute(WAITS, [pids[0] if pids else 0]).fetchall() == []
        return verified

    pids: list[int] = []

    def work(number, writer):
        try:
            if number < WRITERS:
                return writer.run(stop)
            if number == WRITERS:
                return seal(pids)
            return watch(pids)
        finally:
            if number >= WRITERS:
                stop.set()

    *committed, sealed, verified = parallel(WRITERS + 2, work, lambda number: Writer(db, number) if number < WRITERS else None)
    print(f"seed {SEED}: {committed} rows, {verified} verifications")
    assert sealed == "sealed", sealed
    assert isinstance(verified, int), verified
    assert all(isinstance(one, int) for one in committed), committed
    with closing(db.connect()) as conn:
        for _ in range(2):
            seal_all(conn)
        assert deviations(conn) == []
        written = conn.execute("SELECT count(*) FROM totp.audit_log WHERE actor LIKE 'writer%'").fetchone()[0]
        assert written == sum(committed)
        [rows] = conn.execute("SELECT count(*) FROM totp.audit_log").fetchone()
        assert check_all(conn, cluster.key_file.read_text().strip()) == rows
        late, empty, holes, unknown = conn.execute(
            "SELECT count(*) FILTER (WHERE late <> '{}'), count(*) FILTER (WHERE row_count = 0), sum((SELECT count(*) FROM unnest(holes))),"
            " count(*) FILTER (WHERE next_xid IS NULL) FROM totp.audit_seals").fetchone()
        print(f"{len(verify_trail(conn))} seals, {late} with late rows, {empty} without rows, {holes} holes, {unknown} without next_xid; {rows} rows")
        assert late > 0 and holes > 0
        # Everything is over: every hole is closed.
        assert conn.execute("SELECT max(closed_seal) >= max(seal_id) FILTER (WHERE holes <> '{}') FROM totp.audit_seals").fetchone() == (True,)
