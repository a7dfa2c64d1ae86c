"""After a promotion, a restore or a copy, codes that may have been used in lost WAL are refused once, for two minutes.

The end of the WAL is lost in each way while sessions sign in, some of them in transactions that they roll back. The codes
that the original accepted are tried again on what is left. A restart, a snapshot and a backup that is copied over a data
directory: in_place/test_floor.py.
"""

import re
import shutil
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pyotp
import pytest
from crash_load import skip_unless_mountable
from server import SERVER_USER, Cluster, Database, wait_until
from totp import MAX_ATTEMPTS, SECRET, check, code_at, enroll, fix_clock, import_secret, parallel, stage, verify, wrong_codes

BEFORE = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
LOST = BEFORE + timedelta(minutes=10, seconds=7)  # when the codes are used that the copy does not know
NOW = LOST + timedelta(seconds=10)  # when the copy is asked for the first time
PERIOD = 30
STEPS = (-1, 0, 1)  # of the default window
USERS, SESSIONS = 24, 4
KEY = "0123456789abcdef" * 4


def populate(cluster):
    """A database with users who have signed in; their secrets in .secrets."""
    db = cluster.create_database("original")
    db.secrets = {f"user {i}": pyotp.random_base32() for i in range(USERS)}
    with closing(db.connect()) as conn:
        fix_clock(conn, BEFORE)
        for user_id, secret in db.secrets.items():
            import_secret(conn, user_id, secret)
            assert verify(conn, user_id, code_at(secret, BEFORE)) is True
        import_secret(conn, "of another period", SECRET, digits=8, period=60)
    return db


def code_of_step(secret, when, step):
    return code_at(secret, when.timestamp() + PERIOD * step)


def use_codes(db):
    """Every user's codes of the whole window, by several sessions that commit or roll back."""
    def use(number, conn):
        with closing(conn):
            for user_id in [*db.secrets][number::SESSIONS]:
                for step in STEPS:
                    conn.execute("BEGIN")
                    fix_clock(conn, LOST)
                    assert verify(conn, user_id, code_of_step(db.secrets[user_id], LOST, step)) is True
                    conn.execute("ROLLBACK" if step == 0 else "COMMIT")
        return "used"

    assert parallel(SESSIONS, use, lambda _: db.connect()) == ["used"] * SESSIONS


@pytest.fixture(scope="module")
def original(make_module_cluster):
    """A database that was dumped, backed up and archived before its codes were used. It goes on running."""
    cluster = make_module_cluster(key=KEY, archive_mode="on")
    db = populate(cluster)
    db.archive = cluster.archive_wal()
    cluster.psql("CREATE DATABASE copied TEMPLATE original")
    db.dump = cluster.client("pg_dump", "--dbname", db.name)
    db.backup = cluster.base_backup()
    try:
        db.execute("SELECT pg_create_restore_point('before the codes were used')")
        use_codes(db)
        with closing(db.connect()) as conn:
            [last] = conn.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            archived = "SELECT coalesce(last_archived_wal >= %s, false) FROM pg_stat_archiver"
            wait_until(lambda: conn.execute(archived, [last]).fetchone()[0], "the WAL to be archived")
        yield db
    finally:
        db.backup.remove()


# --- ways to lose the end of the WAL: each has the original's secrets, and the database that is left ----------------------

@contextmanager
def promotion(request):
    """Of a standby that was cut off, after the primary was killed."""
    db = populate(request.getfixturevalue("fresh_cluster"))
    standby = request.getfixturevalue("make_standby")(db.cluster)
    standby.wait_for_replay(db.cluster)
    standby.cut_off()
    use_codes(db)
    db.cluster.kill9()
    standby.promote()
    yield db.secrets, Database(standby, db.name)


@contextmanager
def dump_into_another_cluster(request):
    original = request.getfixturevalue("original")
    restored = request.getfixturevalue("make_cluster")(key=KEY).create_database("restored", extension=False)
    restored.psql(original.dump)
    yield original.secrets, restored


@contextmanager
def dump_into_another_database(request):
    original = request.getfixturevalue("original")
    restored = original.cluster.create_database("restored", extension=False)
    restored.psql(original.dump)
    yield original.secrets, restored


@contextmanager
def create_database_with_a_template(request):
    original = request.getfixturevalue("original")
    yield original.secrets, Database(original.cluster, "copied")


@contextmanager
def base_backup_started_directly(request):
    original = request.getfixturevalue("original")
    copy = original.backup.copy_of_files()
    try:
        yield original.secrets, Database(copy.start(), original.name)
    finally:
        copy.remove()


