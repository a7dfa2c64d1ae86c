"""Shards that die, are shut down, hang or are cut off: their users get an error, all other users get an answer."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import psycopg
import pytest
from many_users import secret_of
from router_load import Load, code_of, new_users, pooled, router, wait_for_more  # noqa: F401
from server import PATIENCE_SECONDS, _children, wait_until
from sessions import GUARD
from shards import users_of
from totp import error_of, verify, wrong_code

QR = "SELECT totp_qr_text('otpauth://totp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ') <> ''"  # any shard will do
OF_NOBODY = "SELECT totp_verify(NULL, '1'), totp_enabled(NULL), totp_recover(NULL, 'x'), totp_confirm(NULL, '1')"
DEAD = "SELECT shard, status FROM totp_health() WHERE detail LIKE 'It does not answer%'"
MAP_OK = "SELECT count(*) FROM totp_health() WHERE check_name = 'map' AND status = 'ok'"


def qr_of(conn, shard):
    """What QR answers if this shard is the first that is asked: the router takes them in the order of random()."""
    for number in range(1000):
        seed = "SELECT setseed(%s)", [number / 1000]
        conn.execute(*seed)
        if conn.execute("SELECT name FROM totp_router.each_shard ORDER BY random()").fetchone() == (shard.name,):
            conn.execute(*seed)
            return conn.execute(QR).fetchone()[0]
    raise AssertionError("it is never the first")


@contextmanager
def hung(shard):
    """A shard whose processes are there, and do nothing."""
    family = [shard.cluster.pid(), *_children(shard.cluster.pid())]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)


def test_a_shard_that_dies_takes_only_its_own_users_along(router):
    """They get errors, never an answer, and get in again when it is back. The others notice nothing."""
    users = new_users(router, 90, "mortal")
    shard = router.shards[0]  # which serves partition 0, where calls about no user would go
    his = {user for user in users if router.shard_of(user) is shard}
    others = set(users) - his
    used, fresh = users_of(router.partitions_of(shard), 2, "mortal-too")
    with closing(router.database.connect()) as conn, Load(router.database, users) as load:
        for user in (used, fresh):
            assert conn.execute("SELECT totp_import(%s, %s, confirmed => true) <> ''", [user, secret_of(user)]).fetchone() == (True,)
        assert verify(conn, used, code_of(used)) is True
        wait_for_more(load, his)
        shard.cluster.kill9()
        for _ in range(2):  # an open connection that breaks, and a new one
            # A backend that outlives its postmaster for a moment ends with its own error.
            with pytest.raises((psycopg.errors.InternalError_, psycopg.errors.AdminShutdown)):
                verify(conn, used, code_of(used))
        assert (conn.execute(DEAD).fetchall(), conn.execute(MAP_OK).fetchone()) == ([(shard.name, "fail")], (2,))
        assert qr_of(conn, shard) is True
        assert conn.execute(OF_NOBODY).fetchone() == (False,) * 4
        for call in ("totp_check(NULL, '1')", "totp_check_recover(NULL, 'x')", "totp_check_confirm(NULL, '1', recovery_codes => 20)"):
            assert conn.execute(f"SELECT * FROM {call}").fetchall() == router.shards[1].database.execute(f"SELECT * FROM {call}"), call
        assert conn.execute("SELECT * FROM totp_status(NULL)").fetchall() == []
        with pytest.raises(psycopg.errors.InternalError_):
            conn.execute("SELECT * FROM totp_rotate_key()")  # nothing is done on some shards only
        wait_for_more(load, others)
        shard.cluster.start()
        wait_for_more(load, his)
    print(f"\n{len(load.answers)} answers, {len(load.errors())} errors, {len(load.false_yes())} wrong yes, {len(load.false_no())} wrong no")
    assert load.false_yes() == [] and load.false_no() == []
    assert load.errors() and {user for user, _ in load.errors()} <= his
    with closing(router.database.connect()) as conn:
        assert verify(conn, used, code_of(used)) is False  # used before the crash
        assert verify(conn, fresh, code_of(fresh)) is True


def test_a_shard_that_does_not_answer_is_an_error_within_a_bound(router):
    """A process that is there and says nothing is what neither PL/Proxy nor TCP gives up on; the pooler does."""
    shard = router.shards[1]
    [his], [other] = users_of(router.partitions_of(shard), 1, "silent"), users_of(router.partitions_of(router.shards[0]), 1, "silent")
    with closing(router.database.connect()) as conn:
        conn.execute(GUARD)
        for user in (his, other):
            conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [user, secret_of(user)])
        with pooled(router, [shard], query_timeout=2):
            wait_until(lambda: _answers(conn, his), "the pooler to have a connection")
            with hung(shard):
                for _ in range(2):
                    error = error_of(conn, "SELECT totp_verify(%s, %s)", [his, code_of(his)])
                    assert error.sqlstate == "08P01"  # the pooler's; and not 57014, which would be the guard
                    assert verify(conn, other, wrong_code(code_of(other))) is False
                assert (conn.execute(DEAD).fetchall(), conn.execute(MAP_OK).fetchone()) == ([(shard.name, "fail")], (2,))
                assert error_of(conn, "SELECT * FROM totp_rotate_key()").sqlstate == "08P01"
            wait_until(lambda: _answers(conn, his), "the shard to be back")
        assert verify(conn, his, wrong_code(code_of(his))) is False


def test_a_shard_that_is_dead_behind_a_pooler_takes_only_its_own_users_along(router):
    """As without one, but for the SQLSTATE: on a connection that was there before it is the pooler's."""
    shard = router.shards[1]
    [his] = users_of(router.partitions_of(shard), 1, "behind")
    with closing(router.database.connect()) as conn, pooled(router, router.shards, query_timeout=2):
        conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [his, secret_of(his)])
        wait_until(lambda: _answers(conn, his), "the pooler to have a connection")
        assert qr_of(conn, shard) is True  # so that there is a connection of this kind too
        shard.cluster.kill9()
        try:
            assert error_of(conn, "SELECT totp_verify(%s, '000000')", [his]).sqlstate == "08P01"
            assert (conn.execute(DEAD).fetchall(), conn.execute(MAP_OK).fetchone()) == ([(shard.name, "fail")], (2,))
            assert qr_of(conn, shard) is True
            with pytest.raises((psycopg.errors.ProtocolViolation, psycopg.errors.InternalError_)):
                conn.execute("SELECT * FROM totp_rotate_key()")
        finally:
            shard.cluster.start()
        wait_until(lambda: _answers(conn, his), "the shard to be back")


