"""What the router promises beside the SQL surface of the extension: who may do what, and on which shard it happens."""

from contextlib import closing

import pytest
from many_users import import_users, secret_of
from router_load import code_of, conn, role, router  # noqa: F401
from shards import partition, script, users_of
from totp import check, error_of, import_secret, parallel, recovery_codes, verify, wrong_code

FUNCTIONS = "FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'totp\\_%%'"


# --- Where it happens --------------------------------------------------------------------------------------------------

def test_everything_of_a_user_is_on_one_shard(router, conn):
    users = import_users(conn, 12, prefix="placed")
    for user in users:
        assert verify(conn, user, code_of(user)) is True
        assert check(conn, user, wrong_code(code_of(user))).reason == "wrong"
        assert len(recovery_codes(conn, user)) == 10
    for shard in router.shards:
        mine = [user for user in users if router.shard_of(user) is shard]
        for table in ("secrets", "used_codes", "attempts", "recovery_codes", "audit_log"):
            query = f"SELECT DISTINCT user_id FROM totp.{table} WHERE user_id = ANY (%s) ORDER BY 1"
            assert shard.database.execute(query, [users]) == [(user,) for user in mine], table


def test_the_router_and_the_shards_agree_where_a_user_is(router, conn):
    names = ["alice", "", "Ä", "日本", "a" * 256, "Alice", " alice"]
    expected = [partition(name) for name in names]
    for database, schema in ((router.database, "totp_router"), (router.shards[0].database, "totp_shard")):
        assert [database.value(f"SELECT {schema}.partition(%s)", [name]) for name in names] == expected
    assert conn.execute("SELECT totp_router.partition(NULL)").fetchone() == (0,)


def test_the_router_keeps_nothing_of_a_user(router, conn):
    """Its tables are a map; what else it shows, it reads from the shards."""
    import_users(conn, 1, prefix="elsewhere")
    tables = conn.execute("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'S', 'm') AND relnamespace::regnamespace::text"
                          " NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1").fetchall()
    assert [name for (name,) in tables] == ["audit_row", "capabilities", "partitions", "shards"]
    assert conn.execute("SELECT count(*) FROM ONLY totp_router.audit_row").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM pg_extension WHERE extname = 'pg_totp'").fetchone() == (0,)


def test_a_shard_refuses_users_of_other_shards(router, conn):
    """Whatever a router believes: else a split could let one code in twice."""
    [user] = import_users(conn, 1, prefix="lost")
    other = next(shard for shard in router.shards if shard is not router.shard_of(user))
    for call in ("totp_verify(%s, '000000', NULL, 'x')", "totp_check(%s, '000000', NULL, 'x')", "totp_enabled(%s, 'x')",
                 "totp_status(%s, 'x')", "totp_enroll(%s, NULL, NULL, 'd', 'SHA1', 6, 30, true, 'x')"):
        with closing(other.database.connect("totp_router_enroll")) as direct:
            assert error_of(direct, f"SELECT * FROM totp_shard.{call}", [user]).sqlstate == "55000", call
    with closing(router.shard_of(user).database.connect("totp_router_verify")) as direct:
        assert direct.execute("SELECT totp_shard.totp_enabled(%s, 'x')", [user]).fetchone() == (True,)
        direct.execute("SET default_transaction_isolation = 'repeatable read'")  # its map may be an old one
        assert error_of(direct, "SELECT totp_shard.totp_enabled(%s, 'x')", [user]).sqlstate == "25001"


def test_the_scripts_may_run_again(router, conn, role):
    """As after an update of the extension: what is served, who may call, and sessions stay."""
    [user] = import_users(conn, 1, prefix="again")
    with closing(router.database.connect(role("admin"))) as app:
        before = app.execute("SELECT shard FROM totp_keys()").fetchall()
        for shard in router.shards:
            served = shard.database.value("SELECT partitions FROM totp_shard.served")
            shard.database.psql(script("shard.sql"))
            assert shard.database.value("SELECT partitions FROM totp_shard.served") == served
        router.make_functions()
        router.apply()
        assert app.execute("SELECT shard FROM totp_keys()").fetchall() == before
        assert verify(app, user, code_of(user)) is True


def test_serve_takes_partitions_that_there_are(router):
    with closing(router.shards[0].database.connect()) as direct:
        for partitions in ([], [16], [-1], [0, None]):
            assert error_of(direct, "SELECT totp_shard.serve(%s::int[])", [partitions]).sqlstate == "22023"
        assert error_of(direct, "SELECT totp_shard.serve(NULL)").sqlstate == "22023"


def test_two_answers_in_one_statement_do_not_mix(conn):
    """PL/Proxy keeps one answer for each connection: a function that reads slowly would go on in the answer of the next."""
    users = import_users(conn, 2, prefix="mixed")
    found = conn.execute("SELECT (totp_status(%s)).account_name, (totp_status(%s)).account_name, totp_reset_recovery_codes(%s, 2)",
                         [*users, users[0]]).fetchall()
    assert [row[:2] for row in found] == [(users[0], users[1]), (None, None)]
    assert all(len(code) == 27 for _, _, code in found)


