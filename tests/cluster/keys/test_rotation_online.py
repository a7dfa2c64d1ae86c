"""CALL totp_rotate_key_online(): progress, cancel and resume, what lands on the new key, who may run it."""

import re
from contextlib import closing
from datetime import timedelta

import psycopg
import pytest
from binding import confirm
from many_users import import_users, keys, open_everything, secret_of, sign_in_all
from server import wait_until
from sessions import Background, session
from totp import LATER, NOON, code_at, enroll, error_of, recover, recovery_codes, verify

PROGRESS = "SELECT to_key, from_keys, started_at, done, remaining FROM totp.rotation_progress"
NOTICE = re.compile(r"pg_totp: (\d+) of (\d+) secrets moved, \d+ per second")


@pytest.fixture
def conn(quick_db):
    with session(quick_db) as conn:
        conn.execute("DELETE FROM totp.data_keys")
        yield conn


def notices_of(conn) -> list[str]:
    """A list that grows with the notices of this session from now on."""
    messages = []
    conn.add_notice_handler(lambda diagnostic: messages.append(diagnostic.message_primary))
    return messages


def rotations_in_audit_log(conn):
    return conn.execute("SELECT detail ->> 'key_id', detail ->> 'secrets' FROM totp.audit_log WHERE event = 'key_rotated' ORDER BY id").fetchall()


def test_notices_say_how_far_it_is(conn):
    import_users(conn, 25)
    messages = notices_of(conn)
    conn.execute("CALL totp_rotate_key_online(10)")
    assert [NOTICE.fullmatch(message).groups() for message in messages[:-1]] == [("10", "25"), ("20", "25"), ("25", "25")]
    assert messages[-1] == "pg_totp: rotation complete, 25 secrets moved"
    assert rotations_in_audit_log(conn) == [(str(keys(conn)[0][0]), "25")]


def test_another_session_sees_how_far_it_is(quick_db, conn):
    users = import_users(conn, 25)
    [(old_key, _)] = keys(conn)
    with session(quick_db) as writing:
        writing.execute("BEGIN")
        enroll(writing, users[7])  # its user is left out, and the end of the rotation waits for it
        assert conn.execute(PROGRESS).fetchall() == []
        with Background(quick_db, "CALL totp_rotate_key_online(10)") as rotating:
            rotating.wait_until_blocked(conn)
            [_, (new_key, _)] = keys(conn)
            assert conn.execute(PROGRESS).fetchall() == [(new_key, [old_key], NOON, 24, 1)]
            writing.execute("COMMIT")
    assert conn.execute(PROGRESS).fetchall() == []
    assert keys(conn) == [(new_key, "current")]


def cancel(conn, rotating):
    conn.execute("SELECT pg_cancel_backend(%s)", [rotating.info.backend_pid])


def terminate(conn, rotating):
    conn.execute("SELECT pg_terminate_backend(%s)", [rotating.info.backend_pid])


@pytest.mark.parametrize("end, error", [(cancel, psycopg.errors.QueryCanceled), (terminate, psycopg.errors.AdminShutdown)])
def test_a_stopped_rotation_is_resumed(quick_db, conn, end, error):
    users = import_users(conn, 200)
    for user in users[:50]:
        conn.execute("SELECT totp_reset_recovery_codes(%s, 1)", [user])
    with session(quick_db) as rotating:
        pid = rotating.info.backend_pid
        told = []

        def stop_at_the_third(diagnostic):
            told.append(diagnostic)
            if len(told) == 3:
                end(conn, rotating)

        rotating.add_notice_handler(stop_at_the_third)
        with pytest.raises(error):
            rotating.execute("CALL totp_rotate_key_online(1)")
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: conn.execute(gone, [pid]).fetchone() == (0,), "the session to end")

    [(old_key, old_state), (new_key, new_state)] = keys(conn)
    assert (old_state, new_state) == ("retiring", "current")
    [[to_key, from_keys, _, done, remaining]] = conn.execute(PROGRESS).fetchall()
    assert (to_key, from_keys, done + remaining) == (new_key, [old_key], 200)
    assert done >= 3 and remaining > 0
    assert rotations_in_audit_log(conn) == []
    assert open_everything(conn) == (200, 50)
    assert sign_in_all(conn, users, NOON) == 200

    messages = notices_of(conn)
    conn.execute("CALL totp_rotate_key_online(50)")
    assert NOTICE.fullmatch(messages[0]).groups() == ("50", str(remaining))  # it goes on where it was
    assert keys(conn) == [(new_key, "current")]
    assert open_everything(conn) == (200, 50)
    assert sign_in_all(conn, users, NOON + timedelta(minutes=1)) == 200
    assert [key for key, _ in rotations_in_audit_log(conn)] == [str(new_key)]


