"""A secret of a user who has MFA counts only with a proof: a code of an active device, or a recovery code."""

from datetime import timedelta

import pytest
from binding import check_confirm, confirm, new_recovery_codes, rename_device, slots, unenroll
from totp import (MAX_ATTEMPTS, NOON, NO_CODE, OTHER_SECRET, SECRET, check, code_at, codes_left, counters, enabled, enroll, error_of, events, fix_clock,
                  good, import_secret, recover, recovery_codes, reset, states, verify, wrong, wrong_codes)

NEXT = NOON + timedelta(seconds=30)


@pytest.fixture
def alice(conn):
    """A user with an active device `old`, whose secret is SECRET, and recovery codes."""
    import_secret(conn, "alice", SECRET, device="old")
    return recovery_codes(conn)


@pytest.fixture
def new(conn, alice) -> str:
    """A secret staged for another device of alice."""
    return enroll(conn, "alice", device="new")


# --- who needs one ---------------------------------------------------------------------

def test_the_first_device_needs_no_proof(conn):
    secret = enroll(conn, "alice")
    assert slots(conn) == [("default", "proposed")]
    assert check_confirm(conn, code_at(secret, NOON), proof="ignored").reason == "accepted"
    assert enabled(conn) is True and slots(conn) == [("default", "active")]


@pytest.mark.parametrize("call", ["totp_verify", "totp_check"])
def test_the_first_device_may_be_confirmed_by_a_sign_in(conn, call):
    secret = enroll(conn, "alice")
    assert conn.execute(f"SELECT (SELECT true FROM {call}('alice', %s) AS t WHERE t::text LIKE '%%t%%')", [code_at(secret, NOON)]).fetchone() == (True,)
    assert slots(conn) == [("default", "active")]


def test_a_second_device_needs_one(conn, new):
    error = error_of(conn, "SELECT totp_confirm('alice', %s, 'new')", [code_at(new, NOON)])
    assert (error.sqlstate, error.diag.message_primary) == ("42501", "a proof of an authenticator is required")
    assert "argument proof" in error.diag.message_hint
    assert check_confirm(conn, code_at(new, NOON), "new").reason == "proof_required"
    assert check_confirm(conn, wrong(), "new").reason == "proof_required"  # said before the code is judged
    assert counters(conn)[0] == 0
    assert check_confirm(conn, code_at(new, NOON), "new", good()).reason == "accepted"
    assert slots(conn) == [("new", "active"), ("old", "active")]
    assert check(conn, "alice", good()).reason == "replayed" and check(conn, "alice", code_at(new, NOON)).reason == "replayed"


def test_a_recovery_code_is_one(conn, alice, new):
    assert confirm(conn, code_at(new, NOON), "new", alice[0]) is True
    assert codes_left(conn) == 9 and recover(conn, alice[0]) is False


@pytest.mark.parametrize("is_code", [True, False])
def test_it_is_a_sign_in(conn, alice, new, is_code, log):
    """In the log, in the audit log, and for the counters."""
    conn.execute("SET totp.audit_success = on")
    for _ in range(2):
        check(conn, "alice", wrong())
    assert confirm(conn, code_at(new, NOON), "new", good() if is_code else alice[0]) is True
    assert counters(conn) == (0, 0, False, False)
    expected = [("verified", "old")] if is_code else [("recovery_code_used", None)]
    assert [row[:3:2] for row in events(conn, "verified", "recovery_code_used", "confirmed")] == [*expected, ("confirmed", "new")]
    [(*_, detail)] = [row for row in events(conn, "confirmed") if row[2] == "new"]
    assert detail["proof"] == ("code" if is_code else "recovery_code")
    assert [line for line in log() if "recovery_code_used" in line] == ([] if is_code else ['event=recovery_code_used user="alice"'])


def test_what_the_desk_has_staged_needs_none(conn, alice):
    new = reset(conn, device="old")
    assert slots(conn) == [("old", "pending")]
    assert confirm(conn, code_at(new, NOON), "old", "not looked at") is True
    import_secret(conn, "alice", OTHER_SECRET, confirmed=False, device="token")
    assert verify(conn, "alice", code_at(OTHER_SECRET, NOON)) is True
    assert [row[3]["proof"] for row in events(conn, "confirmed")] == ["desk", "desk"]
    assert codes_left(conn) == 10  # no proof was used up


