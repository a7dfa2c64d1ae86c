"""A code of a disabled device is charged like any wrong code, told like one, and named in the audit log. Where nothing is charged, nothing is compared."""

from contextlib import closing

import pytest
from totp import EARLIER, LATER, LEVELS, MAX_ATTEMPTS, NOON, active_user, check, code_at, counters, enroll, error_of, events, fix_clock, verify, wrong_codes

NAMES = ("failed", "disabled_code", "locked", "replayed", "verified")


@pytest.fixture
def phone(conn) -> str:
    """The secret of alice's disabled phone. She also has a tablet that works, and so has bob, whose phone is disabled too."""
    secrets = {}
    for user in ("alice", "bob"):
        for device in ("phone", "tablet"):
            secrets[user, device] = active_user(conn, user, device=device)
        conn.execute("SELECT totp_disable(%s, 'phone')", [user])
    conn.execute("DELETE FROM totp.audit_log")
    return secrets["alice", "phone"]


def wrong_for(phone: str) -> str:
    return next(wrong_codes(phone, NOON))


@pytest.mark.parametrize("device", [None, "tablet"])
def test_a_good_code_of_a_disabled_device_is_named_in_the_log(conn, phone, log, device):
    assert check(conn, "alice", code_at(phone, NOON), device).reason == "wrong"
    assert events(conn, *NAMES) == [("disabled_code", "alice", "phone", None)]
    assert log() == ['event=disabled_code user="alice" device="phone" failures=1']
    assert verify(conn, "alice", wrong_for(phone)) is False
    assert events(conn, *NAMES)[1:] == [("failed", "alice", None, None)]


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_but_the_event_differs_from_a_wrong_code(conn, phone, level):
    """The answer, the counters, the locks held and the transaction id, at each of the guesses up to the lock and after it."""
    held = "SELECT locktype, mode, relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid' ORDER BY 1, 2, 3"
    of_phone = "SELECT time_step, used_at, uses FROM totp.used_codes ORDER BY secret_id"
    used = conn.execute(of_phone).fetchall()
    for _ in range(MAX_ATTEMPTS + 1):
        seen = []
        for user, code in (("alice", code_at(phone, NOON)), ("bob", next(wrong_codes(phone, NOON)))):
            conn.execute(f"BEGIN ISOLATION LEVEL {level}")
            answer = check(conn, user, code)
            seen.append((answer, counters(conn, user), conn.execute(held).fetchall(), conn.execute("SELECT pg_current_xact_id_if_assigned() IS NULL").fetchone()))
            conn.execute("COMMIT")
        assert seen[0] == seen[1]
    assert answer.reason == "locked"
    assert [row[:3] for row in events(conn, *NAMES) if row[1] == "alice"] == [("disabled_code", "alice", "phone")] * MAX_ATTEMPTS + [("locked", "alice", None)]
    assert conn.execute(of_phone).fetchall() == used


def test_it_is_not_used_up(conn, phone):
    assert verify(conn, "alice", code_at(phone, NOON)) is False
    conn.execute("SELECT totp_enable('alice', 'phone')")
    assert verify(conn, "alice", code_at(phone, NOON)) is True


@pytest.mark.parametrize("when", [EARLIER, NOON, LATER])
def test_any_code_of_the_window_is_named_used_or_not(conn, phone, when):
    """The one of the earlier step was used when the phone was confirmed."""
    assert check(conn, "alice", code_at(phone, when)).reason == "wrong"
    assert events(conn, *NAMES) == [("disabled_code", "alice", "phone", None)]


@pytest.mark.parametrize("end", ["ROLLBACK", "ROLLBACK TO s; COMMIT"])
def test_charge_and_line_outlive_a_rollback(conn, phone, log, end):
    conn.execute("BEGIN; SAVEPOINT s")
    assert verify(conn, "alice", code_at(phone, NOON)) is False
    conn.execute(end)
    assert counters(conn)[0] == 1 and events(conn, *NAMES) == []
    assert log() == ['event=disabled_code user="alice" device="phone" failures=1']


def test_as_a_proof_it_is_a_wrong_code_too(conn, phone):
    new = enroll(conn, "alice", device="new")
    query = "SELECT reason, attempts_left FROM totp_check_confirm('alice', %s, 'new', %s)"
    assert conn.execute(query, [code_at(new, NOON), code_at(phone, NOON)]).fetchone() == ("proof_wrong", MAX_ATTEMPTS - 1)
    assert events(conn, *NAMES) == [("disabled_code", "alice", "phone", None)]


def test_what_confirms_a_secret_is_no_sign_in(conn, phone):
    enroll(conn, "alice", device="new")
    assert conn.execute("SELECT totp_confirm('alice', %s, 'new', '123456')", [code_at(phone, NOON)]).fetchone() == (False,)
    assert events(conn, *NAMES) == [("failed", "alice", None, None)]


