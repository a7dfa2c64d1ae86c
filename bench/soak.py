"""Runs pg_totp as a small site would for MINUTES (default 30), and checks what grows, breaks or is left behind.

Six sessions sign in, fail, enroll, replace, remove and recover, each for separate users, so that it knows what each
answer must be; the number of users stays the same. Codes are those of the real clock, each data key lives for a minute
(both rotations in turn), autovacuum is on. Prints what was measured, and writes it to bench/soak.md after a run of ten
minutes or more. Ends with status 1 if a check failed.
"""

import os
import random
import re
import statistics
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "cluster" / "support"))

import pyotp  # noqa: E402
from run import heading  # noqa: E402
from server import DISK, Cluster, Database  # noqa: E402

SESSIONS, USERS = 6, 1200
ATTACKED = 3  # users of each session who get half of all wrong codes
THINK_SECONDS = 0.12  # mean pause of a session between two calls
SAMPLE_SECONDS, ROTATE_SECONDS = 10, 60
WARM_UP = 20  # what the keeper does once a minute, beforehand: its plans and caches are made within the first ten
FLAT_KB = 256  # a backend whose memory grows by more between the second and the last quarter is not flat
TABLES = ("attempts", "used_codes", "secrets", "recovery_codes", "audit_log")
IN_PLACE = ("attempts", "used_codes")
PAGE_KB = 8