# --- Answers -----------------------------------------------------------------------------------------------------------

def test_no_user_is_false(conn):
    assert conn.execute("SELECT totp_verify(NULL, '000000'), totp_enabled(NULL), totp_recover(NULL, 'x'), totp_confirm(NULL, '1')"
                        ).fetchone() == (False,) * 4
    assert error_of(conn, "SELECT totp_remove(NULL)").sqlstate == "22023"


def test_of_64_sessions_with_one_code_one_gets_in(router, conn):
    [user] = import_users(conn, 1, prefix="crowd")
    sessions = [router.database.connect() for _ in range(64)]
    try:
        answers = parallel(64, lambda n, _: verify(sessions[n], user, code_of(user)), lambda n: sessions[n].execute("SELECT 1"))
    finally:
        for session in sessions:
            session.close()
    assert sorted(answers) == [False] * 63 + [True]


@pytest.mark.parametrize("call", [
    "totp_verify('x', '1')", "totp_check('x', '1')", "totp_confirm('x', '1')", "totp_recover('x', '1')", "totp_enroll('x')",
    "totp_import('x', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "totp_reset('x')", "totp_disable('x')", "totp_enable('x')", "totp_remove('x')",
    "totp_unlock('x')", "totp_rename_user('x', 'y')", "totp_recovery_codes('x')", "totp_rotate_key()", "totp_prune_audit('1 year')",
    "totp_check_confirm('x', '1')", "totp_check_confirm(NULL, '1')", "totp_check_recover('x', '1')", "totp_check_recover(NULL, '1')",
    "totp_resync('x', '1', '2')", "totp_resync(NULL, '1', '2')",
    "totp_unenroll('x', '1')", "totp_rename_device('x', 'a', 'b', '1')", "totp_reset_recovery_codes('x')", "totp_move_device('x', 'a', 'y', 'b')",
    "totp_forget_unreadable('x')"])
def test_a_read_only_transaction_is_refused(router, conn, call):
    before = [shard.database.value("SELECT count(*) FROM totp.audit_log") for shard in router.shards]
    conn.execute("SET default_transaction_read_only = on")
    error = error_of(conn, f"SELECT * FROM {call}")
    assert (error.sqlstate, error.diag.message_primary) == (
        "25006", f"cannot execute {call.split('(')[0]}() in a read-only transaction")
    assert error_of(conn, "CALL totp_rotate_key_online()").sqlstate == "25006"
    assert conn.execute("SELECT totp_enabled('x'), (SELECT count(*) FROM totp_status('x'))").fetchone() == (False, 0)
    assert [shard.database.value("SELECT count(*) FROM totp.audit_log") for shard in router.shards] == before


def test_rollback_gives_no_guess_back_and_undoes_nothing_on_a_shard(conn):
    """The first as on one server. The second not: PL/Proxy commits each call on the shard."""
    [user] = import_users(conn, 1, prefix="undone")
    for call, expected in (("SELECT totp_verify(%s, '000000')", False), ("SELECT totp_reset_recovery_codes(%s, 1) IS NULL", False),
                           ("SELECT totp_disable(%s)", 1)):
        with conn.transaction(force_rollback=True):
            assert conn.execute(call, [user]).fetchone() == (expected,)
    assert conn.execute("SELECT state, failures, recovery_codes_left FROM totp_status(%s)", [user]).fetchone() == ("disabled", 1, 1)


def test_the_actor_reaches_the_audit_log_of_the_shard(router, conn, role):
    [user] = import_users(conn, 1, prefix="acted")
    app = role("verify")
    with closing(router.database.connect(app)) as session:
        assert verify(session, user, wrong_code(code_of(user))) is False
        with session.transaction():
            session.execute("SET LOCAL totp.actor = 'support:42'")
            assert verify(session, user, wrong_code(code_of(user))) is False
        assert verify(session, user, wrong_code(code_of(user))) is False
    noted = conn.execute("SELECT actor, db_user, shard FROM totp.audit_log WHERE user_id = %s AND event = 'failed' ORDER BY id", [user])
    name = router.shard_of(user).name
    assert noted.fetchall() == [(actor, "totp_router_verify", name) for actor in (app, "support:42", app)]


