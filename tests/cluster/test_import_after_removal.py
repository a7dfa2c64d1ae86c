"""A secret that went and comes back gives no code back, whatever way it goes and comes by."""

from datetime import timedelta

import pytest
from totp import NOON, SECRET, check, enroll, fix_clock, good, import_secret, verify


@pytest.fixture
def alice(conn) -> str:
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


def test_renamed_away_and_imported(conn, alice):
    rename(conn, "alice", "bob")
    import_secret(conn, "alice", SECRET)
    is_used(conn, "alice")
    is_used(conn, "bob")


def test_removed_and_brought_back_by_a_rename(conn, alice):
    remove(conn, "alice")
    import_secret(conn, "bob", SECRET)
    rename(conn, "bob", "alice")
    is_used(conn, "alice")


def test_renamed_twice_then_removed_and_imported(conn, alice):
    for names in [("alice", "bob"), ("bob", "carol")]:
        rename(conn, *names)
    remove(conn, "carol")
    for user_id in ("alice", "bob", "carol"):
        import_secret(conn, user_id, SECRET)
        is_used(conn, user_id)


def test_a_first_code_that_was_rolled_back_and_whose_device_made_room(conn):
    """It stays pending and expires, though its code was accepted; what makes room for a new device says so."""
    conn.execute("SET totp.max_devices = 1; SET totp.enrollment_ttl = 60; SET totp.window_steps = 2")
    import_secret(conn, "alice", SECRET, confirmed=False, device="a")
    with conn.transaction(force_rollback=True):
        assert verify(conn, "alice", good(2)) is True
    fix_clock(conn, NOON + timedelta(seconds=70))
    enroll(conn, "alice", device="b")
    remove(conn, "alice", "b")
    import_secret(conn, "alice", SECRET)
    assert check(conn, "alice", good(2)).reason == "replayed"
    assert check(conn, "alice", good(3)).reason == "accepted"
