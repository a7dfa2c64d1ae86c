"""totp_health() on a healthy database, and what it reports for each fault and each sign of an attack."""

from contextlib import closing
from datetime import timedelta
from itertools import islice

import pytest
from health import health
from totp import EARLIER, MAX_ATTEMPTS, NOON, NO_CODE, SECRET, active_user, code_at, enroll, fix_clock, recovery_codes, verify, wrong_codes

DAY = timedelta(days=1)


def test_a_healthy_database_is_in_order(quick_db, conn):
    conn.execute("RESET totp.clock")
    secret = enroll(conn, "alice")
    assert verify(conn, "alice", conn.execute("SELECT totp_code_at(%s, clock_timestamp())", [secret]).fetchone()[0]) is True
    recovery_codes(conn)
    conn.execute("SET log_parameter_max_length_on_error = 0")
    assert {name: status for name, (status, _) in health(conn).items() if status != "ok"} == {}


def test_a_set_clock_is_a_failure(conn):
    assert health(conn)["test_clock"][0] == "fail"


def test_health_reports_users_near_or_in_a_lock(conn):
    secrets = {user: active_user(conn, user) for user in ("alice", "bob", "carol", "dave")}
    assert health(conn)["locked_users"][1].startswith("0 users are locked, 0 of them until totp_unlock(), and 0 are one wrong code away")
    for user, failures in [("alice", MAX_ATTEMPTS - 1), ("bob", MAX_ATTEMPTS)]:
        for _ in range(failures):
            verify(conn, user, next(wrong_codes(secrets[user], NOON)))
    recovery_codes(conn, "carol")
    for _ in range(MAX_ATTEMPTS):
        conn.execute("SELECT totp_recover('carol', %s)", [NO_CODE])
    status, detail = health(conn)["locked_users"]
    assert (status, detail) == ("ok", "2 users are locked, 0 of them until totp_unlock(), and 1 is one wrong code away: nothing to do;"
                                      ' the last of them "alice", "bob", "carol"')
    now = NOON
    for _ in range(100):
        fix_clock(conn, now)
        verify(conn, "dave", next(wrong_codes(secrets["dave"], now)))
        now += timedelta(hours=2)
    status, detail = health(conn)["locked_users"]
    assert status == "warn" and "1 of them until totp_unlock()" in detail


def test_recovery_failures_near_a_lock_are_counted_too(conn):
    active_user(conn)
    recovery_codes(conn)
    for _ in range(MAX_ATTEMPTS - 1):
        conn.execute("SELECT totp_recover('alice', %s)", [NO_CODE])
    assert "and 1 is one wrong code away" in health(conn)["locked_users"][1]


def test_health_reports_password_spraying(conn):
    """One try on many accounts: no user is anywhere near a lock."""
    guesses = [(user, next(wrong_codes(active_user(conn, user), NOON))) for user in (f"user-{number}" for number in range(25))]
    for user, guess in guesses[:19]:
        verify(conn, user, guess)
    assert health(conn)["failures_over_many_users"][0] == "ok"
    for user, guess in guesses[19:]:
        verify(conn, user, guess)
    status, detail = health(conn)["failures_over_many_users"]
    assert status == "warn" and detail.startswith("25 users had a wrong code in the last hour, and 25 secrets were used: this looks")
    fix_clock(conn, NOON + timedelta(hours=2))
    assert health(conn)["failures_over_many_users"] == ("ok", "0 users had a wrong code in the last hour, and 0 secrets were used: nothing to do")


def test_health_reports_password_spraying_again_and_again(conn):
    """Earlier failures, several tries, the attacker's own account, and users who sign in afterwards do not hide it."""
    secrets = {user: active_user(conn, user) for user in (f"user-{number}" for number in range(25))}

    def spray(now, tries):
        fix_clock(conn, now)
        for user, secret in secrets.items():
            for guess in islice(wrong_codes(secret, now), tries):
                verify(conn, user, guess)

    spray(NOON, 2)
    assert health(conn)["failures_over_many_users"][0] == "warn"
    spray(NOON + timedelta(hours=3), 1)
    for _ in range(100):
        verify(conn, "user-0", next(wrong_codes(secrets["user-0"], NOON)))
    assert health(conn)["failures_over_many_users"][0] == "warn"
    now = NOON + timedelta(hours=3, minutes=5)
    fix_clock(conn, now)
    for user, secret in list(secrets.items())[1:]:
        assert verify(conn, user, code_at(secret, now)) is True
    assert health(conn)["failures_over_many_users"][0] == "warn"


