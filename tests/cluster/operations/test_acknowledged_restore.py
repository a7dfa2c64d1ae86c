"""The warning about recovery codes after a failover or restore: when it begins, and how totp_acknowledge_restore() ends it."""

from contextlib import closing
from datetime import timedelta

import pytest
from crash_load import LAZY
from health import health
from server import Database
from totp import NOON, SECRET, check, code_at, error_of, fix_clock, import_secret, recovery_codes, verify

LATER = NOON + timedelta(minutes=10, seconds=7)


@pytest.fixture
def copy_of(cluster):
    """A function that copies a database, which is one way to restore it: the copy knows no code that is used in the original from now on."""
    copies = []

    def copy(db: Database) -> Database:
        copies.append(Database(cluster, f"{db.name}_copy_{len(copies) + 1}"))
        cluster.psql(f"CREATE DATABASE {copies[-1].name} TEMPLATE {db.name}")
        return copies[-1]

    yield copy
    for each in copies:
        each.drop()


@pytest.fixture
def original(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        assert verify(conn, "alice", code_at(SECRET, NOON)) is True
        recovery_codes(conn)
    return db


def judge(conn, when=LATER):
    """The first call that judges notices the restore."""
    fix_clock(conn, when)
    return check(conn, "alice", code_at(SECRET, when)).reason


def warns(conn) -> bool:
    return health(conn, full=False)["recovery_after_restore"][0] == "warn"


def floor(conn) -> tuple:
    return conn.execute("SELECT floor_at, system_identifier, control_inode, database, abs(timeline) FROM totp.floor").fetchone()


def acknowledge(conn) -> bool:
    return conn.execute("SELECT totp_acknowledge_restore()").fetchone()[0]


def test_a_new_installation_has_nothing_to_acknowledge(original):
    with closing(original.connect()) as conn:
        judge(conn)
        assert not warns(conn)
        assert acknowledge(conn) is False
        assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'restore_acknowledged'").fetchone() == (0,)


def test_users_who_come_in_the_transaction_that_creates_the_extension_are_no_restore(cluster):
    db = cluster.create_database()
    try:
        with closing(db.connect()) as conn:
            fix_clock(conn, NOON)
            with conn.transaction():
                conn.execute("DROP EXTENSION pg_totp; CREATE EXTENSION pg_totp")
                import_secret(conn, "alice", SECRET)
                recovery_codes(conn)
            assert judge(conn) == "accepted"
            assert not warns(conn)
    finally:
        db.drop()


def test_a_restore_warns_from_its_first_call_until_it_is_acknowledged(original, copy_of):
    with closing(copy_of(original).connect()) as conn:
        fix_clock(conn, LATER)
        assert not warns(conn) and acknowledge(conn) is False  # nobody has noticed yet, and this sets no floor
        judge(conn)
        assert warns(conn) and floor(conn)[0] == LATER
        assert health(conn)["old_recovery_codes"][1].startswith("1 set of recovery codes is older")
        before = floor(conn)
        assert acknowledge(conn) is True
        assert not warns(conn)
        assert floor(conn) == before
        assert acknowledge(conn) is False
        row = conn.execute("SELECT at, user_id, device, db_user, detail FROM totp.audit_log WHERE event = 'restore_acknowledged'").fetchall()
        assert row == [(LATER, None, None, "postgres", {"floor_at": str(int(LATER.timestamp()))})]


def test_an_acknowledged_floor_still_refuses_the_codes_before_it(original, copy_of):
    copy = copy_of(original)
    with closing(copy.connect()) as conn:
        assert judge(conn) == "replayed"
        acknowledge(conn)
    with closing(copy.connect()) as conn:  # one that reads the floor again
        for seconds in (0, 30, 60, 90):
            assert judge(conn, LATER + timedelta(seconds=seconds)) == "replayed"
        assert judge(conn, LATER + timedelta(seconds=120)) == "accepted"
        assert not warns(conn)


def test_the_next_restore_warns_again(original, copy_of):
    first = copy_of(original)
    with closing(first.connect()) as conn:
        judge(conn)
        acknowledge(conn)
    with closing(copy_of(first).connect()) as conn:
        judge(conn, LATER + timedelta(hours=1))
        assert warns(conn)
        assert acknowledge(conn) is True


def test_a_warning_stays_over_the_next_restore(original, copy_of):
    """Also if all recovery codes are gone by then: nobody has said that it is dealt with."""
    first = copy_of(original)
    with closing(first.connect()) as conn:
        judge(conn)
        conn.execute("DELETE FROM totp.recovery_codes")
    with closing(copy_of(first).connect()) as conn:
        judge(conn, LATER + timedelta(hours=1))
        assert warns(conn)


def test_without_recovery_codes_a_restore_does_not_warn(original, copy_of):
    original.execute("DELETE FROM totp.recovery_codes")
    with closing(copy_of(original).connect()) as conn:
        assert judge(conn) == "replayed"
        assert not warns(conn)


def test_a_floor_that_is_set_again_for_the_clock_does_not_warn_and_ends_no_warning(original, copy_of):
    with closing(original.connect()) as conn:
        conn.execute("UPDATE totp.floor SET floor_at = %s", [LATER + timedelta(days=365)])
        judge(conn)
        assert floor(conn)[0] == LATER and not warns(conn)
    with closing(copy_of(original).connect()) as conn:
        judge(conn)
        conn.execute("UPDATE totp.floor SET floor_at = %s", [LATER + timedelta(days=365)])
    with closing(copy_of(original).connect()) as conn:
        judge(conn)
        assert warns(conn)


def test_rollback_does_not_undo_it(original, copy_of, log):
    with closing(copy_of(original).connect()) as conn:
        judge(conn)
        with conn.transaction(force_rollback=True):
            assert acknowledge(conn) is True
        assert not warns(conn)
        assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'restore_acknowledged'").fetchone() == (0,)
    assert [line for line in log() if "restore" in line] == [f'event=restore_acknowledged floor_at={int(LATER.timestamp())}']


def test_it_survives_a_crash_right_after_the_answer(make_cluster):
    cluster = make_cluster(**LAZY)
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        recovery_codes(conn)
        conn.execute("UPDATE totp.floor SET timeline = 0")  # as after a promotion
    conn = db.connect()
    judge(conn)
    assert warns(conn)
    conn.execute("BEGIN")
    assert acknowledge(conn) is True
    cluster.kill9()
    cluster.start()
    with closing(db.connect()) as conn:
        assert not warns(conn)


def test_it_is_for_the_owner_and_changes_nothing_in_a_read_only_transaction(original, copy_of):
    copy = copy_of(original)
    admin = copy.create_role("admin")
    copy.execute(f"GRANT EXECUTE ON FUNCTION totp_acknowledge_restore() TO {admin}")
    with closing(copy.connect()) as conn:
        judge(conn)
    with closing(copy.connect(user=admin)) as conn:
        assert error_of(conn, "SELECT totp_acknowledge_restore()").sqlstate == "42501"
    with closing(copy.connect()) as conn:
        conn.execute("BEGIN READ ONLY")
        assert error_of(conn, "SELECT totp_acknowledge_restore()").sqlstate == "25006"
        conn.execute("ROLLBACK")
        assert warns(conn)


def test_it_waits_for_nobody_who_signs_in(original, copy_of):
    copy = copy_of(original)
    with closing(copy.connect()) as conn, closing(copy.connect()) as other:
        judge(conn)
        fix_clock(other, LATER + timedelta(minutes=2))
        with other.transaction():
            assert verify(other, "alice", code_at(SECRET, LATER + timedelta(minutes=2))) is True
            conn.execute("SET lock_timeout = '1s'")
            assert acknowledge(conn) is True
