"""Rights are those of the current user, never of the session: nobody exports, prunes, forgets, grants, judges or writes as another."""

from contextlib import closing

import pytest
from code_of_another_role import INTERNAL, JUDGES, LOST, OWNERS, READS, WRITES, any_app, app  # noqa: F401 - fixtures
from population import rows
from totp import error_of

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
def test_execute_on_what_is_for_the_owner_opens_nothing(any_app, way):
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
    """The control: otherwise the tests above could not fail. The audit log names the session user, who made the statement."""
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
    """A database whose extension belongs to a role that is not a superuser any more."""
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
    database.execute("UPDATE totp.floor SET timeline = -1")
    database.execute("INSERT INTO totp.data_keys VALUES (1000000, 'retiring', %s, '', now()) ON CONFLICT DO NOTHING", [LOST])


OWNERS_CALLS = ("SELECT totp_prune_audit('1 year')", "SELECT totp_acknowledge_restore()", f"SELECT * FROM totp_forget_unreadable('{LOST}')")


@pytest.mark.parametrize("who", ["superuser", "owner", "member"])
def test_the_owner_its_members_and_superusers_prune_and_forget(of_dba, who):
    database, dba = of_dba
    member = database.create_role()
    database.execute(f"GRANT {dba} TO {member}")
    add_old_row_and_lost_key(database)
    with closing(database.connect(user={"superuser": "postgres", "owner": dba, "member": member}[who])) as session:
        assert [session.execute(call).fetchall() for call in OWNERS_CALLS] == [[(1,)], [(True,)], []]
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
        assert [session.execute(call).fetchall() for call in OWNERS_CALLS] == [[(1,)], [(True,)], []]
