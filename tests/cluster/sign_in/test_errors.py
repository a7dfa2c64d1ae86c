"""Sign-ins that cannot be judged: in read-only transactions, on a standby, in a parallel worker, by impossible rows."""

from contextlib import closing

import psycopg
import pytest
from totp import NOON, NO_CODE, active_user, check, code_at, error_of, fix_clock, force_parallel, recover, recovery_codes, verify, wrong_codes


# Functions that write, with arguments that would be all right for a user who is there.
WRITERS = ["SELECT totp_verify('alice', '{code}')", "SELECT totp_verify(NULL, NULL)", "SELECT totp_verify('nobody', '123456')", "SELECT * FROM totp_check('alice', '{code}')",
           "SELECT totp_confirm('alice', '{code}')", "SELECT * FROM totp_enroll('alice')", "SELECT totp_remove('alice')", "SELECT totp_recover('alice', '{recovery_code}')",
           "SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "SELECT * FROM totp_reset('alice')", "SELECT totp_disable('alice')", "SELECT totp_enable('alice')",
           "SELECT totp_unlock('alice')", "SELECT totp_rename_user('alice', 'bob')", "SELECT * FROM totp_recovery_codes('alice')",
           "SELECT * FROM totp_recovery_codes('alice', 10, '{recovery_code}')", "SELECT * FROM totp_check_confirm('alice', '{code}', recovery_codes => 3)",
           "SELECT * FROM totp_check_recover('alice', '{recovery_code}')", "SELECT * FROM totp_reset_recovery_codes('alice')", "SELECT totp_unenroll('alice', '{code}')",
           "SELECT totp_resync('alice', '{code}', '{code}')",
           "SELECT totp_rename_device('alice', 'default', 'x', '{code}')", "SELECT totp_move_device('alice', 'default', 'bob', 'x')", "SELECT * FROM totp_rotate_key()"]


# --- Read-only transactions and standbys ----------------------------------------------------------------


@pytest.mark.parametrize("begin", [["BEGIN READ ONLY"], ["BEGIN", "SET TRANSACTION READ ONLY"], ["BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE"],
                                   ["SET default_transaction_read_only = on", "BEGIN"]], ids="; ".join)
def test_a_read_only_transaction_is_refused_before_anything_is_judged(conn, begin):
    secret = active_user(conn)
    codes = {"code": code_at(secret, NOON), "recovery_code": recovery_codes(conn)[0]}
    for call in WRITERS:
        for command in begin:
            conn.execute(command)
        error = error_of(conn, call.format(**codes))
        conn.execute("ROLLBACK")
        assert error.sqlstate == "25006" and error.diag.message_hint, call
    for command in begin:
        conn.execute(command)
    assert conn.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
    assert conn.execute("SELECT state, failures FROM totp_status('alice')").fetchone() == ("active", 0)
    conn.execute("ROLLBACK")
    conn.execute("RESET default_transaction_read_only")
    assert (verify(conn, "alice", codes["code"]), recover(conn, codes["recovery_code"])) == (True, True)


def test_a_standby_refuses_before_anything_is_judged(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    role = db.create_role("verify")
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = active_user(conn)
        code, recovery_code = code_at(secret, NOON), recovery_codes(conn)[0]
        standby = make_standby(fresh_cluster)
        standby.wait_for_replay(fresh_cluster)
    with closing(standby.connect(db.name)) as there:
        fix_clock(there, NOON)
        for call in WRITERS:
            error = error_of(there, call.format(code=code, recovery_code=recovery_code))
            assert error.sqlstate == "25006" and error.diag.message_hint, call
        assert there.execute("SELECT totp_enabled('alice'), totp_enabled('nobody')").fetchone() == (True, False)
        assert there.execute("SELECT device, state, uses, failures FROM totp_status('alice')").fetchall() == [("default", "active", 1, 0)]
        assert there.execute("SELECT totp_code_at(%s, '2030-01-01 12:00:00+00')", [secret]).fetchone() == (code,)
        assert there.execute("SELECT secrets FROM totp_keys()").fetchone() == (1,)
    with closing(standby.connect(db.name, user=role)) as there:
        assert there.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
        assert error_of(there, "SELECT totp_verify('alice', '123456')").sqlstate == "25006"
    with closing(db.connect()) as conn:  # nothing was used up by any of that
        fix_clock(conn, NOON)
        assert (verify(conn, "alice", code), recover(conn, recovery_code)) == (True, True)
    standby.wait_for_replay(fresh_cluster)
    with closing(standby.connect(db.name)) as there:  # replayed without this library having been called for it
        assert there.execute("SELECT uses FROM totp_status('alice')").fetchone() == (2,)


# --- Parallel mode ------------------------------------------------------------------------------------------


@pytest.fixture
def forced_parallel(conn):
    """Every query that may runs in a parallel worker. Wrappers that say they are safe do not make it so."""
    conn.execute("CREATE OR REPLACE FUNCTION lie(query text) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS"
                 " $$ DECLARE answer text; BEGIN EXECUTE query INTO answer; RETURN answer; END $$")
    force_parallel(conn)
    yield conn
    force_parallel(conn, False)


def test_parallel_mode_is_refused(forced_parallel):
    conn = forced_parallel
    conn.execute("SELECT 1")
    assert conn.execute("SELECT lie('SELECT 1')").fetchone() == ("1",)
    force_parallel(conn, False)  # enroll outside
    fix_clock(conn, NOON)
    secret = active_user(conn)
    force_parallel(conn)
    # These two read by the snapshot that all workers share. They are PARALLEL RESTRICTED, so PostgreSQL keeps them in the leader.
    assert conn.execute("SELECT lie('SELECT totp_enabled(''alice'')'), lie('SELECT state FROM totp_status(''alice'')')").fetchone() == ("true", "active")
    for call in [*WRITERS, "SELECT * FROM totp_keys()"]:
        error = error_of(conn, "SELECT lie(%s)", [call.format(code=code_at(secret, NOON), recovery_code=NO_CODE)])
        assert error.sqlstate == "25000", (call, error)
    for call, answer in (("SELECT totp_enabled('alice')", "true"), ("SELECT state FROM totp_status('alice')", "active")):
        assert conn.execute("SELECT lie(%s)", [call]).fetchone() == (answer,)  # they write nothing
    force_parallel(conn, False)
    assert conn.execute("SELECT state, uses, failures FROM totp_status('alice')").fetchone() == ("active", 1, 0)
    assert verify(conn, "alice", code_at(secret, NOON)) is True


def test_a_plain_call_under_forced_parallel_mode_works(forced_parallel):
    """The functions are PARALLEL UNSAFE or RESTRICTED, so PostgreSQL keeps queries that name them out of workers."""
    secret = active_user(forced_parallel)
    assert verify(forced_parallel, "alice", code_at(secret, NOON)) is True
    assert verify(forced_parallel, "alice", code_at(secret, NOON)) is False
    assert forced_parallel.execute("SELECT totp_enabled('alice')").fetchone() == (True,)


def test_code_at_runs_in_a_worker(forced_parallel):
    query = "SELECT totp_code_at('GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', '1970-01-01 00:00:59+00', digits => 8)"
    assert forced_parallel.execute("SELECT lie(%s)", [query]).fetchone() == ("94287082",)


# --- Rows with impossible values ---------------------------------------------------------------------------------


def test_a_secret_with_impossible_parameters(conn):
    secret = active_user(conn)
    for change in ("algorithm = 'MD5'", "digits = 5", "digits = -6", "period = 0", "period = -30", "period = 121"):
        conn.execute("BEGIN")
        conn.execute(f"UPDATE totp.secrets SET {change}")
        error = error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)])
        assert error.sqlstate == "XX001", (change, error)
        conn.execute("ROLLBACK")
    assert verify(conn, "alice", code_at(secret, NOON)) is True