def test_status_tells_what_is_approved(conn, new):
    reset(conn, device="old")
    rows = conn.execute("SELECT device, state, approved FROM totp_status('alice')").fetchall()
    assert rows == [("new", "pending", False), ("old", "pending", True)]


@pytest.mark.parametrize("value, needed", [("on", True), ("off", False)])
def test_the_setting(fresh_cluster, value, needed):
    """Of the configuration file. No session can change it."""
    fresh_cluster.configure(**{"totp.require_proof": value})
    fresh_cluster.reload()
    database = fresh_cluster.create_database()
    conn = database.connect()
    conn.execute("LOAD 'pg_totp'")
    assert error_of(conn, "SET totp.require_proof = off").sqlstate == "55P02"
    fix_clock(conn, NOON)
    import_secret(conn, "alice", SECRET, device="old")
    codes = recovery_codes(conn, count=1)
    new = enroll(conn, "alice", device="new")
    assert check_confirm(conn, code_at(new, NOON), "new").reason == ("proof_required" if needed else "accepted")
    status, detail = conn.execute("SELECT status, detail FROM totp_health() WHERE check_name = 'require_proof'").fetchone()
    assert (status, detail.endswith("nothing to do")) == (("ok", True) if needed else ("warn", False))
    if not needed:
        assert len(new_recovery_codes(conn)) == 10 and recover(conn, codes[0]) is False
        assert rename_device(conn, "new", "newer") is True
        assert unenroll(conn, None, "newer") is True
        enroll(conn, "alice", device="old", keep_current=False)
        assert slots(conn) == [("old", "proposed")]
    conn.close()


# --- a bad one -------------------------------------------------------------------------

def test_a_bad_proof_is_an_answer_and_is_charged(conn, alice, new):
    codes = wrong_codes(SECRET, NOON)
    assert check_confirm(conn, code_at(new, NOON), "new", next(codes))[:4] == (False, "proof_wrong", None, 4)
    assert confirm(conn, code_at(new, NOON), "new", next(codes)) is False
    assert counters(conn) == (2, 0, False, False)
    assert check_confirm(conn, code_at(new, NOON), "new", NO_CODE)[:4] == (False, "proof_wrong", None, 4)
    assert counters(conn) == (2, 1, False, False)
    assert verify(conn, "alice", good(-1)) is True
    assert check_confirm(conn, code_at(new, NOON), "new", good(-1)).reason == "proof_replayed"
    assert recover(conn, alice[0]) is True
    assert check_confirm(conn, code_at(new, NOON), "new", alice[0])[:4] == (False, "proof_replayed", None, 4)
    assert counters(conn) == (0, 1, False, False)
    assert check_confirm(conn, code_at(new, NOON), "new", good()).accepted  # nothing of that used up the new code


def test_a_locked_proof(conn, alice, new):
    for _ in range(MAX_ATTEMPTS):
        assert check_confirm(conn, code_at(new, NOON), "new", NO_CODE).reason == "proof_wrong"
    assert check_confirm(conn, code_at(new, NOON), "new", alice[0])[:6] == (False, "proof_locked", None, 0, NEXT, 30)
    assert check_confirm(conn, code_at(new, NOON), "new", good()).accepted  # codes have another counter


def test_nothing_is_bound_while_codes_are_locked(conn, alice, new):
    """A recovery code ends the lock, but by a call of its own."""
    for number in range(MAX_ATTEMPTS):
        check(conn, "alice", wrong(number))
    for proof in (good(), alice[0], NO_CODE):
        assert check_confirm(conn, code_at(new, NOON), "new", proof)[:6] == (False, "locked", None, 0, NEXT, 30)
    assert codes_left(conn) == 10 and counters(conn)[1] == 0
    assert recover(conn, alice[0]) is True
    assert check_confirm(conn, code_at(new, NOON), "new", alice[1]).accepted


