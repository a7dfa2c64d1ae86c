"""A table that Citus has taken is refused, and totp_health() says so.

Debian has no Citus. What is asked here is its catalog, so a stand-in with the same columns, index and trigger takes its place.
"""

from contextlib import closing

import pytest
from documents import block
from health import health
from totp import NOON, NO_CODE, active_user, check, code_at, error_of, fix_clock, recovery_codes, verify, wrong_codes

# Citus' own trigger, in C, sends the message that the table has changed. So does a change of the table's row of pg_class.
STAND_IN = """
SET allow_system_table_mods = on;
CREATE TABLE pg_catalog.pg_dist_partition (
  logicalrelid regclass NOT NULL, partmethod "char" NOT NULL, partkey text, colocationid integer NOT NULL DEFAULT 0,
  repmodel "char" NOT NULL DEFAULT 'c', autoconverted boolean NOT NULL DEFAULT false);
CREATE UNIQUE INDEX pg_dist_partition_logical_relid_index ON pg_catalog.pg_dist_partition (logicalrelid);
CREATE FUNCTION public.invalidate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE pg_class SET relname = relname WHERE oid IN (OLD.logicalrelid, NEW.logicalrelid);
  RETURN NULL;
END $$;
CREATE TRIGGER dist_partition_cache_invalidate AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_partition
  FOR EACH ROW EXECUTE FUNCTION public.invalidate();
"""

CALLS = {  # what opens each table
    "attempts": "totp_verify('alice', '{good}')", "used_codes": "totp_verify('alice', '{good}')", "secrets": "totp_verify('alice', '{good}')",
    "recovery_codes": f"totp_recover('alice', '{NO_CODE}')", "data_keys": "totp_keys()", "floor": "totp_acknowledge_restore()",
    "audit_log": "totp_disable('alice')", "audit_seals": "totp_audit_verify()", "audit_keys": "totp_rotate_key()",
}


@pytest.fixture
def citus(db):
    """A database with the stand-in."""
    db.psql(STAND_IN)
    return db


def take(conn, table: str) -> None:
    """As create_distributed_table() does."""
    conn.execute("INSERT INTO pg_dist_partition (logicalrelid, partmethod, partkey) VALUES (%s::regclass, 'h', 'user_id')", [table])


@pytest.fixture
def warm(citus):
    """A session that has used every table, and goes on; and the secret of alice, who has recovery codes."""
    with closing(citus.connect()) as conn:
        fix_clock(conn, NOON)
        secret = active_user(conn)
        recovery_codes(conn)
        assert check(conn, "alice", next(wrong_codes(secret, NOON))).reason == "wrong"
        conn.execute("CALL totp_audit_seal()")
        for call in CALLS.values():
            with conn.transaction(force_rollback=True):
                conn.execute(f"SELECT * FROM {call.format(good='malformed')}")
        yield conn, secret


def test_citus_does_not_matter_if_our_tables_are_local(citus, warm):
    conn, secret = warm
    conn.execute("CREATE TABLE orders (user_id text)")
    take(conn, "orders")
    assert {name: status for name, (status, _) in health(conn).items() if name.startswith("table_") and status != "ok"} == {}
    assert [verify(conn, "alice", code_at(secret, NOON)) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("table", CALLS)
def test_a_table_that_citus_takes_is_refused(citus, warm, table):
    """By sessions that have used it before too, from the commit on. Nothing is counted or used up; given back, it is as it was."""
    kept, secret = warm
    call = f"SELECT * FROM {CALLS[table].format(good=code_at(secret, NOON))}"
    with closing(citus.connect()) as dba:
        take(dba, f"totp.{table}")
        with closing(citus.connect()) as new:
            fix_clock(new, NOON)
            for conn in (kept, new):
                error = error_of(conn, call)
                assert (error.sqlstate, error.diag.message_primary) == ("55000", f'table "totp.{table}" is distributed by Citus')
                status, detail = health(conn)[f"table_{table}"]
                assert status == "fail" and detail.startswith(f"table totp.{table}: it is distributed by Citus")
                assert conn.execute("SELECT value FROM totp_metrics() WHERE metric = %s", [f"totp_health_table_{table}"]).fetchone() == (2,)
        dba.execute("DELETE FROM pg_dist_partition")
    assert check(kept, "alice", next(wrong_codes(secret, NOON))).attempts_left == 3  # it was tried twice with a wrong code
    assert verify(kept, "alice", code_at(secret, NOON)) is True


def test_sign_ins_do_without_the_counters(citus, warm):
    conn, secret = warm
    counted = "SELECT sum(accepted) FROM totp.counters"
    before = citus.value(counted)
    take(conn, "totp.counters")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    assert health(conn)["table_counters"][0] == "fail"
    conn.close()  # which adds what is left
    assert citus.value(counted) == before


def test_a_table_is_taken_and_given_back_with_the_transaction(citus, warm):
    conn, secret = warm
    code = code_at(secret, NOON)
    with conn.transaction(force_rollback=True):
        take(conn, "totp.used_codes")
        with conn.transaction(force_rollback=True):
            assert error_of(conn, "SELECT totp_verify('alice', %s)", [code]).sqlstate == "55000"
    assert verify(conn, "alice", code) is True


CHANGES = {
    "another name of the column": "ALTER TABLE pg_catalog.pg_dist_partition RENAME logicalrelid TO relid",
    "another type of the column": "ALTER TABLE pg_catalog.pg_dist_partition ALTER logicalrelid TYPE text",
    "a view": "ALTER TABLE pg_catalog.pg_dist_partition RENAME TO old; CREATE VIEW pg_catalog.pg_dist_partition AS SELECT * FROM pg_catalog.old",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_catalog_that_is_not_understood_is_refused(citus, warm, change):
    """Citus may change it. Then nobody is let in, until this has been looked at."""
    conn, secret = warm
    citus.psql(f"SET allow_system_table_mods = on; {CHANGES[change]}")
    assert error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)]).sqlstate == "55000"
    assert health(conn)["table_secrets"][0] == "fail"


