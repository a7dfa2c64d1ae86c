"""Import of a secret that was removed or renamed away: the last used code is not good again, by any way out and back in."""

from contextlib import closing
from datetime import timedelta

import pytest
from totp import NOON, SECRET, OTHER_SECRET, check, code_at, error_of, fix_clock, good, import_secret, stage, verify

REMOVALS = {
    "removed": "SELECT totp_remove('alice', 'default')",
    "with its user": "SELECT totp_remove('alice')",
    "reset": "SELECT totp_reset('alice')",
    "replaced at once": "SELECT totp_enroll('alice', keep_current => false)",  # as in 0.1.0
    "with a proof": f"SELECT totp_unenroll('alice', '{good(0, 'K' * 32)}', 'default')",
    "moved": "SELECT totp_move_device('alice', 'default', 'bob', 'default')",
    "replaced by an import": f"SELECT totp_import('alice', '{OTHER_SECRET}', confirmed => true)",
    "removed, and its user renamed": "SELECT totp_remove('alice', 'default'); SELECT totp_rename_user('alice', 'bob'); SELECT totp_rename_user('bob', 'alice')",
}


@pytest.mark.parametrize("together", [False, True], ids=["two transactions", "one transaction"])
@pytest.mark.parametrize("confirmed", [True, False], ids=["confirmed", "pending"])
@pytest.mark.parametrize("device", ["default", "phone"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_the_code_that_was_used_last_is_not_good_again(request, conn, removal, device, confirmed, together):
    if removal == "replaced at once":
        request.getfixturevalue("proof_is_off")
    import_secret(conn, "alice", SECRET)
    import_secret(conn, "alice", "K" * 32, device="other")
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


def test_for_another_user_it_is_a_new_secret(conn):
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good()) is True
    conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "bob", SECRET)
    assert verify(conn, "bob", good()) is True


def test_the_code_is_not_good_after_the_first_code_of_the_next_secret(conn):
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good(1)) is True
    assert verify(conn, "alice", good(0, stage(conn))) is True
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", good(1)).reason == "replayed"


@pytest.mark.parametrize("period", [15, 45, 60, 120])
def test_the_code_is_not_good_in_steps_of_another_length(conn, period):
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


def test_a_secret_that_was_never_used_or_long_ago_leaves_nothing_behind(conn):
    import_secret(conn, "alice", SECRET)
    conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good()) is True
    later = NOON + timedelta(hours=3, minutes=1)
    fix_clock(conn, later)
    conn.execute("SELECT totp_remove('alice')")
    assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE detail ? 'used_until'").fetchone() == (0,)
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", code_at(SECRET, later)).reason == "accepted"


def test_a_removal_that_is_rolled_back_does_not_count(conn):
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good(1)) is True
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "alice", OTHER_SECRET, device="phone")
    assert check(conn, "alice", good(-1, OTHER_SECRET)).reason == "accepted"


@pytest.mark.parametrize("removal", [removal for removal in REMOVALS if removal != "with a proof"])  # the floor refuses the proof
def test_a_code_that_the_floor_refuses_is_not_good_either(request, quick_db, conn, removal):
    """After a failover, a code may have been used in WAL that was lost. A removal does not get it around that."""
    if removal == "replaced at once":
        request.getfixturevalue("proof_is_off")
    import_secret(conn, "alice", SECRET)
    import_secret(conn, "alice", "K" * 32, device="other")
    conn.execute("UPDATE totp.floor SET timeline = 0")  # as after a promotion
    with closing(quick_db.connect()) as promoted:
        fix_clock(promoted, NOON + timedelta(seconds=1))
        promoted.execute(REMOVALS[removal])
        import_secret(promoted, "alice", SECRET, device="phone" if "replaced" in removal else "default")
        for step in (-1, 0, 1):
            assert check(promoted, "alice", good(step)).reason == "replayed", step
        fix_clock(promoted, NOON + timedelta(seconds=120))
        assert check(promoted, "alice", good(4)).reason == "accepted"


# --- Out by one way and back in by another ---------------------------------------------------

@pytest.fixture
def used(conn) -> str:
    """An active user who used the code of noon."""
    import_secret(conn, "alice", SECRET)
    assert verify(conn, "alice", good()) is True
    return "alice"


def rename(conn, old, new):
    assert conn.execute("SELECT totp_rename_user(%s, %s)", [old, new]).fetchone() == (1,)


def remove(conn, user_id, device=None):
    assert conn.execute("SELECT totp_remove(%s, %s)", [user_id, device]).fetchone() == (1,)


def is_used(conn, user_id, device=None):
    """The code of noon counts no more, and the next one does."""
    assert check(conn, user_id, good(), device).reason == "replayed"
    assert check(conn, user_id, good(1), device).reason == "accepted"


def test_the_code_is_not_good_after_a_rename_and_an_import(conn, used):
    rename(conn, "alice", "bob")
    import_secret(conn, "alice", SECRET)
    is_used(conn, "alice")
    is_used(conn, "bob")


def test_the_code_is_not_good_after_a_removal_and_a_rename(conn, used):
    remove(conn, "alice")
    import_secret(conn, "bob", SECRET)
    rename(conn, "bob", "alice")
    is_used(conn, "alice")


def test_the_code_is_not_good_after_two_renames_and_a_removal(conn, used):
    for names in [("alice", "bob"), ("bob", "carol")]:
        rename(conn, *names)
    remove(conn, "carol")
    for user_id in ("alice", "bob", "carol"):
        import_secret(conn, user_id, SECRET)
        is_used(conn, user_id)


def test_a_first_code_that_was_rolled_back_is_not_good_after_its_device_made_room(conn):
    """It stays pending and expires, though its code was accepted; what makes room for a new device says so."""
    conn.execute("SET totp.max_devices = 1; SET totp.enrollment_ttl = 60; SET totp.window_steps = 2")
    import_secret(conn, "alice", SECRET, confirmed=False, device="a")
    with conn.transaction(force_rollback=True):
        assert verify(conn, "alice", good(2)) is True
    fix_clock(conn, NOON + timedelta(seconds=70))
    stage(conn, device="b")
    remove(conn, "alice", "b")
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", good(2)).reason == "replayed"
    assert check(conn, "alice", good(3)).reason == "accepted"
