"""A table that the same transaction rewrote is refused: a ROLLBACK would bring the old file back, and every guess and code with it.

For every command that rewrites a table, and every role that may run it: the owner, and from PostgreSQL 17 on who has
MAINTAIN. At every wal_level. A table that the same transaction created is not a copy: there it works.
"""

from contextlib import closing
from typing import NamedTuple

import psycopg
import pytest
from crash_load import LAZY
from psycopg import sql
from totp import (LEVELS, MAX_ATTEMPTS, NOON, NO_CODE, SECRET, check, codes_left, counters, fix_clock, good, import_secret, recover,
                  recovery_codes, verify, wrong, stage)

TABLES = {"attempts": "failures", "used_codes": "uses"}  # and one of its columns
REWRITES = {
    "CLUSTER": ["CLUSTER totp.{0} USING {0}_pkey"],
    "another tablespace": ["ALTER TABLE totp.{0} SET TABLESPACE other"],
    "another type and back": ["ALTER TABLE totp.{0} ALTER {1} TYPE numeric", "ALTER TABLE totp.{0} ALTER {1} TYPE bigint"],
    "another access method and back": ["ALTER TABLE totp.{0} SET ACCESS METHOD other", "ALTER TABLE totp.{0} SET ACCESS METHOD heap"],
    "unlogged and logged": ["ALTER TABLE totp.{0} SET UNLOGGED", "ALTER TABLE totp.{0} SET LOGGED"],
    "a new column": ["ALTER TABLE totp.{0} ADD COLUMN x double precision DEFAULT random()"],
    "the same by hand": ["ALTER TABLE totp.{0} RENAME TO before", "CREATE TABLE totp.{0} (LIKE totp.before INCLUDING ALL)",
                         "INSERT INTO totp.{0} SELECT * FROM totp.before"],
}


@pytest.fixture(scope="module", params=["minimal", "replica", "logical"])
def cluster(request, make_module_cluster):
    """A server with that wal_level, which writes nothing to disk that it is not asked to."""
    settings = {"max_wal_senders": 0} if request.param == "minimal" else {}
    cluster = make_module_cluster(wal_level=request.param, **settings, **LAZY)
    cluster.run("mkdir", cluster.folder / "other")
    cluster.psql(f"CREATE TABLESPACE other LOCATION '{cluster.folder / 'other'}'")
    return cluster


@pytest.fixture(scope="module")
def roles(_module_database):
    """The superuser, and a role that owns the tables. In every session it is noon."""
    owner = _module_database.create_role("admin")
    _module_database.psql(f"""
        ALTER DATABASE {_module_database.name} SET totp.clock = '{NOON.isoformat()}';
        CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler;
        GRANT ALL ON SCHEMA totp TO {owner}; GRANT ALL ON TABLESPACE other TO {owner};
        ALTER TABLE totp.attempts OWNER TO {owner}; ALTER TABLE totp.used_codes OWNER TO {owner}; ALTER TABLE totp.floor OWNER TO {owner}""")
    yield {"superuser": "postgres", "owner": owner}
    _module_database.psql(f"REASSIGN OWNED BY {owner} TO postgres; DROP OWNED BY {owner}")


class User(NamedTuple):
    """What alice has that works once."""

    pending: str
    recovery_code: str


@pytest.fixture
def conn(roles, quick_db):
    with closing(quick_db.connect()) as conn:
        yield conn


@pytest.fixture
def alice(conn):
    """She has one wrong code, and one wrong recovery code, behind her."""
    import_secret(conn, "alice", SECRET)
    alice = User(stage(conn, "alice", device="phone"), recovery_codes(conn, count=2)[0])
    assert (check(conn, "alice", wrong()).reason, recover(conn, NO_CODE)) == ("wrong", False)
    return alice


