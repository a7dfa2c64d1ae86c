"""What a support desk does: reset, disable, enable, remove, unlock and rename."""

from contextlib import closing
from datetime import timedelta

import pytest
from binding import confirm
from sessions import Background
from totp import (EARLIER, LATER, LEVELS, MAX_ATTEMPTS, NOON, NO_CODE, active_user, code_at, codes_left, counters, enabled, enroll, error_of, fix_clock, recover,
                  recovery_codes, reset, stage, states, verify, wrong_codes)


def reason(conn, code, device=None, user_id="alice") -> str:
    return conn.execute("SELECT reason FROM totp_check(%s, %s, %s)", [user_id, code, device]).fetchone()[0]


def value(conn, query, *parameters):
    return conn.execute(query, parameters).fetchone()[0]


# --- Effect in every other session with its next call ------------------------------------------------


@pytest.fixture(params=LEVELS)
def old(request, quick_db):
    """A session in a transaction that has its snapshot, and has looked at alice, before the test begins."""
    with closing(quick_db.connect()) as session:
        fix_clock(session, NOON)
        session.execute(f"BEGIN ISOLATION LEVEL {request.param}")
        session.execute("SELECT totp_enabled('alice')")
        yield session


@pytest.mark.parametrize("act", ["totp_reset('alice')", "totp_enroll('alice', keep_current => false)"])
def test_a_reset_counts_at_once(request, conn, old, act):
    if "keep_current" in act:
        request.getfixturevalue("proof_is_off")
    first = active_user(conn)
    assert verify(old, "alice", code_at(first, NOON)) is True
    second = value(conn, f"SELECT secret FROM {act}")
    assert reason(old, code_at(first, LATER)) == "wrong"
    assert (enabled(old), states(old)) == (True, [("default", "pending", 2)])
    assert value(conn, "SELECT failures FROM totp_status('alice')") == 1
    assert verify(old, "alice", code_at(second, NOON)) is True
    old.execute("COMMIT")
    assert states(conn) == [("default", "active", 2)]


def test_disable_and_enable_count_at_once(conn, old):
    secret = active_user(conn)
    assert enabled(old) is True
    assert value(conn, "SELECT totp_disable('alice')") == 1
    assert (reason(old, code_at(secret, NOON)), enabled(old), states(old)) == ("disabled", False, [("default", "disabled", 1)])
    assert value(conn, "SELECT totp_enable('alice')") == 1
    assert (enabled(old), states(old)) == (True, [("default", "active", 1)])
    assert reason(old, code_at(secret, NOON)) == "accepted"  # it was refused above, and not used
    old.execute("COMMIT")


def test_a_removal_counts_at_once(conn, old):
    phone, tablet = active_user(conn, device="phone"), active_user(conn, device="tablet")
    assert len(states(old)) == 2
    assert value(conn, "SELECT totp_remove('alice', 'phone')") == 1
    assert (reason(old, code_at(phone, NOON), "phone"), states(old)) == ("not_enrolled", [("tablet", "active", 1)])
    assert reason(old, code_at(tablet, NOON)) == "accepted"
    assert value(conn, "SELECT totp_remove('alice')") == 1
    assert (reason(old, code_at(tablet, LATER)), enabled(old), states(old)) == ("not_enrolled", False, [])
    old.execute("COMMIT")


def test_an_unlock_counts_at_once(conn, old):
    secret = active_user(conn)
    for _ in range(MAX_ATTEMPTS):
        assert reason(old, next(wrong_codes(secret, NOON))) == "wrong"
    assert reason(old, code_at(secret, NOON)) == "locked"
    assert value(conn, "SELECT totp_unlock('alice')") is True
    assert reason(old, code_at(secret, NOON)) == "accepted"
    old.execute("COMMIT")


def test_a_rename_counts_at_once(conn, old):
    secret = active_user(conn)
    assert enabled(old) is True
    assert value(conn, "SELECT totp_rename_user('alice', 'alicia')") == 1
    assert (reason(old, code_at(secret, NOON)), enabled(old)) == ("not_enrolled", False)
    assert reason(old, code_at(secret, NOON), user_id="alicia") == "accepted"
    old.execute("COMMIT")


