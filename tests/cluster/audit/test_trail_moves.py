"""The sealed trail over failover, dump and restore, pruning, rotations, and forgotten keys: no false alarm."""

import re
from contextlib import closing
from datetime import timedelta

import pytest
from many_users import both_kinds
from master_keys import NEW, OLD
from sessions import session
from totp import NOON, enroll, error_of, fix_clock
from trail import check_all, deviations, seal_all, seals, unsealed, verify_trail

DAY = timedelta(days=1)
QUERY = ("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name)"
         " SELECT %s, 'failed', 'app', 'app', 'app' FROM generate_series(1, %s)")


def insert(conn, rows=10, at=NOON):
    conn.execute(QUERY, [at, rows])


def anchors(cluster) -> list[str]:
    return re.findall(r"totp: event=audit_sealed .*", cluster.log_text())


@pytest.fixture
def conn(db):
    with session(db) as conn:
        yield conn


# --- Failover, restore ---------------------------------------------------------------


def test_a_failover_that_loses_the_last_seals(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    standby = make_standby(fresh_cluster)
    with closing(db.connect()) as conn, closing(db.connect()) as other:
        other.execute("BEGIN")
        insert(other)
        insert(conn)
        seal_all(conn)
        standby.wait_for_replay(fresh_cluster)
        standby.cut_off()
        for _ in range(2):
            insert(conn)
            seal_all(conn)
    before, *lost = anchors(fresh_cluster)
    fresh_cluster.stop("immediate")
    standby.promote()
    with closing(standby.connect(db.name)) as conn:
        assert deviations(conn) == [] and deviations(conn, before) == []
        assert deviations(conn, lost[1]) == [(3, 21, 40, "lost")]
        insert(conn)
        for _ in range(2):
            seal_all(conn)
            insert(conn)
        assert deviations(conn) == [] and deviations(conn, before) == []
        found = {line: [one for one in verify_trail(conn, line) if one.status == "lost"] for line in lost}
        for number, line in enumerate(lost, 2):
            [finding] = found[line]
            assert (finding.seal_id, finding.last_id) == (number, 10 * number + 10)
            assert re.search(r"or never here since the promotion to timeline 2 at \d{4}-\d\d-\d\d", finding.problem)
        assert [one.problem for one in verify_trail(conn)][1] == "From here on in timeline 2: after a promotion or a recovery."


def test_a_restart_and_a_crash_change_nothing(fresh_cluster):
    db = fresh_cluster.create_database()
    for stop in (fresh_cluster.stop, fresh_cluster.kill9):
        with closing(db.connect()) as conn, closing(db.connect()) as other:
            other.execute("BEGIN")
            insert(other, 3)
            insert(conn)
            seal_all(conn)
            stop()
        fresh_cluster.start()
        with closing(db.connect()) as conn:
            seal_all(conn)
            insert(conn)
            seal_all(conn)
            assert deviations(conn, anchors(fresh_cluster)[0]) == []
            assert conn.execute("SELECT bool_and(closed_seal = seal_id - 1) FROM totp.audit_seals WHERE holes <> '{}' OR row_count = 0").fetchone()


@pytest.mark.parametrize("format", ["plain", "custom"])
def test_a_dump_is_restored_with_its_seals(make_cluster, format):
    origin = make_cluster(key=OLD)
    db = origin.create_database("origin")
    with closing(db.connect()) as conn, closing(db.connect()) as other:
        for _ in range(500):  # transaction ids that the other cluster has not reached
            conn.execute("SELECT pg_current_xact_id()")
        enroll(conn, "alice")
        other.execute("BEGIN")
        insert(other, 3)
        insert(conn)
        seal_all(conn)
        insert(conn)
        dump = origin.folder / "dump"
        origin.client("pg_dump", "-d", "origin", f"-F{format[0]}", "-f", dump)
        dump.chmod(0o644)
    cluster = make_cluster(key=OLD)
    for name in ("origin", "another name"):
        restored = cluster.create_database(name, extension=False)
        if format == "plain":
            restored.psql(dump.read_text())
        else:
            cluster.client("pg_restore", "--exit-on-error", "-d", name, dump)
        with closing(restored.connect()) as conn:
            [line] = anchors(origin)
            assert deviations(conn, line) == []
            assert "10 rows are not sealed" in unsealed(conn)
            seal_all(conn)  # what the other transaction held open at the origin can never come
            assert conn.execute("SELECT closed_seal, row_count FROM totp.audit_seals WHERE seal_id = 2").fetchone() == (1, 10)
            insert(conn)
            seal_all(conn)
            assert deviations(conn, line) == []
            assert check_all(conn, OLD) == 31


# --- Pruning -------------------------------------------------------------------------


def prune(conn, age="30 days") -> int:
    return conn.execute("SELECT totp_prune_audit(%s::interval)", [age]).fetchone()[0]


def test_pruning_cuts_at_a_seal_and_is_sealed(conn, log):
    for days in (40, 35, 31, 29, 0):
        insert(conn, at=NOON - days * DAY)
        seal_all(conn)
    seal_all(conn)
    lines = [line for line in log() if "audit_sealed" in line]
    assert prune(conn) == 30
    assert deviations(conn) == [(3, 21, 30, "pruned")]
    assert conn.execute("SELECT min(id) FROM totp.audit_log").fetchone() == (31,)
    assert conn.execute("SELECT min(seal_id), max(seal_id), max(pruned_seal) FROM totp.audit_seals").fetchone() == (3, 6, 3)
    assert prune(conn) == 0 and seals(conn) == 4
    insert(conn)
    seal_all(conn)
    assert deviations(conn) == [(3, 21, 30, "pruned")]
    assert deviations(conn, lines[0]) == [(3, 21, 30, "pruned"), (1, None, 10, "unverifiable")]
    for line in lines[2:]:
        assert deviations(conn, line) == [(3, 21, 30, "pruned")]
    conn.execute("DELETE FROM totp.audit_log WHERE id IN (31, 42)")
    assert deviations(conn) == [(3, 21, 30, "pruned"), (4, 31, 31, "missing"), (5, 42, 42, "missing")]
    conn.execute("INSERT INTO totp.audit_log (id, at, event, actor, db_user, application_name) VALUES (5, now(), 'failed', '', '', '')")
    assert (3, 5, 5, "filled") in deviations(conn)
    conn.execute("DELETE FROM totp.audit_seals WHERE seal_id = 3")
    assert (3, None, 30, "missing") in deviations(conn)


def test_pruning_leaves_late_rows_and_rows_without_a_seal(db, conn):
    with closing(db.connect()) as other:
        other.execute("BEGIN")
        insert(other, 3, at=NOON)
        insert(conn, at=NOON - 40 * DAY)
        seal_all(conn)
        assert prune(conn) == 0  # a hole is open
        other.execute("COMMIT")
    seal_all(conn)
    insert(conn, at=NOON - 40 * DAY)
    seal_all(conn)
    insert(conn, at=NOON - 40 * DAY)  # old, and not sealed
    assert prune(conn) == 10
    assert conn.execute("SELECT array_agg(id ORDER BY id) FROM totp.audit_log").fetchone()[0] == [1, 2, 3, *range(14, 34)]
    assert [status for *_, status in deviations(conn)] == ["pruned"]
    seal_all(conn)
    assert [status for *_, status in deviations(conn)] == ["pruned"]
    fix_clock(conn, NOON + 100 * DAY)
    insert(conn, at=NOON + 100 * DAY)
    seal_all(conn)
    assert prune(conn) == 23
    assert [status for *_, status in deviations(conn)] == ["pruned"]


def test_pruning_that_is_rolled_back_is_none(conn):
    insert(conn, at=NOON - 40 * DAY)
    seal_all(conn)
    insert(conn)
    seal_all(conn)
    conn.execute("BEGIN")
    prune(conn)
    conn.execute("ROLLBACK")
    assert deviations(conn) == [] and seals(conn) == 2


def test_pruning_and_sealing_at_a_time(db, conn):
    insert(conn, at=NOON - 40 * DAY)
    seal_all(conn)
    insert(conn)
    seal_all(conn)
    with session(db) as other:
        other.execute("BEGIN")
        assert prune(other) == 10
        insert(conn)
        conn.execute("SET lock_timeout = 1")
        seal_all(conn)  # does not wait
        other.execute("COMMIT")
    seal_all(conn)
    assert deviations(conn) == [(1, 1, 10, "pruned")]


# --- Keys ----------------------------------------------------------------------------


@both_kinds
def test_rotations_keep_old_seals_valid(make_cluster, rotate):
    """A new key after each rotation, and the old master key can be thrown away after one."""
    cluster = make_cluster(key=OLD)
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        enroll(conn, "alice")
        seal_all(conn)
        conn.execute(rotate)
        seal_all(conn)
        assert conn.execute("SELECT count(DISTINCT key_id) FROM totp.audit_seals").fetchone() == (2,)
        assert check_all(conn, OLD) == 2
        cluster.write_key_file(f"{NEW}\n{OLD}\n")
        conn.execute(rotate)
        seal_all(conn)
    cluster.write_key_file(f"{NEW}\n")
    cluster.restart()
    with closing(db.connect()) as conn:
        assert deviations(conn) == []
        assert check_all(conn, NEW) == 3
        insert(conn)
        seal_all(conn)
        assert conn.execute("SELECT count(DISTINCT key_id) FROM totp.audit_seals").fetchone() == (3,)


def test_what_a_forgotten_key_sealed_is_unverifiable(make_cluster):
    cluster = make_cluster(key=OLD)
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        enroll(conn, "alice")
        insert(conn)
        seal_all(conn)
        [lost] = conn.execute("SELECT master_key FROM totp_keys()").fetchone()
    cluster.write_key_file(f"{NEW}\n")
    cluster.restart()
    with closing(db.connect()) as conn:
        assert deviations(conn) == [(1, 1, 11, "unverifiable")]
        assert error_of(conn, "CALL totp_audit_seal()").sqlstate == "F0000"
        assert ("audit_keys", "warn") in conn.execute("SELECT check_name, status FROM totp_health()").fetchall()
        conn.execute("SELECT * FROM totp_forget_unreadable(%s)", [lost])
        assert conn.execute("SELECT count(*) FROM totp.audit_keys").fetchone() == (0,)
        seal_all(conn)
        assert deviations(conn) == [(1, 1, 11, "unverifiable")]
        conn.execute("DELETE FROM totp.audit_log WHERE id = 5")
        assert deviations(conn) == [(1, 1, 11, "unverifiable"), (1, 5, 5, "missing")]


def test_a_key_without_a_data_key_can_be_forgotten(make_cluster):
    cluster = make_cluster(key=OLD)
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        insert(conn)
        seal_all(conn)
        [lost] = conn.execute("SELECT master_key FROM totp.audit_keys").fetchone()
        assert error_of(conn, "SELECT * FROM totp_forget_unreadable(%s)", [lost]).sqlstate == "22023"
        cluster.write_key_file(f"{NEW}\n")
        cluster.reload()
        conn.execute("SELECT * FROM totp_forget_unreadable(%s)", [lost])
        assert deviations(conn) == [(1, 1, 10, "unverifiable")]


def test_a_lost_key_of_the_trail_does_not_stop_a_rotation(make_cluster):
    cluster = make_cluster(key=OLD)
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        enroll(conn, "alice")
        seal_all(conn)
        conn.execute("UPDATE totp.audit_keys SET wrapped = sha256('x')")
        cluster.write_key_file(f"{NEW}\n{OLD}\n")
        conn.execute("SELECT totp_rotate_key()")
        seal_all(conn)
        assert [status for *_, status in deviations(conn)] == ["unverifiable"]
