"""Who may run shard.sql, who may act as a role of the router, and who has rights on a shard afterwards."""

from contextlib import closing

import psycopg
import pytest
from server import Database
from shards import script
from takeover_traps import EVE, EVERYTHING_TO_EVE, LOGINS, SERVE, act, assert_refused, granted, owners, refusal
from takeover_traps import server, databases, shard, router, served  # noqa: F401 - fixtures
from totp import SECRET, error_of

# --- Roles, and who runs it --------------------------------------------------------------------------------------------


def import_as(database: Database, user: str) -> None:
    with closing(database.connect(user)) as conn:
        conn.execute("SELECT totp_shard.totp_import('victim', %s, NULL, NULL, 'default', 'SHA1', 6, 30, true, false, 'me')", [SECRET])


def test_a_login_of_the_router_is_nobody_elses(shard):
    """A role that can act as one can enroll any user."""
    shard.execute("ALTER ROLE eve CREATEROLE")
    shard.psql("CREATE ROLE totp_router_admin LOGIN", EVE)
    if shard.value("SELECT NOT pg_has_role('eve', 'totp_router_admin', 'MEMBER')"):  # before PostgreSQL 16 that does not make her a member
        shard.psql("GRANT totp_router_admin TO eve", EVE)
    refused = refusal(shard, script("shard.sql"))
    if refused is None:
        act(shard, [SERVE])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            import_as(shard, EVE)
    assert_refused(refused)
    assert "eve" in refused["DETAIL"] and "REVOKE totp_router_admin FROM eve" in refused["HINT"]
    shard.execute("REVOKE totp_router_admin FROM eve")
    shard.execute("GRANT totp_router_admin TO postgres")  # which gives it nothing
    shard.psql(script("shard.sql"))


@pytest.mark.parametrize("attribute", ["SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"])
def test_a_login_of_the_router_can_do_what_it_is_for(shard, attribute):
    shard.execute(f"CREATE ROLE totp_router_verify LOGIN {attribute}")
    assert_refused(refusal(shard, script("shard.sql")))


def test_a_shard_is_set_up_by_a_superuser_and_again_by_the_same(shard):
    """What it creates runs with that role's rights. With another owner, some of it would run with other rights."""
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
        shard.psql("DROP SCHEMA totp_shard CASCADE; CREATE SCHEMA totp_shard AUTHORIZATION boss")
        assert refusal(shard, script("shard.sql"))["ERROR"] == "must be owner of schema totp_shard"
    finally:
        shard.psql("DROP OWNED BY boss; DROP ROLE boss")




# --- Who has rights -------------------------------------------------------------------------------------------------

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


def test_what_everybody_may_call_is_not_a_capability(shard):
    """A blanket grant, to PUBLIC or to a login of the router, does not widen what the router gives out."""
    expected = "SELECT capability, name FROM totp_shard.capabilities ORDER BY 1, 2"
    shard.psql(script("shard.sql"))
    before = shard.execute(expected), granted(shard, "totp_shard")
    shard.psql("GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO PUBLIC, totp_router_verify")
    shard.psql(script("shard.sql"))
    assert (shard.execute(expected), granted(shard, "totp_shard")) == before
    with closing(shard.connect("totp_router_verify")) as direct:
        assert error_of(direct, "SELECT totp_shard.totp_prune_audit('1 day', 'x')").sqlstate == "42501"
