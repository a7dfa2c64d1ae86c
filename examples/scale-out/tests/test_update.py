"""The scripts after an update of the extension, with another number of partitions, and in the wrong order."""

from contextlib import closing

import psycopg
import pytest
from many_users import import_users
from router_load import code_of, router  # noqa: F401
from server import CommandFailed
from shards import script
from totp import NOON, check, enabled, error_of, verify, wrong_code

COUNT = 64


def of_64(name: str) -> str:
    """A script with the one number changed that says how many partitions there are."""
    text = script(name)
    assert text.count("AS 'SELECT 16'") == 1
    return text.replace("AS 'SELECT 16'", f"AS 'SELECT {COUNT}'")


@pytest.fixture(scope="module")
def small(router):
    """A shard and a router with 64 partitions, in databases of servers that are there: (shard, router, make the functions)."""
    cluster = router.shards[0].cluster
    shard = cluster.create_database("of_64")
    shard.psql(of_64("shard.sql"))
    shard.execute("SELECT totp_shard.serve(ARRAY(SELECT generate_series(0, %s)))", [COUNT - 1])
    small = router.database.cluster.create_database("router_of_64", extension=False)
    small.psql(of_64("router.sql"))
    small.execute("INSERT INTO totp_router.shards VALUES ('s1', %s)", [f"host={cluster.folder} port=5432 dbname=of_64"])
    small.execute("INSERT INTO totp_router.partitions SELECT p, 's1' FROM generate_series(0, %s) p", [COUNT - 1])
    small.psql(shard.psql(script("routes.sql")))
    for _ in range(2):
        small.execute("SELECT totp_router.apply()")
    small.execute("ALTER USER MAPPING FOR totp_router SERVER totp_audit_log_s1 OPTIONS (ADD password_required 'false')")
    yield shard, small
    small.drop()
    shard.drop()


def test_the_number_of_partitions_is_one_number_in_each_file(small):
    shard, router = small
    with closing(router.connect()) as conn:
        assert conn.execute("SELECT count(secret) FROM generate_series(1, 200) n, totp_enroll('user' || n)").fetchone() == (200,)
        assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE shard = 's1' AND event = 'enrolled'").fetchone() == (200,)
        used = shard.value("SELECT array_agg(DISTINCT totp_shard.partition(user_id)) FROM totp.attempts")
        assert max(used) > 16 and set(used) <= set(range(COUNT))
        assert conn.execute("SELECT status FROM totp_health() WHERE check_name = 'map'").fetchall() == [("ok",)]
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute("INSERT INTO totp_router.partitions VALUES (%s, 's1')", [COUNT])
        conn.execute("DELETE FROM totp_router.partitions WHERE partition = %s", [COUNT - 1])
        assert error_of(conn, "SELECT totp_router.apply()").sqlstate == "55000"
        conn.execute("INSERT INTO totp_router.partitions VALUES (%s, 's1')", [COUNT - 1])
    assert error_of_serve(shard, [COUNT]) == "22023"


def error_of_serve(shard, partitions) -> str:
    with closing(shard.connect()) as conn:
        return error_of(conn, "SELECT totp_shard.serve(%s::int[])", [partitions]).sqlstate


def test_two_numbers_of_partitions_are_refused(router, small):
    """Users would be sent where nobody looks for them."""
    with pytest.raises(CommandFailed, match="different numbers of partitions"):
        small[1].psql(router.shards[0].database.psql(script("routes.sql")))
    assert small[1].value("SELECT totp_enabled('user1')") is False  # and nothing has changed


