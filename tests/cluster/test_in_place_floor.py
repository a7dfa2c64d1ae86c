"""The floor: where WAL may be lost, codes that may have been used in it are refused. docs/design/in-place.md has the list.

Each test loses what was judged after a copy was made: the code is used on the original, and shown to the copy.
"""

import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from crash_load import LAZY
from server import Database
from totp import NOON, SECRET, check, code_at, enroll, fix_clock, import_secret, verify, wrong_codes

LATER = NOON + timedelta(minutes=10, seconds=7)
PERIOD = 30


@pytest.fixture
def original(fresh_cluster):
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        import_secret(conn, "bob", SECRET, digits=8, period=60)
        assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    return db


def use(db, when=LATER):
    """Use alice's code of that time."""
    with closing(db.connect()) as conn:
        fix_clock(conn, when)
        assert check(conn, "alice", code_at(SECRET, when)).reason == "accepted"


def refuses_what_may_have_been_used(db, timeline):
    """The old secrets' codes for three periods, as the widest window has two steps, and once; no other's, and no wrong code is taken for one."""
    log = len(db.cluster.log_text())
    with closing(db.connect()) as conn:
        fix_clock(conn, LATER)
        step_start = LATER.timestamp() // PERIOD * PERIOD
        for step in (-1, 0, 1):
            answer = check(conn, "alice", code_at(SECRET, step_start + PERIOD * step))
            assert (answer.reason, answer.attempts_left) == ("replayed", 5)
            assert answer.retry_at == datetime.fromtimestamp(step_start + 3 * PERIOD, UTC)
        bobs = check(conn, "bob", code_at(SECRET, LATER, digits=8, period=60))
        assert bobs.reason == "replayed" and bobs.retry_at == datetime.fromtimestamp(LATER.timestamp() // 60 * 60 + 3 * 60, UTC)
        assert check(conn, "alice", next(wrong_codes(SECRET, LATER))).reason == "wrong"
        secret = enroll(conn, "carol")
        assert check(conn, "carol", code_at(secret, LATER)).reason == "accepted"
    assert db.cluster.log_text()[log:].count("event=floor") == 1
    assert f"event=floor timeline={timeline}" in db.cluster.log_text()[log:]
    with closing(db.connect()) as conn:
        fix_clock(conn, answer.retry_at)
        assert check(conn, "alice", code_at(SECRET, answer.retry_at.timestamp() - PERIOD)).reason == "replayed"
        assert check(conn, "alice", code_at(SECRET, answer.retry_at)).reason == "accepted"
    db.cluster.restart()
    with closing(db.connect()) as conn:
        fix_clock(conn, answer.retry_at)
        assert check(conn, "alice", code_at(SECRET, answer.retry_at.timestamp() + PERIOD)).reason == "accepted"


def test_a_promoted_standby_that_had_not_everything(original, make_standby):
    standby = make_standby(original.cluster)
    standby.wait_for_replay(original.cluster)
    standby.stop()
    use(original)
    original.cluster.kill9()
    standby.start()
    standby.promote()
    refuses_what_may_have_been_used(Database(standby, original.name), timeline=2)


@pytest.mark.parametrize("narrow", [0, 1, 2])
def test_what_a_wider_window_accepted_is_refused_in_a_narrower_one(original, make_standby, narrow):
    """The window is a setting of the role: who asks first on the new primary need not have that of who signed in on the lost one."""
    at_step = [datetime.fromtimestamp(LATER.timestamp() // PERIOD * PERIOD + PERIOD * step, UTC) for step in range(4)]
    standby = make_standby(original.cluster)
    standby.wait_for_replay(original.cluster)
    standby.stop()
    with closing(original.connect()) as conn:
        fix_clock(conn, LATER)
        conn.execute("SET totp.window_steps = 2")
        assert check(conn, "alice", code_at(SECRET, at_step[2])).reason == "accepted"
    original.cluster.kill9()
    standby.start()
    standby.promote()
    with closing(Database(standby, original.name).connect()) as conn:
        conn.execute("SELECT set_config('totp.window_steps', %s, false)", [str(narrow)])
        fix_clock(conn, LATER)
        assert check(conn, "alice", code_at(SECRET, at_step[0])).reason == "replayed"
        for window in range(narrow, 3):
            conn.execute("SELECT set_config('totp.window_steps', %s, false)", [str(window)])
            fix_clock(conn, at_step[2])
            answer = check(conn, "alice", code_at(SECRET, at_step[2]))
            assert (answer.reason, answer.retry_at) == ("replayed", at_step[3])
        fix_clock(conn, at_step[3])
        assert check(conn, "alice", code_at(SECRET, at_step[3])).reason == "accepted"


def test_a_base_backup_that_is_started_directly(original):
    copy = original.cluster.base_backup()
    try:
        use(original)
        copy.start()
        refuses_what_may_have_been_used(Database(copy, original.name), timeline=1)
    finally:
        copy.remove()


def test_a_base_backup_that_is_copied_over_the_directory(original):
    """Into the same files, so that nothing tells it but the label that recovery from it leaves behind; and once more."""
    cluster = original.cluster
    backup = cluster.folder / "backup"
    cluster.client("pg_basebackup", "--pgdata", backup, "--checkpoint=fast", "--wal-method=stream")
    control = cluster.data / "global" / "pg_control"
    inode = control.stat().st_ino
    for _ in range(2):
        use(original)
        cluster.stop()
        shutil.rmtree(cluster.data / "pg_wal")
        cluster.run("cp", "-a", f"{backup}/.", cluster.data)
        assert control.stat().st_ino == inode
        log = len(cluster.log_text())
        cluster.start()
        refuses_what_may_have_been_used(original, timeline=1)
        cluster.kill9()
        cluster.start()
        with closing(original.connect()) as conn:
            fix_clock(conn, LATER + timedelta(minutes=5))
            assert check(conn, "alice", code_at(SECRET, LATER + timedelta(minutes=5))).reason == "accepted"
        assert cluster.log_text()[log:].count("event=floor") == 1


def test_who_deletes_the_label_of_the_backup_has_another_server(original):
    """It costs everyone the wait of a restore, and the server log says so."""
    copy = original.cluster.base_backup()
    try:
        copy.start()
        db = Database(copy, original.name)
        with closing(db.connect()) as conn:
            fix_clock(conn, NOON + timedelta(minutes=5))
            assert check(conn, "alice", code_at(SECRET, NOON + timedelta(minutes=5))).reason == "replayed"
        use(db)
        assert copy.log_text().count("event=floor") == 1
        (copy.data / "backup_label.old").unlink()
        until = datetime.fromtimestamp(LATER.timestamp() // PERIOD * PERIOD + 3 * PERIOD, UTC)
        with closing(db.connect()) as conn:
            fix_clock(conn, LATER)
            answer = check(conn, "alice", code_at(SECRET, LATER.timestamp() + PERIOD))
            assert (answer.reason, answer.retry_at) == ("replayed", until)
            assert copy.log_text().count("event=floor") == 2
            fix_clock(conn, until)
            assert check(conn, "alice", code_at(SECRET, until)).reason == "accepted"
        copy.restart()
        use(db, until + timedelta(minutes=1))
        assert copy.log_text().count("event=floor") == 2
    finally:
        copy.remove()


def test_a_database_copied_by_create_database(original):
    with closing(original.cluster.connect()) as conn:
        conn.execute(f"CREATE DATABASE copied TEMPLATE {original.name}")
    use(original)
    refuses_what_may_have_been_used(Database(original.cluster, "copied"), timeline=1)


def test_a_dump_restored_into_a_new_database(original):
    dump = original.cluster.client("pg_dump", "--dbname", original.name)
    use(original)
    restored = original.cluster.create_database("restored", extension=False)
    restored.psql(dump)
    refuses_what_may_have_been_used(restored, timeline=1)


def test_a_floor_is_there_after_a_kill_right_after_the_first_call(make_cluster):
    """In a transaction that never ends, on a server that flushes nothing by itself. Another floor later would refuse codes anew."""
    cluster = make_cluster(**LAZY)
    original = cluster.create_database("original")
    with closing(original.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
    cluster.psql("CREATE DATABASE copied TEMPLATE original")
    copied = Database(cluster, "copied")
    conn = copied.connect()
    fix_clock(conn, LATER)
    conn.execute("BEGIN")
    answer = check(conn, "alice", code_at(SECRET, LATER))
    cluster.kill9()
    cluster.start()
    assert answer.reason == "replayed"
    assert copied.value("SELECT floor_at FROM totp.floor") == LATER


@pytest.mark.parametrize("end", ["restart", "immediate", "crash"])
def test_the_same_server_again_sets_no_floor(original, end):
    use(original)
    if end == "crash":
        original.cluster.kill9()
        original.cluster.start()
    else:
        original.cluster.restart("immediate" if end == "immediate" else "fast")
    with closing(original.connect()) as conn:
        fix_clock(conn, LATER)
        assert check(conn, "alice", code_at(SECRET, LATER)).retry_at is None  # used, and no floor
        assert check(conn, "alice", code_at(SECRET, LATER.timestamp() + PERIOD)).reason == "accepted"
    assert original.cluster.log_text().count("event=floor") == 1


def test_a_snapshot_that_is_started_in_place_is_not_recognised(original):
    """Everything that tells one server from another is as it was: why clients must be kept out for a minute."""
    cluster = original.cluster
    cluster.stop()
    snapshot = cluster.folder / "snapshot"
    shutil.copytree(cluster.data, snapshot)
    cluster.start()
    use(original)
    cluster.stop()
    control = cluster.data / "global" / "pg_control"
    inode = control.stat().st_ino
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():  # into the same files, as a volume snapshot does
            (cluster.data / path.relative_to(snapshot)).write_bytes(path.read_bytes())
    assert control.stat().st_ino == inode
    cluster.start()
    use(original)
