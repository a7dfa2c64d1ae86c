"""Traps for the superuser who runs the scripts, and what a script did.

Eve is not a superuser. She prepares objects; if a script works on them, she is a superuser afterwards.
"""

import re
from typing import NamedTuple

import pytest
from libraries import skip_without
from server import CommandFailed, Database
from shards import PARTITIONS, script

DBA, EVE = "postgres", "eve"  # the superuser, and the role that wants to be one
LOGINS = [f"totp_router_{name}" for name in ("verify", "enroll", "audit", "admin", "owner")]  # of the router, on a shard


def trap(signature: str, returns: str = "void", result: str = "") -> str:
    """A function that makes eve a superuser, if who calls it can."""
    return (f"CREATE FUNCTION {signature} RETURNS {returns} LANGUAGE plpgsql AS $trap$ BEGIN"
            " BEGIN ALTER ROLE eve SUPERUSER; EXCEPTION WHEN insufficient_privilege THEN END;"
            f" RETURN {result}; END $trap$")


class Trap(NamedTuple):
    """Who does what before the script, and after it: (role, SQL)."""

    before: list[tuple[str, str]]
    after: list[tuple[str, str]]


SCHEMA = (EVE, "CREATE SCHEMA totp_shard; GRANT USAGE ON SCHEMA totp_shard TO PUBLIC")
TAKEN_BACK = (DBA, "ALTER SCHEMA totp_shard OWNER TO postgres")  # but for what is in it
SERVE = (DBA, "SELECT totp_shard.serve(ARRAY(SELECT generate_series(0, 15)))")
FIRE = trap("evil.fire()", "trigger", "NEW") + ";"
EVERYTHING_TO_EVE = "".join(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO eve WITH GRANT OPTION;" for kind in ("SCHEMAS", "TABLES", "SEQUENCES", "ROUTINES", "TYPES"))


# --- Servers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(make_module_cluster):
    cluster = make_module_cluster()
    cluster.psql("CREATE ROLE eve LOGIN; CREATE ROLE friend LOGIN")
    return cluster


@pytest.fixture
def databases(server):
    """A function that makes databases in which eve may create schemas, with what is hers alone; the roles of the scripts go with them.

    One without the extension is for a router."""
    made = []

    def make(extension: bool) -> Database:
        if not extension:
            skip_without("plproxy")
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
    """The one error that a script ends in, by field; None if it ends well. A script that is refused has changed nothing."""
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
    """Sets a trap and runs the script. If it is not refused, goes on until eve has what she wants."""
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


def owners(database: Database, *schemas: str) -> set[str]:
    """The owners of these schemas and of all functions and relations in them."""
    return {name for (name,) in database.execute("""
        SELECT pg_get_userbyid(p.proowner) FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text = ANY (%(schemas)s)
        UNION SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.relnamespace::regnamespace::text = ANY (%(schemas)s)
        UNION SELECT pg_get_userbyid(n.nspowner) FROM pg_namespace AS n WHERE n.nspname = ANY (%(schemas)s)""", {"schemas": list(schemas)})}


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
