"""Who is asked is the user of the moment, never the session: nobody exports, prunes, forgets, grants, judges or writes in another's name.

`app` may call every function of the extension, by the blanket GRANT that is often made, and owns a schema with a table.
It lays its code in the way of a superuser.
"""

from contextlib import closing
from typing import NamedTuple

import psycopg
import pytest
from population import rows
from server import Database, wait_until
from test_rights import FUNCTIONS, HELPERS, OURS
from test_upgrade import RELEASES
from totp import NO_CODE, NOON, SECRET, error_of, good, import_secret, recovery_codes, verify, wrong

OTHER_SECRET = "MJXWEIDQNBXW4ZJAONSWG4TFOQQDCMRT"
URI = f"otpauth://totp/a?secret={OTHER_SECRET}"
LOST = "0123456789abcdef"  # the fingerprint of a master key that is not loaded

# What only states goes on to work everywhere.
READS = {
    "totp_enabled": "public.totp_enabled('alice')",
    "totp_status": "public.totp_status('alice')",
    "totp_stats": "public.totp_stats()",
    "totp_keys": "public.totp_keys()",
    "totp_health": "public.totp_health()",
    "totp_qr_svg": f"public.totp_qr_svg('{URI}')",
    "totp_qr_png": f"public.totp_qr_png('{URI}')",
    "totp_qr_text": f"public.totp_qr_text('{URI}')",
    "totp_code_at": f"public.totp_code_at('{OTHER_SECRET}', '2030-01-01 12:00:00+00')",
}
# For the owner, or for superusers, whatever EXECUTE was granted.
OWNERS = {
    "totp_export": "public.totp_export()",
    "totp_prune_audit": "public.totp_prune_audit('1 year')",
    "totp_forget_unreadable": f"public.totp_forget_unreadable('{LOST}')",
    "totp_grant": "public.totp_grant('{app}', 'admin')",
}
# Of use to a rotation alone. The sealed values are what a reader of the tables has.
INTERNAL = {
    "reseal": "app.secrets AS s, totp.reseal(s.user_id, s.device, s.secret_id, s.algorithm, s.digits, s.period, s.sealed, s.key_id)",
    "reseal_recovery_codes": "app.recovery_codes AS r, totp.reseal_recovery_codes(r.user_id, r.set_id, r.count, r.sealed, r.key_id)",
}
JUDGES = {
    "totp_verify": f"public.totp_verify('alice', '{wrong()}')",
    "totp_check": f"public.totp_check('alice', '{wrong(1)}')",
    "totp_confirm": f"public.totp_confirm('alice', '{wrong(2)}', 'phone')",
    "totp_recover": f"public.totp_recover('alice', '{NO_CODE}')",
}
WRITES = {
    "totp_enroll": "public.totp_enroll('mallory')",
    "totp_import": f"public.totp_import('mallory', '{OTHER_SECRET}')",
    "totp_recovery_codes": "public.totp_recovery_codes('alice')",
    "totp_unlock": "public.totp_unlock('alice')",
    "totp_disable": "public.totp_disable('alice')",
    "totp_enable": "public.totp_enable('alice')",
    "totp_reset": "public.totp_reset('alice')",
    "totp_rename_user": "public.totp_rename_user('alice', 'eve')",
    "totp_remove": "public.totp_remove('eve')",
    "totp_rotate_key": "public.totp_rotate_key()",
    "rotation_begin": "totp.rotation_begin(1)",
    "rotation_step": "totp.rotation_step(NULL, 1)",
    "rotation_end": "totp.rotation_end()",
}
# A procedure that commits, which no function can call; it calls the three above.
PROCEDURES = {"totp_rotate_key_online"}

ALL = READS | OWNERS | INTERNAL | JUDGES | WRITES