def test_a_half_way_rotation_is_resumed_by_one_at_once(quick_db, conn):
    users = import_users(conn, 10)
    conn.execute("SELECT totp.rotation_begin(1000)")
    conn.execute("SELECT totp.rotation_step(NULL, 3)")
    assert conn.execute("SELECT secrets FROM totp_rotate_key()").fetchone() == (10,)
    assert [state for _, state in keys(conn)] == ["current"]
    assert sign_in_all(conn, users, NOON) == 10


def test_what_is_written_meanwhile_lands_on_the_new_key(conn):
    import_users(conn, 3)
    secret = enroll(conn, "alice")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    conn.execute("SELECT totp.rotation_begin(1000)")
    [(old_key, _), (new_key, _)] = keys(conn)

    def key_of(user, state="pending"):
        return conn.execute("SELECT key_id FROM totp.secrets WHERE user_id = %s AND (slot = 'active') = %s", [user, state == "active"]).fetchone()[0]

    enroll(conn, "new")
    assert key_of("new") == new_key
    conn.execute("SELECT totp_import('brought', %s, confirmed => true)", [secret_of("brought")])
    assert key_of("brought", "active") == new_key
    enroll(conn, "alice")
    assert (key_of("alice"), key_of("alice", "active")) == (new_key, old_key)
    conn.execute("SELECT totp_reset('user-000000')")
    assert key_of("user-000000") == new_key
    conn.execute("SELECT totp_rename_user('user-000001', 'renamed')")
    assert key_of("renamed", "active") == new_key
    conn.execute("SELECT totp_reset_recovery_codes('alice')")
    assert conn.execute("SELECT key_id FROM totp.recovery_codes").fetchone() == (new_key,)
    assert key_of("user-000002", "active") == old_key
    assert conn.execute("SELECT key_id, state, secrets FROM totp_keys()").fetchall() == [(old_key, "retiring", 2), (new_key, "current", 5)]

    conn.execute("CALL totp_rotate_key_online()")
    assert keys(conn) == [(new_key, "current")]
    assert open_everything(conn) == (7, 1)


def test_a_user_that_a_transaction_has_locked_is_left_for_the_end(quick_db, conn):
    users = import_users(conn, 5)
    conn.execute("SELECT totp.rotation_begin(1000)")
    with session(quick_db) as writing:
        writing.execute("BEGIN")
        staged = enroll(writing, users[2])
        assert conn.execute("SELECT * FROM totp.rotation_step(NULL, 3)").fetchone() == (2, users[2])
        assert conn.execute("SELECT * FROM totp.rotation_step(%s, 3)", [users[2]]).fetchone() == (2, users[4])
        assert conn.execute("SELECT * FROM totp.rotation_step(%s, 3)", [users[4]]).fetchone() == (0, None)
        writing.execute("COMMIT")
    assert conn.execute("SELECT totp.rotation_end()").fetchone() == (False,)  # another round
    assert conn.execute("SELECT * FROM totp.rotation_step(NULL, 3)").fetchone() == (1, users[2])
    assert conn.execute("SELECT totp.rotation_end()").fetchone() == (True,)
    assert open_everything(conn) == (6, 0)
    assert sign_in_all(conn, users, NOON) == 5
    assert confirm(conn, code_at(staged, NOON), proof=code_at(secret_of(users[2]), LATER), user_id=users[2]) is True
    assert [secrets for _, secrets in rotations_in_audit_log(conn)] == ["6"]  # under the new key, with the staged one


def test_secrets_and_recovery_codes_of_every_kind_are_moved(conn):
    parameters = [(algorithm, digits, period) for algorithm in ("SHA1", "SHA256", "SHA512") for digits in (6, 7, 8) for period in (15, 30, 120)]
    secrets = {}
    for number, (algorithm, digits, period) in enumerate(parameters):
        secrets[number] = enroll(conn, f"user {number}", device="gerät \n'\"", algorithm=algorithm, digits=digits, period=period)
        assert verify(conn, f"user {number}", code_at(secrets[number], NOON.timestamp() - period, algorithm, digits, period)) is True
        conn.execute("SELECT totp_reset_recovery_codes(%s, %s)", [f"user {number}", 1 + number % 20])
    conn.execute("SELECT totp_disable('user 0')")
    for rotate in ("SELECT totp_rotate_key()", "CALL totp_rotate_key_online(4)"):
        conn.execute(rotate)
        assert open_everything(conn) == (len(parameters), len(parameters))
    conn.execute("SELECT totp_enable('user 0')")
    for number, (algorithm, digits, period) in enumerate(parameters):
        assert verify(conn, f"user {number}", code_at(secrets[number], NOON, algorithm, digits, period)) is True