ACTS = ["SELECT totp_reset('alice')", "SELECT totp_disable('alice')", "SELECT totp_remove('alice')", "SELECT totp_rename_user('alice', 'alicia')",
        "SELECT totp_enroll('alice', keep_current => false)"]


@pytest.mark.parametrize("act", ACTS)
def test_an_act_that_is_rolled_back_changes_nothing(request, quick_db, conn, act):
    if "keep_current" in act:
        request.getfixturevalue("proof_is_off")
    secret = active_user(conn)
    recovery_codes(conn)
    with closing(quick_db.connect()) as support:
        fix_clock(support, NOON)
        support.execute("BEGIN")
        support.execute(act)
        support.execute("ROLLBACK")
    assert (enabled(conn), states(conn)) == (True, [("default", "active", 1)])
    assert reason(conn, code_at(secret, NOON)) == "accepted"
    assert value(conn, "SELECT recovery_codes_left FROM totp_status('alice')") == 10


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("act", ["SELECT totp_reset('alice')", "SELECT totp_remove('alice')", "SELECT totp_rename_user('alice', 'alicia')"])
def test_an_act_waits_for_nobody_who_signs_in(quick_db, conn, act, level):
    """A sign-in in an open transaction holds no lock that support would wait for."""
    secret = active_user(conn)
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute(f"BEGIN ISOLATION LEVEL {level}")
        assert verify(other, "alice", code_at(secret, NOON)) is True
        conn.execute("SET statement_timeout = '60s'")  # against a test that hangs
        conn.execute(act)
        other.execute("COMMIT")


@pytest.mark.parametrize("first, second", [("SELECT totp_remove('alice')", "SELECT totp_reset('alice')"), ("SELECT totp_reset('alice')", "SELECT totp_remove('alice')"),
                                           ("SELECT totp_disable('alice')", "SELECT totp_enable('alice')"), ("SELECT totp_enroll('alice')", "SELECT totp_disable('alice')"),
                                           ("SELECT totp_rename_user('alice', 'alicia')", "SELECT totp_remove('alice')")])
def test_two_acts_on_one_user_come_one_after_the_other(quick_db, conn, first, second):
    active_user(conn)
    expected_error = second == "SELECT totp_reset('alice')"  # there is nothing left to reset
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute("BEGIN")
        other.execute(first)
        try:
            with Background(quick_db, second) as acting:
                acting.wait_until_blocked(conn)
                other.execute("COMMIT")
        except Exception as error:
            assert expected_error and error.sqlstate == "42704"
        else:
            assert not expected_error
    expected = {"SELECT totp_remove('alice')": [], "SELECT totp_reset('alice')": [], "SELECT totp_enable('alice')": [("default", "active", 1)],
                "SELECT totp_disable('alice')": [("default", "disabled", 1), ("default", "disabled", 2)]}
    assert states(conn) == expected[second]


# --- Reset, disable, enable, remove, one by one ------------------------------------------------------------


def test_a_reset_keeps_names_and_parameters(conn):
    secret = enroll(conn, "alice", account_name="alice@example.com", issuer="Example", device="phone", algorithm="SHA256", digits=8, period=60)
    assert verify(conn, "alice", code_at(secret, EARLIER, "SHA256", 8, 60)) is True
    new, uri = conn.execute("SELECT * FROM totp_reset('alice', 'phone')").fetchone()
    assert uri == f"otpauth://totp/Example:alice%40example.com?secret={new}&issuer=Example&algorithm=SHA256&digits=8&period=60"
    row = conn.execute("SELECT state, account_name, issuer, algorithm, digits, period, version FROM totp_status('alice')").fetchone()
    assert row == ("pending", "alice@example.com", "Example", "SHA256", 8, 60, 2)
    assert verify(conn, "alice", code_at(secret, NOON + timedelta(minutes=1), "SHA256", 8, 60)) is False
    assert verify(conn, "alice", code_at(new, NOON, "SHA256", 8, 60)) is True


def test_a_reset_kills_a_staged_secret_too(conn):
    old, pending_secret = active_user(conn), enroll(conn, "alice")
    new = reset(conn)
    assert states(conn) == [("default", "pending", 3)]
    assert [verify(conn, "alice", code_at(secret, NOON)) for secret in (old, pending_secret, new)] == [False, False, True]
    assert states(conn) == [("default", "active", 3)]