# attempt() makes a call and keeps what comes of it in a table of app's; everything() makes all, and may stand in an index,
# since PostgreSQL believes that it is IMMUTABLE.
OF_APP = """
CREATE TABLE app.outcomes (name text, state text, answer text);
CREATE TABLE app.calls (n serial, name text, call text);
CREATE FUNCTION app.attempt(name text, call text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE answer text;
BEGIN
  EXECUTE 'SELECT pg_catalog.string_agg(q::text, '' '') FROM ' || call || ' AS q' INTO answer;
  INSERT INTO app.outcomes VALUES (name, '00000', answer);
EXCEPTION WHEN OTHERS THEN
  INSERT INTO app.outcomes VALUES (name, SQLSTATE, SQLERRM);
END $$;
CREATE FUNCTION app.everything(i integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  PERFORM app.attempt(c.name, c.call) FROM app.calls AS c ORDER BY c.n;
  RETURN i;
END $$;
CREATE FUNCTION app.as_app() RETURNS integer LANGUAGE sql SECURITY DEFINER AS 'SELECT app.everything(1)';
CREATE FUNCTION app.on_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM app.everything(1); RETURN NEW; END $$;
CREATE TABLE app.inserted (i integer);
CREATE TRIGGER t BEFORE INSERT ON app.inserted FOR EACH ROW EXECUTE FUNCTION app.on_insert();
CREATE VIEW app.looked_at AS SELECT app.everything(1);
CREATE TABLE app.t (i integer, note text);
INSERT INTO app.t VALUES (1, 'a');
CREATE INDEX t_i ON app.t (app.everything(i));
CREATE INDEX t_brin ON app.t USING brin (app.everything(i));
CREATE STATISTICS app.t_s ON (app.everything(i)) FROM app.t;
CREATE MATERIALIZED VIEW app.m AS SELECT app.everything(1) AS i;
CREATE UNIQUE INDEX ON app.m (i);
"""


class App(NamedTuple):
    """The database, the role that lies in wait there, and the functions that its version of the extension has."""

    database: Database
    role: str
    functions: set[str]

    def prepare(self, calls: dict[str, str]) -> dict:
        """A user, something to prune and to forget, and these calls in app's code. The rows of all tables of the extension."""
        self.database.empty()
        with closing(self.database.connect()) as conn:
            conn.execute("DELETE FROM totp.data_keys WHERE master_key = %s", [LOST])
            import_secret(conn, "alice", SECRET)
            import_secret(conn, "alice", OTHER_SECRET, confirmed=False, device="phone")
            recovery_codes(conn)
            assert verify(conn, "alice", good()) is True  # so that the floor is there
            conn.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES (%s, 'failed', '', '', '')", [NOON.replace(year=2020)])
            if "totp_forget_unreadable" in calls:  # no rotation goes by such a key
                conn.execute("INSERT INTO totp.data_keys VALUES (1000000, 'retiring', %s, '', now())", [LOST])
            for table in ("secrets", "recovery_codes"):
                conn.execute(f"DROP TABLE IF EXISTS app.{table}; CREATE TABLE app.{table} AS SELECT * FROM totp.{table}; GRANT SELECT ON app.{table} TO {self.role}")
            conn.execute("TRUNCATE app.outcomes, app.calls")
            for name, call in ((name, call) for name, call in calls.items() if name in self.functions):
                conn.execute("INSERT INTO app.calls (name, call) VALUES (%s, %s)", [name, call.replace("{app}", self.role)])
        return rows(self.database)

    def outcomes(self) -> dict[str, set[tuple[str, str]]]:
        """What came of each call, each time that it was made: SQLSTATE, and message or answer."""
        found: dict[str, set[tuple[str, str]]] = {}
        for name, *outcome in self.database.execute("SELECT name, state, answer FROM app.outcomes"):
            found.setdefault(name, set()).add(tuple(outcome))
        return found


def install(database: Database) -> App:
    """The role, its rights and its code."""
    app = App(database, database.create_role(), {name for [name] in database.execute(OURS)})
    database.execute(f"ALTER DATABASE {database.name} SET totp.clock = '{NOON.isoformat()}'")  # for autovacuum too
    database.execute(f"""
        GRANT USAGE ON SCHEMA totp TO {app.role};
        GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public, totp TO {app.role};
        CREATE SCHEMA app AUTHORIZATION {app.role};
        CREATE EXTENSION amcheck;""")
    database.execute(f"SET ROLE {app.role}; {OF_APP}")
    return app