def calls(alice):
    """Each call that judges, or clears, with codes; whether the code is right."""
    return [("totp_check('alice', %s)", good(), True), ("totp_verify('alice', %s)", good(), True), ("totp_verify('alice', %s, 'default')", good(), True),
            ("totp_confirm('alice', %s, 'phone')", good(0, alice.pending), True), ("totp_verify('alice', %s)", good(0, alice.pending), True),
            ("totp_check_confirm('alice', %s, 'phone')", good(0, alice.pending), True), ("totp_recover('alice', %s)", alice.recovery_code, True),
            ("totp_check_recover('alice', %s)", alice.recovery_code, True),
            (f"totp_resync('alice', '{good(5)}', %s)", good(6), True), (f"totp_resync('alice', '{good(5)}', %s)", wrong(3), False),
            ("totp_check('alice', %s)", wrong(1), False), ("totp_verify('alice', %s)", wrong(2), False), ("totp_recover('alice', %s)", NO_CODE, False)]


def proofs(alice):
    """Each call that is given a proof."""
    return [("totp_recovery_codes('alice', 2, %s)", good(), True), ("totp_recovery_codes('alice', 2, %s)", alice.recovery_code, True),
            ("totp_rename_device('alice', 'default', 'old', %s)", good(), True), ("totp_unenroll('alice', %s)", good(), True),
            ("totp_unenroll('alice', %s)", alice.recovery_code, True)]


def refuses(own, table, alice):
    """In this transaction, where it has rewritten the table. The codes and recovery codes that were charged all the same."""
    charged = [0, 0]
    for call, code, right in [*calls(alice), *proofs(alice)]:
        if right or table == "attempts":
            assert told(own, f"SELECT {call}", code) == "55000", call
        else:  # a wrong one needs nothing but the attempts; then its answer is charged
            answer = told(own, f"SELECT {call}", code)
            assert answer is False or "wrong" in answer, answer
            charged["recover" in call] += 1
    return charged


def told(conn, query, *parameters):
    """The answer, or the SQLSTATE of the error, after which the transaction goes on."""
    try:
        with conn.transaction():
            return conn.execute(query, parameters).fetchone()[0]
    except psycopg.Error as error:
        return error.sqlstate


def nothing_came_back(conn, alice, charged=(0, 0)):
    """What was charged stays, and each code is good once."""
    assert counters(conn) == (1 + charged[0], 1 + charged[1], False, False)
    for answers in ([True, False, False], [False] * 3):
        assert [verify(conn, "alice", good()) for _ in range(3)] == answers
        assert [recover(conn, alice.recovery_code) for _ in range(3)] == answers
        with conn.transaction(force_rollback=True):
            assert [verify(conn, "alice", good(0, alice.pending)) for _ in range(3)] == answers
        conn.execute("SELECT totp_unlock('alice')")


def execute_all(conn, statements, table):
    for statement in statements:
        conn.execute(statement.format(table, TABLES.get(table)))


# --- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["superuser", "owner"])
@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_judged_on_a_table_that_the_same_transaction_rewrote(quick_db, conn, roles, alice, table, rewrite, who):
    with closing(quick_db.connect(roles[who])) as own:
        check(own, "alice", "malformed")  # it knows the table as it was
        own.execute("BEGIN")
        execute_all(own, REWRITES[rewrite], table)
        charged = refuses(own, table, alice)
        if table == "attempts" and rewrite != "the same by hand":  # an unlock that the ROLLBACK takes back gives nothing away
            assert told(own, "SELECT totp_unlock(%s)", "alice") == "55000"
        own.execute("ROLLBACK")
    nothing_came_back(conn, alice, charged)


@pytest.mark.parametrize("table", TABLES)
def test_no_code_is_judged_on_another_table_that_the_transaction_put_in_its_place(quick_db, conn, alice, table):
    """A copy that was made before: a ROLLBACK brings the original back, and leaves the copy to be made again."""
    conn.execute(f"CREATE TABLE totp.copy (LIKE totp.{table} INCLUDING ALL); INSERT INTO totp.copy SELECT * FROM totp.{table}")
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN")
        own.execute(f"ALTER TABLE totp.{table} RENAME TO before; ALTER TABLE totp.copy RENAME TO {table}")
        charged = refuses(own, table, alice)
        own.execute("ROLLBACK")
    conn.execute("DROP TABLE totp.copy")
    nothing_came_back(conn, alice, charged)