def test_what_the_extension_dropped_or_changed_goes_from_the_router(small):
    """An update that adds a parameter and a result column, drops functions, and adds a column of the audit log.

    A parameter and a column of the result share a name before in totp_check_confirm(), and afterward in totp_enable().
    """
    shard, router = small
    router.execute("CREATE ROLE scale_out_reader LOGIN")
    try:
        router.execute("SELECT totp_grant('scale_out_reader', 'audit')")
        router.execute("CREATE FUNCTION public.totp_of_the_dba() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
        shard.psql("""
            ALTER EXTENSION pg_totp DROP FUNCTION totp_unlock(text);
            DROP FUNCTION totp_unlock(text);
            CREATE FUNCTION totp_unlock(user_id text, reason text DEFAULT NULL) RETURNS boolean LANGUAGE sql AS 'SELECT false';
            ALTER EXTENSION pg_totp ADD FUNCTION totp_unlock(text, text);
            ALTER EXTENSION pg_totp DROP FUNCTION totp_rename_user(text, text);
            DROP FUNCTION totp_rename_user(text, text);
            CREATE FUNCTION totp_rename_user(user_id text, new_user_id text) RETURNS TABLE (renamed boolean, devices integer) LANGUAGE sql AS 'SELECT true, 1';
            ALTER EXTENSION pg_totp ADD FUNCTION totp_rename_user(text, text);
            ALTER EXTENSION pg_totp DROP FUNCTION totp_disable(text, text);
            DROP FUNCTION totp_disable(text, text);
            ALTER EXTENSION pg_totp DROP FUNCTION totp_check_confirm(text, text, text, text, integer);
            DROP FUNCTION totp_check_confirm(text, text, text, text, integer);
            ALTER EXTENSION pg_totp DROP FUNCTION totp_enable(text, text);
            DROP FUNCTION totp_enable(text, text);
            CREATE FUNCTION totp_enable(user_id text, device text) RETURNS TABLE (enabled boolean, device text) LANGUAGE sql AS 'SELECT true, $2';
            ALTER EXTENSION pg_totp ADD FUNCTION totp_enable(text, text);
            COMMENT ON FUNCTION totp_enable(text, text) IS 'x';
            ALTER TABLE totp.audit_log ADD COLUMN extra text DEFAULT 'more';
            COMMENT ON FUNCTION totp_unlock(text, text) IS 'x';
            COMMENT ON FUNCTION totp_rename_user(text, text) IS 'x'""")
        for _ in range(2):
            shard.psql(of_64("shard.sql"))
            router.psql(shard.psql(script("routes.sql")))
        with closing(router.connect()) as conn:
            assert conn.execute("SELECT totp_unlock('x')").fetchone() == (False,)
            assert conn.execute("SELECT * FROM totp_rename_user('x', 'x')").fetchone() == (True, 1)
            assert error_of(conn, "SELECT totp_disable('x')").sqlstate == "42883"
            assert conn.execute("SELECT totp_of_the_dba()").fetchone() == (1,)
            conn.execute("ALTER USER MAPPING FOR totp_router SERVER totp_audit_log_s1 OPTIONS (SET password_required 'false')")
            assert conn.execute("SELECT * FROM totp_enable('x', device => 'y')").fetchone() == (True, "y")
            left = "SELECT proname, count(*)::int FROM pg_proc WHERE proname IN ('totp_unlock', 'totp_rename_user', 'totp_disable', 'totp_check_confirm', 'totp_enable') GROUP BY 1"
            # Each with the one that the router calls, or that calls the shard.
            assert dict(shard.execute(left)) == {"totp_unlock": 2, "totp_rename_user": 2, "totp_enable": 2}
            assert dict(router.execute(left)) == {"totp_unlock": 2, "totp_rename_user": 2, "totp_enable": 3}
        with closing(router.connect("scale_out_reader")) as conn:
            assert conn.execute("SELECT DISTINCT extra, shard FROM totp.audit_log").fetchall() == [("more", "s1")]
    finally:
        router.psql("DROP OWNED BY scale_out_reader; DROP ROLE scale_out_reader")


@pytest.fixture
def old(router):
    """A shard with the extension as 0.1.0 made it, and a router before it: (shard, router)."""
    shard = router.shards[0].cluster.create_database("old", extension=False)
    shard.execute("CREATE EXTENSION pg_totp VERSION '0.1.0'")
    shard.execute(f"ALTER DATABASE old SET totp.clock = '{NOON.isoformat()}'")
    shard.psql(script("shard.sql"))
    shard.execute("SELECT totp_shard.serve(ARRAY(SELECT generate_series(0, 15)))")
    old = router.database.cluster.create_database("router_of_old", extension=False)
    old.psql(script("router.sql"))
    old.execute("INSERT INTO totp_router.shards VALUES ('s1', %s)", [f"host={shard.cluster.folder} port=5432 dbname=old"])
    old.execute("INSERT INTO totp_router.partitions SELECT p, 's1' FROM generate_series(0, 15) p")
    old.psql(shard.psql(script("routes.sql")))
    old.execute("SELECT totp_router.apply()")
    yield shard, old
    old.drop()
    shard.drop()


def test_users_sign_in_while_the_extension_is_updated(old):
    """docs/operations/scale-out.md, step by step. What has other parameters or columns is an error meanwhile, never an answer."""
    shard, router = old
    changed = "totp_check(%s, '1')", "totp_status(%s)", "totp_confirm(%s, '1')", "totp_recovery_codes(%s)"
    with closing(router.connect()) as conn:
        users = import_users(conn, 2)
        states = []
        for step, update in enumerate([lambda: None, lambda: shard.execute("ALTER EXTENSION pg_totp UPDATE"),
                                       lambda: shard.psql(script("shard.sql")), lambda: router.psql(shard.psql(script("routes.sql")))]):
            update()
            user = users[step // 2]
            assert enabled(conn, user) is True
            assert [verify(conn, user, code) for code in (code_of(user, step % 2), code_of(user, step % 2), wrong_code(code_of(user)))] == [True, False, False]
            states.append([_state_of(conn, f"SELECT * FROM {call}", [user]) for call in changed])
        assert states == [[None] * 4, ["42804", "42804", None, "42501"], [None, None, "42883", "42883"], [None, None, None, "42501"]]
        assert check(conn, user, "1").retry_after is None


# As an earlier shard.sql makes it, but for what it refuses.
OLDER_ENTER = """
DROP FUNCTION totp_shard.enter(text, text);
CREATE FUNCTION totp_shard.enter(caller text, user_id text) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN PERFORM pg_catalog.set_config('totp.actor', COALESCE(caller, ''), true); END $$;"""


def test_an_enter_that_returns_nothing_is_replaced(old):
    shard, router = old
    shard.psql(OLDER_ENTER)
    for _ in range(2):
        shard.psql(script("shard.sql"))
        with closing(router.connect()) as conn:
            assert enabled(conn, "alice") is False
    returns = "SELECT prorettype::regtype::text, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc WHERE oid = 'totp_shard.enter(text, text)'::regprocedure"
    assert shard.execute(returns) == [("text", False)]


def _state_of(conn, query, parameters) -> str | None:
    try:
        conn.execute(query, parameters)
    except psycopg.Error as error:
        return error.sqlstate
    return None
