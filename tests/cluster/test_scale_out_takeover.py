"""Who is no superuser prepares something where a superuser will run a script of examples/scale-out/, and gains nothing by it.

Each trap works on scripts that do not look: then eve is a superuser, or answers in the name of the extension.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import psycopg
import pytest
from server import CommandFailed, Database, wait_until
from shards import PARTITIONS, script
from test_hostile_objects import set_traps
from totp import SECRET, error_of

DBA, EVE = "postgres", "eve"  # the superuser, and who wants to be one
LOGINS = [f"totp_router_{name}" for name in ("verify", "enroll", "audit", "admin", "owner")]  # of the router, on a shard
CLUSTERS = [name.replace("router_", "") for name in LOGINS]  # of PL/Proxy, on the router


def trap(signature: str, returns: str = "void", result: str = "") -> str:
    """A function that makes eve a superuser, if who calls it can."""
    return (f"CREATE FUNCTION {signature} RETURNS {returns} LANGUAGE plpgsql AS $trap$ BEGIN"
            " BEGIN ALTER ROLE eve SUPERUSER; EXCEPTION WHEN insufficient_privilege THEN END;"
            f" RETURN {result}; END $trap$")


class Trap(NamedTuple):
    """Who does what before the script, and after it: (role, SQL)."""

    before: list[tuple[str, str]]
    after: list[tuple[str, str]]


# --- Servers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(make_module_cluster):
    cluster = make_module_cluster()
    cluster.psql("CREATE ROLE eve LOGIN; CREATE ROLE friend LOGIN")
    return cluster


@pytest.fixture
def databases(server):
    """A function that makes databases in which eve may create schemas, with what is hers alone; the roles of the scripts go with them."""
    made = []

    def make(extension: bool) -> Database:
        made.append(server.create_database(extension=extension))
        made[-1].psql(f"GRANT CREATE ON DATABASE {made[-1].name} TO eve")
        made[-1].psql("CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC", EVE)
        return made[-1]

    yield make
    for database in made:
        database.drop()
    server.psql(f"DROP ROLE IF EXISTS totp_router, {', '.join(LOGINS)}; ALTER ROLE eve NOSUPERUSER NOCREATEROLE")


@pytest.fixture
def shard(databases) -> Database:
    return databases(extension=True)


@pytest.fixture
def router(databases) -> Database:
    return databases(extension=False)


@pytest.fixture
def served(shard) -> Database:
    """A shard that is set up."""
    shard.psql(script("shard.sql"))
    shard.execute("SELECT totp_shard.serve(ARRAY(SELECT generate_series(0, %s)))", [PARTITIONS - 1])
    return shard


def map_to(router: Database, shard: Database) -> None:
    """All users are on this shard."""
    router.execute("INSERT INTO totp_router.shards VALUES ('s1', %s)", [f"host={shard.cluster.folder} port=5432 dbname={shard.name}"])
    router.execute("INSERT INTO totp_router.partitions SELECT p, 's1' FROM generate_series(0, %s) p", [PARTITIONS - 1])


def functions_of(shard: Database) -> str:
    """What routes.sql prints."""
    return shard.psql(script("routes.sql"))


# --- What a script did -----------------------------------------------------------------------------------------------


CATALOGS = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace AND relname !~ '^pg_statistic' ORDER BY 1"


def catalog(database: Database) -> list[tuple]:
    """What tells whether something was made, changed or dropped in a database, or among the roles of its server."""
    names = [name for (name,) in database.execute(CATALOGS)]
    return database.execute(" UNION ALL ".join(f"SELECT '{name}', count(*), sum(hashtext(ctid::text || xmin::text)::bigint) FROM {name}" for name in names))


def refusal(database: Database, text: str, user: str = DBA) -> dict[str, str] | None:
    """The one error that a script ends in, by field; None where it ends well. A script that is refused has changed nothing."""
    before = catalog(database)
    try:
        database.psql("\\set VERBOSITY verbose\n" + text, user)
    except CommandFailed as failed:
        assert catalog(database) == before
        fields = dict(re.findall(r"^(?:psql:.*?: )?([A-Z]+):  (.*)$", failed.stderr, flags=re.M))
        assert len(re.findall(r"ERROR: ", failed.stderr)) == 1, failed.stderr
        fields["SQLSTATE"], fields["ERROR"] = fields["ERROR"].split(": ", 1)
        return fields
    return None


def assert_refused(refused: dict[str, str]) -> None:
    """In PostgreSQL's style, with what to do."""
    assert refused["SQLSTATE"] == "42501"
    assert refused["ERROR"][0].islower() and not refused["ERROR"].endswith(".")
    assert refused["DETAIL"].endswith(".") and refused["HINT"].endswith(".")