@pytest.fixture(scope="module")
def app(cluster):
    database = cluster.create_database()
    yield install(database)
    database.drop()


@pytest.fixture(scope="module", params=["this version", *RELEASES])
def any_app(request, cluster):
    """The library of today under its own SQL, and under that of each release, until the database is updated."""
    database = cluster.create_database(extension=False)
    database.execute("CREATE EXTENSION pg_totp" + (f" VERSION '{request.param}'" if request.param in RELEASES else ""))
    yield install(database)
    database.drop()


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
    """In a security-restricted operation: what only states has answered, all else was refused, and nothing has changed."""
    outcomes = app.outcomes()
    assert outcomes.keys() == app.functions - PROCEDURES
    for name in READS.keys() & outcomes.keys():
        assert {state for state, _ in outcomes[name]} == {"00000"}, (name, outcomes[name])
    for name in outcomes.keys() - READS.keys() - {"totp_grant"}:
        assert {state for state, _ in outcomes[name]} == {"42501"}, (name, outcomes[name])
        assert all(text.endswith("() within security-restricted operation") for _, text in outcomes[name]), outcomes[name]
    assert outcomes["totp_grant"] == {("42501", "permission denied for function totp_grant")}
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


def test_app_s_own_indexes_and_materialized_views_do_no_more(app):
    """PostgreSQL restricts them for everyone who makes them."""
    before = app.prepare(ALL)
    for statement in ("CREATE INDEX ON app.t (app.everything(i))", "ANALYZE app.t", "REFRESH MATERIALIZED VIEW app.m"):
        with closing(app.database.connect(user=app.role)) as session:
            session.execute(statement)
    check_that_nothing_was_done(app, before)


def test_no_function_in_between_lifts_the_restriction(app):
    """SECURITY DEFINER, a SET clause and a subtransaction keep it, also where the function is a superuser's."""
    before = app.prepare({name: call for name, call in ALL.items() if name != "totp_grant"})
    app.database.execute(f"""
        CREATE FUNCTION public.of_postgres() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN PERFORM app.attempt(c.name, c.call) FROM app.calls AS c; EXCEPTION WHEN division_by_zero THEN NULL; END $$;
        CREATE FUNCTION app.through(i integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
        BEGIN PERFORM public.of_postgres(); RETURN i; END $$;
        CREATE MATERIALIZED VIEW app.through AS SELECT app.through(1) WITH NO DATA;
        ALTER MATERIALIZED VIEW app.through OWNER TO {app.role}""")
    app.database.execute("REFRESH MATERIALIZED VIEW app.through")
    outcomes = app.outcomes()
    for name in (OWNERS | INTERNAL | JUDGES | WRITES).keys() - {"totp_grant"}:
        [(state, text)] = outcomes[name]
        assert state == "42501" and text.endswith("() within security-restricted operation"), (name, outcomes[name])
    assert rows(app.database, like=before) == before


# --- What only states ------------------------------------------------------------------------------------------------

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


# --- Statements of app's, and app's code in those of a superuser -----------------------------------------------------


def as_itself(app):
    return app.database.connect(user=app.role), "SELECT app.everything(1)"


def set_role(app):
    session = app.database.connect()
    session.execute(f"SET ROLE {app.role}")
    return session, "SELECT app.everything(1)"


def set_session_authorization(app):
    session = app.database.connect()
    session.execute(f"SET SESSION AUTHORIZATION {app.role}")
    return session, "SELECT app.everything(1)"


def security_definer_function_of_app(app):
    return app.database.connect(), "SELECT app.as_app()"


def security_definer_function_of_app_in_a_view(app):
    app.database.execute(f"CREATE OR REPLACE VIEW app.of_app AS SELECT app.as_app(); ALTER VIEW app.of_app OWNER TO {app.role}")
    return app.database.connect(), "SELECT * FROM app.of_app"