def test_no_code_is_judged_in_a_schema_that_the_transaction_put_in_the_place_of_ours(quick_db, conn, alice):
    """The copies are in a schema that is renamed; the tables in it are not touched."""
    conn.execute("CREATE SCHEMA copy")
    for [table] in conn.execute("SELECT relname FROM pg_class WHERE relnamespace = 'totp'::regnamespace AND relkind = 'r'").fetchall():
        conn.execute(f"CREATE TABLE copy.{table} (LIKE totp.{table} INCLUDING ALL); INSERT INTO copy.{table} SELECT * FROM totp.{table}")
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN; ALTER SCHEMA totp RENAME TO before; ALTER SCHEMA copy RENAME TO totp")
        for call, code, _ in calls(alice):
            assert told(own, f"SELECT {call}", code) == "55000", call
        own.execute("ROLLBACK")
    conn.execute("DROP SCHEMA copy CASCADE")
    nothing_came_back(conn, alice)


@pytest.mark.parametrize("isolation", LEVELS)
def test_a_brute_force_between_rewrites_finds_nothing(quick_db, conn, alice, isolation):
    """Before the fix, 40 of 40 guesses got through, and one code three times."""
    with closing(quick_db.connect()) as own:
        for code in [wrong(number) for number in range(40)] + [good()] * 3:
            own.execute(f"BEGIN ISOLATION LEVEL {isolation}; CLUSTER totp.attempts USING attempts_pkey; CLUSTER totp.used_codes USING used_codes_pkey")
            assert told(own, "SELECT totp_verify('alice', %s)", code) == "55000"
            own.execute("ROLLBACK")
    nothing_came_back(conn, alice)


def test_who_may_maintain_gets_nothing_back(quick_db, conn, alice):
    if conn.info.server_version < 170000:
        pytest.skip("MAINTAIN came with PostgreSQL 17")
    role = quick_db.create_role("verify")
    for table in (*TABLES, "floor"):
        conn.execute(sql.SQL("GRANT MAINTAIN ON TABLE {} TO {}").format(sql.Identifier("totp", table), sql.Identifier(role)))
    conn.execute(sql.SQL("GRANT USAGE ON SCHEMA totp TO {}").format(sql.Identifier(role)))
    charged = [0, 0]
    with closing(quick_db.connect(role)) as own:
        for table in TABLES:
            own.execute("BEGIN")
            execute_all(own, REWRITES["CLUSTER"], table)
            for call, code, right in calls(alice):
                if "confirm" not in call and "resync" not in call:
                    answer = told(own, f"SELECT {call}", code)
                    assert answer == "55000" or (table == "used_codes" and not right), (table, call, answer)
                    charged["recover" in call] += answer != "55000"
            own.execute("ROLLBACK")
    nothing_came_back(conn, alice, charged)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_was_emptied_is_refused(quick_db, conn, alice, table):
    """TRUNCATE makes a new file too."""
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN")
        own.execute(f"TRUNCATE totp.{table}")
        charged = [0, 0]
        for call, code, right in calls(alice):
            answer = told(own, f"SELECT {call}", code)
            if answer not in ("55000", "XX001"):
                assert table == "used_codes" and not right, (call, answer)
                charged["recover" in call] += 1
        own.execute("ROLLBACK")
    nothing_came_back(conn, alice, charged)


# Not by hand: an owner may write another floor into the table at any time.
@pytest.mark.parametrize("rewrite", [*(name for name in REWRITES if name != "the same by hand"), "TRUNCATE"])
def test_no_floor_is_set_in_a_table_that_the_same_transaction_rewrote(quick_db, conn, alice, rewrite):
    """A ROLLBACK would take it back, and what was judged under it stays."""
    conn.execute("UPDATE totp.floor SET timeline = 0")  # as after a promotion
    statements = ["TRUNCATE totp.{0}"] if rewrite == "TRUNCATE" else REWRITES[rewrite]
    with closing(quick_db.connect()) as own:  # one that has not judged yet
        own.execute("BEGIN")
        for statement in statements:
            own.execute(statement.format("floor", "database"))
        for call, code, right in calls(alice):
            if right and "recover" not in call:
                assert told(own, f"SELECT {call}", code) in (("55000", "XX001") if rewrite == "TRUNCATE" else ("55000",)), call
        own.execute("ROLLBACK")
    assert conn.execute("SELECT timeline FROM totp.floor").fetchone() == (0,)
    with closing(quick_db.connect()) as later:
        assert check(later, "alice", good()).reason == "accepted"
        assert check(later, "alice", good()).reason == "replayed"
    assert conn.execute("SELECT abs(timeline) FROM totp.floor").fetchone() == (1,)