IS_INSTALLED = """INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
SELECT max(oid)::int + 1, 'citus', 10, 11, false, '13.0' FROM pg_extension"""


def test_citus_without_its_catalog_is_refused(citus, warm):
    """As under another name, or in another schema."""
    _, secret = warm
    citus.psql("SET allow_system_table_mods = on; ALTER TABLE pg_catalog.pg_dist_partition SET SCHEMA public")
    with closing(citus.connect()) as without, closing(citus.connect()) as new:
        assert "table_secrets" not in health(without)
        citus.psql(f"SET allow_system_table_mods = on; {IS_INSTALLED}")
        fix_clock(new, NOON)
        assert error_of(new, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)]).sqlstate == "55000"
        assert health(new)["table_secrets"][0] == "fail"


OTHER_INDEX = """DROP INDEX pg_catalog.pg_dist_partition_logical_relid_index;
CREATE INDEX pg_dist_partition_logical_relid_index ON pg_catalog.pg_dist_partition (partmethod)"""


@pytest.mark.parametrize("change", [OTHER_INDEX, "ALTER TABLE pg_catalog.pg_dist_partition ADD COLUMN more text"])
def test_what_may_change_in_the_catalog(citus, warm, change):
    conn, secret = warm
    citus.psql(f"SET allow_system_table_mods = on; {change}")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    take(conn, "totp.secrets")
    assert error_of(conn, "SELECT totp_enabled('alice')").sqlstate == "55000"


def test_a_reindex_of_the_catalog_is_not_waited_for(citus, warm):
    _, secret = warm
    with closing(citus.connect(autocommit=False)) as dba, closing(citus.connect()) as new:
        dba.execute("REINDEX INDEX pg_catalog.pg_dist_partition_logical_relid_index")
        fix_clock(new, NOON)
        new.execute("SET lock_timeout = '5s'")
        assert verify(new, "alice", code_at(secret, NOON)) is True


def test_citus_is_dropped_and_comes(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = active_user(conn)
        codes = [code_at(secret, NOON.timestamp() + 30 * step) for step in (0, 1)]
        db.psql(STAND_IN)
        take(conn, "totp.secrets")
        assert error_of(conn, "SELECT totp_verify('alice', %s)", [codes[0]]).sqlstate == "55000"
        db.psql("SET allow_system_table_mods = on; DROP TABLE pg_catalog.pg_dist_partition")
        assert verify(conn, "alice", codes[1]) is True


def test_the_way_back_of_the_page_brings_every_row(cluster):
    """Without Citus, so with the rows where they were."""
    app = cluster.create_database("app", extension=False)
    app.psql("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa; ALTER DATABASE app SET search_path = mfa")
    with closing(app.connect()) as conn:
        fix_clock(conn, NOON)
        secret = active_user(conn)
        recovery_code, *_ = recovery_codes(conn)
        used, unused = (code_at(secret, NOON.timestamp() + 30 * step) for step in (0, 1))
        assert verify(conn, "alice", used) is True
        assert check(conn, "alice", next(wrong_codes(secret, NOON))).reason == "wrong"
    way_back = block("operations/citus.md", "way-back.sh")
    printed = cluster.client("bash", "-euc", f"cd {cluster.folder}; {way_back}")
    [before, restored] = [line for line in printed.splitlines() if "|" in line]
    assert before == restored and "0" not in before.split("|")
    with closing(app.connect()) as conn:
        fix_clock(conn, NOON)
        assert [verify(conn, "alice", code) for code in (used, unused)] == [False, True]
        assert conn.execute("SELECT totp_recover('alice', %s)", [recovery_code]).fetchone()[0] is True
    assert not (cluster.folder / "totp.sql").exists()
    assert cluster.psql("SELECT datname FROM pg_database WHERE datname = 'totp_check'") == ""
    app.drop()
