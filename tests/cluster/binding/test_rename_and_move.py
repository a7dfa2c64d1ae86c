"""A device gets another name by its user, or another user by the desk. Its state goes along."""

from contextlib import closing
from datetime import timedelta

import pytest
from binding import rename_device, slots
from totp import (NOON, OTHER_SECRET, SECRET, check, code_at, codes_left, enabled, enroll, error_of, events, fix_clock, good, import_secret,
                  recover, recovery_codes, reset, states, verify, wrong)

NEXT = NOON + timedelta(seconds=30)


@pytest.fixture
def alice(conn):
    """A user with an active device `old`, whose secret is SECRET; the recovery codes."""
    import_secret(conn, "alice", SECRET, device="old")
    return recovery_codes(conn)


def state(conn, user_id, device):
    """What goes along: of the secrets of a device, by slot."""
    return conn.execute("SELECT s.slot, s.secret_id, s.version, s.created_at, s.confirmed_at, s.enforced_since, s.expires_at, s.disabled_at, s.issuer,"
                        "       s.account_name, u.time_step, u.used_at::text, u.uses, u.recovery_mask"
                        "  FROM totp.secrets s JOIN totp.used_codes u USING (user_id, secret_id)"
                        " WHERE s.user_id = %s AND s.device = %s ORDER BY s.slot", [user_id, device]).fetchall()


def move(conn, device="old", new_user_id="bob", new_device="token", user_id="alice"):
    """totp_move_device."""
    return conn.execute("SELECT totp_move_device(%s, %s, %s, %s)", [user_id, device, new_user_id, new_device]).fetchone()[0]


# --- rename ----------------------------------------------------------------------------

def test_a_renamed_device_keeps_its_state(conn, alice):
    staged = enroll(conn, "alice", device="old")
    assert verify(conn, "alice", good(-1)) is True
    before = state(conn, "alice", "old")
    assert rename_device(conn, "old", "phone", alice[0]) is True
    assert state(conn, "alice", "phone") == before and len(before) == 2
    assert check(conn, "alice", good(-1))[1:3] == ("replayed", "phone")
    assert check(conn, "alice", good(), "phone").accepted
    assert conn.execute("SELECT reason FROM totp_check_confirm('alice', %s, 'phone', %s)", [code_at(staged, NOON), alice[1]]).fetchone() == ("accepted",)
    assert events(conn, "renamed") == [("renamed", "alice", "old", {"new_device": "phone"})]


def test_a_rename_needs_a_good_proof(conn, alice):
    error = error_of(conn, "SELECT totp_rename_device('alice', 'old', 'hardware')")
    assert error.sqlstate == "42501"
    assert rename_device(conn, "old", "hardware", wrong()) is False
    assert slots(conn) == [("old", "active")]


@pytest.mark.parametrize("arguments, sqlstate", [("'alice', 'old', 'second'", "22023"), ("'alice', 'old', 'old'", "22023"), ("'alice', 'old', 'staged'", "22023"),
                                                 ("'alice', 'none', 'x'", "42704"), ("'nobody', 'old', 'x'", "42704"), ("NULL, 'old', 'x'", "22023"),
                                                 ("'alice', NULL, 'x'", "22023"), ("'alice', 'old', NULL", "22023"), ("'alice', 'old', ''", "22023"),
                                                 ("'alice', 'off', 'x'", "55000")])
def test_what_cannot_be_renamed_burns_no_proof(conn, alice, arguments, sqlstate):
    import_secret(conn, "alice", OTHER_SECRET, device="second")
    import_secret(conn, "alice", "A" * 31 + "Q", device="off")
    enroll(conn, "alice", device="staged")
    conn.execute("SELECT totp_disable('alice', 'off')")
    assert error_of(conn, f"SELECT totp_rename_device({arguments}, %s)", [good()]).sqlstate == sqlstate
    assert verify(conn, "alice", good()) is True


def test_no_sign_in_waits_for_a_rename(quick_db, conn, alice):
    with closing(quick_db.connect(autocommit=False)) as other:
        fix_clock(other, NOON)
        assert rename_device(other, "old", "phone", alice[0]) is True
        assert check(conn, "alice", good())[1:3] == ("accepted", "old")
        assert check(conn, "alice", wrong()).reason == "wrong"
        other.commit()
    assert check(conn, "alice", good(1))[1:3] == ("accepted", "phone")


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_code_used_within_the_rename_stays_used(conn, alice, end):
    conn.execute("BEGIN")
    assert rename_device(conn, "old", "phone", alice[0]) is True
    assert check(conn, "alice", good())[1:3] == ("accepted", "phone")
    conn.execute(end)
    assert check(conn, "alice", good()).reason == "replayed" and recover(conn, alice[0]) is False


# --- move ------------------------------------------------------------------------------

def test_a_token_from_stock_makes_its_owner_a_user_with_mfa(conn, alice):
    staged = enroll(conn, "bob")
    assert verify(conn, "alice", good(-1)) is True
    before = state(conn, "alice", "old")
    assert move(conn) is True
    assert state(conn, "bob", "token") == before
    assert (enabled(conn), enabled(conn, "bob"), slots(conn, "bob")) == (False, True, [("token", "active")])
    assert check(conn, "bob", good(-1)).reason == "replayed" and check(conn, "bob", code_at(staged, NOON)).reason == "wrong"
    assert check(conn, "bob", good())[1:3] == ("accepted", "token")
    assert check(conn, "alice", good()).reason == "not_enrolled"
    assert codes_left_of_nobody(conn) == 10
    moved = events(conn, "moved")
    assert [row[1:3] for row in moved] == [("alice", "old"), ("bob", "token")]
    assert [{key: value for key, value in row[3].items() if key != "used_until"} for row in moved] == [
        {"new_user_id": "bob", "new_device": "token"}, {"old_user_id": "alice", "old_device": "old"}]