# --- savepoints --------------------------------------------------------------------------------------

REFUSED_IN = {
    "a subtransaction": ["SAVEPOINT a", "{rewrite}"],
    "a subtransaction that was released": ["SAVEPOINT a", "{rewrite}", "RELEASE a"],
    "two that were released": ["SAVEPOINT a", "SAVEPOINT b", "{rewrite}", "RELEASE a"],
    "another one, after one that was rolled back": ["SAVEPOINT a", "{rewrite}", "ROLLBACK TO a", "{rewrite}", "SAVEPOINT b"],
    "the transaction, and in one that was rolled back": ["{rewrite}", "SAVEPOINT a", "{again}", "ROLLBACK TO a"],
}
FINE_IN = {
    "a subtransaction that was rolled back": ["SAVEPOINT a", "{rewrite}", "ROLLBACK TO a"],
    "one that was released into one that was rolled back": ["SAVEPOINT a", "SAVEPOINT b", "{rewrite}", "RELEASE b", "ROLLBACK TO a", "RELEASE a"],
    "an exception block": ["DO $$ BEGIN {rewrite}; RAISE 'back'; EXCEPTION WHEN raise_exception THEN END $$"],
}


def in_subtransactions(statements, rewrite, table):
    """The statements, with what rewrites the table."""
    both = {"rewrite": rewrite.format(table), "again": f"CLUSTER totp.{table} USING {table}_pkey"}
    return [statement.format(**both) for statement in statements]


@pytest.mark.parametrize("where", REFUSED_IN)
@pytest.mark.parametrize("rewrite", ["CLUSTER totp.{0} USING {0}_pkey", "ALTER TABLE totp.{0} ADD COLUMN IF NOT EXISTS x float DEFAULT random()"])
@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_judged_if_a_kept_subtransaction_rewrote_the_table(quick_db, conn, alice, table, rewrite, where):
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN")
        for statement in in_subtransactions(REFUSED_IN[where], rewrite, table):
            own.execute(statement)
        charged = refuses(own, table, alice)
        own.execute("ROLLBACK")
    nothing_came_back(conn, alice, charged)


@pytest.mark.parametrize("where", FINE_IN)
@pytest.mark.parametrize("rewrite", ["CLUSTER totp.{0} USING {0}_pkey", "ALTER TABLE totp.{0} ADD COLUMN x float DEFAULT random()"])
@pytest.mark.parametrize("table", TABLES)
def test_a_rewrite_that_was_rolled_back_does_not_count(quick_db, conn, alice, table, rewrite, where):
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN")
        for statement in in_subtransactions(FINE_IN[where], rewrite, table):
            own.execute(statement)
        judges(own, alice)
        own.execute("ROLLBACK")
    stays_judged(conn, alice)


def judges(own, alice):
    """Right and wrong codes and recovery codes get their usual answers."""
    assert check(own, "alice", good()).reason == "accepted"
    assert (recover(own, alice.recovery_code), recover(own, NO_CODE)) == (True, False)
    assert check(own, "alice", wrong(1)).attempts_left == MAX_ATTEMPTS - 1


def stays_judged(conn, alice):
    """After a ROLLBACK, or a crash."""
    assert counters(conn) == (1, 1, False, False)
    assert (check(conn, "alice", good()).reason, recover(conn, alice.recovery_code)) == ("replayed", False)
    assert codes_left(conn) == 1


# --- what goes on to work ------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [*TABLES, "floor", "secrets"])
@pytest.mark.parametrize("lock", ["LOCK TABLE totp.{0} IN ACCESS EXCLUSIVE MODE", "ANALYZE totp.{0}"])
def test_a_table_that_was_only_locked_or_read_is_as_it_was(quick_db, conn, alice, table, lock):
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN")
        own.execute(lock.format(table))
        judges(own, alice)
        own.execute("ROLLBACK")
    stays_judged(conn, alice)


@pytest.mark.parametrize("rewrite", ["VACUUM FULL totp.{0}", "CLUSTER totp.{0} USING {0}_pkey", "BEGIN; CLUSTER totp.{0} USING {0}_pkey; COMMIT",
                                     "BEGIN; ALTER TABLE totp.{0} SET TABLESPACE other; COMMIT"])
