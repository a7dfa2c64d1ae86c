"""totp_health() on a healthy database, and what it counts: users in a lock, signs of an attack, users who need help."""

from contextlib import closing
from datetime import timedelta
from itertools import islice

from health import health
from totp import EARLIER, MAX_ATTEMPTS, NOON, NO_CODE, SECRET, active_user, code_at, enroll, error_of, fix_clock, recovery_codes, stage, verify, wrong_codes

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


def test_full_must_not_be_null(conn):
    error = error_of(conn, "SELECT totp_health(NULL)")
    assert (error.sqlstate, error.diag.message_primary) == ("22023", 'argument "full" must not be null')


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
    assert status == "warn" and detail.startswith("1 user is locked, 1 of them until totp_unlock(), and 3 are one wrong code away: unlock")


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
    assert health(conn)["locked_users"][1].endswith(r'; the user is "x\", \"y\u{a}\u{1b}[2J\u{9b}\u{202e}\u{200b}"')
    conn.execute('CREATE ROLE "nobody; nothing to do\x1b" IN ROLE pg_write_all_data')
    try:
        assert health(conn)["write_all_data"][1].startswith(r'"nobody; nothing to do\u{1b}" can change every table')
    finally:
        conn.execute('DROP ROLE "nobody; nothing to do\x1b"')


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
                                                   ' the user is "alice"')


def test_who_never_failed_is_near_no_lock(make_cluster):
    with closing(make_cluster(totp__max_attempts=1).create_database().connect()) as conn:
        fix_clock(conn, NOON)
        active_user(conn)
        assert health(conn)["locked_users"][1] == "0 users are locked, 0 of them until totp_unlock(), and 0 are one wrong code away: nothing to do"


def test_health_reports_many_replays(conn):
    secret = active_user(conn)
    for number in range(10):
        status, detail = health(conn)["replays"]
        assert status == "ok" and detail.startswith(f"{number} used code")
        verify(conn, "alice", code_at(secret, EARLIER))
    assert health(conn)["replays"][0] == "warn"


def test_health_reports_devices_never_confirmed(conn):
    enroll(conn, "alice")
    active_user(conn, "bob")
    conn.execute("SELECT totp_reset('bob')")
    assert health(conn)["unconfirmed_devices"][1].startswith("0 devices")
    fix_clock(conn, NOON + timedelta(hours=2))
    assert health(conn)["unconfirmed_devices"][1].startswith("1 device was")  # bob's was confirmed once
    fix_clock(conn, NOON)
    stage(conn, "alice")  # two secrets of one device
    fix_clock(conn, NOON + timedelta(hours=2))
    assert health(conn)["unconfirmed_devices"][1].startswith("1 device was")


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


def test_a_data_key_in_an_unknown_state_is_listed(conn):
    active_user(conn)
    conn.execute("ALTER TABLE totp.data_keys DROP CONSTRAINT data_keys_state_check")
    conn.execute("UPDATE totp.data_keys SET state = 'x'")
    assert conn.execute("SELECT state FROM totp_keys()").fetchall() == [("unknown",)]
    assert health(conn)["lost_master_key"][0] == "ok"


def test_a_user_id_of_another_collation_is_a_failure(conn):
    conn.execute('ALTER TABLE totp.attempts ALTER user_id TYPE text COLLATE "POSIX"')
    assert health(conn)["table_attempts"][0] == "fail"
