"""Sign-ins through the router of examples/scale-out/ while a shard dies, keys rotate, a shard is split, a pooler is between."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta

import psycopg
import pytest
from pooler import Pooler
from rotation import AT_ONCE, GUARD, Background, import_users, open_everything, secret_of
from server import Database, _children, wait_until
from shard_load import Load, code_of, router  # noqa: F401
from shards import Shard, partition, users_of
from totp import NOON, check, code_at, error_of, parallel, verify, wrong_code


def new_users(router, size: int, prefix: str) -> list[str]:
    with closing(router.database.connect()) as conn:
        return import_users(conn, size, prefix=prefix)


def wait_for_more(load: Load, users: set[str], answers: int = 30) -> None:
    """Until these users have had so many more answers that are none of an error."""
    def count() -> int:
        return sum(user in users and not isinstance(answer, psycopg.Error) for user, _, answer, _ in list(load.answers))

    target = count() + answers
    wait_until(lambda: count() >= target, "sign-ins to go on")


def test_a_shard_that_dies_takes_only_its_own_users_along(router):
    """They get errors, never an answer, and get in again when it is back. The others notice nothing."""
    users = new_users(router, 90, "mortal")
    shard = router.shards[1]
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
            # A backend that outlives its postmaster for a moment ends with an error of its own.
            with pytest.raises((psycopg.errors.InternalError_, psycopg.errors.AdminShutdown)):
                verify(conn, used, code_of(used))
        assert conn.execute("SELECT DISTINCT shard FROM totp_health() WHERE check_name = 'shard'").fetchall() == [(shard.name,)]
        assert conn.execute("SELECT totp_qr_text('otpauth://totp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ') <> ''").fetchone() == (True,)
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


def test_keys_rotate_on_all_shards_while_users_sign_in(router):
    users = new_users(router, 120, "turning")
    with closing(router.database.connect()) as conn, Load(router.database, users) as load:
        wait_for_more(load, set(users))
        before = dict(conn.execute("SELECT shard, key_id FROM totp_keys()").fetchall())
        for statement in (AT_ONCE, "CALL totp_rotate_key_online(20)", AT_ONCE):
            conn.execute(statement)
            wait_for_more(load, set(users))
        after = conn.execute("SELECT shard, key_id, state FROM totp_keys()").fetchall()
    print(f"\n{len(load.answers)} answers, {len(load.errors())} errors, {len(load.false_yes())} wrong yes, {len(load.false_no())} wrong no")
    assert load.false_yes() == [] and load.false_no() == [] and load.errors() == []
    assert load.accepted == set(users)
    assert [(name, state) for name, _, state in after] == [(name, "current") for name in sorted(before)]
    assert all(key >= before[name] + 3 for name, key, _ in after)
    for shard in router.shards:
        with closing(shard.database.connect()) as direct:
            assert open_everything(direct)[0] > 0


def test_a_shard_is_split_while_users_sign_in(router):
    """docs/operations/scale-out.md, step by step. No code is good on both halves, and no guess is given back by the move."""
    old = router.shards[0]
    partitions = router.partitions_of(old)
    stay, move = partitions[::2], partitions[1::2]
    users = new_users(router, 120, "split")
    moving = {user for user in users if partition(user) in move}
    [guessed] = users_of(move, 1, "guessed")
    [untouched] = users_of(move, 1, "untouched")
    with closing(router.database.connect()) as conn:
        for user in (guessed, untouched):
            assert conn.execute("SELECT totp_import(%s, %s, confirmed => true) <> ''", [user, secret_of(user)]).fetchone() == (True,)
        for _ in range(3):
            assert check(conn, guessed, wrong_code(code_of(guessed))).reason == "wrong"
        codes = [code for (code,) in conn.execute("SELECT totp_recovery_codes(%s, 2)", [guessed])]
        assert conn.execute("SELECT totp_recover(%s, %s)", [guessed, codes[0]]).fetchone() == (True,)

    standby = old.cluster.standby()
    try:
        with closing(router.database.connect()) as conn:  # meanwhile the audit log can be read there
            standby.wait_for_replay(old.cluster)
            conn.execute("UPDATE totp_router.shards SET audit_connection = %s WHERE name = %s",
                         [f"host={standby.folder} port=5432 dbname={old.database.name}", old.name])
            conn.execute("SELECT totp_router.apply()")
            query = "SELECT count(*), min(shard) FROM totp.audit_log WHERE user_id = %s AND event = 'failed'"
            assert conn.execute(query, [guessed]).fetchone() == (3, old.name)
            [plan] = conn.execute("EXPLAIN (VERBOSE, FORMAT JSON) " + query, [guessed]).fetchone()
            assert "user_id = " in str(plan).split("Remote SQL", 1)[1]  # only this user's rows travel
            conn.execute("UPDATE totp_router.shards SET audit_connection = NULL")
            conn.execute("SELECT totp_router.apply()")

        with Load(router.database, users) as load:
            wait_for_more(load, moving)
            old.serve(stay)  # from here on nobody serves those who move
            standby.wait_for_replay(old.cluster)
            standby.promote()
            new = Shard("s9", Database(standby, old.database.name))
            # A second has passed: with a clock that stands still no secret would be older than the promotion.
            new.database.execute(f"ALTER DATABASE totp SET totp.clock = '{(NOON + timedelta(seconds=1)).isoformat()}'")
            new.serve(move)
            router.shards.append(new)
            router.move(move, new)
            wait_for_more(load, moving)
            wait_for_more(load, set(users) - moving)
        print(f"\n{len(load.answers)} answers, {len(load.errors())} errors, {len(load.false_yes())} wrong yes, {len(load.false_no())} wrong no")
        assert load.false_yes() == []
        assert {user for user, *_ in load.false_no()} <= moving  # the floor of the promotion
        assert {user for user, _ in load.errors()} <= moving
        assert {error.sqlstate for _, error in load.errors()} <= {"55000"}

        with closing(router.database.connect()) as conn:
            # The floor: a code that may have been used in what a promotion loses is refused for a minute.
            assert check(conn, untouched, code_of(untouched)).reason == "replayed"
            assert check(conn, guessed, wrong_code(code_of(guessed)))[1::2] == ("wrong", 1)  # the fourth of five
            assert conn.execute("SELECT totp_recover(%s, %s), totp_recover(%s, %s)", [guessed, codes[0], guessed, codes[1]]).fetchone() == (False, True)

            before = {shard.name: _users(shard) for shard in (old, new)}
            assert before["s1"] == before["s9"]
            removed = dict(conn.execute("SELECT * FROM totp_router.remove_unserved(7)").fetchall())
            assert _users(old) | _users(new) == before["s1"] and not _users(old) & _users(new)
            assert removed == {"s1": len(_users(new)), "s2": 0, "s3": 0, "s9": len(_users(old))}
            assert {partition(user) for user in _users(old)} <= set(stay) and {partition(user) for user in _users(new)} <= set(move)
            audited = "SELECT count(DISTINCT user_id) FROM totp.audit_log WHERE event = 'removed' AND actor = 'totp_shard.remove_unserved'"
            assert (old.database.value(audited), new.database.value(audited)) == (removed["s1"], removed["s9"])
            assert dict(conn.execute("SELECT * FROM totp_router.remove_unserved()").fetchall()) == dict.fromkeys(removed, 0)

        later = NOON.replace(minute=5)
        router.fix_clock(later)
        with closing(router.database.connect()) as conn:
            for user in [*users, untouched]:
                code = code_at(secret_of(user), later)
                assert (verify(conn, user, code), verify(conn, user, code)) == (True, False)
    finally:
        router.fix_clock(NOON)
        old.serve(partitions)
        router.move(partitions, old)
        router.database.execute("DELETE FROM totp_router.shards WHERE name = 's9'")
        router.apply()
        router.shards[:] = [shard for shard in router.shards if shard.name != "s9"]
        standby.remove()


def _users(shard: Shard) -> set[str]:
    return {user for (user,) in shard.database.execute("SELECT user_id FROM totp.attempts")}


def test_a_call_that_waits_for_the_map_sees_the_new_one(router):
    """A split waits for the calls under way, and those that come meanwhile are judged by what it says."""
    shard = router.shards[0]
    *stay, leave = router.partitions_of(shard)
    [user] = users_of([leave], 1, "waiting")
    serve = "ALTER FUNCTION totp_shard.serve(integer[]) SET lock_timeout = '{}'"
    shard.database.execute(serve.format("60s"))  # a machine may be slow
    call = "SELECT totp_shard.totp_verify(%s, '000000', NULL, 'x')"
    try:
        with (closing(shard.database.connect()) as look, closing(shard.database.connect("totp_router_verify", autocommit=False)) as before,
              closing(shard.database.connect("totp_router_verify")) as after, ThreadPoolExecutor(1) as pool):
            assert before.execute(call, [user]).fetchone() == (False,)
            with Background(shard.database, f"SELECT totp_shard.serve('{{{','.join(map(str, stay))}}}')") as serving:
                serving.wait_until_blocked(look)
                late = pool.submit(error_of, after, call, [user])
                wait_until(lambda: look.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [after.info.backend_pid]).fetchone()[0],
                           "the call to wait for the map")
                before.rollback()
            assert late.result().sqlstate == "55000"
    finally:
        shard.database.execute(serve.format("5s"))
        shard.serve([*stay, leave])


def test_what_is_cancelled_on_the_router_is_cancelled_on_the_shard(router):
    """And the next call has its own answer, not the one that was not waited for."""
    [user, other] = new_users(router, 2, "cancelled")
    shard = router.shard_of(user)
    with closing(router.database.connect()) as conn, closing(shard.database.connect(autocommit=False)) as holder:
        holder.execute("SELECT FROM totp.attempts WHERE user_id = %s FOR UPDATE", [user])
        conn.execute("SET statement_timeout = '500ms'")
        assert error_of(conn, "SELECT totp_remove(%s)", [user]).sqlstate == "57014"
        conn.execute("SET statement_timeout = '60s'")
        holder.rollback()
        assert conn.execute("SELECT count(*) FROM totp_status(%s)", [user]).fetchone() == (1,)
        assert (verify(conn, user, code_of(user)), verify(conn, other, wrong_code(code_of(other)))) == (True, False)


# --- A pooler between ----------------------------------------------------------------------------------------------------

@contextmanager
def pooled(router, shards: list[Shard], **settings):
    """One pgbouncer before the router and, as the router sees them, before these shards."""
    databases = {"router": router.database, **{shard.name: shard.database for shard in shards}}
    capabilities = [f"totp_router_{name}" for name in ("verify", "enroll", "audit", "admin", "owner")]

    def lead(connections: dict[str, str]) -> None:
        with closing(router.database.connect()) as conn:
            for name, connection in connections.items():
                conn.execute("UPDATE totp_router.shards SET connection = %s WHERE name = %s", [connection, name])
        router.apply()

    with Pooler(router.database.cluster, ["postgres", *capabilities], databases, **settings) as pooler:
        lead({shard.name: f"host={pooler.folder} port=6432 dbname={shard.name}" for shard in shards})
        try:
            yield pooler
        finally:
            lead({shard.name: shard.connection for shard in shards})


@pytest.fixture
def pooler(router):
    with pooled(router, router.shards) as pooler:
        yield pooler


def test_through_pgbouncer_before_the_router_and_before_the_shards(pooler):
    with closing(pooler.connect("router")) as conn:
        users = import_users(conn, 12, prefix="pooled")
        for user in users:
            assert (verify(conn, user, code_of(user)), verify(conn, user, code_of(user))) == (True, False)
            with conn.transaction():
                conn.execute("SET LOCAL totp.actor = 'support:7'")
                assert check(conn, user, wrong_code(code_of(user))).attempts_left == 4
        assert len(conn.execute("SELECT * FROM totp_rotate_key()").fetchall()) == 3
        assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE actor = 'support:7' AND user_id = ANY (%s)", [users]).fetchone() == (12,)
        [user] = import_users(conn, 1, prefix="pooled-crowd")
    clients = [pooler.connect("router") for _ in range(64)]
    answers = parallel(64, lambda n, _: verify(clients[n], user, code_of(user)), lambda n: clients[n].execute("SELECT 1"))
    for client in clients:
        client.close()
    assert sorted(answers) == [False] * 63 + [True]


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
            family = [shard.cluster.pid(), *_children(shard.cluster.pid())]
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            try:
                for _ in range(2):
                    error = error_of(conn, "SELECT totp_verify(%s, %s)", [his, code_of(his)])
                    assert error.sqlstate == "08P01"  # the pooler's; and not 57014, which would be the guard
                    assert verify(conn, other, wrong_code(code_of(other))) is False
            finally:
                for pid in family:
                    os.kill(pid, signal.SIGCONT)
            wait_until(lambda: _answers(conn, his), "the shard to be back")
        assert verify(conn, his, wrong_code(code_of(his))) is False


def _answers(conn, user: str) -> bool:
    try:
        return conn.execute("SELECT totp_enabled(%s)", [user]).fetchone() == (True,)
    except psycopg.errors.ProtocolViolation:
        return False