def test_a_user_keeps_its_shard_when_renamed_and_a_device_when_moved(router, conn):
    [user] = users_of(range(0, 1), 1, "old")
    [same] = users_of(router.partitions_of(router.shard_of(user)), 1, "new")
    [other] = users_of(set(range(16)) - set(router.partitions_of(router.shard_of(user))), 1, "new")
    import_secret(conn, user, secret_of(user))
    for call in ("totp_rename_user(%s, %s)", "totp_move_device(%s, 'default', %s, 'default')"):
        error = error_of(conn, f"SELECT {call}", [user, other])
        assert error.sqlstate == "0A000" and "Enroll the new user id" in error.diag.message_hint
    assert conn.execute("SELECT totp_enabled(%s), totp_enabled(%s)", [user, other]).fetchone() == (True, False)
    assert conn.execute("SELECT totp_rename_user(%s, %s)", [user, same]).fetchone() == (1,)
    assert verify(conn, same, code_of(user)) is True
    for bad in ("", "x" * 257, None):
        for call in ("totp_rename_user(%s, %s)", "totp_move_device(%s, 'default', %s, 'default')"):
            assert error_of(conn, f"SELECT {call}", [same, bad]).sqlstate == "22023"
    with closing(router.shard_of(same).database.connect("totp_router_admin")) as direct:  # and a shard does not trust the map
        for call in ("totp_rename_user(%s, %s, 'x')", "totp_move_device(%s, 'default', %s, 'default', 'x')"):
            assert error_of(direct, f"SELECT totp_shard.{call}", [same, other]).sqlstate == "55000"
    assert conn.execute("SELECT totp_move_device(%s, 'default', %s, 'token')", [same, user]).fetchone() == (True,)
    assert check(conn, user, code_of(user)).reason == "replayed" and check(conn, user, code_of(user, 1)).matched_device == "token"


# --- Who may ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("capability", ["verify", "enroll", "admin", "audit"])
def test_a_capability_is_what_it_is_on_one_server(router, role, capability):
    single = router.shards[0].database
    with closing(single.connect()) as conn, conn.transaction(force_rollback=True):
        conn.execute("CREATE ROLE single")
        conn.execute("SELECT totp_grant('single', %s)", [capability])
        expected = conn.execute(f"SELECT proname {FUNCTIONS} AND has_function_privilege('single', oid, 'EXECUTE') ORDER BY 1").fetchall()
    name = role(capability)
    with closing(router.database.connect(name)) as conn:
        assert conn.execute(f"SELECT proname {FUNCTIONS} AND has_function_privilege(oid, 'EXECUTE') ORDER BY 1").fetchall() == expected
        assert conn.execute("SELECT has_schema_privilege('totp_router', 'USAGE'), count(*) FILTER (WHERE has_server_privilege(oid, 'USAGE'))"
                            " FROM pg_foreign_server").fetchone() == (False, 0)
        if capability == "audit":
            assert conn.execute("SELECT count(*) >= 0 FROM totp.audit_log").fetchone() == (True,)
            assert conn.execute("SELECT count(*) >= 0 FROM totp_stats()").fetchone() == (True,)
        else:
            assert error_of(conn, "SELECT FROM totp.audit_log").sqlstate == "42501"


def test_rights_end_where_they_end_on_one_server(router, conn, role):
    [user] = import_users(conn, 1, prefix="rights")
    with closing(router.database.connect(role("verify"))) as app:
        assert verify(app, user, code_of(user)) is True
        for call in ("totp_enroll('x')", "totp_remove('x')", "totp_keys()", "totp_grant('postgres', 'admin')",
                     "totp_router.totp_enroll('x', NULL, NULL, 'd', 'SHA1', 6, 30, true, 'x')", "totp_router.apply()"):
            assert error_of(app, f"SELECT * FROM {call}").sqlstate == "42501", call
    with closing(router.database.connect(role())) as nobody:
        assert error_of(nobody, "SELECT totp_verify('x', '1')").sqlstate == "42501"
    for arguments, sqlstate in (("'nobody_at_all', 'verify'", "42704"), ("'public', 'verify'", "42704"), ("'postgres', 'all'", "22023")):
        assert error_of(conn, f"SELECT totp_grant({arguments})").sqlstate == sqlstate


def test_a_connection_to_a_shard_can_do_what_it_is_for(router):
    """Who takes over the router's connection of `verify` cannot enroll, nor call the extension past the shard's checks."""
    with closing(router.shards[0].database.connect("totp_router_verify")) as direct:
        assert direct.execute("SELECT totp_shard.totp_verify(NULL, '1', NULL, 'x')").fetchone() == (False,)
        for call in ("totp_shard.totp_enroll('x', NULL, NULL, 'd', 'SHA1', 6, 30, true, 'x')", "totp_shard.totp_keys('x')",
                     "public.totp_verify('x', '1')", "totp_shard.serve('{1}')", "totp_shard.enter('x', NULL)", "totp_shard.remove_unserved('{1}', '{x}')"):
            assert error_of(direct, f"SELECT * FROM {call}").sqlstate == "42501", call
        for table in ("totp.secrets", "totp.audit_log", "totp_shard.served"):
            assert error_of(direct, f"SELECT FROM {table}").sqlstate == "42501", table
    for name, public in router.database.execute("SELECT proname, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc"
                                                " WHERE pronamespace IN ('totp_router'::regnamespace) OR proname LIKE 'totp\\_%'"):
        assert public is False, name
