"""Operations in which PostgreSQL runs the code of a table's owner: functions that only report answer there, and all others are refused.

PostgreSQL calls them security-restricted: maintenance, an index, a materialized view. A superuser or autovacuum runs them.
"""

from contextlib import closing

import pytest
from capabilities import FUNCTIONS, HELPERS
from code_of_another_role import ALL, INTERNAL, JUDGES, OWNERS, PROCEDURES, READS, WRITES, App, any_app, app, install  # noqa: F401 - fixtures
from population import rows
from server import wait_until
from totp import SECRET, import_secret


def test_every_function_is_looked_at(app):
    assert app.functions <= set(ALL) | PROCEDURES
    assert set(ALL) <= set(FUNCTIONS) | set(HELPERS)


# --- Operations in which PostgreSQL runs the code of a table's owner ------------------------------------------------

MAINTENANCE = [
    "ANALYZE app.t", "VACUUM (ANALYZE) app.t", "VACUUM (FULL) app.t", "CLUSTER app.t USING t_i",
    "REINDEX TABLE app.t", "REINDEX TABLE CONCURRENTLY app.t", "REINDEX INDEX app.t_i",
    "CREATE INDEX ON app.t (app.everything(i))", "CREATE INDEX CONCURRENTLY ON app.t (app.everything(i))",
    "ALTER TABLE app.t ALTER note TYPE text USING upper(note)", "SELECT bt_index_check('app.t_i', true)",
    "SELECT brin_desummarize_range('app.t_brin', 0), brin_summarize_new_values('app.t_brin')",
    "REFRESH MATERIALIZED VIEW app.m", "REFRESH MATERIALIZED VIEW CONCURRENTLY app.m",
]


def check_that_nothing_was_done(app: App, before: dict) -> None:
    """In a security-restricted operation: functions that only report have answered, all others were refused, nothing has changed."""
    outcomes = app.outcomes()
    assert outcomes.keys() == app.functions - PROCEDURES
    for name in READS.keys() & outcomes.keys():
        assert {state for state, _ in outcomes[name]} == {"00000"}, (name, outcomes[name])
    rights = {"totp_grant", "totp_revoke"}
    for name in outcomes.keys() - READS.keys() - rights:
        assert {state for state, _ in outcomes[name]} == {"42501"}, (name, outcomes[name])
        assert all(text.endswith("() within security-restricted operation") for _, text in outcomes[name]), outcomes[name]
    for name in rights & outcomes.keys():
        assert outcomes[name] == {("42501", f"permission denied for function {name}")}
    assert not any(SECRET in (text or "") for outcome in outcomes.values() for _, text in outcome)
    assert rows(app.database, like=before) == before


@pytest.mark.parametrize("maintenance", MAINTENANCE)
def test_nothing_judges_writes_or_shows_a_secret_in_a_superuser_s_maintenance(any_app, maintenance):
    before = any_app.prepare(ALL)
    any_app.database.execute(maintenance)
    check_that_nothing_was_done(any_app, before)


def test_nothing_judges_writes_or_shows_a_secret_in_autovacuum(make_cluster):
    server = make_cluster(autovacuum="on", autovacuum_naptime="1s")
    app = install(server.create_database())
    app.database.execute("ALTER TABLE app.t SET (autovacuum_enabled = off); INSERT INTO app.t SELECT n FROM generate_series(2, 20) AS n")
    before = app.prepare(ALL)
    app.database.execute("ALTER TABLE app.t SET (autovacuum_enabled = on, autovacuum_analyze_threshold = 1)")
    analyzed = "SELECT count(*) FROM pg_stat_all_tables WHERE relid = 'app.t'::regclass AND autoanalyze_count > 0"
    wait_until(lambda: app.database.value(analyzed) == 1, "autovacuum")
    check_that_nothing_was_done(app, before)


def test_indexes_and_materialized_views_of_app_do_no_more(app):
    """PostgreSQL restricts them, whichever role makes them."""
    before = app.prepare(ALL)
    for statement in ("CREATE INDEX ON app.t (app.everything(i))", "ANALYZE app.t", "REFRESH MATERIALIZED VIEW app.m"):
        with closing(app.database.connect(user=app.role)) as session:
            session.execute(statement)
    check_that_nothing_was_done(app, before)


def test_no_function_in_between_lifts_the_restriction(app):
    """SECURITY DEFINER, a SET clause and a subtransaction keep it, also if the function is a superuser's."""
    before = app.prepare(ALL)
    app.database.execute(f"""
        CREATE FUNCTION public.of_postgres() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN PERFORM app.attempt(c.name, c.call) FROM app.calls AS c; EXCEPTION WHEN division_by_zero THEN NULL; END $$;
        CREATE FUNCTION app.through(i integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
        BEGIN PERFORM public.of_postgres(); RETURN i; END $$;
        CREATE MATERIALIZED VIEW app.through AS SELECT app.through(1) WITH NO DATA;
        ALTER MATERIALIZED VIEW app.through OWNER TO {app.role}""")
    app.database.execute("REFRESH MATERIALIZED VIEW app.through")
    outcomes = app.outcomes()
    for name in OWNERS | INTERNAL | JUDGES | WRITES:
        [(state, text)] = outcomes[name]
        assert state == "42501" and text.endswith("() within security-restricted operation"), (name, outcomes[name])
    assert rows(app.database, like=before) == before


def test_nor_does_a_superuser_s_own_materialized_view(app):
    """The code of app's runs as the superuser who makes the view."""
    before = app.prepare(ALL)
    app.database.execute("CREATE MATERIALIZED VIEW public.own AS SELECT app.everything(1)")
    app.database.execute("DROP MATERIALIZED VIEW public.own")
    outcomes = app.outcomes()
    for name in outcomes.keys() - READS.keys():
        assert all(outcome[0] == "42501" and outcome[1].endswith("() within security-restricted operation") for outcome in outcomes[name]), name
    assert rows(app.database, like=before) == before


# --- Functions that only report ------------------------------------------------------------------------------------------------

A_VIEW = """
CREATE TABLE app.users (id text PRIMARY KEY);
INSERT INTO app.users VALUES ('alice'), ('bob');
CREATE MATERIALIZED VIEW app.{name} AS SELECT id, public.totp_enabled(id) AS mfa, (SELECT count(*) FROM public.totp_status(id)) AS secrets FROM app.users;
"""


@pytest.mark.parametrize("owner", ["app", "postgres"])
def test_a_materialized_view_of_who_has_mfa_refreshes_and_restores(cluster, owner):
    database = cluster.create_database()
    role = database.create_role("verify")
    database.execute(f"CREATE SCHEMA app AUTHORIZATION {role}; SET ROLE {role if owner == 'app' else 'postgres'}; {A_VIEW.format(name='m')}")
    query = "SELECT * FROM app.m ORDER BY id"
    assert database.execute(query) == [("alice", False, 0), ("bob", False, 0)]
    with closing(database.connect()) as conn:
        import_secret(conn, "alice", SECRET)
    database.execute("REFRESH MATERIALIZED VIEW app.m")
    assert database.execute(query) == [("alice", True, 1), ("bob", False, 0)]
    restored = cluster.create_database(extension=False)
    restored.psql(cluster.client("pg_dump", "-d", database.name))
    assert restored.execute(query) == [("alice", True, 1), ("bob", False, 0)]
    restored.drop()
    database.drop()