def test_a_secret_that_was_never_confirmed_is_nobody_s_device(conn, phone):
    """Who can only enroll knows its codes."""
    proposed = enroll(conn, "alice", device="new")
    conn.execute("SELECT totp_disable('alice', 'new')")
    assert check(conn, "alice", code_at(proposed, NOON)).reason == "wrong"
    assert events(conn, *NAMES) == [("failed", "alice", None, None)]


# --- Where nothing is charged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["phone", None])
def test_where_all_are_disabled_no_code_is_compared(conn, phone, log, device):
    """The answer is free, so it must not depend on the code: no row, no transaction id, no WAL and no line that tells a good one."""
    if device is None:
        conn.execute("SELECT totp_disable('alice')")
    conn.execute("DELETE FROM totp.audit_log")
    for code in (code_at(phone, NOON), wrong_for(phone)):
        conn.execute("BEGIN")
        answer = check(conn, "alice", code, device)
        assert (answer.reason, answer.attempts_left) == ("disabled", MAX_ATTEMPTS)
        assert conn.execute("SELECT pg_current_xact_id_if_assigned() IS NULL").fetchone() == (True,)
        conn.execute("COMMIT")
    assert events(conn, *NAMES) == [] and log() == [] and counters(conn)[0] == 0


# --- What cannot be opened, and who holds what -----------------------------------------------------------------------------


def under_another_key(conn) -> None:
    """The phone's secret has a data key that this test has made unusable; the tablet's has another one."""
    conn.execute("INSERT INTO totp.data_keys SELECT 99, 'retiring', '0123456789abcdef', wrapped, created_at FROM totp.data_keys LIMIT 1")
    conn.execute("UPDATE totp.secrets SET key_id = 99, sealed = set_byte(sealed, 4, 99) WHERE user_id = 'alice' AND device = 'phone'")


BROKEN = {
    "altered": lambda conn: conn.execute("UPDATE totp.secrets SET sealed = set_byte(sealed, 40, get_byte(sealed, 40) # 1) WHERE user_id = 'alice' AND device = 'phone'"),
    "no sealed value": lambda conn: conn.execute("UPDATE totp.secrets SET sealed = '' WHERE user_id = 'alice' AND device = 'phone'"),
    "lost master key": under_another_key,
    "no data key": lambda conn: (under_another_key(conn), conn.execute("DELETE FROM totp.data_keys WHERE key_id = 99")),
    "no row of used codes": lambda conn: conn.execute("""DELETE FROM totp.used_codes u USING totp.secrets s
        WHERE (s.user_id, s.secret_id, s.user_id, s.device) = (u.user_id, u.secret_id, 'alice', 'phone')"""),
}


@pytest.mark.parametrize("is_new_session", [True, False])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_secret_that_does_not_open_turns_no_answer_into_an_error(quick_db, conn, phone, broken, is_new_session):
    BROKEN[broken](conn)
    with closing(quick_db.connect() if is_new_session else conn) as session:
        fix_clock(session, NOON)
        for number, code in enumerate((code_at(phone, NOON), wrong_for(phone)), 1):
            answer = check(session, "alice", code)
            assert (answer.reason, answer.attempts_left) == ("wrong", MAX_ATTEMPTS - number)
        found = [event for event, *_ in events(session, *NAMES)]
        assert found == ["disabled_code" if broken == "no row of used codes" else "failed", "failed"]
        session.execute("DELETE FROM totp.data_keys WHERE key_id = 99")


@pytest.mark.parametrize("held", ["SELECT FROM totp.secrets WHERE user_id = 'alice' FOR UPDATE", "SELECT FROM totp.used_codes WHERE user_id = 'alice' FOR UPDATE",
                                  "SELECT totp_enable('alice', 'phone')", "SELECT totp_remove('alice', 'phone')", "LOCK TABLE totp.data_keys"])
def test_it_waits_for_nothing_that_a_wrong_code_does_not_wait_for(quick_db, conn, phone, held):
    verify(conn, "bob", "000000")  # the keys are in memory, as in a pool
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute(f"BEGIN; {held}")
        conn.execute("SET lock_timeout = '10ms'")
        assert check(conn, "alice", code_at(phone, NOON)).reason == "wrong"
        assert check(conn, "alice", wrong_for(phone)).reason == "wrong"
        other.execute("ROLLBACK")
    assert [event for event, *_ in events(conn, *NAMES) if event != "locked"][-2:] == ["disabled_code", "failed"]


def test_the_guess_is_charged_if_the_row_cannot_be_written(quick_db, conn, phone, log):
    with closing(quick_db.connect()) as other:
        other.execute("BEGIN; LOCK TABLE totp.audit_log")
        conn.execute("SET lock_timeout = '10ms'")
        assert error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(phone, NOON)]).sqlstate == "55P03"
    assert counters(conn)[0] == 1
    assert log() == ['event=disabled_code user="alice" device="phone" failures=1']