def test_a_reset_leaves_the_other_devices(conn):
    _, tablet = active_user(conn, device="phone"), active_user(conn, device="tablet")
    reset(conn, device="phone")
    assert states(conn) == [("phone", "pending", 2), ("tablet", "active", 1)]
    assert reason(conn, code_at(tablet, NOON)) == "accepted"


@pytest.mark.parametrize("user_id, device, sqlstate", [("nobody", "default", "42704"), ("alice", "tablet", "42704"), (None, "default", "22023"), ("alice", None, "22023"),
                                                       ("", "default", "22023")])
def test_a_reset_needs_its_device(conn, user_id, device, sqlstate):
    active_user(conn)
    assert error_of(conn, "SELECT totp_reset(%s, %s)", [user_id, device]).sqlstate == sqlstate


def test_a_disabled_device_is_not_reset(conn):
    active_user(conn)
    conn.execute("SELECT totp_disable('alice')")
    error = error_of(conn, "SELECT totp_reset('alice')")
    assert (error.sqlstate, error.diag.message_hint) == ("55000", "Enable it with totp_enable(), or remove it with totp_remove().")
    assert states(conn) == [("default", "disabled", 1)]


def test_disable_and_enable_count_devices_that_change(conn):
    active_user(conn, device="phone")
    enroll(conn, "alice", device="phone")  # a staged secret: still one device
    active_user(conn, device="tablet")
    assert value(conn, "SELECT totp_disable('alice', 'phone')") == 1
    assert value(conn, "SELECT totp_disable('alice', 'phone')") == 0
    assert value(conn, "SELECT totp_disable('alice')") == 1
    assert value(conn, "SELECT totp_disable('alice')") == 0
    assert [state for _, state, _ in states(conn)] == ["disabled"] * 3
    assert value(conn, "SELECT totp_enable('alice', 'tablet')") == 1
    assert value(conn, "SELECT totp_enable('alice')") == 1
    assert value(conn, "SELECT totp_enable('alice')") == 0
    assert [state for _, state, _ in states(conn)] == ["active", "pending", "active"]  # the states they had
    for function in ("totp_disable", "totp_enable", "totp_remove"):
        assert value(conn, f"SELECT {function}('nobody')") == 0
        assert value(conn, f"SELECT {function}('alice', 'watch')") == 0


def test_a_disabled_device_leaves_the_other_one_alone(conn):
    phone, tablet = active_user(conn, device="phone"), active_user(conn, device="tablet")
    conn.execute("SELECT totp_disable('alice', 'phone')")
    assert reason(conn, code_at(phone, NOON), "phone") == "disabled"
    assert reason(conn, code_at(phone, NOON)) == "wrong"
    assert reason(conn, code_at(tablet, NOON)) == "accepted"
    assert enabled(conn) is True


def test_a_code_used_before_the_device_was_disabled_stays_used(conn):
    secret = active_user(conn)
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    conn.execute("SELECT totp_disable('alice')")
    conn.execute("SELECT totp_enable('alice')")
    assert reason(conn, code_at(secret, NOON)) == "replayed"


def users_with_rows(conn):
    return {user for table in ("secrets", "used_codes", "attempts", "recovery_codes") for [user] in conn.execute(f"SELECT user_id FROM totp.{table}")}


def test_remove_leaves_no_row_of_the_user_and_no_way_in(conn):
    secrets = [active_user(conn, device="phone"), enroll(conn, "alice", device="tablet")]
    codes, other = recovery_codes(conn), active_user(conn, "bob")
    conn.execute("SELECT totp_disable('alice')")
    assert value(conn, "SELECT totp_remove('alice')") == 2
    assert users_with_rows(conn) == {"bob"}
    assert verify(conn, "bob", code_at(other, NOON)) is True
    assert [verify(conn, "alice", code_at(secret, NOON)) for secret in secrets] == [False, False]
    assert recover(conn, codes[0]) is False
    active_user(conn)
    assert recover(conn, codes[0]) is False
    assert codes_left(conn) == 0


