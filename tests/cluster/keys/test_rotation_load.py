"""Rotation of many secrets while sessions sign in, enroll, confirm, rename and remove; and the memory that it takes."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from amounts import amount
from binding import check_confirm, confirm
from many_users import import_users, keys, open_everything, secret_of, sign_in_all
from server import PATIENCE_SECONDS, wait_until
from sessions import session
from totp import NOON, code_at, enroll, parallel, verify

SECRETS = amount("SECRETS", 100_000, light=20_000)
SESSIONS = 8
KINDS = {"at once": "SELECT * FROM totp_rotate_key()", "online": "CALL totp_rotate_key_online(1000)"}
both_kinds = pytest.mark.parametrize("rotate", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def crowd(cluster):
    """A database with SECRETS users, and their ids."""
    db = cluster.create_database()
    with session(db) as conn:
        users = import_users(conn, SECRETS)
    yield db, users
    db.drop()


class Tally:
    """What one session did while the rotation ran."""

    def __init__(self):
        self.sign_ins = self.lives = self.refusals = 0
        self.kept: list[str] = []

    def must(self, answer: bool) -> None:
        self.refusals += not answer


def sign_in(conn, tally, users, when):
    """Each of the session's users once and not twice."""
    for user in users:
        code = code_at(secret_of(user), when)
        tally.must(verify(conn, user, code) is True)
        tally.must(verify(conn, user, code) is False)
        tally.sign_ins += 1
        yield


def live(conn, tally, users, when, number):
    """Lives of new users from enrollment to removal, beside a device of an old user that is replaced."""
    before, now, after = (when + timedelta(seconds=30 * step) for step in (-1, 0, 1))
    for life, old in enumerate(users):
        user, renamed = f"new {when:%H} {number} {life}", f"renamed {when:%H} {number} {life}"
        secret = enroll(conn, user)
        confirmed = check_confirm(conn, code_at(secret, before), user_id=user, recovery_codes=2)
        tally.must(confirmed.accepted)
        [recovery_code, _] = confirmed.recovery_codes
        tally.must(verify(conn, user, code_at(secret, now)))
        tally.must(conn.execute("SELECT totp_rename_user(%s, %s)", [user, renamed]).fetchone()[0] == 1)
        tally.must(verify(conn, renamed, code_at(secret, after)))
        tally.must(conn.execute("SELECT totp_recover(%s, %s)", [renamed, recovery_code]).fetchone()[0])
        yield
        replacement = enroll(conn, old)
        tally.must(verify(conn, old, code_at(secret_of(old), now)))
        tally.must(confirm(conn, code_at(replacement, now), proof=code_at(secret_of(old), after), user_id=old))
        tally.must(not verify(conn, old, code_at(secret_of(old), after)))
        conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [old, secret_of(old)])
        if life % 3:
            tally.must(conn.execute("SELECT totp_remove(%s)", [renamed]).fetchone()[0] == 1)
            tally.must(not verify(conn, renamed, code_at(secret, after)))
        else:
            tally.kept.append(renamed)
        tally.lives += 1
        yield


@both_kinds
def test_nobody_is_refused_during_a_rotation(crowd, rotate, request, capsys):
    db, users = crowd
    when = NOON + timedelta(hours=1 + list(KINDS.values()).index(rotate))
    ended = threading.Event()
    with ExitStack() as stack:
        rotating = stack.enter_context(session(db, when))
        conns = [stack.enter_context(session(db, when)) for _ in range(SESSIONS)]
        tallies = [Tally() for _ in range(SESSIONS)]
        [old_key, state] = keys(rotating)[0]
        assert state == "current"

        def work(i):
            if i == SESSIONS:
                try:
                    rotating.execute(rotate)
                finally:
                    ended.set()
                return
            steps = (sign_in(conns[i], tallies[i], users[i::SESSIONS], when) if i % 2 == 0
                     else live(conns[i], tallies[i], users[i::SESSIONS], when, i))
            for _ in steps:
                if ended.is_set():
                    return

        errors = [answer for answer in parallel(SESSIONS + 1, work) if answer is not None]
        refusals = sum(t.refusals for t in tallies)
        with capsys.disabled():
            print(f"\n  {rotate}: {SECRETS:,} secrets, {sum(t.sign_ins for t in tallies):,} sign-ins and {sum(t.lives for t in tallies):,} lives"
                  f" from enrollment to removal meanwhile, {refusals} refusals, {len(errors)} errors")
        assert errors == []
        assert refusals == 0
        assert all(t.sign_ins for t in tallies[0::2])
        # The one at once lets enrollments wait for its end.
        assert any(t.lives for t in tallies[1::2]) or rotate == KINDS["at once"]

        [(new_key, state)] = keys(rotating)
        assert new_key > old_key and state == "current"
        kept = [user for t in tallies for user in t.kept]
        left = rotating.execute("SELECT count(*) FROM totp.secrets WHERE user_id ~ %s", [f"^(new|renamed) {when:%H} "]).fetchone()[0]
        assert len(kept) <= left <= len(kept) + SESSIONS  # one life of each session may have been cut short
        assert open_everything(rotating)[0] >= SECRETS
        some = users[::17]
        assert sign_in_all(rotating, some, when + timedelta(minutes=5)) == len(some)