def codes_left_of_nobody(conn):
    """Alice has no device, so totp_status has no row for her."""
    return conn.execute("SELECT count FROM totp.recovery_codes WHERE user_id = 'alice'").fetchone()[0]


def test_what_nobody_approved_does_not_move(conn, alice):
    enroll(conn, "alice", device="old")
    assert move(conn) is True
    assert slots(conn) == [] and slots(conn, "bob") == [("token", "active")]


def test_a_pending_and_a_disabled_secret_move_as_they_are(conn, alice):
    new = reset(conn, device="old")
    conn.execute("SELECT totp_disable('alice', 'old')")
    assert move(conn) is True
    assert states(conn, "bob")[0][:2] == ("token", "disabled")
    conn.execute("SELECT totp_enable('bob')")
    assert verify(conn, "bob", code_at(new, NOON)) is True


def test_the_desk_moves_within_a_user_too(conn, alice):
    assert move(conn, new_user_id="alice", new_device="phone") is True
    assert slots(conn) == [("phone", "active")] and codes_left(conn) == 10
    assert check(conn, "alice", good())[1:3] == ("accepted", "phone")


def test_what_was_staged_is_in_nobody_s_way(conn, alice):
    enroll(conn, "bob", device="token")
    assert move(conn) is True
    assert slots(conn, "bob") == [("token", "active")]
    assert [row[1:3] for row in events(conn, "removed")] == [("bob", "token")]


def test_a_full_house_moves_within_itself(conn, alice):
    for number in range(9):
        import_secret(conn, "alice", chr(ord("A") + number) * 31 + "Q", device=f"d{number}")
    assert move(conn, new_user_id="alice", new_device="phone") is True
    assert len(slots(conn)) == 10


def test_there_is_nothing_to_move(conn, alice):
    enroll(conn, "alice", device="staged")
    for user_id, device in [("alice", "none"), ("nobody", "old"), ("alice", "staged")]:
        assert move(conn, device, user_id=user_id) is False
    assert conn.execute("SELECT count(*) FROM totp.attempts WHERE user_id = 'bob'").fetchone() == (0,)


@pytest.mark.parametrize("new_user, new_device, sqlstate", [("bob", "his", "22023"), ("alice", "old", "22023"), ("carol", "x", "22023"), ("dave", "x", "54000"),
                                                            (None, "x", "22023"), ("bob", None, "22023"), ("", "x", "22023"), ("bob", "x" * 257, "22023")])
def test_what_cannot_be_moved(conn, alice, new_user, new_device, sqlstate):
    import_secret(conn, "bob", OTHER_SECRET, device="his")
    import_secret(conn, "carol", SECRET, device="same secret")
    for number in range(10):
        import_secret(conn, "dave", chr(ord("A") + number) * 31 + "Q", device=f"d{number}")
    error = error_of(conn, "SELECT totp_move_device('alice', 'old', %s, %s)", [new_user, new_device])
    assert error.sqlstate == sqlstate and SECRET not in str(error)
    assert slots(conn) == [("old", "active")]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_no_code_is_judged_at_the_copy_before_the_commit(conn, alice, end):
    """Its rollback would give the code back."""
    conn.execute("BEGIN")
    move(conn)
    conn.execute("SAVEPOINT s")
    assert error_of(conn, "SELECT totp_verify('bob', %s)", [good()]).sqlstate == "55000"
    conn.execute("ROLLBACK TO s")
    conn.execute(end)
    assert verify(conn, "bob" if end == "COMMIT" else "alice", good()) is True


def test_a_move_waits_for_the_writers_of_both(quick_db, conn, alice):
    for user_id in ("alice", "bob"):
        with closing(quick_db.connect(autocommit=False)) as writer, closing(quick_db.connect()) as mover:
            fix_clock(writer, NOON)
            enroll(writer, user_id, device="staged")
            mover.execute("SET lock_timeout = '200ms'")
            assert error_of(mover, "SELECT totp_move_device('alice', 'old', 'bob', 'token')").sqlstate == "55P03"
            writer.rollback()
    assert move(conn) is True


def test_a_device_that_comes_back_does_not_forget_its_used_code(conn):
    """Removed from its owner, put in stock again, and moved back."""
    import_secret(conn, "bob", SECRET, device="token")
    assert verify(conn, "bob", good()) is True
    conn.execute("SELECT totp_remove('bob')")
    import_secret(conn, "stock", SECRET, device="old")
    assert move(conn, user_id="stock") is True
    assert check(conn, "bob", good()).reason == "replayed"
    assert verify(conn, "bob", good(1)) is True


def test_a_device_that_was_moved_away_does_not_forget_its_used_code(conn, alice):
    """Its user gets the same secret by import."""
    assert verify(conn, "alice", good()) is True
    assert move(conn) is True
    import_secret(conn, "alice", SECRET, device="again")
    assert check(conn, "alice", good()).reason == "replayed"
    assert verify(conn, "alice", good(1)) is True