def test_users_who_mistype_are_not_password_spraying(conn):
    secret = enroll(conn, "typist 0")
    for number in range(201):
        conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [f"typist {number}", secret])
        assert verify(conn, f"typist {number}", code_at(secret, NOON)) is True
    for number in range(20):
        verify(conn, f"typist {number}", next(wrong_codes(secret, NOON)))
    assert health(conn)["failures_over_many_users"] == ("ok", "20 users had a wrong code in the last hour, and 201 secrets were used: nothing to do")


def test_hostile_names_are_shown_as_in_the_server_log(conn):
    name = 'x", "y\n\x1b[2J\x9b\u202e\u200b'
    conn.execute("SELECT totp_import(%s, %s, account_name => 'x', confirmed => true)", [name, SECRET])
    for guess in islice(wrong_codes(SECRET, NOON), MAX_ATTEMPTS):
        verify(conn, name, guess)
    assert health(conn)["locked_users"][1].endswith(r'; the last of them "x\", \"y\u{a}\u{1b}[2J\u{9b}\u{202e}\u{200b}"')
    conn.execute('CREATE ROLE "nobody; nothing to do\n" IN ROLE pg_write_all_data')
    try:
        assert health(conn)["write_all_data"][1].startswith(r'"nobody; nothing to do\u{a}" can change every table')
    finally:
        conn.execute('DROP ROLE "nobody; nothing to do\n"')


def test_a_lock_is_counted_after_the_limit_was_raised(make_cluster):
    server = make_cluster(totp__max_attempts=5)
    db = server.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = active_user(conn)
        for guess in islice(wrong_codes(secret, NOON), 5):
            verify(conn, "alice", guess)
    server.configure(totp__max_attempts=10)
    server.reload()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        assert health(conn)["locked_users"][1] == ("1 user is locked, 0 of them until totp_unlock(), and 0 are one wrong code away: nothing to do;"
                                                   ' the last of them "alice"')


def test_who_never_failed_is_near_no_lock(make_cluster):
    with closing(make_cluster(totp__max_attempts=1).create_database().connect()) as conn:
        fix_clock(conn, NOON)
        active_user(conn)
        assert health(conn)["locked_users"][1] == "0 users are locked, 0 of them until totp_unlock(), and 0 are one wrong code away: nothing to do"


def test_health_reports_many_replays(conn):
    secret = active_user(conn)
    for number in range(10):
        assert health(conn)["replays"] == ("ok", f"{number} used code{' was' if number == 1 else 's were'} tried again in the last hour, in transactions that committed: nothing to do")
        verify(conn, "alice", code_at(secret, EARLIER))
    assert health(conn)["replays"][0] == "warn"


def test_health_reports_devices_never_confirmed(conn):
    enroll(conn, "alice")
    active_user(conn, "bob")
    conn.execute("SELECT totp_reset('bob')")
    assert health(conn)["unconfirmed_devices"][1].startswith("0 devices")
    fix_clock(conn, NOON + timedelta(hours=2))
    assert health(conn)["unconfirmed_devices"][1].startswith("1 device was")  # bob's was confirmed once


def test_health_reports_recovery_codes_of_a_user_without_a_device(conn):
    active_user(conn)
    [code, *_] = recovery_codes(conn)
    assert health(conn)["recovery_codes_alone"] == ("ok", "0 users have recovery codes and no device: nothing to do")
    conn.execute("SELECT totp_remove('alice', 'default')")
    assert health(conn)["recovery_codes_alone"][1].startswith("1 user has")
    assert conn.execute("SELECT totp_recover('alice', %s)", [code]).fetchone() == (True,)


def test_health_reports_recovery_codes_nearly_used_up(conn):
    active_user(conn)
    codes = recovery_codes(conn)
    for code in codes[:7]:
        conn.execute("SELECT totp_recover('alice', %s)", [code])
    assert health(conn)["recovery_codes_low"][1].startswith("0 users")
    conn.execute("SELECT totp_recover('alice', %s)", [codes[7]])
    assert health(conn)["recovery_codes_low"][1].startswith("1 user has")