@contextmanager
def base_backup_with_the_same_inode(request):
    """As happens if original and copy were made in the same way, each on a fresh volume, which numbers its files again."""
    skip_unless_mountable()
    original, copy = Cluster(), Cluster()
    try:
        original.mount("200m").init().start()
        db = populate(original)
        inode = control(original).stat().st_ino
        copy.mount("200m")
        file = copy.volume / "file"
        file.touch()
        while file.stat().st_ino < inode:
            file.unlink()
            file.touch()
        original.base_backup(copy)
        use_codes(db)
        file.write_bytes(control(copy).read_bytes())
        shutil.copystat(control(copy), file)
        shutil.chown(file, SERVER_USER.pw_uid, SERVER_USER.pw_gid)
        file.rename(control(copy))
        assert control(copy).stat().st_ino == inode
        yield db.secrets, Database(copy.start(), db.name)
    finally:
        copy.remove()
        original.remove()


def control(cluster):
    return cluster.data / "global" / "pg_control"


@contextmanager
def point_in_time_recovery(request):
    original = request.getfixturevalue("original")
    copy = original.backup.copy_of_files()
    try:
        copy.recover(original.archive, recovery_target_name="before the codes were used")
        yield original.secrets, Database(copy, original.name)
    finally:
        copy.remove()


WAYS = {promotion: 2, dump_into_another_cluster: 1, dump_into_another_database: 1, create_database_with_a_template: 1,
        base_backup_started_directly: 1, base_backup_with_the_same_inode: 1, point_in_time_recovery: 2}  # and the timeline then


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_codes_used_in_lost_wal_are_refused_once_and_for_a_minute(way, request):
    with way(request) as (secrets, db):
        uses = db.value("SELECT sum(uses) FROM totp.used_codes")
        assert uses == USERS, "the copy knows what was to be lost"
        log = db.cluster.log_end()
        until = datetime.fromtimestamp(NOW.timestamp() // PERIOD * PERIOD + 4 * PERIOD, UTC)

        # The first calls, all at once and all rolled back, later and later: they set one floor, and it stays.
        def ask(number, conn):
            answers = []
            with closing(conn):
                for i, user_id in enumerate([*secrets][number::SESSIONS]):
                    for step in STEPS:
                        conn.execute("BEGIN")
                        fix_clock(conn, NOW + timedelta(microseconds=i))
                        answers.append(check(conn, user_id, code_of_step(secrets[user_id], LOST, step)))
                        conn.execute("ROLLBACK")
            return answers

        answers = sum(parallel(SESSIONS, ask, lambda _: db.connect()), [])
        assert {(answer.reason, answer.attempts_left, answer.retry_at) for answer in answers} == {("replayed", MAX_ATTEMPTS, until)}
        assert len(answers) == USERS * len(STEPS)
        floor = "SELECT floor_at FROM totp.floor"
        assert db.value(floor) == NOW
        db.cluster.kill9()
        db.cluster.start()
        assert db.value(floor) == NOW
        assert re.findall(r"event=floor timeline=(\d+)", db.cluster.log_text(log)) == [str(WAYS[way])]

        with closing(db.connect()) as conn:
            # Of another period the wait is four of those. A wrong code is not taken for one that may have been used.
            fix_clock(conn, NOW)
            other = check(conn, "of another period", code_at(SECRET, NOW, digits=8, period=60))
            assert (other.reason, other.retry_at) == ("replayed", datetime.fromtimestamp(NOW.timestamp() // 60 * 60 + 4 * 60, UTC))
            assert check(conn, "of another period", next(wrong_codes(SECRET, NOW, digits=8))).reason == "wrong"
            # Just before its end no code that can have been used is good. What is new is good at once.
            fix_clock(conn, until - timedelta(microseconds=1))
            for user_id, secret in secrets.items():
                assert check(conn, user_id, code_of_step(secret, until, -1)).reason == "replayed"
            assert verify(conn, "new", code_at(enroll(conn, "new"), until)) is True
            imported = pyotp.random_base32()
            import_secret(conn, "imported", imported)
            assert verify(conn, "imported", code_at(imported, until)) is True
            reset, stolen, old, *_ = secrets
            [secret] = conn.execute("SELECT secret FROM totp_reset(%s)", [reset]).fetchone()
            assert verify(conn, reset, code_at(secret, until)) is True
            assert verify(conn, stolen, code_at(stage(conn, stolen), until)) is True
            # An old secret is not new because it is imported again.
            import_secret(conn, old, secrets[old])
            assert check(conn, old, code_of_step(secrets[old], until, -1)).reason == "replayed"
            # At its end everyone signs in, once.
            fix_clock(conn, until)
            for user_id in [*secrets][2:]:
                assert verify(conn, user_id, code_at(secrets[user_id], until)) is True
                assert check(conn, user_id, code_at(secrets[user_id], until)).reason == "replayed"
            assert db.value(floor) == NOW
