"""A sign-in reads tables by their primary keys, without SQL: what a DBA may do to the tables, and that no memory is kept."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from server import wait_until
from totp import NOON, SECRET, check, counters, error_of, fix_clock, good, import_secret, recover, recovery_codes, verify, wrong

TABLES = ["attempts", "used_codes", "secrets"]


@pytest.fixture
def quiet(cluster):
    """PostgreSQL warns of leaked relations, snapshots and buffers."""
    before = cluster.log_end()
    yield
    assert "WARNING" not in cluster.log_text(before)


def look(conn):
    """From here on the backend keeps what it found the tables to be."""
    check(conn, "alice", "malformed")


def signs_in(conn):
    """A wrong code is counted, and a good one is good once. All of it is taken back but what changed in place."""
    with conn.transaction(force_rollback=True):
        failures = check(conn, "alice", wrong()).attempts_left
        assert check(conn, "alice", "malformed").attempts_left == failures
        assert check(conn, "alice", good()).reason == "accepted"
    assert check(conn, "alice", good()).reason == "replayed"


# --- what keeps working ------------------------------------------------------------------------------

FINE = {
    "no primary key": "ALTER TABLE totp.{0} DROP CONSTRAINT {0}_pkey",
    "a deferrable one": "ALTER TABLE totp.{0} DROP CONSTRAINT {0}_pkey, ADD PRIMARY KEY ({1}) DEFERRABLE INITIALLY DEFERRED",
    "one in another order": "ALTER TABLE totp.{0} DROP CONSTRAINT {0}_pkey, ADD PRIMARY KEY ({2}, user_id)",
    "one with more in it": "ALTER TABLE totp.{0} DROP CONSTRAINT {0}_pkey, ADD PRIMARY KEY ({1}) INCLUDE ({2})",
    "one without user_id": "ALTER TABLE totp.{0} DROP CONSTRAINT {0}_pkey, ADD PRIMARY KEY ({2})",
    "one that only includes user_id": "ALTER TABLE totp.{0} DROP CONSTRAINT {0}_pkey, ADD PRIMARY KEY ({2}) INCLUDE (user_id)",
    "more columns": "ALTER TABLE totp.{0} ADD COLUMN x text NOT NULL DEFAULT 'x', ADD COLUMN y int GENERATED ALWAYS AS (1) STORED",
    "row security": "ALTER TABLE totp.{0} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "a child": "CREATE TABLE totp.{0}_child () INHERITS (totp.{0}); ALTER TABLE totp.{0}_child REPLICA IDENTITY NOTHING;"  # PostgreSQL 19 asks for it
               "WITH moved AS (DELETE FROM ONLY totp.{0} RETURNING *) INSERT INTO totp.{0}_child SELECT * FROM moved",
    "hash partitions": "ALTER TABLE totp.{0} RENAME TO before; CREATE TABLE totp.{0} (LIKE totp.before INCLUDING ALL) PARTITION BY HASH (user_id);"
                       "CREATE TABLE totp.{0}_0 PARTITION OF totp.{0} FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
                       "CREATE TABLE totp.{0}_1 PARTITION OF totp.{0} FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
                       "ALTER TABLE totp.{0}_0 REPLICA IDENTITY NOTHING; ALTER TABLE totp.{0}_1 REPLICA IDENTITY NOTHING;"
                       "INSERT INTO totp.{0} SELECT * FROM totp.before",
}
KEYS = {"attempts": ("user_id", "last_failed_at"), "used_codes": ("user_id, secret_id", "secret_id"), "secrets": ("user_id, device, slot", "secret_id")}


@pytest.mark.parametrize("change", FINE)
def test_sign_ins_go_on_whatever_a_dba_does_to_all_three_tables(db, quiet, change):
    with closing(db.connect()) as conn, closing(db.connect()) as dba:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        [code] = recovery_codes(conn, count=1)
        look(conn)
        with dba.transaction():
            for table in TABLES:
                dba.execute(FINE[change].format(table, *KEYS[table]).replace("before", f"{table}_before"))
        signs_in(conn)
        assert (recover(conn, code), recover(conn, code)) == (True, False)


def test_values_out_of_line_are_read(conn):
    conn.execute("BEGIN; ALTER TABLE totp.secrets SET (toast_tuple_target = 128); ALTER TABLE totp.secrets ADD COLUMN x text DEFAULT repeat('x', 3000);"
                 " ALTER TABLE totp.secrets ALTER x SET STORAGE EXTERNAL, ALTER sealed SET STORAGE EXTERNAL, ALTER device SET STORAGE EXTERNAL")
    import_secret(conn, "alice", SECRET, device="d" * 256)
    assert conn.execute("SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class WHERE oid = 'totp.secrets'::regclass").fetchone() == (True,)
    assert check(conn, "alice", good(), device="d" * 256).reason == "accepted"
    conn.execute("ROLLBACK")


def test_sign_ins_go_on_without_the_indexes_of_the_catalogs(quick_db, conn):
    """PostgreSQL's mode for broken catalogs turns these scans into sequential ones."""
    import_secret(conn, "bob", SECRET)
    import_secret(conn, "alice", SECRET)
    with closing(quick_db.connect(options="-c ignore_system_indexes=on")) as repairing:
        fix_clock(repairing, NOON)
        signs_in(repairing)
    assert check(conn, "bob", good()).reason == "accepted"