@pytest.mark.parametrize("devices", [1, 0])
def test_a_user_whose_attempts_were_deleted_by_hand_is_removed_too(conn, devices):
    active_user(conn)
    recovery_codes(conn)
    if not devices:
        conn.execute("SELECT totp_remove('alice', 'default')")
    conn.execute("DELETE FROM totp.attempts")
    assert value(conn, "SELECT totp_remove('alice')") == devices
    assert users_with_rows(conn) == set()


# --- Unlock ----------------------------------------------------------------------------------------------


def test_unlock_says_whether_there_was_anything(conn):
    secret = active_user(conn)
    assert value(conn, "SELECT totp_unlock('alice')") is False
    assert value(conn, "SELECT totp_unlock('nobody')") is False
    reason(conn, next(wrong_codes(secret, NOON)))
    assert value(conn, "SELECT totp_unlock('alice')") is True
    assert value(conn, "SELECT totp_unlock('alice')") is False
    assert error_of(conn, "SELECT totp_unlock(NULL)").sqlstate == "22023"


# --- Rename ----------------------------------------------------------------------------------------------


def test_a_rename_takes_everything_along(conn):
    phone, tablet = active_user(conn, device="phone"), active_user(conn, device="tablet")
    staged_secret = enroll(conn, "alice", device="tablet")
    used, unused, *_ = recovery_codes(conn)
    conn.execute("SELECT totp_disable('alice', 'phone')")
    reason(conn, next(wrong_codes(tablet, NOON)))
    assert (recover(conn, used), recover(conn, NO_CODE)) == (True, False)
    before = conn.execute("SELECT * FROM totp_status('alice')").fetchall()
    assert value(conn, "SELECT totp_rename_user('alice', 'alicia')") == 2
    assert conn.execute("SELECT * FROM totp_status('alicia')").fetchall() == before
    for table in ("secrets", "used_codes", "attempts", "recovery_codes"):
        assert conn.execute(f"SELECT DISTINCT user_id FROM totp.{table}").fetchall() == [("alicia",)]
    assert reason(conn, code_at(phone, NOON), "phone", "alicia") == "disabled"
    assert reason(conn, code_at(tablet, EARLIER), None, "alicia") == "replayed"
    assert reason(conn, code_at(tablet, NOON), None, "alicia") == "accepted"
    assert confirm(conn, code_at(staged_secret, NOON), "tablet", code_at(tablet, LATER), "alicia") is True
    assert counters(conn, "alicia") == (0, 1, False, False)
    assert (recover(conn, unused), recover(conn, used, "alicia"), recover(conn, unused, "alicia")) == (False, False, True)
    alice = active_user(conn)  # the old id is free again
    assert reason(conn, code_at(alice, NOON)) == "accepted"


@pytest.mark.parametrize("old_id, new_id, sqlstate", [("nobody", "new", "42704"), ("alice", "bob", "22023"), ("alice", "alice", "22023"), ("alice", "", "22023"),
                                                      ("alice", None, "22023"), (None, "new", "22023"), ("alice", "x" * 257, "22023")])
def test_an_impossible_rename_is_refused(conn, old_id, new_id, sqlstate):
    secret = active_user(conn)
    active_user(conn, "bob")
    assert error_of(conn, "SELECT totp_rename_user(%s, %s)", [old_id, new_id]).sqlstate == sqlstate
    assert reason(conn, code_at(secret, NOON)) == "accepted"
    assert states(conn, "bob") == [("default", "active", 1)]


def test_of_two_users_renamed_to_one_id_at_once_one_keeps_its_own(quick_db, conn):
    active_user(conn, "alice")
    active_user(conn, "bob")
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute("BEGIN")
        other.execute("SELECT totp_rename_user('alice', 'carol')")
        with pytest.raises(Exception, match="user already exists") as caught, Background(quick_db, "SELECT totp_rename_user('bob', 'carol')") as renaming:
            renaming.wait_until_blocked(conn)
            other.execute("COMMIT")
    assert caught.value.sqlstate == "22023"
    assert (states(conn, "bob"), states(conn, "carol")) == ([("default", "active", 1)], [("default", "active", 1)])


# --- Who did it --------------------------------------------------------------------------------------------


