"""Master keys from TOTP_ENCRYPTION_KEY: which values are accepted, what the error says of others, and that the file wins."""

from contextlib import ExitStack, closing

import pytest
from master_keys import nothing_told
from totp import NOON, code_at, enroll, error_of, fix_clock, verify

K1, K2 = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.fixture(scope="module")
def server_without_file(make_module_cluster):
    server = make_module_cluster()
    server.configure(totp__key_file="")
    server.stop()
    return server


@pytest.fixture
def started_with(server_without_file):
    """A function that starts that server with this environment variable (None: without) and gives a session in a new database."""
    with ExitStack() as stack:
        def start(variable):
            server_without_file.start(**({} if variable is None else {"TOTP_ENCRYPTION_KEY": variable}))
            stack.callback(server_without_file.stop)
            conn = stack.enter_context(closing(server_without_file.create_database().connect()))
            fix_clock(conn, NOON)
            return conn

        yield start


@pytest.mark.parametrize("variable", [K1, f"{K1},{K2}", f" {K1} , {K2} ", K1.upper(), f"{K1}\n{K2}", f"{K1},", f"# comment\n{K1}"], ids=lambda v: repr(v)[:12] + str(len(v)))
def test_the_variable_stands_in_for_the_file(started_with, variable):
    conn = started_with(variable)
    secret = enroll(conn, "alice")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    assert verify(conn, "alice", code_at(secret, NOON)) is False


@pytest.mark.parametrize("variable", [None, "", " ", "0" * 64, K1[:63], K1 + "0", "garbage", f"{K1},{K1}", f"{K1},garbage", f"{K1} {K2}", "/etc/passwd"],
                         ids=lambda v: repr(v)[:12] + str(len(v or "")))
def test_a_variable_that_is_refused(started_with, variable):
    conn = started_with(variable)
    error = error_of(conn, "SELECT totp_enroll('alice')")
    assert error.sqlstate == "F0000" and error.diag.message_hint
    nothing_told(error, variable or "")
    assert conn.execute("SELECT count(*) FROM totp.data_keys").fetchone() == (0,)


def test_the_file_wins_over_the_variable(make_cluster):
    """Also if it is broken: a silent change to another key would be worse than an error."""
    server = make_cluster()
    server.stop()
    server.start(TOTP_ENCRYPTION_KEY=K1)
    db = server.create_database()
    with closing(db.connect()) as conn:
        enroll(conn, "alice")
    server.write_key_file("garbage")
    with closing(db.connect()) as conn:
        assert error_of(conn, "SELECT totp_enroll('alice')").sqlstate == "F0000"