def test_a_rotation_changes_nothing_but_key_and_seal(conn):
    users = import_users(conn, 3)
    enroll(conn, users[0], account_name="a@example.com", issuer="Example", device="tablet", digits=8)
    used, unused, *_ = recovery_codes(conn, users[0])
    assert recover(conn, used, users[0]) is True
    assert sign_in_all(conn, users, NOON) == 3
    rest = """
        SELECT to_jsonb(s) - 'key_id' - 'sealed' FROM totp.secrets s UNION ALL
        SELECT to_jsonb(r) - 'key_id' - 'sealed' FROM totp.recovery_codes r UNION ALL
        SELECT to_jsonb(u) FROM totp.used_codes u UNION ALL SELECT to_jsonb(a) FROM totp.attempts a
        ORDER BY 1"""
    before = conn.execute(rest).fetchall()
    sealed = {row for [row] in conn.execute("SELECT sealed FROM totp.secrets UNION ALL SELECT sealed FROM totp.recovery_codes")}
    for rotate in ("SELECT totp_rotate_key()", "CALL totp_rotate_key_online()"):
        conn.execute(rotate)
        assert conn.execute(rest).fetchall() == before
        resealed = {row for [row] in conn.execute("SELECT sealed FROM totp.secrets UNION ALL SELECT sealed FROM totp.recovery_codes")}
        assert len(resealed) == 5 and not resealed & sealed
        sealed |= resealed
    assert (recover(conn, used, users[0]), recover(conn, unused, users[0])) == (False, True)
    assert sign_in_all(conn, users, NOON) == 0  # used before the rotations
    assert sign_in_all(conn, users, NOON + timedelta(seconds=30)) == 3


@pytest.mark.parametrize("size", [0, -1, 100_001, None])
def test_a_refused_batch_size_changes_nothing(conn, size):
    import_users(conn, 3)
    before = keys(conn)
    error = error_of(conn, "CALL totp_rotate_key_online(%s::int)", [size])
    assert (error.sqlstate, error.diag.message_primary) == ("22023", "invalid batch size")
    assert keys(conn) == before


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100_000])
def test_any_batch_size_does(conn, size):
    users = import_users(conn, 3)
    conn.execute("CALL totp_rotate_key_online(%s)", [size])
    assert [state for _, state in keys(conn)] == ["current"]
    assert sign_in_all(conn, users, NOON) == 3


def test_a_rotation_needs_no_secret(conn):
    enroll(conn, "alice")
    conn.execute("SELECT totp_remove('alice')")
    [(first, _)] = keys(conn)
    second, moved = conn.execute("SELECT * FROM totp_rotate_key()").fetchone()
    assert moved == 0
    conn.execute("CALL totp_rotate_key_online()")
    [(third, state)] = keys(conn)
    assert first < second < third and state == "current"


# --- Who may --------------------------------------------------------------------------------------


def test_admin_runs_both_rotations_and_no_lesser_role_does(db):
    with session(db) as conn:
        users = import_users(conn, 30)
        conn.execute("SELECT totp_reset_recovery_codes(%s)", [users[0]])
    admin = db.create_role("admin")
    with closing(db.connect(user=admin)) as conn:
        conn.execute("SET totp.actor = 'ops:7'")
        [[key, moved]] = conn.execute("SELECT * FROM totp_rotate_key()").fetchall()
        assert moved == 30 and keys(conn) == [(key, "current")]
        conn.execute("CALL totp_rotate_key_online(7)")
        assert [state for _, state in keys(conn)] == ["current"] and keys(conn)[0][0] > key
    for capability in ("verify", "enroll", "audit"):
        with closing(db.connect(user=db.create_role(capability))) as conn:
            for query in ("SELECT totp_rotate_key()", "CALL totp_rotate_key_online()", "SELECT totp.rotation_begin(1000)",
                          "SELECT totp.rotation_step(NULL, 1)", "SELECT totp.rotation_end()"):
                assert error_of(conn, query).sqlstate == "42501"
    with session(db) as conn:
        assert open_everything(conn) == (30, 1)
        assert sign_in_all(conn, users, NOON) == 30
        rows = conn.execute("SELECT actor, db_user FROM totp.audit_log WHERE event = 'key_rotated'").fetchall()
        assert rows == [("ops:7", admin)] * 2


def test_a_hostile_search_path_does_not_reach_the_procedure(db):
    """It is SECURITY INVOKER: nothing in it may be looked up in a schema of the caller's choice."""
    with session(db) as conn:
        users = import_users(conn, 5)
        admin = db.create_role("admin")
        conn.execute(f"CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO {admin}")
    with closing(db.connect(user=admin)) as conn:
        conn.execute("SET search_path = evil, pg_catalog, public")
        for name, arguments, result in [("clock_timestamp", "", "timestamptz"), ("rotation_begin", "integer", "bigint"),
                                        ("rotation_end", "", "boolean"), ("round", "numeric", "numeric")]:
            conn.execute(f"CREATE FUNCTION evil.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'reached'; END$$")
        conn.execute("CALL public.totp_rotate_key_online(2)")
    with session(db) as conn:
        assert sign_in_all(conn, users, NOON) == 5
        conn.execute(f"DROP SCHEMA evil CASCADE; DROP OWNED BY {admin}")