def act(database: Database, steps: list[tuple[str, str]]) -> None:
    for user, text in steps:
        database.psql(text, user)


def is_superuser(database: Database, role: str = EVE) -> bool:
    return database.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role])


def spring(database: Database, made: Trap, text: str) -> dict[str, str]:
    """Sets a trap and runs the script. Where it is not refused, goes on until eve has what she wants."""
    act(database, made.before)
    assert not is_superuser(database), "this is no trap"
    refused = refusal(database, text)
    if refused is None:
        act(database, made.after)
        assert not is_superuser(database), "eve is a superuser"
        raise AssertionError("the script is not refused")
    assert not is_superuser(database)
    assert_refused(refused)
    return refused


def dropped(name: str) -> str:
    return f"DROP FUNCTION {name};"


# --- shard.sql: schemas, functions, tables ----------------------------------------------------------------------------

SCHEMA = (EVE, "CREATE SCHEMA totp_shard; GRANT USAGE ON SCHEMA totp_shard TO PUBLIC")
TAKEN_BACK = (DBA, "ALTER SCHEMA totp_shard OWNER TO postgres")  # but for what is in it
CALL = (DBA, "SELECT totp_shard.totp_enabled('x', 'y')")
SERVE = (DBA, "SELECT totp_shard.serve(ARRAY(SELECT generate_series(0, 15)))")
SERVED = ("CREATE TABLE totp_shard.served (partitions integer[] NOT NULL, present integer[] NOT NULL, only_on text, audit_id bigint NOT NULL,"
          " one boolean PRIMARY KEY DEFAULT {default}{check});")
PLAIN_SERVED = SERVED.format(default="true", check="")
FIRE = trap("evil.fire()", "trigger", "NEW") + ";"
YES = trap("evil.yes()", "boolean", "true") + ";"
GIVEN = (DBA, "ALTER SCHEMA totp_shard OWNER TO postgres; ALTER TABLE totp_shard.served OWNER TO postgres")

