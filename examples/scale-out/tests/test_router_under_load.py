"""Sign-ins through the router while keys rotate, while calls are canceled, and with poolers between."""

from contextlib import closing

import pytest
from many_users import AT_ONCE, import_users, open_everything
from router_load import Load, code_of, new_users, pooled, router, wait_for_more  # noqa: F401
from totp import check, error_of, parallel, verify, wrong_code


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


def test_what_is_canceled_on_the_router_is_canceled_on_the_shard(router):
    """And the next call has its own answer, not the one that was not waited for."""
    [user, other] = new_users(router, 2, "canceled")
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

@pytest.fixture
def pooler(router):
    with pooled(router, router.shards) as pooler:
        yield pooler


def test_users_sign_in_through_pgbouncer_before_the_router_and_before_the_shards(pooler):
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