AS_APP = [as_itself, set_role, set_session_authorization, security_definer_function_of_app, security_definer_function_of_app_in_a_view]


@pytest.mark.parametrize("way", AS_APP, ids=lambda way: way.__name__)
def test_execute_on_what_is_the_owner_s_opens_nothing(any_app, way):
    before = any_app.prepare(OWNERS | INTERNAL)
    session, query = way(any_app)
    with closing(session):
        session.execute(query)
    outcomes = any_app.outcomes()
    assert outcomes.keys() == (OWNERS | INTERNAL).keys() & any_app.functions
    for name, outcome in outcomes.items():
        [(state, text)] = outcome
        assert state == "42501" and text.startswith("permission denied"), (name, outcome)
    assert rows(any_app.database, like=before) == before


@pytest.mark.parametrize("way", AS_APP, ids=lambda way: way.__name__)
def test_what_app_may_call_it_may_call_in_every_statement(app, way):
    """The other side: else the tests above could not fail. The trail names the session user, who made the statement."""
    app.prepare(READS | JUDGES | WRITES)
    session, query = way(app)
    with closing(session):
        session.execute(query)
    outcomes = app.outcomes()
    for name in READS | JUDGES | WRITES:
        assert {state for state, _ in outcomes[name]} == {"00000"}, (name, outcomes[name])
    user = app.role if way in (as_itself, set_session_authorization) else "postgres"
    assert app.database.execute("SELECT DISTINCT db_user FROM totp.audit_log WHERE event = 'failed' AND user_id IS NOT NULL") == [(user,)]


# --- What is a superuser's own doing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["INSERT INTO app.inserted VALUES (1)", "SELECT * FROM app.looked_at", "SELECT app.everything(1)"])
def test_a_superuser_who_runs_another_s_code_runs_it_as_a_superuser(app, statement):
    """PostgreSQL's own rule for triggers, functions in views, and functions that are not SECURITY DEFINER: such code could make app a superuser."""
    app.prepare(OWNERS)
    app.database.execute(statement)
    outcomes = app.outcomes()
    assert all("00000" in {state for state, _ in outcomes[name]} for name in OWNERS), outcomes


def test_in_a_superuser_s_own_materialized_view_only_totp_grant_runs(app):
    """The code of app's runs as the superuser who makes the view: it could GRANT by itself. The rest is refused there too."""
    before = app.prepare(ALL)
    app.database.execute("CREATE MATERIALIZED VIEW public.own AS SELECT app.everything(1)")
    app.database.execute("DROP MATERIALIZED VIEW public.own")
    outcomes = app.outcomes()
    assert {state for state, _ in outcomes["totp_grant"]} == {"00000"}
    for name in outcomes.keys() - READS.keys() - {"totp_grant"}:
        assert all(outcome[0] == "42501" and outcome[1].endswith("() within security-restricted operation") for outcome in outcomes[name]), name
    assert rows(app.database, like=before) == before


def test_a_security_definer_function_of_a_superuser_gives_what_it_holds(app):
    app.prepare({})
    app.database.execute(f"""
        CREATE OR REPLACE FUNCTION public.lent() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS 'SELECT otpauth_uri FROM public.totp_export()';
        GRANT EXECUTE ON FUNCTION public.lent() TO {app.role}""")
    with closing(app.database.connect(user=app.role)) as session:
        assert len(session.execute("SELECT public.lent()").fetchall()) == 2


# --- Who may ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_dba(cluster):
    """A database whose extension belongs to a role that is no superuser any more."""
    database = cluster.create_database(extension=False)
    dba = database.create_role()
    database.execute(f"ALTER ROLE {dba} SUPERUSER")
    with closing(database.connect(user=dba)) as session:
        session.execute("CREATE EXTENSION pg_totp")
    database.execute(f"ALTER ROLE {dba} NOSUPERUSER")
    yield database, dba
    database.drop()


def add_old_row_and_lost_key(database) -> None:
    database.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES ('2020-01-01', 'failed', '', '', '')")
    database.execute("INSERT INTO totp.data_keys VALUES (1000000, 'retiring', %s, '', now()) ON CONFLICT DO NOTHING", [LOST])


