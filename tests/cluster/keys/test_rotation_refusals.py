"""A rotation happens as a whole or not at all, and is refused if it cannot be right."""

import psycopg
import pytest
from many_users import AT_ONCE, both_kinds, import_users, keys, open_everything, secret_of, sign_in_all
from sessions import Background, session
from totp import LATER, NOON, active_user, code_at, enroll, error_of, verify

# --- All or nothing ------------------------------------------------------------------------------


def table_rows(conn):
    return [conn.execute(f"SELECT * FROM totp.{table} t ORDER BY t::text").fetchall() for table in ("data_keys", "secrets", "recovery_codes")]


@pytest.mark.parametrize("way", ["ROLLBACK", "ROLLBACK TO SAVEPOINT before", "SELECT 1 / 0"])
def test_a_rotation_that_is_rolled_back_changes_nothing(conn, way):
    secret = active_user(conn, "alice")
    [code] = [code for [code] in conn.execute("SELECT totp_reset_recovery_codes('alice', 1)")]
    before = table_rows(conn)
    conn.execute("BEGIN")
    conn.execute("SAVEPOINT before")
    conn.execute(AT_ONCE)
    enroll(conn, "bob")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    if way == "SELECT 1 / 0":
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute(way)
    else:
        conn.execute(way)
    conn.execute("ROLLBACK")
    assert table_rows(conn) == before
    # The data key of the rollback is not in the session's cache either.
    carol = enroll(conn, "carol")
    assert verify(conn, "carol", code_at(carol, NOON)) is True
    assert verify(conn, "alice", code_at(secret, NOON)) is False  # used above
    assert verify(conn, "alice", code_at(secret, LATER)) is True
    assert conn.execute("SELECT totp_recover('alice', %s)", [code]).fetchone() == (True,)
    open_everything(conn)
    conn.execute(AT_ONCE)
    open_everything(conn)


@both_kinds
def test_a_canceled_wait_leaves_everything_as_it_was(quick_db, conn, rotate):
    secret = active_user(conn, "alice")
    with session(quick_db) as writing:
        writing.execute("BEGIN")
        bob = enroll(writing, "bob")
        with pytest.raises(psycopg.errors.QueryCanceled), Background(quick_db, rotate) as rotating:
            rotating.wait_until_blocked(conn)
            rotating.conn.cancel()
        enroll(writing, "carol")
        writing.execute("COMMIT")
    assert verify(conn, "bob", code_at(bob, NOON)) is True
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    open_everything(conn)
    conn.execute(rotate)
    assert [state for _, state in keys(conn)] == ["current"]
    assert open_everything(conn)[0] == 3


@both_kinds
def test_a_row_that_does_not_open_stops_the_rotation(quick_db, conn, rotate):
    """Tampered with by someone who can write the tables: nothing is lost, and the other users sign in."""
    users = import_users(conn, 5)
    conn.execute("UPDATE totp.secrets SET sealed = (SELECT sealed FROM totp.secrets WHERE user_id = %s) WHERE user_id = %s", [users[0], users[3]])
    error = error_of(conn, rotate)
    assert (error.sqlstate, error.diag.message_primary, error.diag.message_detail) == ("XX001", "sealed value does not open", f'The call was for user "{users[3]}".')
    others = [user for user in users if user != users[3]]
    assert sign_in_all(conn, others, NOON) == 4
    assert error_of(conn, "SELECT totp_verify(%s, %s)", [users[3], code_at(secret_of(users[3]), NOON)]).sqlstate == "XX001"
    assert conn.execute("SELECT failures FROM totp_status(%s)", [users[3]]).fetchone() == (0,)
    conn.execute("SELECT totp_remove(%s)", [users[3]])
    conn.execute(rotate)
    assert [state for _, state in keys(conn)] == ["current"]
    assert open_everything(conn) == (4, 0)


# --- When a rotation is refused -----------------------------------------------------------------


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("query", [AT_ONCE, "CALL totp_rotate_key_online()", "SELECT * FROM totp_forget_unreadable('0123456789abcdef')"])
@pytest.mark.parametrize("how", ["BEGIN ISOLATION LEVEL {}", "SET default_transaction_isolation = '{}'"], ids=["transaction", "default"])
def test_a_rotation_is_refused_at_a_level_that_cannot_see_late_rows(conn, query, level, how):
    active_user(conn, "alice")
    before = table_rows(conn)
    conn.execute(how.format(level))
    error = error_of(conn, query)
    assert error.sqlstate == "25001"
    assert error.diag.message_hint == "Call it in a transaction of isolation level READ COMMITTED."
    conn.execute("ROLLBACK")
    assert table_rows(conn) == before


def test_an_online_rotation_in_a_transaction_block_is_an_error_of_postgresql(conn):
    active_user(conn, "alice")
    before = table_rows(conn)
    conn.execute("BEGIN")
    assert error_of(conn, "CALL totp_rotate_key_online()").sqlstate == "2D000"
    conn.execute("ROLLBACK")
    assert table_rows(conn) == before


@pytest.mark.parametrize("query", [AT_ONCE, "CALL totp_rotate_key_online()"])
def test_a_rotation_is_refused_in_a_read_only_transaction(conn, query):
    active_user(conn, "alice")
    conn.execute("SET default_transaction_read_only = on")
    error = error_of(conn, query)
    assert (error.sqlstate, error.diag.message_hint) == ("25006", "Call it in a read-write transaction.")


@pytest.mark.parametrize("query", [AT_ONCE, "CALL totp_rotate_key_online()"])
def test_there_is_nothing_to_rotate_before_the_first_enrollment(db, query):
    with session(db) as conn:
        error = error_of(conn, query)
        assert (error.sqlstate, error.diag.message_primary) == ("55000", "nothing to rotate")
        assert error.diag.message_hint == "The first enrollment creates the first data key."
        assert keys(conn) == []