@pytest.mark.parametrize("change, wrong, right", [("failures = -1", "wrong", "accepted"), ("failures = 9223372036854775807", "wrong", "locked"),
                                                  ("failures = -9223372036854775808", "wrong", "accepted"), ("locked_until = 'infinity'", "locked", "locked")])
def test_impossible_counters_do_not_open_the_door_and_do_not_crash(conn, change, wrong, right):
    """The owner can write anything; a sign-in must not panic on it, and the server must live."""
    secret = active_user(conn)
    conn.execute(f"UPDATE totp.attempts SET {change}")
    for code, reason in ((next(wrong_codes(secret, NOON)), wrong), (code_at(secret, NOON), right)):
        answer = check(conn, "alice", code)
        assert (answer.accepted, answer.reason) == (reason == "accepted", reason)
        assert 0 <= answer.attempts_left <= 5
    assert conn.execute("SELECT s::text FROM totp_status('alice') AS s").fetchall()


@pytest.mark.parametrize("change", ["time_step = 9223372036854775807", "time_step = -9223372036854775808", "uses = 9223372036854775807", "used_at = 'infinity'"])
def test_impossible_used_codes_do_not_crash(conn, change):
    secret = active_user(conn)
    conn.execute(f"UPDATE totp.used_codes SET {change}")
    assert verify(conn, "alice", code_at(secret, NOON)) is not ("9223372036854775807" in change and "time_step" in change)
    assert conn.execute("SELECT s::text FROM totp_status('alice') AS s").fetchall()


# --- What an error leaves behind -------------------------------------------------------------------------------


def test_errors_do_not_break_the_session(conn):
    """A thousand errors later everything works: no snapshot, lock or buffer is left behind."""
    secret = active_user(conn)
    conn.execute("UPDATE totp.secrets SET sealed = sealed || '\\x00'")
    for _ in range(250):
        for call in ("SELECT totp_verify('alice', '000000')", "SELECT totp_enroll('')", "SELECT totp_code_at('1', now())", "SELECT totp_confirm('alice', '123456', 'default'), 1/0"):
            try:
                conn.execute(call)
            except psycopg.Error as error:
                assert error.sqlstate in ("XX001", "22023", "22012"), error
    conn.execute("UPDATE totp.secrets SET sealed = substr(sealed, 1, octet_length(sealed) - 1)")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    assert conn.execute("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation::regclass::text LIKE 'totp.%%'", []).fetchone() == (0,)


def test_no_warning_is_raised_by_any_of_it(cluster, conn):
    """PostgreSQL warns of leaked snapshots, buffers and plans at the end of a transaction."""
    notices = []
    conn.add_notice_handler(lambda diag: notices.append((diag.severity, diag.message_primary)))
    before = cluster.log_end()
    secret = active_user(conn)
    for query in ("SELECT totp_verify('alice', '{}')", "BEGIN", "SELECT * FROM totp_check('alice', '{}')", "SAVEPOINT s", "SELECT totp_enroll('alice')", "ROLLBACK TO s",
                  "SELECT totp_enroll('alice', device => 'x')", "COMMIT", "SELECT totp_verify('alice', '000000')", "SELECT * FROM totp_status('alice')", "SELECT * FROM totp_keys()",
                  "SELECT totp_remove('alice')", "SELECT totp_remove('alice')"):
        conn.execute(query.format(code_at(secret, NOON)))
    assert notices == []
    assert "WARNING" not in cluster.log_text(before)
