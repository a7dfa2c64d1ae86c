"""The floor: if WAL may be lost, codes that may have been used in it are refused. docs/design/in-place.md has the list.

When it is set, when it is not, and how wide it is. Each way to lose WAL: durability/test_failover.py.
"""

import shutil
from contextlib import closing
from datetime import timedelta

import pytest
from crash_load import LAZY
from server import Database
from totp import NOON, SECRET, check, code_at, fix_clock, import_secret, verify

LATER = NOON + timedelta(minutes=10, seconds=7)
PERIOD = 30


@pytest.fixture
def original(fresh_cluster):
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    return db


def use(db, when=LATER):
    """Use alice's code of that time."""
    with closing(db.connect()) as conn:
        fix_clock(conn, when)
        assert check(conn, "alice", code_at(SECRET, when)).reason == "accepted"


def test_a_floor_is_there_after_a_kill_right_after_the_first_call(make_cluster):
    """In a transaction that never ends, on a server that flushes nothing by itself. Another floor later would refuse codes again."""
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


def test_a_snapshot_that_is_started_in_place_is_not_recognized(original):
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


# --- the widest window ------------------------------------------------------------------------


def test_the_floor_counts_with_the_widest_window(original, make_standby):
    """A code two steps ahead, used under a window of two, is not good under a window of one on the promoted standby."""
    standby = make_standby(original.cluster)
    standby.wait_for_replay(original.cluster)
    standby.cut_off()
    ahead = code_at(SECRET, LATER.timestamp() + 2 * PERIOD)
    with closing(original.connect()) as conn:
        fix_clock(conn, LATER)
        conn.execute("SET totp.window_steps = 2")
        assert check(conn, "alice", ahead).reason == "accepted"
    original.cluster.stop("immediate")
    standby.promote()
    promoted = Database(standby, original.name)
    with closing(promoted.connect()) as conn:
        fix_clock(conn, LATER)
        assert check(conn, "alice", code_at(SECRET, LATER)).reason == "replayed"  # sets the floor
        for seconds in (PERIOD, 2 * PERIOD):
            fix_clock(conn, LATER + timedelta(seconds=seconds))
            assert check(conn, "alice", ahead).reason == "replayed"
        fix_clock(conn, LATER + timedelta(seconds=4 * PERIOD))
        assert check(conn, "alice", code_at(SECRET, LATER.timestamp() + 4 * PERIOD)).reason == "accepted"


@pytest.mark.parametrize("drift", [0, 8, -8])
def test_the_floor_counts_with_the_drift_of_a_token_and_one_step_that_it_may_have_learned(original, drift):
    """The last code that may have been used: by a token that is ahead, two steps after that, or three after it had learned one."""
    with closing(original.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "bob", SECRET, drift=drift)
    original.cluster.psql(f"CREATE DATABASE copied TEMPLATE {original.name}")
    with closing(Database(original.cluster, "copied").connect()) as conn:
        code = lambda steps: code_at(SECRET, LATER.timestamp() + steps * PERIOD)  # noqa: E731
        last = max(drift, 0) + 3
        for steps, reason in [(drift, "replayed"), (last, "replayed"), (last + 1, "accepted")]:
            fix_clock(conn, LATER + timedelta(seconds=(steps - drift) * PERIOD))
            answer = check(conn, "bob", code(steps))
            assert answer.reason == reason
            if reason == "replayed":
                assert answer.retry_at == LATER.replace(second=0) + timedelta(seconds=(last + 1 - drift) * PERIOD)


# --- a backup that is copied over a data directory ------------------------------------------------


def test_a_base_backup_copied_over_the_data_directory_is_recognized(original):
    """The control file keeps its inode and its creation time. The label that recovery leaves is a new one, each time."""
    cluster = original.cluster
    backup = cluster.base_backup()
    try:
        control = cluster.data / "global" / "pg_control"
        for again in (False, True):
            use(original, LATER + timedelta(minutes=10 * again))
            before = control.stat()
            cluster.stop()
            cluster.run("sh", "-c", f"rm -rf {cluster.data}/pg_wal && cp -a {backup.data}/. {cluster.data}")
            cluster.configure(unix_socket_directories=cluster.folder)
            cluster.start()
            assert (control.stat().st_ino, (cluster.data / "backup_label.old").exists()) == (before.st_ino, True)
            when = LATER + timedelta(minutes=10 * again)
            log = cluster.log_end()
            with closing(original.connect()) as conn:
                fix_clock(conn, when)
                assert check(conn, "alice", code_at(SECRET, when)).reason == "replayed"
            assert cluster.log_text(log).count("event=floor") == 1
    finally:
        backup.remove()


def test_without_its_label_the_floor_is_set_again_and_the_log_says_so(original):
    cluster = original.cluster
    copy = cluster.base_backup()
    try:
        copy.start()
        db = Database(copy, original.name)
        with closing(db.connect()) as conn:
            fix_clock(conn, LATER)
            assert check(conn, "alice", code_at(SECRET, LATER)).reason == "replayed"
        (copy.data / "backup_label.old").unlink()
        later = LATER + timedelta(minutes=10)
        log = copy.log_end()
        with closing(db.connect()) as conn:
            fix_clock(conn, later)
            assert check(conn, "alice", code_at(SECRET, later)).reason == "replayed"
        assert copy.log_text(log).count("event=floor") == 1
    finally:
        copy.remove()