def test_a_committed_rewrite_does_not_count(quick_db, conn, alice, rewrite):
    """By the session that did it, and by one that knew the tables as they were. And an answer given then survives a crash."""
    with closing(quick_db.connect()) as own:
        for table in (*TABLES, "floor"):
            for statement in rewrite.format(table).split(";"):
                own.execute(statement)
        assert check(conn, "alice", good()).reason == "accepted"
        own.execute("BEGIN")
        assert [check(own, "alice", code).reason for code in (good(), good(1), wrong(1))] == ["replayed", "accepted", "wrong"]
        assert [recover(own, code) for code in (alice.recovery_code, NO_CODE)] == [True, False]
        quick_db.cluster.kill9()
    quick_db.cluster.start()
    with closing(quick_db.connect()) as later:
        assert [check(later, "alice", good(step)).reason for step in (0, 1)] == ["replayed", "replayed"]
        assert recover(later, alice.recovery_code) is False
        assert codes_left(later) == 1
        # Back to where the next test expects them.
        for table in (*TABLES, "floor"):
            later.execute(f"ALTER TABLE totp.{table} SET TABLESPACE pg_default")


# --- the transaction that makes the extension --------------------------------------------------------------

MADE_IN = {
    "the transaction": ["CREATE EXTENSION pg_totp"],
    "a subtransaction": ["SAVEPOINT a", "CREATE EXTENSION pg_totp", "RELEASE a"],
    "a subtransaction, after one that was rolled back": ["SAVEPOINT a", "CREATE EXTENSION pg_totp", "ROLLBACK TO a", "CREATE EXTENSION pg_totp"],
}


@pytest.fixture
def empty_db(cluster):
    database = cluster.create_database(extension=False)
    yield database
    database.drop()


@pytest.mark.parametrize("skipped_up_to", ["0", "2MB"])  # with wal_level minimal: what is synced at COMMIT, what is logged then
@pytest.mark.parametrize("where", MADE_IN)
def test_what_makes_the_tables_may_judge_on_them(empty_db, where, skipped_up_to):
    with closing(empty_db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute(f"SET wal_skip_threshold = '{skipped_up_to}'")
        conn.execute("BEGIN")
        recovery_code = made(conn, MADE_IN[where])
        conn.execute("COMMIT")
        empty_db.cluster.kill9()
    empty_db.cluster.start()
    with closing(empty_db.connect()) as conn:
        fix_clock(conn, NOON)
        assert counters(conn) == (1, 1, False, False)
        assert [check(conn, "alice", good(step)).reason for step in (-1, 0)] == ["replayed", "replayed"]
        assert recover(conn, recovery_code) is False
        assert (check(conn, "alice", good(1)).reason, counters(conn)[0]) == ("accepted", 0)


def made(conn, statements):
    """Make the extension and use it, in this transaction. The recovery code that is used up."""
    for statement in statements:
        conn.execute(statement)
    import_secret(conn, "alice", SECRET, confirmed=False)
    assert conn.execute("SELECT totp_confirm('alice', %s)", [good(-1)]).fetchone() == (True,)
    recovery_code = recovery_codes(conn, count=2)[0]
    assert [recover(conn, code) for code in (recovery_code, NO_CODE)] == [True, False]
    assert [check(conn, "alice", code).reason for code in (good(-1), good(), wrong())] == ["replayed", "accepted", "wrong"]
    return recovery_code


@pytest.mark.parametrize("where", MADE_IN)
def test_a_rollback_of_what_made_the_tables_leaves_nothing(empty_db, where):
    with closing(empty_db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("BEGIN")
        made(conn, MADE_IN[where])
        conn.execute("ROLLBACK")
        assert conn.execute("SELECT FROM pg_namespace WHERE nspname = 'totp'").fetchall() == []
        made(conn, ["CREATE EXTENSION pg_totp"])
        empty_db.cluster.kill9()
    empty_db.cluster.start()
    with closing(empty_db.connect()) as conn:
        fix_clock(conn, NOON)
        assert [check(conn, "alice", good(step)).reason for step in (-1, 0, 1)] == ["replayed", "replayed", "accepted"]
