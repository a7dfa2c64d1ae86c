"""The router has the SQL surface of the extension: clients see no difference."""

import re
from contextlib import closing

import pytest
from router_load import router  # noqa: F401
from server import CHECKOUT
from shards import PARTITIONS

ON_ALL = ("totp_forget_unreadable", "totp_health", "totp_keys", "totp_metrics", "totp_prune_audit", "totp_rotate_key", "totp_stats")
ROUTINES = """
SELECT p.proname, p.prokind::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc')
  FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'totp\\_%' ORDER BY p.proname"""


def test_the_router_has_every_function_of_the_extension(router):
    """Names, parameters, defaults, results and comments. What runs on all shards has one column more."""
    def as_on_a_router(name, kind, arguments, result, comment):
        if name in ON_ALL:
            columns = result.removeprefix("TABLE(").removesuffix(")") if result.startswith("TABLE(") else f"{name} {result}"
            result = f"TABLE({columns}, shard text)"
        return name, kind, arguments, result, comment

    expected = [as_on_a_router(*row) for row in router.shards[0].database.execute(ROUTINES)]
    assert router.database.execute(ROUTINES) == expected and len(expected) > 20


def test_a_function_that_nobody_thought_of_is_noticed(router):
    """shard.sql ends in an error if the extension has a function that it does not know."""
    shard = router.shards[0].database
    with closing(shard.connect(autocommit=False)) as conn:
        conn.execute("CREATE FUNCTION public.totp_new(color text) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
        conn.execute("ALTER EXTENSION pg_totp ADD FUNCTION public.totp_new(text)")
        assert conn.execute("SELECT name FROM totp_shard.routines WHERE route IS NULL").fetchall() == [("totp_new",)]
    assert shard.execute("SELECT name FROM totp_shard.routines WHERE route IS NULL") == []


def _normalized(output: str) -> str:
    """Without the names that PL/Proxy puts before messages."""
    return re.sub(r"^(ERROR|DETAIL|HINT):  (?:\S+\(\d+\): \[\w+\] REMOTE ERROR: |Remote \w+: )?", r"\1:  ", output, flags=re.M)


def _without_rollbacks(text: str) -> str:
    """A ROLLBACK on the router does not reach the shards: remove.sql shows that one on a server undoes a removal."""
    return re.sub(r"^BEGIN;\n.*?^ROLLBACK;\n", "", text, flags=re.M | re.S)


def _set_on_the_shards(script: str) -> str:
    """The settings of the extension, which a session of a single server sets, set on the shards; no row is printed."""
    script = re.sub(r"^SET (totp\.\w+) = '?([^';]*)'?;$", r"SELECT scale_out_test.setting('\1', '\2') \\g /dev/null", script, flags=re.M)
    return re.sub(r"^RESET (totp\.\w+);$", r"SELECT scale_out_test.setting('\1', NULL) \\g /dev/null", script, flags=re.M)


def _echoed_as(script: str, sent: str, output: str) -> str:
    """The output with the lines of the script where psql echoed those sent."""
    for original, line in zip(script.splitlines(), sent.splitlines(), strict=True):
        if original != line:
            output = output.replace(line + "\n", original + "\n", 1)
    return output


CLUSTERS = ("verify", "enroll", "audit", "admin")  # of PL/Proxy, each with its own connections
TABLES = ("secrets", "used_codes", "attempts", "data_keys")


@pytest.fixture(scope="module")
def plain_router(router):
    """The router with everything that the regression tests use: functions, settings, and tables of schema totp."""
    for shard in router.shards:
        shard.database.psql("""
            CREATE SCHEMA scale_out_test;
            GRANT USAGE ON SCHEMA scale_out_test TO PUBLIC;
            CREATE FUNCTION scale_out_test.setting(name text, value text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
              PERFORM public.totp_enabled('nobody');  -- loads the library
              PERFORM set_config(name, coalesce(value, (SELECT reset_val FROM pg_settings s WHERE s.name = setting.name)), false);
            END $$""")
    script = ["CREATE SCHEMA scale_out_test AUTHORIZATION totp_router"]
    for cluster in CLUSTERS:
        script += [f"CREATE FUNCTION scale_out_test.{cluster}(name text, value text) RETURNS SETOF void LANGUAGE plproxy AS"
                   f" $$ CLUSTER 'totp_{cluster}'; RUN ON ALL; TARGET scale_out_test.setting; $$",
                   f"ALTER FUNCTION scale_out_test.{cluster}(text, text) OWNER TO totp_router"]
    calls = "; ".join(f"SELECT scale_out_test.{cluster}($1, $2)" for cluster in CLUSTERS)
    script += [f"CREATE FUNCTION scale_out_test.setting(name text, value text) RETURNS void LANGUAGE sql SECURITY DEFINER"
               f" SET client_min_messages = warning AS $$ {calls} $$",
               "ALTER FUNCTION scale_out_test.setting(text, text) OWNER TO totp_router"]
    for shard in router.shards:
        script += [f"CREATE USER MAPPING FOR postgres SERVER totp_audit_log_{shard.name}", f"CREATE SCHEMA on_{shard.name}",
                   f"IMPORT FOREIGN SCHEMA totp LIMIT TO ({', '.join(TABLES)}) FROM SERVER totp_audit_log_{shard.name} INTO on_{shard.name}"]
    for table in TABLES:
        parts = " UNION ALL ".join(f"SELECT * FROM on_{shard.name}.{table}" for shard in router.shards)
        script.append(f"CREATE VIEW totp.{table} AS {parts}")
    router.database.psql(";\n".join(script))
    yield router
    script = ["SET client_min_messages = warning", "DROP SCHEMA scale_out_test CASCADE"]
    for shard in router.shards:
        shard.database.psql("DROP SCHEMA scale_out_test CASCADE")
        script += [f"DROP SCHEMA on_{shard.name} CASCADE", f"DROP USER MAPPING FOR postgres SERVER totp_audit_log_{shard.name}"]
    router.database.psql(";\n".join(script))


@pytest.fixture
def one_shard(plain_router):
    """All partitions on one, empty shard: totp_keys() answers for each shard that has keys."""
    first, *others = plain_router.shards
    served = {shard: plain_router.partitions_of(shard) for shard in plain_router.shards}
    for shard in plain_router.shards:
        shard.database.psql("DELETE FROM totp.secrets; DELETE FROM totp.used_codes; DELETE FROM totp.attempts;"
                            "DELETE FROM totp.recovery_codes; DELETE FROM totp.data_keys")
    first.serve(range(PARTITIONS))
    plain_router.move(range(PARTITIONS), first)
    yield
    for shard, partitions in served.items():
        shard.serve(partitions)
        plain_router.move(partitions, shard)


def _passes_through(router, script: str, expected: str) -> None:
    script, expected = _without_rollbacks(script), _without_rollbacks(expected)
    sent = _set_on_the_shards(script)
    output = router.database.cluster.run(
        "sh", "-c", 'exec psql -X -a -q -v SHOW_CONTEXT=never -h "$1" -U postgres -d "$2" 2>&1', "sh",
        router.database.cluster.folder, router.database.name, stdin=sent, PGTZ="PST8PDT", PGDATESTYLE="Postgres, MDY")
    assert _normalized(_echoed_as(script, sent, output)) == expected


@pytest.mark.parametrize("name", ["check", "confirm", "enroll", "remove", "status", "verify"])
def test_the_tests_of_the_surface_pass_through_the_router(plain_router, name):
    """tests/regress/sql/*.sql print the same. surface.sql is about the catalog: see the first test."""
    folder = CHECKOUT / "tests" / "regress"
    _passes_through(plain_router, (folder / "sql" / f"{name}.sql").read_text(), (folder / "expected" / f"{name}.out").read_text())


def test_the_test_of_keys_passes_through_a_router_of_one_shard(plain_router, one_shard):
    """As above, but for a line about a setting that a router does not have."""
    folder = CHECKOUT / "tests" / "regress"
    script = (folder / "sql" / "keys.sql").read_text()
    expected = (folder / "expected" / "keys.out").read_text()
    line = "SELECT current_setting('totp.key_file') <> '' AS has_key_file;\n"
    assert line in script
    _passes_through(plain_router, script.replace(line, ""), re.sub(re.escape(line) + r".*?\n\n", "", expected, flags=re.S))


def test_every_test_of_the_surface_is_among_these(router):
    names = {path.stem for path in (CHECKOUT / "tests" / "regress" / "sql").glob("*.sql")}
    assert names == {"check", "confirm", "enroll", "keys", "remove", "status", "surface", "verify"}
