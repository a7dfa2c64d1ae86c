"""What a backend in Python gets: psycopg with bind parameters and prepared statements, psycopg_pool for a pool.

tests/run-clients starts the server. Its clock stands still, and role app has the capability enroll.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import psycopg
import pyotp
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)  # the server's time
CHECK = "SELECT accepted, reason, matched_device, attempts_left, retry_at FROM totp_check(%s, %s)"


def connect(role="app", **options):
    """Host, port and database come from PGHOST, PGPORT and PGDATABASE."""
    return psycopg.connect(user=role, autocommit=True, **options)


@pytest.fixture
def conn():
    with connect() as conn:
        yield conn


@pytest.fixture
def pool():
    with ConnectionPool("user=app", min_size=4, max_size=4, kwargs={"autocommit": True}) as pool:
        yield pool


class App:
    """A user's authenticator."""

    def __init__(self, secret):
        self.totp = pyotp.TOTP(secret)

    def code(self, when=NOW):
        return self.totp.at(when)

    def wrong_code(self):
        """A code that is none of those the server accepts."""
        accepted = {self.code(NOW + timedelta(seconds=seconds)) for seconds in (-30, 0, 30)}
        return next(code for code in ("000000", "000001", "000002", "000003") if code not in accepted)


def user(conn, user_id) -> App:
    """Enroll a user and confirm with the code before the current one."""
    app = App(conn.execute("SELECT secret FROM totp_enroll(%s)", [user_id]).fetchone()[0])
    confirm = conn.execute("SELECT totp_confirm(%s, %s)", [user_id, app.code(NOW - timedelta(seconds=30))])
    assert confirm.fetchone() == (True,)
    return app


def verify(conn, user_id, code, **options):
    [[answer]] = conn.execute("SELECT totp_verify(%s, %s)", [user_id, code], **options).fetchall()
    return answer


def test_true_once_and_false_for_all_else(conn):
    app = user(conn, "python/bind")
    assert verify(conn, "python/bind", app.wrong_code()) is False
    assert verify(conn, "python/bind", "no code") is False
    assert verify(conn, "python/nobody", app.code()) is False
    assert verify(conn, "python/bind", app.code()) is True
    assert verify(conn, "python/bind", app.code()) is False


def test_parameters_and_answers_in_binary(conn):
    app = user(conn, "python/binary")
    query = "SELECT totp_verify(%b, %b)"
    assert conn.execute(query, ["python/binary", app.code()], binary=True).fetchone() == (True,)
    assert conn.execute(query, ["python/binary", app.code()], binary=True).fetchone() == (False,)


def test_null_is_false(conn):
    app = user(conn, "python/null")
    assert verify(conn, "python/null", None) is False
    assert verify(conn, None, app.code()) is False


def test_a_code_bound_as_a_number_is_an_error(conn):
    """A code is text: a number has lost its leading zeros."""
    app = user(conn, "python/number")
    with pytest.raises(psycopg.errors.UndefinedFunction):
        verify(conn, "python/number", int(app.code()))


def test_check_tells_why(conn):
    app = user(conn, "python/check")
    for code, expected in [
        (app.wrong_code(), (False, "wrong", None, 4, None)),
        (app.code(), (True, "accepted", "default", 5, None)),
        (app.code(), (False, "replayed", "default", 5, None)),
        ("no code", (False, "malformed", None, 5, None)),
    ]:
        assert conn.execute(CHECK, ["python/check", code]).fetchall() == [expected]


def test_a_locked_user_is_refused_with_the_time_of_the_next_try(conn):
    app = user(conn, "python/locked")
    for _ in range(5):
        assert verify(conn, "python/locked", app.wrong_code()) is False
    assert verify(conn, "python/locked", app.code()) is False
    conn.row_factory = dict_row
    assert conn.execute(CHECK, ["python/locked", app.code()]).fetchall() == [
        {"accepted": False, "reason": "locked", "matched_device": None, "attempts_left": 0, "retry_at": NOW + timedelta(seconds=30)}]


def test_errors_have_their_sqlstate_and_leave_the_connection_usable(conn):
    app = user(conn, "python/error")

    with pytest.raises(psycopg.errors.InvalidParameterValue) as bad:
        conn.execute("SELECT totp_enroll(%s, algorithm => %s)", ["python/error", "MD5"])
    assert "SHA256" in bad.value.diag.message_detail

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as read_only, conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        verify(conn, "python/error", app.code())
    assert read_only.value.diag.message_hint

    # A secret that does not open is an error: it is neither a good code nor a wrong one.
    with pytest.raises(psycopg.errors.DataCorrupted):
        verify(conn, "broken", app.code())

    with connect("stranger") as stranger, pytest.raises(psycopg.errors.InsufficientPrivilege):
        verify(stranger, "python/error", app.code())

    assert verify(conn, "python/error", app.code()) is True


def test_one_prepared_statement_serves_every_user(conn):
    # From its sixth use on PostgreSQL may run a prepared statement by a plan that knows no parameter.
    for number in range(10):
        user_id = f"python/prepared {number}"
        app = user(conn, user_id)
        assert verify(conn, user_id, app.wrong_code(), prepare=True) is False
        assert verify(conn, user_id, app.code(), prepare=True) is True
        assert verify(conn, user_id, app.code(), prepare=True) is False
    prepared = conn.execute("SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%totp_verify%'").fetchall()
    assert prepared == [("SELECT totp_verify($1, $2)",)]


def test_of_a_pool_one_connection_gets_in(pool):
    with pool.connection() as conn:
        app = user(conn, "python/pool")

    def sign_in(_):
        with pool.connection() as conn:
            return verify(conn, "python/pool", app.code(), prepare=True)

    with ThreadPoolExecutor(12) as threads:
        assert sorted(threads.map(sign_in, range(12))) == [False] * 11 + [True]


def test_a_pool_counts_wrong_guesses_over_all_its_connections(pool):
    with ExitStack() as stack:
        held = [stack.enter_context(pool.connection()) for _ in range(4)]
        app = user(held[0], "python/guesses")
        for number in range(5):
            assert verify(held[number % 4], "python/guesses", app.wrong_code()) is False
        assert verify(held[1], "python/guesses", app.code()) is False
        assert held[2].execute(CHECK, ["python/guesses", app.code()]).fetchone()[1] == "locked"


def test_an_error_does_not_spoil_a_pool(pool):
    """As an application with transactions uses it: the pool rolls back, and what a sign-in used up stays used up."""
    with pool.connection() as conn:
        app = user(conn, "python/rollback")
    with pytest.raises(ZeroDivisionError), pool.connection() as conn, conn.transaction():
        assert verify(conn, "python/rollback", app.code()) is True
        raise ZeroDivisionError
    for _ in range(4):
        with pool.connection() as conn:
            assert verify(conn, "python/rollback", app.code()) is False
