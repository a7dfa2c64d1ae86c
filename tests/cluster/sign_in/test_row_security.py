"""totp_enabled() and totp_status() in policies and in parallel queries: a parallel plan, few calls, right answers.

Calls are counted by PostgreSQL itself (track_functions), those of parallel workers too.
"""

from contextlib import closing

import pytest
from totp import NOON, active_user, error_of, fix_clock, force_parallel, verify

ROWS = 200_000
FEW = 1000
ASKS_ONCE = "(SELECT totp_enabled(current_setting('app.user_id', true)))"  # the form that docs/in-the-database.md asks for


@pytest.fixture(scope="module")
def db(cluster):
    """A database in which alice has a second factor, and role web may read the tables of the tests behind their policies."""
    database = cluster.create_database()
    database.execute("CREATE ROLE web_reader; SELECT totp_grant('web_reader', 'verify')")
    with closing(database.connect()) as conn:
        fix_clock(conn, NOON)
        active_user(conn)
        for table, rows, policy in (("payments", ROWS, ASKS_ONCE), ("constant", ROWS, "true"), ("few", FEW, "totp_enabled(owner)")):
            conn.execute(f"CREATE TABLE {table} AS SELECT n AS id, CASE n % 2 WHEN 0 THEN 'alice' ELSE 'bob' END AS owner, repeat('x', 160) AS note"
                         f" FROM generate_series(1, {rows}) AS n")
            conn.execute(f"GRANT SELECT ON {table} TO web_reader; ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            conn.execute(f"CREATE POLICY p ON {table} USING ({policy})")
            conn.execute(f"VACUUM (ANALYZE) {table}")
    yield database
    database.drop()
    cluster.psql("DROP ROLE web_reader")


@pytest.fixture
def reader(db):
    """A session of web_reader on behalf of alice. Its calls are counted from here."""
    with closing(db.connect()) as conn:
        conn.execute("SELECT pg_stat_reset()")
        conn.execute("SET track_functions = 'all'; SET app.user_id = 'alice'; SET ROLE web_reader")
        yield conn


def calls(conn) -> int:
    """How often totp_enabled was called."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    return conn.execute("SELECT coalesce(sum(calls), 0)::int FROM pg_stat_user_functions WHERE funcname = 'totp_enabled'").fetchone()[0]


def plan(conn, query: str) -> str:
    return "\n".join(row for [row] in conn.execute(f"EXPLAIN {query}"))


def one(conn, query: str):
    [[value]] = conn.execute(query).fetchall()
    return value


# --- A policy that asks once for each statement ------------------------------------------------


@pytest.mark.parametrize("table", ["payments", "constant"])
def test_a_policy_that_asks_once_gets_a_parallel_plan_as_a_constant_one_does(reader, table):
    assert "Workers Planned: 2" in plan(reader, f"SELECT count(*) FROM {table}")


@pytest.mark.parametrize("forced", [False, True], ids=["as planned", "forced"])
@pytest.mark.parametrize("user, rows", [("alice", ROWS), ("bob", 0), ("", 0), ("x" * 300, 0)], ids=["enabled", "not", "nobody", "too long"])
def test_a_policy_that_asks_once_shows_all_rows_or_none_with_one_call(reader, user, rows, forced):
    force_parallel(reader, forced)
    reader.execute("SELECT set_config('app.user_id', %s, false)", [user])
    assert one(reader, "SELECT count(*) FROM payments") == rows
    assert calls(reader) == 1


def test_a_policy_that_asks_once_is_asked_again_by_the_next_statement(db, reader):
    with closing(db.connect()) as admin:
        assert one(reader, "SELECT count(*) FROM payments") == ROWS
        admin.execute("SELECT totp_disable('alice')")
        assert one(reader, "SELECT count(*) FROM payments") == 0
        admin.execute("SELECT totp_enable('alice')")
        assert one(reader, "SELECT count(*) FROM payments") == ROWS


def test_a_prepared_statement_asks_at_each_execution(reader):
    reader.execute("PREPARE counted AS SELECT count(*) FROM payments; SET plan_cache_mode = force_generic_plan")
    assert "Workers Planned: 2" in plan(reader, "EXECUTE counted")
    for user, rows in (("alice", ROWS), ("bob", 0), ("alice", ROWS)):
        reader.execute(f"SET app.user_id = '{user}'")
        assert one(reader, "EXECUTE counted") == rows
    assert calls(reader) == 3


# --- A policy that asks for each row -----------------------------------------------------------


@pytest.mark.parametrize("forced", [False, True], ids=["as planned", "forced"])
def test_a_policy_that_asks_for_each_row_answers_in_the_leader(reader, forced):
    force_parallel(reader, forced)
    reader.execute("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0")
    assert "Workers Planned" not in plan(reader, "SELECT * FROM few")
    assert reader.execute("SELECT owner, count(*) FROM few GROUP BY owner").fetchall() == [("alice", FEW // 2)]
    assert calls(reader) == FEW


def test_what_is_cheaper_is_asked_first(reader):
    """COST says that a call takes much longer than a comparison. With COST 1 it is called for each row of the table."""
    assert one(reader, "SELECT count(*) FROM few WHERE id <= 10") == 5
    assert calls(reader) == 10


# --- In parallel mode --------------------------------------------------------------------------


@pytest.fixture
def transaction(db):
    """A superuser's transaction at REPEATABLE READ that has its snapshot, in which alice is enabled. By now she is disabled."""
    with closing(db.connect()) as conn, closing(db.connect()) as admin:
        fix_clock(conn, NOON)
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        admin.execute("SELECT totp_disable('alice')")
        yield conn
        conn.execute("ROLLBACK")
        admin.execute("SELECT totp_enable('alice')")


STATES = "(SELECT string_agg(state, ', ') FROM totp_status('alice'))"


@pytest.mark.parametrize("call, latest, statement", [("totp_enabled('alice')", False, True), (STATES, "disabled", "active")], ids=["enabled", "status"])
def test_in_parallel_mode_they_answer_under_the_snapshot_of_the_statement(transaction, call, latest, statement):
    """There no newer one may be taken. In any other query it is the newest."""
    assert one(transaction, f"SELECT {call}") == latest
    query = f"SELECT (SELECT {call}), count(*) FROM constant"
    assert "Workers Planned: 2" in plan(transaction, query)
    assert transaction.execute(query).fetchone() == (statement, ROWS)


@pytest.mark.parametrize("wrapped", [False, True], ids=["in a policy", "in a function"])
def test_a_session_that_makes_its_first_call_there_keeps_its_settings(db, wrapped):
    """The library is loaded in parallel mode, where PostgreSQL sets no setting that is not marked for that."""
    db.execute(f"ALTER DATABASE {db.name} SET totp.window_steps = 2")
    db.execute("CREATE OR REPLACE FUNCTION has_second_factor() RETURNS boolean LANGUAGE plpgsql STABLE PARALLEL RESTRICTED"
               " AS $$ BEGIN RETURN totp_enabled('alice'); END $$")
    query = "SELECT count(*) FROM " + ("constant WHERE (SELECT has_second_factor())" if wrapped else "payments")
    with closing(db.connect()) as conn:
        notices = []
        conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        configured = one(conn, "SHOW totp.key_file")
        conn.execute("SET totp.actor = 'me'; SET app.user_id = 'alice'; SET ROLE web_reader")
        assert "Workers Planned: 2" in plan(conn, query)
        assert one(conn, query) == ROWS
        conn.execute("RESET ROLE")
        assert [one(conn, f"SHOW totp.{name}") for name in ("key_file", "window_steps", "actor")] == [configured, "2", "me"]
        assert notices == []
        assert verify(conn, "alice", "000000") is False  # the key is loaded: else F0000
    db.execute(f"ALTER DATABASE {db.name} RESET totp.window_steps")


def test_that_place_is_in_parallel_mode(db):
    """The control: a function that refuses it does so there."""
    with closing(db.connect()) as conn:
        conn.execute("CREATE FUNCTION keys() RETURNS bigint LANGUAGE sql PARALLEL RESTRICTED AS 'SELECT count(*) FROM totp_keys()'")
        conn.execute("CREATE POLICY only_this ON constant AS RESTRICTIVE USING ((SELECT keys()) > 0); GRANT EXECUTE ON FUNCTION totp_keys TO web_reader")
        conn.execute("SET ROLE web_reader")
        assert "Workers Planned: 2" in plan(conn, "SELECT count(*) FROM constant")
        assert error_of(conn, "SELECT count(*) FROM constant").sqlstate == "25000"
        conn.execute("RESET ROLE; DROP POLICY only_this ON constant")


# --- Functions that the planner calls -----------------------------------------------------------

STRICT = {
    "totp_qr_svg": ["text"], "totp_qr_png": ["text", "integer"], "totp_qr_text": ["text"],
    "totp_code_at": ["text", "timestamptz", "text", "integer", "integer"],
}
VALUES = {"text": "'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ'", "integer": "6", "timestamptz": "'2030-01-01'"}
ONE_NULL = [pytest.param(name, types, place, id=f"{name} {place + 1}") for name, types in STRICT.items() for place in range(len(types))]


@pytest.mark.parametrize("name, types, place", ONE_NULL)
def test_a_null_argument_is_folded_into_null(db, name, types, place):
    """Query tools describe a statement with NULL for each parameter, and the planner evaluates it."""
    arguments = [f"NULL::{kind}" if n == place else VALUES[kind] for n, kind in enumerate(types)]
    call = f"{name}({', '.join(arguments)})"
    with closing(db.connect()) as conn:
        assert one(conn, f"SELECT {call} IS NULL")
        assert f"NULL::{'bytea' if name == 'totp_qr_png' else 'text'}" in plan(conn, f"(VERBOSE) SELECT {call}")
        places = ", ".join(f"${n}" for n in range(1, len(types) + 1))
        conn.execute(f"PREPARE described ({', '.join(types)}) AS SELECT {name}({places})")
        for mode in ("force_generic_plan", "force_custom_plan"):
            conn.execute(f"SET plan_cache_mode = {mode}")
            assert one(conn, f"EXECUTE described({', '.join(arguments)})") is None
