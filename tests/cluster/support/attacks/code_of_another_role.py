"""A role whose code a superuser runs: its calls of every function, where it puts them, and what came of them.

`app` may call every function of the extension, by the blanket GRANT that is often made, and owns a schema with a table.
It puts its code where a superuser will run it.
"""

from contextlib import closing
from typing import NamedTuple

import pytest
from capabilities import OURS
from population import RELEASE_PARAMETERS, RELEASES, codes_of_the_desk, install as install_release, rows
from server import Database
from totp import NO_CODE, NOON, SECRET, good, import_secret, verify, wrong

OTHER_SECRET = "MJXWEIDQNBXW4ZJAONSWG4TFOQQDCMRT"
URI = f"otpauth://totp/a?secret={OTHER_SECRET}"
LOST = "0123456789abcdef"  # the fingerprint of a master key that is not loaded

# These only report, and work everywhere.
READS = {
    "totp_enabled": "public.totp_enabled('alice')",
    "totp_status": "public.totp_status('alice')",
    "totp_stats": "public.totp_stats()",
    "totp_metrics": "public.totp_metrics()",
    "totp_audit_verify": "public.totp_audit_verify()",
    "totp_keys": "public.totp_keys()",
    "totp_health": "public.totp_health()",
    "totp_list": "public.totp_list()",
    "routines_of": "totp.routines_of('admin')",
    "totp_qr_svg": f"public.totp_qr_svg('{URI}')",
    "totp_qr_png": f"public.totp_qr_png('{URI}')",
    "totp_qr_text": f"public.totp_qr_text('{URI}')",
    "totp_code_at": f"public.totp_code_at('{OTHER_SECRET}', '2030-01-01 12:00:00+00')",
    "totp_read_tokens": f"public.totp_read_tokens('1,{'31' * 20},totp', 'csv')",
}
# For the owner or for superusers, even if others have EXECUTE.
OWNERS = {
    "totp_export": "public.totp_export()",
    "totp_prune_audit": "public.totp_prune_audit('1 year')",
    "totp_acknowledge_restore": "public.totp_acknowledge_restore()",
    "totp_forget_unreadable": f"public.totp_forget_unreadable('{LOST}')",
    "totp_grant": "public.totp_grant('{app}', 'admin')",
    "seal_step": "totp.seal_step()",
    "seal_line": "totp.seal_line(1)",
    "totp_revoke": "public.totp_revoke('{app}', 'audit')",
}
# Only a rotation can use these, and only the owner the first. The sealed values are what a reader of the tables has.
INTERNAL = {
    "record_right": "totp.record_right(true, '{app}', 'admin')",
    "reseal": "app.secrets AS s, totp.reseal(s.user_id, s.device, s.secret_id, s.algorithm, s.digits, s.period, s.sealed, s.key_id)",
    "reseal_recovery_codes": "app.recovery_codes AS r, totp.reseal_recovery_codes(r.user_id, r.set_id, r.count, r.sealed, r.key_id)",
}
JUDGES = {
    "totp_verify": f"public.totp_verify('alice', '{wrong()}')",
    "totp_check": f"public.totp_check('alice', '{wrong(1)}')",
    "totp_confirm": f"public.totp_confirm('alice', '{wrong(2)}', 'phone')",
    "totp_check_confirm": f"public.totp_check_confirm('alice', '{wrong(3)}', 'phone')",
    "totp_resync": f"public.totp_resync('alice', '{wrong(4)}', '{wrong(5)}')",
    "totp_recover": f"public.totp_recover('alice', '{NO_CODE}')",
    "totp_check_recover": f"public.totp_check_recover('alice', '{NO_CODE}')",
}
WRITES = {
    "totp_enroll": "public.totp_enroll('mallory')",
    "totp_rename_device": "public.totp_rename_device('mallory', 'default', 'new')",
    "totp_unenroll": "public.totp_unenroll('mallory', NULL, 'new')",
    "totp_import": f"public.totp_import('mallory', '{OTHER_SECRET}')",
    "totp_recovery_codes": f"public.totp_recovery_codes('alice', proof => '{good(1)}')",
    "totp_reset_recovery_codes": "public.totp_reset_recovery_codes('alice')",
    "totp_move_device": "public.totp_move_device('alice', 'phone', 'trudy', 'phone')",
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
# Procedures that commit, which no function can call; they call the three above, and the two of the owner.
PROCEDURES = {"totp_rotate_key_online", "totp_audit_seal"}

# Calls in the SQL of a release.
OF_RELEASE = {"totp_recovery_codes": "public.totp_recovery_codes('alice')"}

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
    """The database, the role that waits there, and the functions that its version of the extension has."""

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
            codes_of_the_desk(conn)
            assert verify(conn, "alice", good()) is True  # so that the floor is there
            conn.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES (%s, 'failed', '', '', '')", [NOON.replace(year=2020)])
            if "totp_forget_unreadable" in calls:  # a rotation fails on such a key
                conn.execute("INSERT INTO totp.data_keys VALUES (1000000, 'retiring', %s, '', now())", [LOST])
            for table in ("secrets", "recovery_codes"):
                conn.execute(f"DROP TABLE IF EXISTS app.{table}; CREATE TABLE app.{table} AS SELECT * FROM totp.{table}; GRANT SELECT ON app.{table} TO {self.role}")
            conn.execute("TRUNCATE app.outcomes, app.calls")
            if "totp_check_confirm" not in self.functions:
                calls = calls | OF_RELEASE if "totp_recovery_codes" in calls else calls
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


@pytest.fixture(scope="module", params=["this version", *RELEASE_PARAMETERS])
def any_app(request, cluster):
    """The library of today under its own SQL, and under that of each release, until the database is updated."""
    database = cluster.create_database(extension=False)
    if request.param in RELEASES:
        install_release(database, request.param)
    else:
        database.execute("CREATE EXTENSION pg_totp")
    yield install(database)
    database.drop()
