"""A secret that was removed, and is imported again: the code that was used last is not good once more."""

from contextlib import closing
from datetime import timedelta

import pytest
from totp import NOON, SECRET, OTHER_SECRET, check, code_at, enroll, error_of, fix_clock, good, import_secret, verify

REMOVALS = {
    "removed": "SELECT totp_remove('alice', 'default')",
    "with its user": "SELECT totp_remove('alice')",
    "reset": "SELECT totp_reset('alice')",
    "replaced at once": "SELECT totp_enroll('alice', keep_current => false)",
    "replaced by an import": f"SELECT totp_import('alice', '{OTHER_SECRET}', confirmed => true)",
    "removed, and its user renamed": "SELECT totp_remove('alice', 'default'); SELECT totp_rename_user('alice', 'bob'); SELECT totp_rename_user('bob', 'alice')",
}


@pytest.mark.parametrize("together", [False, True], ids=["two transactions", "one transaction"])
@pytest.mark.parametrize("confirmed", [True, False], ids=["confirmed", "pending"])
@pytest.mark.parametrize("device", ["default", "phone"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_the_code_that_was_used_last_is_not_good_again(conn, removal, device, confirmed, together):
    import_secret(conn, "alice", SECRET)
    import_secret(conn, "alice", "A" * 32, device="other")
    assert verify(conn, "alice", good(1)) is True
    if together:
        conn.execute("BEGIN")
    conn.execute(REMOVALS[removal])
    import_secret(conn, "alice", SECRET, device=device, confirmed=confirmed)
    if together:
        assert error_of_savepoint(conn, good(1)).sqlstate == "55000"
        conn.execute("COMMIT")
    for step in (-1, 0, 1):
        assert check(conn, "alice", good(step)).reason == "replayed", step
    fix_clock(conn, NOON + timedelta(seconds=30))
    assert check(conn, "alice", good(2)).reason == "accepted"


def error_of_savepoint(conn, code):
    conn.execute("SAVEPOINT before")
    error = error_of(conn, "SELECT totp_verify('alice', %s)", [code])
    conn.execute("ROLLBACK TO before")
    return error


def test_to_another_user_it_is_a_new_one(conn):
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good()) is True
    conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "bob", SECRET)
    assert verify(conn, "bob", good()) is True


def test_nor_after_the_first_code_of_its_successor(conn):
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good(1)) is True
    assert verify(conn, "alice", good(0, enroll(conn, "alice"))) is True
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", good(1)).reason == "replayed"


@pytest.mark.parametrize("period", [15, 45, 60, 120])
def test_nor_in_steps_of_another_length(conn, period):
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good(1)) is True
    conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "alice", SECRET, period=period)
    used_until = NOON.timestamp() + 60
    last = int(used_until - 1) // period
    for step in range(int(NOON.timestamp()) // period - 1, last + 1):
        fix_clock(conn, NOON + timedelta(seconds=step * period - NOON.timestamp()))
        assert check(conn, "alice", code_at(SECRET, step * period, period=period)).reason == "replayed", step
    fix_clock(conn, NOON + timedelta(seconds=(last + 1) * period - NOON.timestamp()))
    assert check(conn, "alice", code_at(SECRET, (last + 1) * period, period=period)).reason == "accepted"


def test_an_import_that_waits_for_the_removal_knows_of_its_code(quick_db, conn):
    """The code is used while the removal is open: its row is read when it goes, not before."""
    import_secret(conn, "alice", SECRET)
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute("BEGIN")
        assert verify(conn, "alice", good(1)) is True
        other.execute("SELECT totp_remove('alice')")
        other.execute("COMMIT")
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", good(1)).reason == "replayed"


def test_one_that_was_never_used_or_long_ago_leaves_nothing_behind(conn):
    import_secret(conn, "alice", SECRET)
    conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good()) is True
    later = NOON + timedelta(hours=1, minutes=1)
    fix_clock(conn, later)
    conn.execute("SELECT totp_remove('alice')")
    assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE detail ? 'used_until'").fetchone() == (0,)
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", code_at(SECRET, later)).reason == "accepted"


def test_a_removal_that_is_rolled_back_says_nothing(conn):
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good(1)) is True
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "alice", OTHER_SECRET, device="phone")
    assert check(conn, "alice", good(-1, OTHER_SECRET)).reason == "accepted"


@pytest.mark.parametrize("removal", REMOVALS)
def test_nor_is_one_that_the_floor_refuses(quick_db, conn, removal):
    """After a failover, a code may have been used in WAL that was lost. A removal does not get it around that."""
    import_secret(conn, "alice", SECRET)
    import_secret(conn, "alice", "A" * 32, device="other")
    conn.execute("UPDATE totp.floor SET timeline = 0")  # as after a promotion
    with closing(quick_db.connect()) as promoted:
        fix_clock(promoted, NOON + timedelta(seconds=1))
        promoted.execute(REMOVALS[removal])
        import_secret(promoted, "alice", SECRET, device="phone" if "replaced" in removal else "default")
        for step in (-1, 0, 1):
            assert check(promoted, "alice", good(step)).reason == "replayed", step
        fix_clock(promoted, NOON + timedelta(seconds=90))
        assert check(promoted, "alice", good(3)).reason == "accepted"