@pytest.mark.parametrize("proof", ["", "12345", "1234567", "x" * 300, "AAAAAA-AAAAAA-AAAAAA-AAAAA", "١٢٣٤٥٦"])
def test_what_cannot_be_a_proof_is_wrong_and_costs_nothing(conn, new, proof):
    assert check_confirm(conn, code_at(new, NOON), "new", proof).reason == "proof_wrong"
    assert counters(conn) == (0, 0, False, False)


def test_a_typo_in_the_new_code_burns_no_proof(conn, alice, new):
    for proof in (good(), alice[0]):
        assert check_confirm(conn, next(wrong_codes(new, NOON)), "new", proof).reason == "wrong"
        assert check_confirm(conn, "12345", "new", proof).reason == "malformed"
    assert counters(conn)[0] == 2 and codes_left(conn) == 10
    assert check_confirm(conn, code_at(new, NOON), "new", good()).accepted


def test_too_many_devices_burn_no_proof(conn, alice):
    for number in range(9):
        import_secret(conn, "alice", chr(ord("A") + number) * 31 + "Q", device=f"d{number}")
    new = enroll(conn, "alice", device="new")
    error = error_of(conn, "SELECT totp_confirm('alice', %s, 'new', %s)", [code_at(new, NOON), alice[0]])
    assert error.sqlstate == "54000" and codes_left(conn) == 10
    conn.execute("SELECT totp_remove('alice', 'd0')")
    assert confirm(conn, code_at(new, NOON), "new", alice[0]) is True


def test_a_call_that_must_fail_burns_no_proof(conn, alice):
    """A transaction that has copied rows changed in place may use no code of a row that it made itself."""
    conn.execute("BEGIN")
    for _ in range(2):
        import_secret(conn, "carol", OTHER_SECRET)
    new = enroll(conn, "alice", device="new")
    error = error_of(conn, "SELECT totp_confirm('alice', %s, 'new', %s)", [code_at(new, NOON), alice[0]])
    assert error.sqlstate == "55000"
    conn.execute("ROLLBACK")
    assert codes_left(conn) == 10


def test_the_code_of_the_new_secret_counts_once(conn, alice, new):
    conn.execute("BEGIN")
    assert confirm(conn, code_at(new, NOON), "new", alice[0]) is True
    conn.execute("ROLLBACK")
    assert slots(conn) == [("new", "proposed"), ("old", "active")]
    assert check_confirm(conn, code_at(new, NOON), "new", alice[1])[:3] == (False, "replayed", "new")
    assert check_confirm(conn, code_at(new, NEXT), "new", alice[0]).reason == "proof_replayed"
    assert check_confirm(conn, code_at(new, NEXT), "new", alice[1]).accepted
    assert codes_left(conn) == 8


# --- recovery codes, removal -----------------------------------------------------------

def test_new_recovery_codes_need_a_proof(conn, alice):
    assert error_of(conn, "SELECT totp_recovery_codes('alice')").sqlstate == "42501"
    assert new_recovery_codes(conn, wrong()) == [] and new_recovery_codes(conn, NO_CODE) == []
    assert counters(conn) == (1, 1, False, False)
    codes = new_recovery_codes(conn, alice[0])
    assert len(codes) == 10 and recover(conn, alice[1]) is False and recover(conn, codes[0]) is True
    assert new_recovery_codes(conn, good()) and new_recovery_codes(conn, good()) == []


def test_recovery_codes_need_an_active_device(conn):
    enroll(conn, "alice")
    for call in ("totp_recovery_codes('alice')", "totp_recovery_codes('alice', 10, '123456')"):
        assert error_of(conn, f"SELECT {call}").sqlstate == "42704"
    assert len(recovery_codes(conn)) == 10  # by the desk: any device will do


def test_the_page_removes_a_device(conn, alice):
    import_secret(conn, "alice", OTHER_SECRET, device="second")
    assert error_of(conn, "SELECT totp_unenroll('alice', NULL, 'second')").sqlstate == "42501"
    assert unenroll(conn, wrong(), "second") is False
    assert len(states(conn)) == 2
    assert unenroll(conn, good(), "second") is True
    assert [device for device, *_ in states(conn)] == ["old"] and codes_left(conn) == 10
    assert error_of(conn, "SELECT totp_unenroll('alice', %s, 'second')", [good(1)]).sqlstate == "42704"
    assert verify(conn, "alice", good(1)) is True  # it was not used up