ON_A_SHARD = {
    "schema": Trap([SCHEMA], [(EVE, dropped("totp_shard.enter(text, text)") + trap("totp_shard.enter(caller text, user_id text)")), CALL]),
    "schema of the extension": Trap(
        [(DBA, "ALTER SCHEMA public OWNER TO eve"), (EVE, trap("public.totp_grant(role text, capability text)"))], []),
    "schema by the database": Trap(  # public belongs to the owner of the database
        [(DBA, "SELECT format('ALTER DATABASE %I OWNER TO eve', current_database()) \\gexec"), (EVE, trap("public.totp_grant(role text, capability text)"))], []),
    "function": Trap(
        [SCHEMA, (EVE, "CREATE FUNCTION totp_shard.enter(caller text, user_id text) RETURNS void LANGUAGE sql AS ''"), TAKEN_BACK],
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


def test_a_namesake_that_was_given_along_is_not_ours(shard):
    """REASSIGN OWNED BY gives the superuser all that eve made, and its text is hers."""
    act(shard, [SCHEMA, (EVE, trap("totp_shard.serve(partitions text)")), (DBA, "REASSIGN OWNED BY eve TO postgres")])
    refused = refusal(shard, script("shard.sql"))
    if refused is None:
        shard.psql("SELECT totp_shard.serve('{0,1,2,3}')")
        assert not is_superuser(shard)
    assert_refused(refused)


# --- shard.sql: roles, and who runs it ---------------------------------------------------------------------------------


def import_as(database: Database, user: str) -> None:
    with closing(database.connect(user)) as conn:
        conn.execute("SELECT totp_shard.totp_import('victim', %s, NULL, NULL, 'default', 'SHA1', 6, 30, true, false, 'me')", [SECRET])


def test_a_login_of_the_router_is_nobody_elses(shard):
    """Who can act as one enrolls whom he wants."""
    shard.execute("ALTER ROLE eve CREATEROLE")
    shard.psql("CREATE ROLE totp_router_admin LOGIN", EVE)
    if shard.value("SELECT NOT pg_has_role('eve', 'totp_router_admin', 'MEMBER')"):  # before 16 that does not make her one
        shard.psql("GRANT totp_router_admin TO eve", EVE)
    refused = refusal(shard, script("shard.sql"))
    if refused is None:
        act(shard, [SERVE])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            import_as(shard, EVE)
    assert_refused(refused)
    assert "eve" in refused["DETAIL"] and "REVOKE totp_router_admin FROM eve" in refused["HINT"]
    shard.execute("REVOKE totp_router_admin FROM eve")
    shard.execute("GRANT totp_router_admin TO postgres")  # which gives him nothing
    shard.psql(script("shard.sql"))


@pytest.mark.parametrize("attribute", ["SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"])
def test_a_login_of_the_router_can_do_what_it_is_for(shard, attribute):
    shard.execute(f"CREATE ROLE totp_router_verify LOGIN {attribute}")
    assert_refused(refusal(shard, script("shard.sql")))


def test_a_shard_is_set_up_by_a_superuser_and_again_by_the_same(shard):
    """What it makes runs with his rights; with another owner some of it would run with those of another."""
    refused = refusal(shard, script("shard.sql"), EVE)
    assert_refused(refused)
    assert refused["ERROR"] == "must be superuser to run shard.sql"
    shard.psql("CREATE ROLE boss LOGIN SUPERUSER")
    try:
        for _ in range(2):
            shard.psql(script("shard.sql"), "boss")
            assert owners(shard, "totp_shard") == {"boss"}
        refused = refusal(shard, script("shard.sql"))
        assert_refused(refused)
        assert "boss" in refused["DETAIL"] and refused["HINT"] == "Run the script as that role."
    finally:
        shard.psql("DROP OWNED BY boss; DROP ROLE boss")


def owners(database: Database, *schemas: str) -> set[str]:
    """Whom these schemas and all functions and relations in them belong to."""
    return {name for (name,) in database.execute("""
        SELECT pg_get_userbyid(p.proowner) FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text = ANY (%(schemas)s)
        UNION SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.relnamespace::regnamespace::text = ANY (%(schemas)s)
        UNION SELECT pg_get_userbyid(n.nspowner) FROM pg_namespace AS n WHERE n.nspname = ANY (%(schemas)s)""", {"schemas": list(schemas)})}


# --- shard.sql: who has rights --------------------------------------------------------------------------------------

EVERYTHING_TO_EVE = "".join(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO eve WITH GRANT OPTION;" for kind in ("SCHEMAS", "TABLES", "SEQUENCES", "ROUTINES", "TYPES"))
GRANTED = """
SELECT a.grantee::regrole::text, p.proname || '' FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
 WHERE p.pronamespace::regnamespace::text = ANY (%(schemas)s) AND a.grantee <> p.proowner
UNION SELECT a.grantee::regrole::text, c.relname || ' ' || a.privilege_type FROM pg_class AS c, aclexplode(c.relacl) AS a
 WHERE c.relnamespace::regnamespace::text = ANY (%(schemas)s) AND a.grantee <> c.relowner
UNION SELECT a.grantee::regrole::text, n.nspname || ' ' || a.privilege_type FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
 WHERE n.nspname = ANY (%(schemas)s) AND a.grantee <> n.nspowner"""


def granted(database: Database, *schemas: str) -> set[tuple[str, str]]:
    """(role, what) of these schemas, for all but their owners."""
    return set(database.execute(GRANTED, {"schemas": list(schemas)}))


def test_on_a_shard_nobody_but_the_router_has_a_right(served):
    """Not by default privileges, not by a grant that was made, and the logins of the router no more than when it is new."""
    new = granted(served, "totp_shard")
    assert {role for role, _ in new} == set(LOGINS)
    served.psql(EVERYTHING_TO_EVE + """
        DROP FUNCTION totp_shard.totp_enabled(text, text), totp_shard.enter(text, text);
        DROP VIEW totp_shard.routines;
        GRANT ALL ON ALL ROUTINES IN SCHEMA totp_shard TO PUBLIC, totp_router_verify;
        GRANT USAGE ON SCHEMA totp_shard TO eve;
        GRANT ALL ON ALL TABLES IN SCHEMA totp_shard TO eve WITH GRANT OPTION;
        GRANT UPDATE (partitions) ON totp_shard.served TO totp_router_verify""")
    served.psql("GRANT SELECT ON totp_shard.served TO PUBLIC", EVE)
    served.psql(script("shard.sql"))
    assert granted(served, "totp_shard") == new
    assert served.value("SELECT count(*) FROM pg_attribute WHERE attrelid = 'totp_shard.served'::regclass AND attacl <> '{}'") == 0


def test_default_privileges_do_not_open_a_new_shard(shard):
    shard.psql(EVERYTHING_TO_EVE)
    shard.psql(script("shard.sql"))
    assert {role for role, _ in granted(shard, "totp_shard")} == set(LOGINS)
    with closing(shard.connect(EVE)) as eve:
        for query in ("SELECT totp_shard.totp_enabled('x', 'y')", "SELECT FROM totp_shard.served", "CREATE TABLE totp_shard.mine ()"):
            assert error_of(eve, query).sqlstate == "42501"


def test_what_everybody_may_is_no_capability(shard):
    """A blanket grant, to PUBLIC or to a login of the router, does not widen what the router gives out."""
    expected = "SELECT capability, name FROM totp_shard.capabilities ORDER BY 1, 2"
    shard.psql(script("shard.sql"))
    before = shard.execute(expected), granted(shard, "totp_shard")
    shard.psql("GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO PUBLIC, totp_router_verify")
    shard.psql(script("shard.sql"))
    assert (shard.execute(expected), granted(shard, "totp_shard")) == before
    with closing(shard.connect("totp_router_verify")) as direct:
        assert error_of(direct, "SELECT totp_shard.totp_prune_audit('1 day', 'x')").sqlstate == "42501"


# --- router.sql --------------------------------------------------------------------------------------------------------

A_ROLE = (DBA, "CREATE ROLE totp_router; GRANT totp_router TO eve")
APPLY = (DBA, "SELECT totp_router.apply()")
MAPPED = (DBA, "INSERT INTO totp_router.shards VALUES ('s1', 'dbname=none')")

ON_A_ROUTER = {
    "schema": Trap([(EVE, "CREATE SCHEMA totp_router")], []),
    "schema of the audit log": Trap([(EVE, "CREATE SCHEMA totp")], []),
    "member of its role": Trap([A_ROLE], [(EVE, "SET ROLE totp_router;" + dropped("totp_router.apply()") + trap("totp_router.apply()")), APPLY]),
    "login of its role": Trap(
        [(DBA, "CREATE ROLE totp_router LOGIN")], [("totp_router", dropped("totp_router.apply()") + trap("totp_router.apply()")), APPLY]),
    "attribute of its role": Trap([(DBA, "CREATE ROLE totp_router CREATEROLE")], []),
    "default privileges of its role": Trap(
        [A_ROLE, (EVE, "".join(f"ALTER DEFAULT PRIVILEGES FOR ROLE totp_router GRANT ALL ON {kind} TO eve;" for kind in ("SCHEMAS", "TABLES", "ROUTINES"))),
         (DBA, "REVOKE totp_router FROM eve")],
        [(EVE, FIRE + "CREATE TRIGGER t BEFORE INSERT ON totp_router.shards FOR EACH ROW EXECUTE FUNCTION evil.fire()"), MAPPED]),
    "server": Trap(
        [(DBA, "CREATE EXTENSION plproxy; GRANT USAGE ON FOREIGN DATA WRAPPER plproxy TO eve"),
         (EVE, "CREATE SERVER totp_verify FOREIGN DATA WRAPPER plproxy OPTIONS (p0 'dbname=none')")], []),
    "server of an audit log": Trap(
        [(DBA, "CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO eve"),
         (EVE, "CREATE SERVER totp_audit_log_s1 FOREIGN DATA WRAPPER postgres_fdw")], []),
}


@pytest.mark.parametrize("name", ON_A_ROUTER)
def test_router_sql_does_not_work_on_what_is_prepared(router, name):
    spring(router, ON_A_ROUTER[name], script("router.sql"))


def test_a_router_is_set_up_by_a_superuser_and_once(router):
    assert_refused(refusal(router, script("router.sql"), EVE))
    router.psql(script("router.sql"))
    assert_refused(refusal(router, script("router.sql")))
    assert owners(router, "totp_router", "totp") == {"totp_router", DBA}
    assert router.execute("SELECT proname || '' FROM pg_proc WHERE pronamespace = 'totp_router'::regnamespace AND proowner <> 'totp_router'::regrole") == [("exposed",)]


def test_a_second_router_may_have_the_role_of_the_first(databases):
    for _ in range(2):
        databases(extension=False).psql(script("router.sql"))


def test_its_extensions_lie_where_nobody_drops_them(router):
    """And not in the first schema of the session: "$user" may be anyone's."""
    router.psql("CREATE SCHEMA postgres", EVE)
    router.psql(script("router.sql"))
    assert router.execute("SELECT DISTINCT extnamespace::regnamespace::text FROM pg_extension") == [("pg_catalog",)]
    router.psql("DROP SCHEMA postgres CASCADE", EVE)
    assert router.value("SELECT count(*) FROM pg_extension WHERE extname IN ('plproxy', 'postgres_fdw')") == 2


# --- routes.sql --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(served, router) -> Database:
    """A router before a shard, but for its functions."""
    router.psql(script("router.sql"))
    map_to(router, served)
    return router


HEALTH = (DBA, "SELECT totp_health()")
TAKES_HEALTH_OVER = (EVE, dropped("public.totp_health()") + trap("public.totp_health()"))
GRANTS = (DBA, "SELECT totp_grant('friend', 'verify')")

BEFORE_ROUTES = {
    "schema": Trap([(DBA, "ALTER SCHEMA public OWNER TO eve")], [TAKES_HEALTH_OVER, HEALTH]),
    "schema by the database": Trap([(DBA, "SELECT format('ALTER DATABASE %I OWNER TO eve', current_database()) \\gexec")], [TAKES_HEALTH_OVER, HEALTH]),
    "CREATE on the schema": Trap([(DBA, "GRANT CREATE ON SCHEMA public TO PUBLIC")], [(EVE, trap("public.totp_grant(role text, capability text)")), GRANTS]),
    "function beside ours": Trap(
        [(DBA, "GRANT CREATE ON SCHEMA public TO eve"), (EVE, trap("public.totp_grant(role text, capability text)")), (DBA, "REVOKE CREATE ON SCHEMA public FROM eve")],
        [GRANTS]),
    "CREATE inside": Trap([(DBA, "GRANT ALL ON SCHEMA totp_router TO eve")], []),
    "function inside": Trap(
        [(DBA, "GRANT ALL ON SCHEMA totp_router TO eve"), (EVE, "CREATE FUNCTION totp_router.caller(writer name) RETURNS text LANGUAGE sql AS $$ SELECT 'dba' $$"),
         (DBA, "REVOKE CREATE ON SCHEMA totp_router FROM eve")], []),
    "function replaced inside": Trap(
        [(DBA, "GRANT USAGE ON SCHEMA totp_router TO eve; ALTER FUNCTION totp_router.apply() OWNER TO eve"),
         (EVE, "ALTER FUNCTION totp_router.apply() SECURITY INVOKER SET search_path = evil, pg_catalog;" + trap("evil.count(text)", "bigint", "1") + ";"
               "CREATE AGGREGATE evil.count(*) (SFUNC = pg_catalog.int8inc, STYPE = bigint, INITCOND = '0');"
               + trap("evil.ne(bigint, integer)", "boolean", "false") + "; CREATE OPERATOR evil.<> (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = evil.ne)")], [APPLY]),
    "trigger inside": Trap(
        [(DBA, "GRANT USAGE ON SCHEMA totp_router TO eve; GRANT TRIGGER ON totp_router.shards TO eve"),
         (EVE, FIRE + "CREATE TRIGGER t BEFORE UPDATE ON totp_router.shards FOR EACH ROW EXECUTE FUNCTION evil.fire()")],
        [(DBA, "UPDATE totp_router.shards SET name = name")]),
    "member of the role": Trap(
        [(DBA, "GRANT totp_router TO eve")], [(EVE, "SET ROLE totp_router;" + dropped("totp_router.apply()") + trap("totp_router.apply()")), APPLY]),
    "server": Trap(
        [(DBA, "GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO eve"), (EVE, "CREATE SERVER totp_audit_log_s1 FOREIGN DATA WRAPPER postgres_fdw")], []),
}


@pytest.mark.parametrize("name", BEFORE_ROUTES)
def test_routes_sql_does_not_work_on_what_is_prepared(served, mapped, name):
    spring(mapped, BEFORE_ROUTES[name], functions_of(served))


def test_routes_sql_needs_a_router_of_router_sql(served, router):
    """What eve calls totp_router is none, though it is complete."""
    act(router, [(DBA, "CREATE ROLE totp_router; CREATE EXTENSION plproxy"),  # for a router that is to come, or of another database
                 (EVE, "CREATE SCHEMA totp; CREATE SCHEMA totp_router; CREATE TABLE totp_router.capabilities (capability text, routine text);"
                       "CREATE VIEW totp_router.each_shard AS SELECT ''::text AS name, 0 AS partition, '{}'::integer[] AS partitions;"
                       "CREATE FUNCTION totp_router.partition_count() RETURNS integer LANGUAGE sql AS 'SELECT 16';"
                       "CREATE FUNCTION totp_router.exposed(name, text[]) RETURNS SETOF record LANGUAGE sql AS 'SELECT 1, 2 WHERE false';"
                       + FIRE + "CREATE TRIGGER t BEFORE DELETE ON totp_router.capabilities EXECUTE FUNCTION evil.fire()")])
    refused = refusal(router, functions_of(served))
    assert not is_superuser(router)
    assert_refused(refused)


def test_routes_sql_reads_no_shard_but_that_of_shard_sql(shard):
    """What eve calls totp_shard is none, and what is printed from it would be run on the router."""
    act(shard, [SCHEMA, (EVE, trap("totp_shard.partition_count()", "integer", "16") + "; CREATE VIEW totp_shard.routines AS SELECT 1 AS one")])
    refused = refusal(shard, script("routes.sql"))
    assert not is_superuser(shard)
    assert_refused(refused)
    act(shard, [TAKEN_BACK])
    refused = refusal(shard, script("routes.sql"))
    assert not is_superuser(shard)
    assert_refused(refused)


def test_who_could_call_a_function_that_was_there_cannot_call_ours(served, mapped):
    """CREATE OR REPLACE keeps what its owner has granted."""
    text = functions_of(served)
    header = re.search(r"CREATE OR REPLACE (FUNCTION public.totp_disable\(.*?\) RETURNS \w+) LANGUAGE", text)[1]
    act(mapped, [(DBA, "GRANT CREATE ON SCHEMA public TO eve"),
                 (EVE, f"CREATE {header} LANGUAGE sql AS 'SELECT 1'; GRANT EXECUTE ON FUNCTION public.totp_disable TO friend"),
                 (DBA, "REVOKE CREATE ON SCHEMA public FROM eve")])
    refused = refusal(mapped, text)
    if refused is None:
        assert mapped.value("SELECT has_function_privilege('friend', 'public.totp_disable(text, text)', 'EXECUTE')") is False
    assert_refused(refused)


def test_no_cluster_is_asked_of_functions_that_anyone_makes(served, mapped):
    """Where PL/Proxy finds no server it calls plproxy.get_cluster_version() and others, with the rights of the router."""
    mapped.psql(functions_of(served))
    mapped.psql("CREATE SCHEMA plproxy; GRANT USAGE ON SCHEMA plproxy TO PUBLIC;"
                "CREATE FUNCTION plproxy.get_cluster_version(cluster_name text) RETURNS integer LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'eve is %', current_user; END $$;"
                "CREATE FUNCTION plproxy.get_cluster_partitions(cluster_name text) RETURNS SETOF text LANGUAGE sql AS $$ SELECT ''::text $$;"
                "CREATE FUNCTION plproxy.get_cluster_config(cluster_name text, OUT key text, OUT val text) RETURNS SETOF record LANGUAGE sql AS"
                " $$ SELECT ''::text, ''::text WHERE false $$", EVE)
    with closing(mapped.connect()) as conn:  # apply() was not called
        [(status, detail)] = conn.execute("SELECT status, detail FROM totp_health() WHERE check_name = 'shard'").fetchall()
        assert (status, "eve is" in detail, "call_totp_router.apply" in detail) == ("fail", False, True), detail
        with pytest.raises(psycopg.errors.InternalError_, match="call_totp_router.apply"):
            conn.execute("SELECT totp_verify('x', '000000')")


def test_default_privileges_open_nothing_on_a_router(served, router):
    router.psql(EVERYTHING_TO_EVE)
    router.psql(script("router.sql"))
    map_to(router, served)
    text = functions_of(served)
    for _ in range(2):
        router.psql(text)
        router.execute("SELECT totp_router.apply()")
        assert granted(router, "totp_router", "totp") == {("totp_router", "exposed")}
        ours = router.value("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'totp\\_%'")
        assert ours > 20 and owners(router, "public") - {"pg_database_owner"} == {"totp_router"}
        assert not {what for _, what in granted(router, "public") if what.startswith("totp_")}


def test_a_schema_that_routes_sql_makes_is_the_routers(databases):
    """The extension lies in a schema of its own, and so do the functions of the router."""
    shard, router = databases(extension=False), databases(extension=False)
    shard.psql("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa")
    shard.psql(script("shard.sql"))
    router.psql(EVERYTHING_TO_EVE + script("router.sql"))
    text = functions_of(shard)
    for _ in range(2):
        router.psql(text)
        assert owners(router, "mfa") == {"totp_router"} and granted(router, "mfa") == set()
    router.psql("DROP SCHEMA mfa CASCADE")
    router.psql("CREATE SCHEMA mfa", EVE)
    assert_refused(refusal(router, text))


def test_the_owner_of_a_database_does_not_run_what_the_router_calls(databases):
    """PL/Proxy calls types by their names alone, and he sets the search_path of all sessions: those of the router, on a shard."""
    shard, router = databases(extension=False), databases(extension=False)
    shard.psql("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa")
    for database in (shard, router):
        database.psql("CREATE TABLE evil.seen (who text); GRANT ALL ON evil.seen TO PUBLIC; CREATE FUNCTION evil.note() RETURNS boolean LANGUAGE sql AS"
                      " 'INSERT INTO evil.seen VALUES (current_user) RETURNING true';"
                      "CREATE DOMAIN evil.text AS pg_catalog.text CHECK (evil.note())", EVE)
        database.psql(f"ALTER DATABASE {database.name} OWNER TO eve")
        database.psql(f"ALTER DATABASE {database.name} SET search_path = evil, pg_catalog", EVE)
    shard.psql(script("shard.sql"))
    shard.execute("SELECT totp_shard.serve(pg_catalog.array(SELECT pg_catalog.generate_series(0, 15)))".replace("pg_catalog.array", "ARRAY"))
    router.psql(script("router.sql"))
    map_to(router, shard)
    router.psql(functions_of(shard))
    router.execute("SELECT totp_router.apply()")
    assert router.value("SELECT mfa.totp_enabled('x')") is False
    assert router.value("SELECT count(*) FROM mfa.totp_keys()") == 0
    for database in (shard, router):
        assert database.execute("SELECT DISTINCT who FROM evil.seen") == []


def test_the_scripts_keep_out_of_traps(databases):
    """Each sets the search_path before it names anything: what lies in that of the session is not found."""
    shard, router = databases(extension=True), databases(extension=False)
    for database in (shard, router):
        with closing(database.connect()) as conn:
            conn.execute("CREATE SCHEMA traps")
            set_traps(conn, "traps")
        database.psql(f"ALTER DATABASE {database.name} SET search_path = traps, pg_catalog")
        with closing(database.connect()) as conn, pytest.raises(psycopg.Error, match="trapped"):
            conn.execute("SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c WHERE c.oid = c.relnamespace")
    for _ in range(2):
        shard.psql(script("shard.sql"))
    shard.execute(f"SELECT totp_shard.serve('{{{','.join(map(str, range(PARTITIONS)))}}}')")
    router.psql(script("router.sql"))
    router.psql("SET search_path = pg_catalog;"
                f"INSERT INTO totp_router.shards VALUES ('s1', 'host={shard.cluster.folder} port=5432 dbname={shard.name}');"
                f"INSERT INTO totp_router.partitions SELECT p, 's1' FROM generate_series(0, {PARTITIONS - 1}) p")
    for _ in range(2):
        router.psql(functions_of(shard))
        router.execute("SELECT totp_router.apply()")
    assert router.value("SELECT public.totp_enabled('x')") is False
    told = {name: status for name, status, *_ in router.execute("SELECT * FROM public.totp_health()")}
    assert told["map"] == "ok" and "router" not in told


@pytest.mark.parametrize("where", ["shard", "router"])
def test_what_the_tables_say_is_never_run(served, mapped, where):
    """A member of pg_write_all_data writes to them, and is no superuser."""
    mapped.psql(functions_of(served))
    mapped.psql("GRANT pg_write_all_data TO eve")
    try:
        if where == "router":
            planted = "INSERT INTO totp_router.capabilities VALUES ('verify', 'totp_health() TO friend; ALTER ROLE eve SUPERUSER; --')"
            with closing(mapped.connect(EVE)) as eve:
                eve.execute(planted)
            with closing(mapped.connect()) as conn:
                try:
                    conn.execute("SELECT totp_grant('friend', 'verify')")
                except psycopg.errors.InvalidTextRepresentation:
                    pass
        else:
            planted = "x'; RUN ON 0; SELECT 1; $plproxy$; ALTER ROLE eve SUPERUSER; --"
            with closing(served.connect(EVE)) as eve, pytest.raises(psycopg.errors.CheckViolation):
                eve.execute("INSERT INTO totp_shard.capabilities VALUES (%s, 'totp_prune_audit')", [planted])
            mapped.psql(functions_of(served))
        assert not is_superuser(mapped)
    finally:
        mapped.psql("REVOKE pg_write_all_data FROM eve")


# --- Afterwards ----------------------------------------------------------------------------------------------------------


def test_health_tells_who_could_take_a_router_over(served, mapped):
    """By what was granted or made since; also by what had begun before the script looked, and was committed after it."""
    health = "SELECT status, detail FROM totp_health() WHERE check_name = 'router'"
    text = functions_of(served)
    mapped.psql("GRANT CREATE ON SCHEMA public TO eve")
    with closing(mapped.connect(EVE, autocommit=False)) as eve:
        eve.execute(trap("public.totp_verify(user_id varchar, code varchar)", "boolean", "true"))
        mapped.psql("REVOKE CREATE ON SCHEMA public FROM eve")
        mapped.psql(text)
        mapped.execute("SELECT totp_router.apply()")
        assert mapped.execute(health) == []
        eve.commit()
    [(status, detail)] = mapped.execute(health)
    assert status == "fail" and "totp_verify" in detail and '"eve"' in detail
    mapped.psql("DROP FUNCTION public.totp_verify(varchar, varchar); GRANT totp_router TO eve; GRANT CREATE ON SCHEMA totp TO PUBLIC")
    details = sorted(detail for _, detail in mapped.execute(health))
    assert [re.match(r"[^.]+", detail)[0] for detail in details] == ['role "totp_router" is not for the router alone', "schema totp is open to others"]
    assert_refused(refusal(mapped, text))