def test_health_reports_the_age_of_the_data_key(conn):
    conn.execute("DELETE FROM totp.data_keys")
    active_user(conn)
    assert health(conn)["key_rotation"][0] == "ok"
    fix_clock(conn, NOON + 364 * DAY)
    assert health(conn)["key_rotation"][0] == "ok"
    fix_clock(conn, NOON + 367 * DAY)
    assert health(conn)["key_rotation"] == ("warn", "the data key is more than a year old: SELECT totp_rotate_key()")
    conn.execute("SELECT totp.rotation_begin(1000)")
    assert health(conn)["key_rotation"] == ("warn", "a rotation is half way: CALL totp_rotate_key_online()")
    conn.execute("CALL totp_rotate_key_online()")
    assert health(conn)["key_rotation"][0] == "ok"


FAULTS = {  # a change, the check that reports it, and how it is undone
    "no row of attempts": ("DELETE FROM totp.attempts", "rows", "DELETE FROM totp.secrets; DELETE FROM totp.recovery_codes"),
    "no row of used codes": ("DELETE FROM totp.used_codes", "rows", "DELETE FROM totp.secrets; DELETE FROM totp.recovery_codes"),
    "no data key": ("UPDATE totp.secrets SET key_id = -1", "data_keys", "DELETE FROM totp.secrets"),
    "index on attempts": ("CREATE INDEX slow ON totp.attempts (failures)", "table_attempts", "DROP INDEX totp.slow"),
    "index on used_codes": ("CREATE INDEX slow ON totp.used_codes (used_at)", "table_used_codes", "DROP INDEX totp.slow"),
    "trigger": ("CREATE TRIGGER t BEFORE INSERT ON totp.attempts FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()", "table_attempts",
                "DROP TRIGGER t ON totp.attempts"),
    "unlogged": ("ALTER TABLE totp.used_codes SET UNLOGGED", "table_used_codes", "ALTER TABLE totp.used_codes SET LOGGED"),
    "publication": ("CREATE PUBLICATION p FOR TABLE totp.attempts", "table_attempts", "DROP PUBLICATION p"),
    "publication of all tables": ("CREATE PUBLICATION p FOR ALL TABLES", "table_used_codes", "DROP PUBLICATION p"),
    "a function for PUBLIC": ("GRANT EXECUTE ON FUNCTION totp_keys() TO PUBLIC", "rights", "REVOKE EXECUTE ON FUNCTION totp_keys() FROM PUBLIC"),
    "a table for PUBLIC": ("GRANT SELECT ON totp.secrets TO PUBLIC", "rights", "REVOKE SELECT ON totp.secrets FROM PUBLIC"),
    "a column for PUBLIC": ("GRANT SELECT (sealed) ON totp.secrets TO PUBLIC", "rights", "REVOKE SELECT (sealed) ON totp.secrets FROM PUBLIC"),
    "the schema for PUBLIC": ("GRANT USAGE ON SCHEMA totp TO PUBLIC", "rights", "REVOKE USAGE ON SCHEMA totp FROM PUBLIC"),
    "a role that writes everything": ("CREATE ROLE loader IN ROLE pg_write_all_data", "write_all_data", "DROP ROLE loader"),
    "parameters in the log": ("SET log_parameter_max_length_on_error = -1", "log_parameters", "RESET log_parameter_max_length_on_error"),
    "statements in the log": ("SET log_min_duration_statement = 0", "log_parameters", "RESET log_min_duration_statement"),
    "consistency checking": ("SET wal_consistency_checking = 'generic'", "wal_consistency_checking", "RESET wal_consistency_checking"),
    "recovery codes from before a restore": ("UPDATE totp.floor SET floor_at = '2030-01-01 11:59Z'; UPDATE totp.recovery_codes SET created_at = '2030-01-01 11:00Z'",
                                             "recovery_after_restore", "SELECT 1"),
    "a clock that went back": ("UPDATE totp.floor SET floor_at = '2030-01-01 12:01Z'", "clock", "SELECT 1"),
}


@pytest.mark.parametrize("change, check, undo", FAULTS.values(), ids=FAULTS)
def test_health_reports_each_fault(conn, change, check, undo):
    active_user(conn)
    recovery_codes(conn)
    conn.execute("SET log_parameter_max_length_on_error = 0")
    assert health(conn)[check][0] == "ok"
    conn.execute(change)
    try:
        assert health(conn)[check][0] in ("warn", "fail")
    finally:
        conn.execute(undo)
    assert "nothing to do" in health(conn)[check][1] or undo == "SELECT 1"