@pytest.mark.parametrize("device", [None, "old"])
def test_the_last_device_is_the_end_of_mfa(conn, alice, device):
    enroll(conn, "alice", device="staged")
    assert unenroll(conn, alice[0], device) is True
    assert (enabled(conn), states(conn)) == (False, [])
    assert conn.execute("SELECT (SELECT count(*) FROM totp.recovery_codes) + (SELECT count(*) FROM totp.used_codes)").fetchone() == (0,)
    assert error_of(conn, "SELECT totp_unenroll('alice', 'x')").sqlstate == "42704"


def test_without_mfa_it_removes_what_was_staged(conn):
    import_secret(conn, "alice", SECRET, confirmed=False, device="token")
    enroll(conn, "alice", device="phone")
    assert unenroll(conn, None, "token") is False  # the desk's
    assert unenroll(conn, None) is True
    assert slots(conn) == [("token", "pending")]
    assert unenroll(conn, None) is False


# --- all together ----------------------------------------------------------------------

def test_the_first_device_ends_what_was_staged_before(conn):
    import_secret(conn, "alice", SECRET, confirmed=False, device="token")
    first, second = enroll(conn, "alice", device="first"), enroll(conn, "alice", device="second")
    assert verify(conn, "alice", code_at(first, NOON)) is True
    assert slots(conn) == [("first", "active"), ("token", "pending")]
    assert [row[2] for row in events(conn, "removed")] == ["second"]
    assert check(conn, "alice", code_at(second, NOON)).reason == "wrong"


@pytest.mark.parametrize("first", ["confirm", "import"])
def test_the_first_device_ends_recovery_codes_made_before(conn, alice, first):
    conn.execute("SELECT totp_remove('alice', 'old')")
    assert enabled(conn) is False
    if first == "import":
        import_secret(conn, "alice", OTHER_SECRET)
    else:
        assert confirm(conn, code_at(enroll(conn, "alice"), NOON)) is True
    assert recover(conn, alice[0]) is False and codes_left(conn) == 0
    assert len(events(conn, "recovery_codes_removed")) == 1


def test_staging_again_replaces_only_what_is_staged(conn, alice):
    reset(conn, device="old")
    for _ in range(2):
        enroll(conn, "alice", device="old")
    assert slots(conn) == [("old", "pending"), ("old", "proposed")]
    enroll(conn, "alice", device="old", keep_current=False)  # no secret is active
    assert slots(conn) == [("old", "pending"), ("old", "proposed")]


def test_ending_the_current_secret_at_once_is_for_the_desk(conn, alice):
    for device in ("old", "new"):
        error = error_of(conn, "SELECT totp_enroll('alice', device => %s, keep_current => false)", [device])
        assert error.sqlstate == "42501" and "totp_reset()" in error.diag.message_hint
    assert slots(conn) == [("old", "active")]


def test_proposed_secrets_take_no_place_and_the_oldest_makes_room(conn, alice):
    for number in range(9):
        import_secret(conn, "alice", chr(ord("A") + number) * 31 + "Q", device=f"d{number}")
    for number in range(12):
        fix_clock(conn, NOON + timedelta(seconds=number))
        enroll(conn, "alice", device=f"new{number}")
    assert [device for device, slot in slots(conn) if slot == "proposed"] == sorted(f"new{number}" for number in range(2, 12))
    assert len([1 for _, slot in slots(conn) if slot == "active"]) == 10


def test_the_oldest_makes_room_whatever_its_name(conn, alice):
    names = [f"new{number}" for number in range(19, 8, -1)]
    for number, name in enumerate(names):
        fix_clock(conn, NOON + timedelta(seconds=number))
        enroll(conn, "alice", device=name)
    assert [device for device, slot in slots(conn) if slot == "proposed"] == sorted(names[1:])


def test_a_bad_proof_makes_no_recovery_codes(conn, alice, new):
    for proof in (wrong(), NO_CODE, None):
        assert check_confirm(conn, code_at(new, NOON), "new", proof, recovery_codes=3).recovery_codes is None
    assert codes_left(conn) == 10 and recover(conn, alice[0]) is True