def test_a_rotation_at_once_that_is_canceled_in_the_middle_changes_nothing(crowd):
    """The online kind: test_rotation_online.py."""
    db, _ = crowd
    with session(db) as conn, session(db) as rotating, ThreadPoolExecutor(1) as pool:
        before = keys(conn)
        all_secrets = open_everything(conn)
        start = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        future = pool.submit(rotating.execute, KINDS["at once"])
        written = "SELECT pg_current_wal_insert_lsn() - %s::pg_lsn > 4 * 1024 * 1024"
        wait_until(lambda: conn.execute(written, start).fetchone()[0], "the rotation to be well under way")
        rotating.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            future.result(PATIENCE_SECONDS)
        assert keys(conn) == before
        assert open_everything(conn) == all_secrets


def anonymous_memory(pid: int) -> int:
    """Bytes that a process holds for itself: VmRSS without the shared buffers that it has touched."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def memory_taken(db, rotate, times: int = 1) -> int:
    """Most that the backend of these rotations took for itself while they ran."""
    with closing(db.connect()) as conn, ThreadPoolExecutor(1) as pool:
        conn.execute("SET jit = off")  # a compiler is loaded or not by the planner's estimate of a query
        conn.execute("SELECT count(*) FROM totp_keys()")  # loads the library, reads the key file
        pid = conn.info.backend_pid
        before = most = anonymous_memory(pid)
        rotation = pool.submit(lambda: [conn.execute(rotate) for _ in range(times)])
        while not rotation.done():
            most = max(most, anonymous_memory(pid))
        rotation.result()
        return most - before


@pytest.fixture(scope="module")
def few(cluster):
    """A database with a fifth of the users."""
    db = cluster.create_database()
    with session(db) as conn:
        import_users(conn, SECRETS // 5)
    yield db
    db.drop()


@both_kinds
def test_memory_does_not_grow_with_the_number_of_secrets(crowd, few, rotate, capsys):
    # As many secrets on both sides: a short rotation would end before its peak is seen.
    small, large = memory_taken(few, rotate, times=5), memory_taken(crowd[0], rotate)
    with capsys.disabled():
        print(f"\n  {rotate}: {small // 1024:,} kB for {SECRETS // 5:,} secrets, {large // 1024:,} kB for {SECRETS:,}")
    # 13 bytes for each additional secret: anything kept of a row would be larger.
    assert large - small < 13 * (SECRETS - SECRETS // 5)


def hashed(node: dict, below_hash: bool = False) -> set[str]:
    """The tables whose rows a plan collects in a hash table."""
    below_hash |= node["Node Type"] == "Hash"
    found = {node["Relation Name"]} if below_hash and "Relation Name" in node else set()
    return found.union(*(hashed(child, below_hash) for child in node.get("Plans", [])))


@both_kinds
def test_no_statement_of_a_rotation_hashes_every_secret(few, rotate):
    """Even if statistics make the planner prefer it. The plans are those that ran."""
    plans = []
    with closing(few.connect()) as conn:
        conn.add_notice_handler(lambda notice: "plan:" in notice.message_primary and plans.append(json.loads(notice.message_primary.partition("plan:")[2])["Plan"]))
        conn.execute("LOAD 'auto_explain'; SET enable_nestloop = off; SET enable_mergejoin = off")
        conn.execute("SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
                     " SET auto_explain.log_format = json; SET auto_explain.log_level = notice")
        conn.execute(rotate)
        assert {"data_keys", "secrets"} <= {plan.get("Relation Name") for plan in plans}
        assert "secrets" not in set().union(*map(hashed, plans))
        conn.execute("SELECT FROM totp.secrets a JOIN totp.secrets b USING (key_id) LIMIT 1")
        assert "secrets" in hashed(plans[-1])  # it would be seen