USED = {"used_until": str(int(NOON.timestamp()))}  # of the code by which active_user() confirms


@pytest.mark.parametrize("act, event, device, detail", [
    ("SELECT totp_reset('alice')", "reset", "default", {"version": "2"} | USED), ("SELECT totp_disable('alice', 'default')", "disabled", "default", None),
    ("SELECT totp_enable('alice')", "enabled", "default", None), ("SELECT totp_remove('alice', 'default')", "removed", "default", USED),
    ("SELECT totp_unlock('alice')", "unlocked", None, None),
    ("SELECT totp_enroll('alice')", "enrolled", "default", {"keep_current": "true", "version": "2"}),
    ("SELECT totp_enroll('alice', keep_current => false)", "enrolled", "default", {"keep_current": "false", "version": "2"} | USED),
    ("SELECT totp_recovery_codes('alice', 10, '{proof}')", "recovery_codes_created", None, None),
    ("SELECT totp_rename_device('alice', 'default', 'phone', '{proof}')", "renamed", "default", {"new_device": "phone"}),
    ("SELECT totp_unenroll('alice', '{proof}', 'tablet')", "removed", "tablet", USED),
    ("SELECT totp_reset_recovery_codes('alice')", "recovery_codes_created", None, None),
    ("SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "imported", "default", {"confirmed": "false", "version": "2"}),
    ("SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', confirmed => true)", "imported", "default",
     {"confirmed": "true", "version": "2"} | USED),
])
def test_each_act_is_audited_once(request, quick_db, conn, act, event, device, detail):
    if "keep_current" in act:
        request.getfixturevalue("proof_is_off")
    secret = active_user(conn)
    active_user(conn, device="tablet")
    reason(conn, next(wrong_codes(secret, NOON)))
    if event == "enabled":
        conn.execute("SELECT totp_disable('alice', 'default')")
    conn.execute("DELETE FROM totp.audit_log")
    with closing(quick_db.connect(application_name="support desk")) as support:
        fix_clock(support, NOON)
        with support.transaction():
            support.execute("SET LOCAL totp.actor = 'support:42'")
            support.execute(act.format(proof=code_at(secret, NOON)))
    rows = conn.execute("SELECT event, user_id, device, at, actor, db_user, application_name, detail FROM totp.audit_log").fetchall()
    assert rows == [(event, "alice", device, NOON, "support:42", "postgres", "support desk", detail)]


def test_enabling_and_renaming_are_audited(conn):
    active_user(conn, device="phone")
    active_user(conn, device="tablet")
    conn.execute("SELECT totp_disable('alice')")
    conn.execute("DELETE FROM totp.audit_log")
    conn.execute("SELECT totp_enable('alice')")
    conn.execute("SELECT totp_rename_user('alice', 'alicia')")
    assert conn.execute("SELECT event, user_id, device, detail FROM totp.audit_log ORDER BY id").fetchall() == [
        ("enabled", "alice", "phone", None), ("enabled", "alice", "tablet", None),
        ("renamed", "alice", None, {"new_user_id": "alicia", "used_until": str(int(NOON.timestamp()))}),
        ("renamed", "alicia", None, {"old_user_id": "alice"})]


def test_the_removal_of_a_user_is_audited_for_the_user_and_each_device(conn):
    active_user(conn, device="phone")
    active_user(conn, device="tablet")
    conn.execute("DELETE FROM totp.audit_log")
    conn.execute("SELECT totp_remove('alice')")
    assert conn.execute("SELECT event, user_id, device FROM totp.audit_log ORDER BY id").fetchall() == [
        ("removed", "alice", None), ("removed", "alice", "phone"), ("removed", "alice", "tablet")]


def test_an_act_that_changes_nothing_is_not_audited(conn):
    active_user(conn)
    conn.execute("DELETE FROM totp.audit_log")
    for query in ("SELECT totp_unlock('alice')", "SELECT totp_enable('alice')", "SELECT totp_disable('alice', 'watch')", "SELECT totp_remove('nobody')",
                  "SELECT totp_remove('alice', 'watch')"):
        conn.execute(query)
    assert conn.execute("SELECT count(*) FROM totp.audit_log").fetchone() == (0,)
