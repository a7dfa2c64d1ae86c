"""The split of a shard as docs/operations/scale-out.md describes it, and what can go wrong."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest
from many_users import secret_of
from router_load import Load, code_of, new_users, router, wait_for_more  # noqa: F401
from server import Database, wait_until
from sessions import Background
from shards import Shard, partition, users_of
from totp import NOON, check, code_at, error_of, recovery_codes, verify, wrong_code

NOT_OK = "SELECT shard, status FROM totp_health() WHERE check_name = 'map' AND status <> 'ok'"
REMOVE = "SELECT * FROM totp_router.remove_unserved()"


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
        codes = recovery_codes(conn, guessed, 2)
        assert conn.execute("SELECT totp_recover(%s, %s)", [guessed, codes[0]]).fetchone() == (True,)
        for _ in range(3):
            assert check(conn, guessed, wrong_code(code_of(guessed))).reason == "wrong"

    standby = old.cluster.standby()
    try:
        with closing(router.database.connect()) as conn:  # the audit log can be read there now
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
            old.serve(stay, empty=False)  # from here on nobody serves those who move
            standby.wait_for_replay(old.cluster)
            standby.promote()
            new = Shard("s9", Database(standby, old.database.name))
            # Its row is a copy, and says that it serves those who stay. But s1 serves them, so the copy serves nobody yet.
            with closing(new.database.connect("totp_router_verify")) as direct:
                for user in users[:12]:
                    error = error_of(direct, "SELECT totp_shard.totp_verify(%s, '000000', NULL, 'x')", [user])
                    assert (error.sqlstate, "serves nobody yet" in error.diag.message_primary) == ("55000", True)
            # A second has passed: with a clock that stands still no secret would be older than the promotion.
            new.database.execute(f"ALTER DATABASE totp SET totp.clock = '{(NOON + timedelta(seconds=1)).isoformat()}'")
            new.serve(move, empty=False)
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
            assert check(conn, guessed, wrong_code(code_of(guessed)))[1:4:2] == ("wrong", 1)  # the fourth of five
            assert conn.execute("SELECT totp_recover(%s, %s), totp_recover(%s, %s)", [guessed, codes[0], guessed, codes[1]]).fetchone() == (False, True)

            before = {shard.name: _users(shard) for shard in (old, new)}
            assert before["s1"] == before["s9"]
            assert conn.execute(NOT_OK).fetchall() == [("s1", "warn"), ("s9", "warn")]
            removed = dict(conn.execute("SELECT * FROM totp_router.remove_unserved(25)").fetchall())
            assert _users(old) | _users(new) == before["s1"] and not _users(old) & _users(new)
            assert removed == {"s1": len(_users(new)), "s2": 0, "s3": 0, "s9": len(_users(old))}
            assert {partition(user) for user in _users(old)} <= set(stay) and {partition(user) for user in _users(new)} <= set(move)
            audited = "SELECT count(DISTINCT user_id) FROM totp.audit_log WHERE event = 'removed' AND actor = 'totp_shard.remove_unserved'"
            assert (old.database.value(audited), new.database.value(audited)) == (removed["s1"], removed["s9"])
            assert dict(conn.execute("SELECT * FROM totp_router.remove_unserved()").fetchall()) == dict.fromkeys(removed, 0)
            assert conn.execute(NOT_OK).fetchall() == []
            # From now on a standby that is promoted may go by the row that it has.
            assert [shard.database.value("SELECT only_on FROM totp_shard.served") for shard in (old, new)] == [None, None]

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
    """A split waits for running calls. Calls that come during it are judged by the new map."""
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


def test_a_server_takes_no_partitions_whose_users_it_does_not_have(router):
    """They move by promotion only: elsewhere they would have no second factor."""
    first, second = router.shards[:2]
    mine, others = router.partitions_of(first), router.partitions_of(second)
    row = "SELECT partitions, present, only_on = totp_shard.this_server() FROM totp_shard.served"
    serve = "SELECT totp_shard.serve(%s)"
    with closing(first.database.connect()) as conn:
        assert error_of(conn, serve, [mine + others[:1]]).sqlstate == "55000"
        assert error_of(conn, serve, [others]).sqlstate == "55000"
        assert conn.execute(row).fetchone() == (mine, mine, None)
        for _ in range(2):  # said twice, it holds as it did
            conn.execute(serve, [mine[1:]])
            assert conn.execute(row).fetchone() == (mine[1:], mine, True)
        conn.execute(serve, [mine])  # what it gave up it may take back
        assert conn.execute(row).fetchone() == (mine, mine, None)


@pytest.fixture
def wrong_map(router):
    """The second shard has given partitions up, and the third, which is no copy of it, serves them. Who was in them."""
    second, third = router.shards[1:]
    mine, others = router.partitions_of(second), router.partitions_of(third)
    users = users_of(mine[1:], 4, "misled")
    with closing(router.database.connect()) as conn:
        for user in users:
            conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [user, secret_of(user)])
    # A removal from before it served this user does not count.
    third.database.execute("SELECT count(totp_import(%s, %s)), count(totp_remove(%s))", [users[0], secret_of(users[0]), users[0]])
    second.serve(mine[:1], empty=False)
    third.serve(others + mine[1:])
    router.move(mine[1:], third)
    yield users
    third.database.execute("SELECT count(totp_remove(u)) FROM unnest(%s::text[]) AS u", [users])
    third.serve(others)
    second.serve(mine)
    router.move(mine, second)
    with closing(router.database.connect()) as conn:
        assert [conn.execute("SELECT totp_enabled(%s)", [user]).fetchone() for user in users[:2]] == [(True,)] * 2


def test_who_is_on_one_server_only_is_not_removed_from_it(router, wrong_map):
    """totp_health() reports it, and remove_unserved() removes the users that the serving shard has, or has removed itself."""
    *lost, added, gone = wrong_map
    second = router.shards[1]
    with closing(router.database.connect()) as conn:
        for user in (added, gone):
            conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [user, secret_of(user)])
        conn.execute("SELECT totp_remove(%s)", [gone])
        assert conn.execute("SELECT status, shard FROM totp_health() WHERE check_name = 'map' AND detail LIKE '%%second factor there%%'"
                            ).fetchall() == [("fail", second.name)]
        error = error_of(conn, REMOVE)
        assert error.sqlstate == "55000" and second.name in error.diag.message_detail and "promotion" in error.diag.message_hint
        there = "SELECT user_id FROM totp.attempts WHERE user_id = ANY (%s) ORDER BY 1"
        assert second.database.execute(there, [wrong_map]) == [(user,) for user in sorted(lost)]
        assert error_of(conn, REMOVE).sqlstate == "55000"
        assert second.database.value("SELECT only_on IS NOT NULL FROM totp_shard.served") is True


def test_nobody_is_removed_if_the_map_is_not_agreed_on(router):
    """Not even from a shard before the one that says something else."""
    first, second, third = router.shards
    mine, others, last = map(router.partitions_of, router.shards)
    [moved] = users_of(mine[:1], 1, "kept")
    try:
        with closing(router.database.connect()) as conn:
            for _ in range(2):  # on the first, then on the second
                conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [moved, secret_of(moved)])
                first.serve(mine[1:], empty=False)
                second.serve(others + mine[:1])
                router.move(mine[:1], second)
            third.serve(last[1:], empty=False)
            assert error_of(conn, REMOVE).sqlstate == "55000"
            assert moved in _users(first)
            for batch_size in (0, -1, 100_001, None):
                assert error_of(conn, "SELECT * FROM totp_router.remove_unserved(%s)", [batch_size]).sqlstate == "22023"
    finally:
        second.database.execute("SELECT totp_remove(%s)", [moved])
        for shard, partitions in zip(router.shards, (mine, others, last), strict=True):
            shard.serve(partitions)
            router.move(partitions, shard)
