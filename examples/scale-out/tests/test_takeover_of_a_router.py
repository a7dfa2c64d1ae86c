"""A role that is not a superuser prepares objects for router.sql and routes.sql, and gains nothing.

Each trap works on scripts that do not look: then eve is a superuser, or answers in the name of the extension.
"""

import re
from contextlib import closing

import psycopg
import pytest
from search_path_traps import set_traps
from server import Database
from shards import PARTITIONS, script
from takeover_traps import DBA, EVE, EVERYTHING_TO_EVE, FIRE, SCHEMA, TAKEN_BACK, Trap, act, assert_refused, dropped, functions_of, granted, is_superuser, map_to, owners, refusal, spring, trap
from takeover_traps import server, databases, shard, router, served  # noqa: F401 - fixtures

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
        [A_ROLE, (EVE, "ALTER DEFAULT PRIVILEGES FOR ROLE totp_router GRANT ALL ON TABLES TO eve"), (DBA, "REVOKE totp_router FROM eve")],
        [(DBA, "GRANT USAGE ON SCHEMA totp_router TO eve"), (EVE, FIRE + "CREATE TRIGGER t BEFORE INSERT ON totp_router.shards FOR EACH ROW EXECUTE FUNCTION evil.fire()"), MAPPED]),
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


def test_its_extensions_are_where_nobody_drops_them(router):
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
TAKES_HEALTH_OVER = (EVE, dropped("public.totp_health(boolean)") + trap("public.totp_health()"))
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
         (EVE, FIRE + "CREATE TRIGGER t BEFORE UPDATE ON totp_router.shards FOR EACH ROW EXECUTE FUNCTION evil.fire()"),
         (DBA, "REVOKE TRIGGER ON totp_router.shards FROM eve")],
        [(DBA, "UPDATE totp_router.shards SET name = name")]),
    "TRIGGER inside": Trap(
        [(DBA, "GRANT USAGE ON SCHEMA totp_router TO eve; GRANT ALL ON ALL TABLES IN SCHEMA totp_router TO eve")],
        [(EVE, FIRE + "CREATE TRIGGER t BEFORE UPDATE ON totp_router.shards FOR EACH ROW EXECUTE FUNCTION evil.fire()"),
         (DBA, "UPDATE totp_router.shards SET name = name")]),
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


def test_routes_sql_reads_no_shard_that_others_can_change(served):
    served.psql("ALTER SCHEMA totp_shard OWNER TO eve")
    assert_refused(refusal(served, script("routes.sql")))


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
    """If PL/Proxy finds no server, it calls plproxy.get_cluster_version() and others, with the rights of the router."""
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
        assert not {(role, what) for role, what in granted(router, "public") if what.startswith("totp_") or role == "totp_router" and "CREATE" in what}


def test_a_schema_that_routes_sql_makes_is_the_routers(databases):
    """The extension is in its own schema, and so are the functions of the router."""
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
    """PL/Proxy names types without their schema, and the owner sets the search_path of all sessions, those of the router on a shard too."""
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
    """Each sets the search_path before it names anything: objects in that of the session are not found."""
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


def test_health_reports_who_could_take_over_a_router(served, mapped):
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
