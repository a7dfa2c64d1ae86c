"""pgbouncer in transaction mode: each transaction of a client runs on any free server connection."""

from contextlib import ExitStack, closing
from datetime import timedelta

import psycopg
import pytest
from pgbouncer import Pooler
from totp import NOON, check, code_at, enroll, parallel, verify, wrong_codes

NEXT = NOON + timedelta(seconds=30)
APP = "pooled_app"  # the role that the clients are


@pytest.fixture(scope="module")
def pooler(cluster):
    """Two server connections."""
    with Pooler(cluster, [APP], size=2) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def narrow(cluster):
    """One server connection, so that every client uses the same."""
    with Pooler(cluster, [APP], size=1) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def app(cluster):
    """The role. It goes when the databases that gave it rights have gone."""
    cluster.psql(f"CREATE ROLE {APP} LOGIN")
    yield
    cluster.psql(f"DROP ROLE {APP}")


@pytest.fixture
def db(app, db):
    """A database whose clock is fixed, as a client has no session to fix it in."""
    db.execute(f"SELECT totp_grant('{APP}', 'enroll')")
    db.execute(f"ALTER DATABASE {db.name} SET totp.clock = '{NOON.isoformat()}'")
    return db


def enrolled(conn, user_id: str) -> str:
    """The secret of a new user, confirmed with the code before the current one."""
    secret = enroll(conn, user_id)
    assert verify(conn, user_id, code_at(secret, NOON - timedelta(seconds=30))) is True
    return secret


def backend(conn) -> int:
    return conn.execute("SELECT pg_backend_pid()").fetchone()[0]


def test_users_sign_in_through_a_pooler(pooler, db):
    with closing(pooler.connect(db.name)) as conn:
        secret = enrolled(conn, "alice")
        wrong = wrong_codes(secret, NOON)
        assert check(conn, "alice", next(wrong))[:4] == (False, "wrong", None, 4)
        assert check(conn, "alice", code_at(secret, NOON))[:2] == (True, "accepted")
        assert check(conn, "alice", code_at(secret, NOON))[:2] == (False, "replayed")
        for _ in range(5):
            assert verify(conn, "alice", next(wrong)) is False
        assert check(conn, "alice", code_at(secret, NEXT))[1:5:3] == ("locked", NEXT)
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            enroll(conn, "alice", algorithm="MD5")
        assert verify(conn, "nobody", "123456") is False


def test_of_ten_clients_one_gets_in(pooler, db):
    with closing(pooler.connect(db.name)) as conn:
        secret = enrolled(conn, "alice")

    def sign_in(_, conn):
        with closing(conn):
            return verify(conn, "alice", code_at(secret, NOON))

    answers = parallel(10, sign_in, prepare=lambda _: pooler.connect(db.name))
    assert sorted(answers) == [False] * 9 + [True]
    servers = db.value("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [APP])
    assert 1 <= servers <= 2


def test_a_used_code_and_a_guess_count_on_every_server_connection(pooler, db):
    with closing(pooler.connect(db.name)) as one, closing(pooler.connect(db.name)) as other:
        secret = enrolled(one, "alice")
        with other.transaction():  # it holds a server connection: the other client gets the other one
            first = backend(other)
            assert verify(other, "alice", code_at(secret, NOON)) is True
            assert check(one, "alice", code_at(secret, NOON)).reason == "replayed"
            assert check(one, "alice", next(wrong_codes(secret, NOON))).attempts_left == 4
            assert backend(one) != first


def test_a_rollback_gives_nothing_back(pooler, db):
    with closing(pooler.connect(db.name, autocommit=False)) as conn:
        with conn.transaction():
            secret = enrolled(conn, "alice")
        assert verify(conn, "alice", code_at(secret, NOON)) is True
        conn.rollback()
        assert check(conn, "alice", code_at(secret, NOON)).reason == "replayed"
        conn.rollback()


def test_an_actor_set_with_local_goes_with_its_transaction(narrow, db):
    with closing(narrow.connect(db.name)) as one, closing(narrow.connect(db.name)) as other:
        with one.transaction():
            one.execute("SET LOCAL totp.actor = 'clerk 42'")
            enroll(one, "alice")
        enroll(other, "bob")
        enroll(one, "carol")
    assert db.execute("SELECT user_id, actor, db_user FROM totp.audit_log WHERE event = 'enrolled' ORDER BY id") == [
        ("alice", "clerk 42", APP), ("bob", APP, APP), ("carol", APP, APP)]


def test_an_actor_set_without_local_is_taken_for_that_of_other_clients(narrow, db):
    """A limit of the mode, which docs/operations/pooling.md warns of: if a pooler fixes it, the warning can go."""
    with closing(narrow.connect(db.name)) as one, closing(narrow.connect(db.name)) as other:
        one.execute("SET totp.actor = 'clerk 42'")
        enroll(other, "bob")
        one.execute("RESET totp.actor")
    assert db.execute("SELECT user_id, actor, db_user FROM totp.audit_log WHERE event = 'enrolled'") == [("bob", "clerk 42", APP)]


def test_the_audit_log_names_the_application_of_each_client(narrow, db):
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(narrow.connect(db.name, application_name=name))) for name in ("web", "batch")]
        for number in range(4):
            enroll(clients[number % 2], f"user {number}")
    assert db.execute("SELECT application_name, client_addr FROM totp.audit_log WHERE event = 'enrolled' ORDER BY id") == [("web", None), ("batch", None)] * 2


def test_a_prepared_statement_serves_or_is_an_error(pooler, db):
    """Before 1.21 pgbouncer does not bring it along to another server connection. That error counts no guess and burns no code."""
    query = "SELECT totp_verify('alice', %s)"
    with closing(pooler.connect(db.name, prepare_threshold=1)) as conn, closing(pooler.connect(db.name)) as a, closing(pooler.connect(db.name)) as b:
        secret = enrolled(a, "alice")
        with conn.transaction():
            assert conn.execute(query, [next(wrong_codes(secret, NOON))], prepare=True).fetchone() == (False,)
            prepared_on = backend(conn)
        busy = {}  # both server connections, until the one without the statement is free again
        for other in (a, b):
            other.execute("BEGIN")
            busy[backend(other)] = other
        holder = busy.pop(prepared_on)
        busy.popitem()[1].execute("ROLLBACK")

        if not pooler.keeps_prepared_statements:
            with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                conn.execute(query, [code_at(secret, NOON)], prepare=True)
            assert check(holder, "alice", "no code").attempts_left == 4
        assert conn.execute(query, [code_at(secret, NOON)], prepare=pooler.keeps_prepared_statements).fetchone() == (True,)
        holder.execute("ROLLBACK")
