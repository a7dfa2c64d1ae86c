"""A role that is not a superuser prepares objects for shard.sql, and gains nothing.

Each trap works on scripts that do not look: then eve is a superuser, or answers in the name of the extension.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from search_path_traps import set_traps
from server import wait_until
from shards import partition, script
from takeover_traps import DBA, EVE, FIRE, SCHEMA, SERVE, TAKEN_BACK, Trap, act, assert_refused, dropped, is_superuser, refusal, spring, trap
from takeover_traps import server, databases, shard, router, served  # noqa: F401 - fixtures
from totp import error_of

CALL = (DBA, "SELECT totp_shard.totp_enabled('x', 'y')")
SERVED = ("CREATE TABLE totp_shard.served (partitions integer[] NOT NULL, present integer[] NOT NULL, only_on text, audit_id bigint NOT NULL,"
          " one boolean PRIMARY KEY DEFAULT {default}{check});")
PLAIN_SERVED = SERVED.format(default="true", check="")
YES = trap("evil.yes()", "boolean", "true") + ";"
GIVEN = (DBA, "ALTER SCHEMA totp_shard OWNER TO postgres; ALTER TABLE totp_shard.served OWNER TO postgres")

ON_A_SHARD = {
    "schema": Trap([SCHEMA], [(EVE, dropped("totp_shard.enter(text, text)") + trap("totp_shard.enter(caller text, user_id text)")), CALL]),
    "schema of the extension": Trap(
        [(DBA, "ALTER SCHEMA public OWNER TO eve"), (EVE, trap("public.totp_grant(role text, capability text)"))], []),
    "schema by the database": Trap(  # public belongs to the owner of the database
        [(DBA, "SELECT format('ALTER DATABASE %I OWNER TO eve', current_database()) \\gexec"), (EVE, trap("public.totp_grant(role text, capability text)"))], []),
    "function": Trap(
        [SCHEMA, (EVE, "CREATE FUNCTION totp_shard.enter(caller text, user_id text) RETURNS text LANGUAGE sql AS 'SELECT NULL'"), TAKEN_BACK],
        [(EVE, "ALTER FUNCTION totp_shard.enter(text, text) SET search_path = evil, pg_catalog;" + trap("evil.set_config(text, text, boolean)", "text", "''")), SERVE, CALL]),
    "function of the extension": Trap(
        [(DBA, "ALTER FUNCTION totp_grant(name, text) OWNER TO eve"),
         (EVE, "ALTER FUNCTION totp_grant(name, text) SET search_path = evil, pg_catalog;" + trap("evil.has_schema_privilege(name, oid, text)", "boolean", "true"))], []),
    "table with a trigger": Trap([SCHEMA, (EVE, PLAIN_SERVED + FIRE + "CREATE TRIGGER t BEFORE INSERT ON totp_shard.served FOR EACH ROW EXECUTE FUNCTION evil.fire()"),
                                  TAKEN_BACK], [SERVE]),
    "table that the script fills": Trap(
        [SCHEMA, (EVE, "CREATE TABLE totp_shard.capabilities (capability text, name name);" + FIRE
                  + "CREATE TRIGGER t BEFORE INSERT ON totp_shard.capabilities FOR EACH ROW EXECUTE FUNCTION evil.fire()"), TAKEN_BACK], []),
    "trigger on a table given away": Trap(
        [SCHEMA, (EVE, PLAIN_SERVED + FIRE + "CREATE TRIGGER t BEFORE INSERT ON totp_shard.served FOR EACH ROW EXECUTE FUNCTION evil.fire()"), GIVEN], [SERVE]),
    "rule on a table given away": Trap(
        [SCHEMA, (EVE, PLAIN_SERVED + "CREATE TABLE evil.log (n integer);" + FIRE + "CREATE TRIGGER t BEFORE INSERT ON evil.log FOR EACH ROW EXECUTE FUNCTION evil.fire();"
                       "CREATE RULE r AS ON UPDATE TO totp_shard.served DO ALSO INSERT INTO evil.log VALUES (1)"), GIVEN],
        [(DBA, "UPDATE totp_shard.served SET audit_id = 0")]),
    "default of a table given away": Trap([SCHEMA, (EVE, YES + SERVED.format(default="evil.yes()", check="")), GIVEN], [SERVE]),
    "check of a table given away": Trap([SCHEMA, (EVE, YES + SERVED.format(default="true", check=", CHECK (evil.yes())")), GIVEN], [SERVE]),
    "domain in a table given away": Trap(
        [SCHEMA, (EVE, trap("evil.fine(integer[])", "boolean", "true") + "; CREATE DOMAIN evil.numbers AS integer[] CHECK (evil.fine(VALUE));"
                  + PLAIN_SERVED.replace("partitions integer[]", "partitions evil.numbers")), GIVEN], [SERVE]),
    "index of a table given away": Trap(
        [SCHEMA, (EVE, PLAIN_SERVED + YES + "CREATE FUNCTION evil.key(boolean) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN evil.yes(); END'; CREATE INDEX ON totp_shard.served (evil.key(one))"), GIVEN], [SERVE]),
    "child of a table given away": Trap(
        [SCHEMA, (EVE, PLAIN_SERVED + "CREATE TABLE evil.child () INHERITS (totp_shard.served); INSERT INTO evil.child VALUES ('{}', '{}', NULL, 0);" + FIRE
                  + "CREATE TRIGGER t BEFORE UPDATE ON evil.child FOR EACH ROW EXECUTE FUNCTION evil.fire()"), GIVEN],
        [(DBA, "UPDATE totp_shard.served SET audit_id = 0")]),
    "CREATE on the schema": Trap(
        [(DBA, "CREATE SCHEMA totp_shard; GRANT ALL ON SCHEMA totp_shard TO eve")], [(EVE, trap("totp_shard.serve(partitions text)")), (DBA, "SELECT totp_shard.serve('{0,1,2,3}')")]),
    "function beside ours": Trap(
        [(DBA, "CREATE SCHEMA totp_shard; GRANT ALL ON SCHEMA totp_shard TO eve"), (EVE, trap("totp_shard.serve(partitions text)")),
         (DBA, "REVOKE CREATE ON SCHEMA totp_shard FROM eve")], [(DBA, "SELECT totp_shard.serve('{0,1,2,3}')")]),
    "CREATE where the extension is": Trap(
        [(DBA, "GRANT CREATE ON SCHEMA public TO PUBLIC")],
        [SERVE, (DBA, "ALTER EXTENSION pg_totp DROP FUNCTION totp_unlock(text); DROP FUNCTION totp_unlock(text)"),  # as an update may
         (EVE, trap("public.totp_unlock(user_id text)", "boolean", "true")), (DBA, "SELECT totp_shard.totp_unlock('x', 'y')")]),
    "function beside one of the extension": Trap(
        [(DBA, "GRANT CREATE ON SCHEMA public TO eve"), (EVE, trap("public.totp_grant(role text, capability text)")),
         (DBA, "REVOKE CREATE ON SCHEMA public FROM eve")], []),
}


@pytest.mark.parametrize("name", ON_A_SHARD)
def test_shard_sql_does_not_work_on_what_is_prepared(shard, name):
    spring(shard, ON_A_SHARD[name], script("shard.sql"))


def test_the_functions_without_a_search_path_keep_out_of_traps(served):
    """enter() and partition() name every schema, so it does not matter what the search_path of their caller has first."""
    with closing(served.connect()) as conn:
        conn.execute("CREATE SCHEMA traps")
        set_traps(conn, "traps")
        assert conn.execute("SELECT proname FROM pg_proc WHERE pronamespace = 'totp_shard'::regnamespace AND proconfig IS NULL ORDER BY 1").fetchall() == [
            ("enter",), ("partition",), ("partition_count",)]
        for path in ("traps, pg_catalog", "traps, pg_catalog, pg_temp"):
            conn.execute(f"SET search_path = {path}")
            with pytest.raises(psycopg.Error, match="trapped"):
                conn.execute("SELECT 1 = length('x'::pg_catalog.text)::pg_catalog.int4")
            for user in ("alice", "", "x" * 257, None):
                conn.execute("SELECT totp_shard.enter('me', %s)", [user])
            assert conn.execute("SELECT totp_shard.partition('alice')").fetchone() == (partition("alice"),)
        conn.execute("UPDATE totp_shard.served SET partitions = '{0}', only_on = totp_shard.this_server()")
        assert error_of(conn, "SELECT totp_shard.enter('me', 'alice')").sqlstate == "55000"
        conn.execute("UPDATE totp_shard.served SET only_on = 'elsewhere'")
        assert "serves nobody" in error_of(conn, "SELECT totp_shard.enter('me', 'alice')").diag.message_primary


@pytest.mark.parametrize("given", ["ALTER SCHEMA public OWNER TO eve", "SELECT format('ALTER DATABASE %I OWNER TO eve', current_database()) \\gexec"])
def test_the_schema_of_the_extension_is_a_superusers(shard, given):
    """Also the one that belongs to the owner of the database, who may put functions there later on."""
    shard.psql(given)
    refused = refusal(shard, script("shard.sql"))
    assert_refused(refused)
    assert (refused["ERROR"], refused["DETAIL"]) == ("must be owner of schema public", 'It belongs to role "eve".')


KINDS = {
    "view": "CREATE VIEW totp_shard.capabilities AS SELECT 1 AS one",
    "materialized view": "CREATE MATERIALIZED VIEW totp_shard.capabilities AS SELECT 1 AS one",
    "sequence": "CREATE SEQUENCE totp_shard.served",
    "composite type": "CREATE TYPE totp_shard.served AS (n integer)",
    "enum": "CREATE TYPE totp_shard.mood AS ENUM ('good')",
    "domain": "CREATE DOMAIN totp_shard.text AS pg_catalog.text",
    "procedure": "CREATE PROCEDURE totp_shard.enter(caller text, user_id text) LANGUAGE sql AS ''",
    "aggregate": "CREATE AGGREGATE totp_shard.max(bigint) (SFUNC = int8larger, STYPE = bigint)",
    "operator": "CREATE OPERATOR totp_shard.= (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)",
    "collation": "CREATE COLLATION totp_shard.other FROM \"C\"",
    "conversion": "CREATE CONVERSION totp_shard.other FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8",
    "text search": "CREATE TEXT SEARCH CONFIGURATION totp_shard.other (COPY = pg_catalog.simple)",
    "statistics": "CREATE TABLE evil.t (a integer, b integer); CREATE STATISTICS totp_shard.other ON a, b FROM evil.t",
    "another function": "CREATE FUNCTION totp_shard.mine() RETURNS void LANGUAGE sql AS ''",
}


@pytest.mark.parametrize("kind", KINDS)
def test_shard_sql_does_not_work_beside_an_object_of_others(shard, kind):
    """Of any kind, in its schema: nobody has to find out what could come of it."""
    act(shard, [SCHEMA, (EVE, KINDS[kind]), TAKEN_BACK])
    refused = refusal(shard, script("shard.sql"))
    assert_refused(refused)
    assert "eve" in refused["DETAIL"]


def test_shard_sql_does_not_work_on_a_table_with_a_policy(shard):
    """A policy is asked when the router reads the table."""
    act(shard, [SCHEMA, (EVE, PLAIN_SERVED + YES + "ALTER TABLE totp_shard.served ENABLE ROW LEVEL SECURITY;"
                                                   "CREATE POLICY p ON totp_shard.served USING (evil.yes())"), GIVEN])
    assert_refused(refusal(shard, script("shard.sql")))


def test_a_schema_that_comes_between_is_noticed(shard):
    """Made, and not yet committed, when shard.sql looks whether it is there."""
    with (closing(shard.connect(EVE, autocommit=False)) as eve, closing(shard.connect()) as dba, closing(shard.connect()) as look,
          ThreadPoolExecutor(1) as pool):
        eve.execute("CREATE SCHEMA totp_shard")
        running = pool.submit(error_of, dba, script("shard.sql"))
        wait_until(lambda: look.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [dba.info.backend_pid]).fetchone()[0], "shard.sql to wait for eve")
        eve.commit()
        error = running.result()
    assert (error.sqlstate, error.diag.message_primary) == ("42501", "must be owner of schema totp_shard")
    assert shard.value("SELECT count(*) FROM pg_proc WHERE pronamespace = 'totp_shard'::regnamespace") == 0
    assert_refused(refusal(shard, script("shard.sql")))


def test_an_object_of_the_same_name_that_was_given_to_the_superuser_is_not_ours(shard):
    """REASSIGN OWNED BY gives the superuser all that eve made, and its text is hers."""
    act(shard, [SCHEMA, (EVE, trap("totp_shard.serve(partitions text)")), (DBA, "REASSIGN OWNED BY eve TO postgres")])
    refused = refusal(shard, script("shard.sql"))
    if refused is None:
        shard.psql("SELECT totp_shard.serve('{0,1,2,3}')")
        assert not is_superuser(shard)
    assert_refused(refused)