def test_sign_ins_go_on_while_an_index_is_replaced(quick_db, conn, quiet):
    """REINDEX CONCURRENTLY takes the key from one index to the other, and waits for every session that may use the old one."""
    import_secret(conn, "alice", SECRET)
    for table in TABLES:
        with closing(quick_db.connect()) as builder, ThreadPoolExecutor(1) as pool:
            conn.execute("BEGIN")
            check(conn, "alice", "malformed")
            replaced = pool.submit(builder.execute, f"REINDEX INDEX CONCURRENTLY totp.{table}_pkey")
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
            wait_until(lambda: replaced.done() or conn.execute(waits, [builder.info.backend_pid]).fetchone() == (1,), "it waits")
            assert not replaced.done()
            assert check(conn, "alice", wrong()).reason == "wrong"
            conn.execute("COMMIT")
            replaced.result()
    signs_in(conn)


# --- what is refused -----------------------------------------------------------------------------------

REFUSED = {  # see also test_altered_tables.py
    "another collation": 'ALTER TABLE totp.{0} ALTER user_id TYPE text COLLATE "default"',
    "another order": "ALTER TABLE totp.secrets RENAME created_at TO x; ALTER TABLE totp.secrets RENAME expires_at TO created_at;"
                     " ALTER TABLE totp.secrets RENAME x TO expires_at",
    "a view": "ALTER TABLE totp.{0} RENAME TO x; CREATE VIEW totp.{0} AS SELECT * FROM totp.x",
    "no schema": "ALTER SCHEMA totp RENAME TO x",
}


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_not_as_it_was_made_is_refused(db, quiet, table, change):
    with closing(db.connect()) as conn, closing(db.connect()) as dba:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        look(conn)
        dba.execute(REFUSED[change].format(table))
        error = error_of(conn, "SELECT totp_verify('alice', %s)", [good()])
        assert error.sqlstate == "XX001" and error.diag.message_hint
        try:  # this one needs no row of used codes; if it has an answer it is charged
            assert (verify(conn, "alice", wrong()), table) == (False, "used_codes")
            assert counters(conn)[0] == 1
        except psycopg.errors.DataCorrupted as error:
            assert error.diag.message_hint


CHANGED_AND_BACK = {
    "columns": ("ALTER TABLE totp.{0} RENAME user_id TO x", "ALTER TABLE totp.{0} RENAME x TO user_id"),
    "name": ("ALTER TABLE totp.{0} RENAME TO x", "ALTER TABLE totp.x RENAME TO {0}"),
    "schema": ("ALTER SCHEMA totp RENAME TO x", "ALTER SCHEMA x RENAME TO totp"),
    "persistence": ("ALTER TABLE totp.{0} SET UNLOGGED", "ALTER TABLE totp.{0} SET LOGGED"),
}