def test_a_shard_that_is_shut_down_takes_only_its_own_users_along(router):
    """A server that ends says so to each connection: its own error, once."""
    shard = router.shards[1]
    with closing(router.database.connect()) as conn:
        assert conn.execute(MAP_OK).fetchone() == (3,)
        conn.execute("SELECT FROM totp.audit_log")
        assert qr_of(conn, shard) is True  # so that there is a connection
        shard.cluster.stop()
        try:
            assert qr_of(conn, shard) is True
            for _ in range(2):
                assert (conn.execute(DEAD).fetchall(), conn.execute(MAP_OK).fetchone()) == ([(shard.name, "fail")], (2,))
                assert error_of(conn, "SELECT FROM totp.audit_log").sqlstate.startswith("08")
        finally:
            shard.cluster.start()


@pytest.mark.parametrize("sqlstate, dead", [("57P01", True), ("57P02", True), ("57P03", True), ("08P01", True), ("08006", True), ("XX000", True),
                                            ("57014", False), ("22023", False), ("55000", False), ("F0000", False), ("XX001", False)])
def test_only_an_error_of_a_dead_shard_is_asked_of_another_one(router, sqlstate, dead):
    """A canceled call and a wrong argument are not: the call does not go to another shard."""
    assert router.database.value("SELECT totp_router.is_dead(%s)", [sqlstate]) is dead


def test_a_machine_that_is_cut_off_is_an_error_within_the_time_of_tcp(router):
    """Its address takes no connection and refuses none: packets get lost."""
    shard = router.shards[1]
    [his], [other] = users_of(router.partitions_of(shard), 1, "cut"), users_of(router.partitions_of(router.shards[0]), 1, "cut")

    def lead(connection: str) -> None:
        router.database.execute("UPDATE totp_router.shards SET connection = %s WHERE name = %s", [connection, shard.name])
        router.apply()

    with ExitStack() as stack, closing(router.database.connect()) as conn:
        conn.execute(GUARD)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # a queue that is full: what comes next is dropped
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        stack.callback(lead, shard.connection)
        lead(f"host=127.0.0.1 port={listener.getsockname()[1]} dbname=totp tcp_user_timeout=1000")
        with pytest.raises(psycopg.errors.InternalError_, match="timed out"):  # and not 57014, which would be the guard
            verify(conn, his, "000000")
        assert verify(conn, other, "000000") is False
        assert conn.execute(DEAD).fetchall() == [(shard.name, "fail")]


def test_calls_that_take_long_have_their_own_connection(router):
    """slow_connection: a call may take longer than the query_timeout of sign-ins."""
    shard = router.shards[1]
    [his] = users_of(router.partitions_of(shard), 1, "slow")
    router.database.execute("UPDATE totp_router.shards SET slow_connection = connection WHERE name = %s", [shard.name])
    try:
        with (pooled(router, [shard], query_timeout=2), closing(router.database.connect()) as conn, closing(router.database.connect()) as admin,
              ThreadPoolExecutor(1) as pool):
            with closing(shard.database.connect(autocommit=False)) as holder:
                holder.execute("LOCK TABLE totp.secrets")
                slow = pool.submit(lambda: admin.execute("SELECT shard FROM totp_keys()").fetchall())
                wait_until(lambda: holder.execute("SELECT FROM pg_locks WHERE NOT granted").rowcount == 1, "the slow call to wait")
                assert error_of(conn, "SELECT totp_enabled(%s)", [his]).sqlstate == "08P01"  # after so long
                assert not slow.done()
            assert (shard.name,) in slow.result(PATIENCE_SECONDS)
    finally:
        router.database.execute("UPDATE totp_router.shards SET slow_connection = NULL")
        router.apply()


def test_a_shard_that_answers_users_but_not_totp_health_is_not_called_dead(router):
    shard = router.shards[1]
    shard.database.execute("ALTER FUNCTION totp_shard.totp_health(boolean, text) RENAME TO away")
    try:
        with closing(router.database.connect()) as conn:
            [(detail,)] = conn.execute("SELECT detail FROM totp_health() WHERE check_name = 'shard'").fetchall()
            assert detail.startswith("It answers, but") and "42883" in detail
    finally:
        shard.database.execute("ALTER FUNCTION totp_shard.away(boolean, text) RENAME TO totp_health")


def _answers(conn, user: str) -> bool:
    try:
        return conn.execute("SELECT totp_enabled(%s)", [user]).fetchone() == (True,)
    except psycopg.errors.ProtocolViolation:
        return False