OWNERS_CALLS = ("SELECT totp_prune_audit('1 year')", f"SELECT * FROM totp_forget_unreadable('{LOST}')")


@pytest.mark.parametrize("who", ["superuser", "owner", "member"])
def test_the_owner_its_members_and_superusers_prune_and_forget(of_dba, who):
    database, dba = of_dba
    member = database.create_role()
    database.execute(f"GRANT {dba} TO {member}")
    add_old_row_and_lost_key(database)
    with closing(database.connect(user={"superuser": "postgres", "owner": dba, "member": member}[who])) as session:
        assert [session.execute(call).fetchall() for call in OWNERS_CALLS] == [[(1,)], []]
        if who == "superuser":
            session.execute("SELECT totp_export()")
        else:
            assert error_of(session, "SELECT totp_export()").sqlstate == "42501"
    assert database.execute("SELECT FROM totp.data_keys WHERE master_key = %s", [LOST]) == []


def test_a_member_that_does_not_inherit_must_set_the_role(of_dba):
    database, dba = of_dba
    member = database.create_role()
    database.execute(f"ALTER ROLE {member} NOINHERIT; GRANT {dba} TO {member}; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {member}")
    add_old_row_and_lost_key(database)
    with closing(database.connect(user=member)) as session:
        for call in OWNERS_CALLS:
            error = error_of(session, call)
            assert error.sqlstate == "42501" and "the owner of the extension" in error.diag.message_hint
        session.execute(f"SET ROLE {dba}")
        assert [session.execute(call).fetchall() for call in OWNERS_CALLS] == [[(1,)], []]


# --- What only a rotation may ----------------------------------------------------------------------------------------

RESEAL = "SELECT totp.reseal(user_id, device, secret_id, algorithm, digits, period, sealed, {key}) FROM totp.secrets"


def test_nothing_is_resealed_but_by_a_rotation(db):
    """The owner neither, in whatever transaction, before a rotation and after one, also one that failed."""
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)

        def refused():
            assert error_of(conn, RESEAL.format(key="key_id")).sqlstate == "42501"

        refused()
        conn.execute("SELECT totp_rotate_key()")
        refused()
        with conn.transaction():
            conn.execute("SELECT totp_rotate_key()")
            conn.execute("SAVEPOINT before")
            refused()
            conn.execute("ROLLBACK TO before")
        conn.execute("CREATE FUNCTION pg_temp.fails() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE division_by_zero; END'")
        conn.execute("CREATE TRIGGER t BEFORE UPDATE ON totp.secrets FOR EACH ROW EXECUTE FUNCTION pg_temp.fails()")
        for rotate in ("SELECT totp_rotate_key()", "CALL totp_rotate_key_online()"):
            with pytest.raises(psycopg.errors.DivisionByZero):
                conn.execute(rotate)
            refused()


def test_what_is_planted_into_a_rotation_gains_nothing(db):
    """By who may make a trigger there, or an index. It gets nothing under another key, and under the new one what the table gets."""
    db.execute("""
        CREATE TABLE gained (key_id integer, outcome text);
        CREATE FUNCTION gain(s totp.secrets, key integer) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
          RETURN totp.reseal(s.user_id, s.device, s.secret_id, s.algorithm, s.digits, s.period, s.sealed, key);
        EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE;
        END $$;
        CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO public.gained VALUES (OLD.key_id, public.gain(OLD, OLD.key_id)), (NEW.key_id, public.gain(OLD, NEW.key_id));
          RETURN NEW;
        END $$;
        CREATE TRIGGER t BEFORE UPDATE ON totp.secrets FOR EACH ROW EXECUTE FUNCTION planted()""")
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        conn.execute("SELECT totp_rotate_key()")
        [(old, refused), (new, sealed)] = conn.execute("SELECT key_id, outcome FROM gained ORDER BY key_id").fetchall()
        assert (old, refused) == (new - 1, "42501")
        assert sealed.startswith(f"\\x01{new:08x}")