@pytest.mark.parametrize("change, table", [(change, table) for change in CHANGED_AND_BACK for table in TABLES if (change, table) != ("persistence", "secrets")])
def test_what_another_session_does_to_a_table_is_seen_by_the_next_call(db, change, table):
    with closing(db.connect()) as conn, closing(db.connect()) as dba:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        look(conn)
        there, back = CHANGED_AND_BACK[change]
        dba.execute(there.format(table))
        with pytest.raises(psycopg.errors.DataCorrupted):
            verify(conn, "alice", good())
        dba.execute(back.format(table))
        signs_in(conn)


@pytest.mark.parametrize("table", TABLES)
def test_a_sign_in_that_waited_for_a_new_table_uses_it(db, table):
    """The old one is renamed and kept: what is counted or used up there is forgotten."""
    with closing(db.connect()) as conn, closing(db.connect()) as dba, ThreadPoolExecutor(1) as pool:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        look(conn)
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
        dba.execute(f"BEGIN; ALTER TABLE totp.{table} RENAME TO before; CREATE TABLE totp.{table} (LIKE totp.before INCLUDING ALL);"
                    f" ALTER TABLE totp.{table} REPLICA IDENTITY NOTHING; INSERT INTO totp.{table} SELECT * FROM totp.before")
        told = pool.submit(check, conn, "alice", wrong() if table == "attempts" else good())
        wait_until(lambda: told.done() or dba.execute(waits, [conn.info.backend_pid]).fetchone() == (1,), "it waits")
        assert not told.done()
        dba.execute("COMMIT")
        if table == "attempts":
            assert told.result().reason == "wrong"
            assert dba.execute("SELECT failures FROM totp.attempts").fetchone() == (1,)
        else:
            assert told.result().reason == "accepted"
            assert dba.execute("SELECT uses FROM totp.used_codes").fetchone() == (1,)
            assert check(conn, "alice", good()).reason == "replayed"


# --- what is left behind ---------------------------------------------------------------------------------

CALLS = """
DO $$
DECLARE
  before bigint;
  now bigint;
BEGIN
  FOR round IN 1..4 LOOP
    FOR i IN 1..CALLS LOOP
      PERFORM totp_verify('alice', 'malformed');
      BEGIN
        PERFORM totp_verify('broken', 'malformed');
        RAISE 'no error';
      EXCEPTION WHEN data_corrupted THEN
      END;
    END LOOP;
    PERFORM totp_verify('alice', 'malformed') FROM generate_series(1, CALLS * 8);
    SELECT sum(used_bytes) INTO now FROM pg_backend_memory_contexts;
    IF round = 4 AND now > before THEN  -- the first rounds fill caches
      RAISE 'grew from % to %', before, now;
    END IF;
    before := now;
  END LOOP;
END $$"""


def test_many_calls_in_one_transaction_keep_no_memory(conn, quiet):
    import_secret(conn, "alice", SECRET)
    import_secret(conn, "broken", SECRET)
    conn.execute("DELETE FROM totp.attempts WHERE user_id = 'broken'")
    conn.execute(CALLS.replace("CALLS", "2500"))
    signs_in(conn)


@pytest.mark.parametrize("table", ["attempts", "used_codes"])
def test_two_rows_in_place_of_one_are_an_error(db, table):
    """Without its key the table may have them. A lock, or a used code, in one must not be missed in the other."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        conn.execute(f"ALTER TABLE totp.{table} DROP CONSTRAINT {table}_pkey")
        conn.execute(f"INSERT INTO totp.{table} SELECT * FROM totp.{table}")
        assert error_of(conn, "SELECT totp_verify('alice', %s)", [good()]).sqlstate == "XX001"