class User:
    """What a session knows about a user: enough to know what each answer must be."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.codes: pyotp.TOTP | None = None
        self.used_step = -1
        self.failures = 0
        self.retry_at = 0.0
        self.recovery: list[str] = []


class Session(threading.Thread):
    """One session and its users."""

    def __init__(self, soak: "Soak", number: int) -> None:
        super().__init__(name=f"session {number}")
        self.soak, self.number, self.chance = soak, number, random.Random(number)
        self.conn = soak.db.connect(application_name=self.name)
        self.done: Counter[str] = Counter()
        self.locks = 0  # answered
        self.deleted: Counter[str] = Counter()  # rows that removals and replacements took out of the two tables
        self.errors: list[str] = []
        self.contexts: list[int] = []
        self.users = [self.enroll(self.new_name()) for _ in range(USERS // SESSIONS)]

    def run(self) -> None:
        asked = 0
        while not self.soak.over.is_set():
            try:
                self.one_call()
                if asked != self.soak.samples:
                    asked = self.soak.samples
                    self.contexts.append(self.value("SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts"))
            except Exception as error:  # noqa: BLE001 - each is a finding
                self.errors.append(f"{self.name}: {type(error).__name__}: {error}")
                if self.conn.closed:
                    return
            self.soak.over.wait(self.chance.expovariate(1 / THINK_SECONDS))

    def one_call(self) -> None:
        place = self.chance.randrange(len(self.users))
        user = self.users[place]
        kinds = {self.sign_in: 70, self.sign_in_and_roll_back: 5, self.fail: 16, self.replace: 2, self.recover: 4}
        kind = self.chance.choices([*kinds, None], [*kinds.values(), 3])[0]
        if kind == self.fail and self.chance.random() < 0.5:
            user = self.users[self.chance.randrange(ATTACKED)]
        if kind is None:
            self.remove(user)
            self.users[place] = self.enroll(self.new_name())
        else:
            kind(user)

    # --- the calls, each with the answer that it must have ------------------------------

    def sign_in(self, user: User) -> None:
        step = int(time.time()) // 30
        code = user.codes.at(step * 30)
        self.check(user, code, "accepted" if step > user.used_step else "replayed")

    def sign_in_and_roll_back(self, user: User) -> None:
        with self.conn.transaction(force_rollback=True):
            self.sign_in(user)

    def fail(self, user: User) -> None:
        step = int(time.time()) // 30
        near = {user.codes.at((step + n) * 30) for n in range(-2, 4)}
        self.check(user, next(c for c in (f"{self.chance.randrange(10**6):06}" for _ in range(100)) if c not in near), "wrong")

    def check(self, user: User, code: str, expected: str) -> None:
        before = time.time()
        query = "SELECT reason, coalesce(extract(epoch FROM retry_at), 0)::float8 FROM totp_check(%s, %s)"
        reason, retry_at = self.conn.execute(query, [user.user_id, code]).fetchone()
        after = time.time()
        allowed = {"locked"} if after < user.retry_at else {expected} if before >= user.retry_at else {"locked", expected}
        if reason not in allowed:
            raise AssertionError(f"{reason} instead of {' or '.join(sorted(allowed))} for {user.user_id}")
        user.retry_at = retry_at
        self.done[reason] += 1
        self.locks += reason == "wrong" and retry_at > 0
        if reason == "accepted":
            user.used_step = max(int(before) // 30, user.used_step)

    def enroll(self, user_id: str) -> User:
        user = User(user_id)
        self.new_secret(user)
        self.new_recovery_codes(user)
        self.done["enrolled"] += 1
        return user

    def replace(self, user: User) -> None:
        """Enrolls again, and confirms with a recovery code as proof."""
        if time.time() < user.retry_at or not user.recovery:
            return
        codes = pyotp.TOTP(self.value("SELECT secret FROM totp_enroll(%s)", user.user_id))
        step = int(time.time()) // 30
        if self.value("SELECT totp_confirm(%s, %s, proof => %s)", user.user_id, codes.at(step * 30), user.recovery.pop()) is not True:
            raise AssertionError(f"totp_confirm did not return True for {user.user_id}")
        user.codes, user.used_step = codes, step
        self.deleted["used_codes"] += 1
        self.done["replaced"] += 1

    def new_secret(self, user: User) -> None:
        """Enrolls and confirms."""
        user.codes = pyotp.TOTP(self.value("SELECT secret FROM totp_enroll(%s)", user.user_id))
        user.used_step = -1
        self.sign_in(user)

    def remove(self, user: User) -> None:
        if self.value("SELECT totp_remove(%s)", user.user_id) != 1:
            raise AssertionError(f"{user.user_id} had not one device")
        self.deleted["attempts"] += 1
        self.deleted["used_codes"] += 2  # of the secret and of the recovery codes
        self.done["removed"] += 1

    def recover(self, user: User) -> None:
        if not user.recovery:
            self.new_recovery_codes(user)
            self.deleted["used_codes"] += 1
        code = user.recovery.pop()
        for expected in (True, False):
            if self.value("SELECT totp_recover(%s, %s)", user.user_id, code) is not expected:
                raise AssertionError(f"totp_recover did not return {expected} for {user.user_id}")
        user.retry_at = 0  # a good one ends the lock of codes
        self.done["recovered"] += 1

    def new_recovery_codes(self, user: User) -> None:
        user.recovery = [code for [code] in self.conn.execute("SELECT totp_reset_recovery_codes(%s, 3)", [user.user_id])]
        self.done["recovery sets"] += 1

    def value(self, query: str, *parameters):
        return self.conn.execute(query, parameters).fetchone()[0]

    def new_name(self) -> str:
        """Returns a random name. With ascending names, each page of a B-tree would stay until the last of its users is removed."""
        return f"user-{self.chance.randbytes(8).hex()}"


class Soak:
    """One run."""

    def __init__(self, cluster: Cluster, minutes: float) -> None:
        self.cluster, self.minutes = cluster, minutes
        self.db: Database = cluster.create_database("soak")
        self.over = threading.Event()
        self.samples = 0
        self.errors: list[str] = []
        self.rotations: Counter[str] = Counter()
        self.sizes: list[dict[str, int]] = []
        self.anon: dict[str, list[int]] = {}
        self.keeper_contexts: list[int] = []

    def run(self) -> None:
        self.sessions = [Session(self, number) for number in range(SESSIONS)]
        self.keeper = self.db.connect(application_name="keeper")
        for _ in range(WARM_UP):
            self.look_after()
        self.rotations.clear()
        self.begun = datetime.now(UTC)
        for session in self.sessions:
            session.start()
        try:
            self.keep()
        finally:
            self.over.set()
            for session in self.sessions:
                session.join()
                session.conn.close()
            self.keeper.close()
        self.errors += [error for session in self.sessions for error in session.errors]

    def keep(self) -> None:
        """Rotates, prunes, calls totp_health() and measures, until the time is up."""
        start = time.monotonic()
        next_sample, next_rotation = start + SAMPLE_SECONDS, start + ROTATE_SECONDS
        while (now := time.monotonic()) < start + self.minutes * 60:
            if now >= next_rotation:
                next_rotation += ROTATE_SECONDS
                self.look_after()
            if now >= next_sample:
                next_sample += SAMPLE_SECONDS
                self.measure()
            self.over.wait(0.2)

    def look_after(self) -> None:
        self.rotate()
        self.keeper.execute("SELECT totp_prune_audit('2 minutes')")
        self.errors += [f"totp_health: {row}" for row in self.keeper.execute("SELECT * FROM totp_health() WHERE status = 'fail'")]

    def rotate(self) -> None:
        how = ["SELECT totp_rotate_key()", "CALL totp_rotate_key_online(100)"][self.rotations.total() % 2]
        self.keeper.execute(how)
        self.rotations[how] += 1
        keys = self.keeper.execute("SELECT state FROM totp_keys()").fetchall()
        if keys != [("current",)]:
            self.errors.append(f"data keys after a rotation: {keys}")

    def measure(self) -> None:
        query = f"SELECT {', '.join(f'pg_total_relation_size({table!r})' for table in (f'totp.{t}' for t in TABLES))}"
        self.sizes.append(dict(zip(TABLES, self.keeper.execute(query).fetchone(), strict=True)))
        for name, conn in [("keeper", self.keeper), *((s.name, s.conn) for s in self.sessions)]:
            self.anon.setdefault(name, []).append(anonymous_kb(conn.info.backend_pid))
        self.keeper_contexts.append(self.keeper.execute("SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts").fetchone()[0])
        self.samples += 1

    # --- what is true at the end ---------------------------------------------------------

    def left_behind(self) -> list[tuple[str, str, bool]]:
        """Checks dead rows and updates in the tables that change in place."""
        removed = sum((session.deleted for session in self.sessions), Counter())
        lines = []
        with closing(self.db.connect()) as conn:
            for table in IN_PLACE:
                updated, deleted, live = conn.execute(
                    "SELECT n_tup_upd, n_tup_del, n_tup_ins - n_tup_del FROM pg_stat_user_tables WHERE relid = %s::regclass", [f"totp.{table}"]).fetchone()
                lines.append((f"totp.{table}: rows updated by SQL", f"{updated}", updated == 0))
                lines.append((f"totp.{table}: rows deleted, and those that removals and replacements must delete",
                              f"{deleted:,}, {removed[table]:,}", deleted == removed[table]))
                conn.execute(f"VACUUM totp.{table}")
                dead = conn.execute("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = %s::regclass", [f"totp.{table}"]).fetchone()[0]
                lines.append((f"totp.{table}: rows, and dead ones after VACUUM", f"{live:,}, {dead}", dead == 0))
        return lines

    def report(self) -> tuple[str, bool]:
        """Returns the page, and whether every check passed."""
        done = sum((session.done for session in self.sessions), Counter())
        checks = [("errors and wrong answers", f"{len(self.errors)}", not self.errors)]
        logged = re.findall(r"(?:WARNING|ERROR|FATAL|PANIC):  .*", self.cluster.log_text())
        checks.append(("warnings and errors in the server log", f"{len(logged)}", not logged))
        locks = sum(session.locks for session in self.sessions)
        checks.append(("locks answered", f"{locks:,}", locks >= self.minutes * SESSIONS / 2))
        checks += self.left_behind()
        for table in TABLES:
            sizes = [sample[table] // 1024 for sample in self.sizes]
            quarters = [quarter(sizes, number, max) for number in range(4)]
            # Sign-ins add nothing to these. As many users are added as removed, so a table takes space for its rows and for the
            # dead ones of removed users until autovacuum runs, which happens at about the same number: one page more or less.
            # Not at the beginning: then it is packed. A rotation rewrites the rows of the other tables.
            held = quarters[3] <= (quarters[2] + PAGE_KB if table in IN_PLACE else quarters[1] * 1.25 + 64)
            checks.append((f"totp.{table} with indexes, kB: first sample, most in each quarter", f"{sizes[0]:,}; {', '.join(f'{size:,}' for size in quarters)}", held))
        for name, kilobytes in self.anon.items():
            checks.append((f"{name}: private memory, kB (RssAnon), median of the second and the last quarter", *flat(kilobytes)))
        for name, contexts in [("keeper", self.keeper_contexts), *((s.name, s.contexts) for s in self.sessions)]:
            checks.append((f"{name}: memory contexts, kB, the same", *flat([size // 1024 for size in contexts])))
        with closing(self.cluster.connect()) as conn:
            version = "PostgreSQL " + conn.execute("SHOW server_version").fetchone()[0]
        calls = ", ".join(f"{count:,} {kind}" for kind, count in done.most_common())
        rotations = ", ".join(f"{count} × `{how}`" for how, count in self.rotations.items())
        text = (f"# Result of `make soak`\n\n{heading(version)}\n\n"
                f"{self.minutes:g} minutes from {self.begun:%Y-%m-%d %H:%M} UTC: {SESSIONS} sessions, {USERS:,} users, `fsync` and `autovacuum` on, the real clock.\n"
                f"Answers and changes: {calls}. Rotations: {rotations}.\n\n| measured | | |\n|---|---|---|\n"
                + "\n".join(f"| {what} | {value} | {'met' if held else '**missed**'} |" for what, value, held in checks) + "\n")
        return text, all(held for *_, held in checks)


def anonymous_kb(pid: int) -> int:
    """Returns the private memory of a backend, without shared buffers."""
    return int(re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


def quarter(values: list[int], number: int, of=statistics.median):
    """Returns the values of one quarter of the run, counted from 0."""
    length = len(values)
    return of(values[length * number // 4:length * (number + 1) // 4] or values[-1:])


def flat(kilobytes: list[int]) -> tuple[str, bool]:
    middle, end = quarter(kilobytes, 1), quarter(kilobytes, 3)
    return f"{middle:,.0f}, {end:,.0f}", end - middle <= FLAT_KB


def main() -> None:
    minutes = float(os.environ.get("MINUTES") or 30)
    cluster = Cluster(place=DISK)
    try:
        cluster.init(autovacuum="on", autovacuum_naptime="10s", log_autovacuum_min_duration="-1")
        cluster.configure(fsync="on")
        soak = Soak(cluster.start(), minutes)
        soak.run()
        text, held = soak.report()
    finally:
        cluster.remove()
    print(text)
    if soak.errors:
        print(*soak.errors[:20], sep="\n", file=sys.stderr)
    if minutes >= 10:
        (HERE / "soak.md").write_text(text)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
