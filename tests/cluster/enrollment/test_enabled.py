"""totp_enabled() says which users to ask for a code, in every state of one or two devices."""

from contextlib import closing
from datetime import timedelta
from itertools import islice

import pytest
from many_users import secret_of
from totp import MAX_ATTEMPTS, NOON, active_user, check, enabled, enroll, fix_clock, import_secret, reset, states, wrong_codes

# States that a device can be in; whether it keeps totp_enabled() true.


def nothing(conn, device):
    pass


def pending(conn, device):
    enroll(conn, "alice", device=device)


def pending_expired(conn, device):
    fix_clock(conn, NOON - timedelta(hours=2))
    enroll(conn, "alice", device=device)
    fix_clock(conn, NOON)


def active(conn, device):
    active_user(conn, device=device)


def staged(conn, device):
    active_user(conn, device=device)
    enroll(conn, "alice", device=device)


def after_reset(conn, device):
    active_user(conn, device=device)
    reset(conn, device=device)


def after_reset_expired(conn, device):
    active_user(conn, device=device)
    fix_clock(conn, NOON - timedelta(hours=2))
    reset(conn, device=device)
    fix_clock(conn, NOON)


def replaced_by_an_import(conn, device):
    active_user(conn, device=device)
    import_secret(conn, "alice", secret_of(f"other {device}"), device=device)


def reset_twice(conn, device):
    after_reset(conn, device)
    reset(conn, device=device)


def reset_while_pending(conn, device):
    enroll(conn, "alice", device=device)
    reset(conn, device=device)


def imported_as_confirmed(conn, device):
    conn.execute("SELECT totp_import('alice', %s, device => %s, confirmed => true)", [secret_of(device), device])


def disabled(conn, device):
    active_user(conn, device=device)
    conn.execute("SELECT totp_disable('alice', %s)", [device])


def staged_and_disabled(conn, device):
    staged(conn, device)
    conn.execute("SELECT totp_disable('alice', %s)", [device])


def reset_and_disabled(conn, device):
    after_reset(conn, device)
    conn.execute("SELECT totp_disable('alice', %s)", [device])


def disabled_and_enabled(conn, device):
    disabled(conn, device)
    conn.execute("SELECT totp_enable('alice', %s)", [device])


def reset_disabled_and_enabled(conn, device):
    reset_and_disabled(conn, device)
    conn.execute("SELECT totp_enable('alice', %s)", [device])


def pending_disabled_and_enabled(conn, device):
    pending(conn, device)
    conn.execute("SELECT totp_disable('alice', %s)", [device])
    conn.execute("SELECT totp_enable('alice', %s)", [device])


def removed(conn, device):
    active_user(conn, device=device)
    conn.execute("SELECT totp_remove('alice', %s)", [device])


def reset_and_removed(conn, device):
    after_reset(conn, device)
    conn.execute("SELECT totp_remove('alice', %s)", [device])


def removed_and_pending(conn, device):
    removed(conn, device)
    enroll(conn, "alice", device=device)


ON = [active, staged, after_reset, after_reset_expired, replaced_by_an_import, reset_twice, imported_as_confirmed, disabled_and_enabled, reset_disabled_and_enabled]
OFF = [nothing, pending, pending_expired, reset_while_pending, disabled, staged_and_disabled, reset_and_disabled, pending_disabled_and_enabled, removed,
       reset_and_removed, removed_and_pending]


@pytest.mark.parametrize("phone", ON + OFF, ids=lambda make: make.__name__)
def test_enabled_is_right_for_two_devices_in_every_combination(conn, phone):
    """A user is asked for a code if a device was once confirmed, and is neither disabled nor removed."""
    for tablet in ON + OFF:
        for table in ("secrets", "used_codes", "attempts"):
            conn.execute(f"DELETE FROM totp.{table}")
        phone(conn, "phone")
        tablet(conn, "tablet")
        assert enabled(conn) is (phone in ON or tablet in ON), tablet.__name__


def test_enabled_outlives_a_rename_an_unlock_and_a_rotation(conn):
    active_user(conn)
    reset(conn)
    conn.execute("SELECT totp_unlock('alice')")
    conn.execute("SELECT totp_rotate_key()")
    assert enabled(conn) is True
    conn.execute("SELECT totp_rename_user('alice', 'alicia')")
    assert (enabled(conn), enabled(conn, "alicia")) == (False, True)


def test_enabled_is_true_while_locked(conn):
    secret = active_user(conn)
    reasons = [check(conn, "alice", code).reason for code in islice(wrong_codes(secret, NOON), MAX_ATTEMPTS + 1)]
    assert reasons == ["wrong"] * MAX_ATTEMPTS + ["locked"]
    assert enabled(conn) is True


def test_enabled_of_nobody_is_false_and_never_null(conn):
    for user in ("nobody", "", None, "x" * 300, "alice' OR '1'='1"):
        assert enabled(conn, user) is False


def test_enabled_and_status_need_no_key_and_work_read_only(quick_db, conn):
    active_user(conn)
    with closing(quick_db.connect()) as other:
        other.execute("SET default_transaction_read_only = on")
        assert (enabled(other), states(other)) == (True, [("default", "active", 1)])
