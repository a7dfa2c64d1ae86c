"""Preloading the library is not needed and does no harm, in every setting that names it, for every role and with any options."""

from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from server import PROJECT, Cluster, wait_until
from setting_values import CONFIGURED, FORGED
from totp import NOON, SECRET, active_user, code_at, error_of, fix_clock, force_parallel, import_secret, verify

NOWHERE, SHARED, SESSION, LOCAL = None, "shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"
PLACES = [SHARED, SESSION, LOCAL]
RELOADED = {"key_file", "max_attempts", "lockout", "lockout_max", "hard_limit"}  # no session sets them
configured = CONFIGURED | {"clock": "", "actor": ""}
IN_WORKER = f"SELECT totp_code_at('{SECRET}', at) FROM times"
OF_FILE = {f"totp__{name}": value for name, value in CONFIGURED.items()}


@pytest.fixture(scope="module", autouse=True)
def plugins():
    """Of local_preload_libraries PostgreSQL loads what is in this folder: a link, or it would be a second library."""
    folder = Path(f"{PROJECT['TREE']}{_library_folder()}") / "plugins"
    folder.mkdir(exist_ok=True)
    link = folder / "pg_totp.so"
    if not link.is_symlink():
        link.symlink_to("../pg_totp.so")


def _library_folder() -> str:
    return str(Path(PROJECT["PG_CONFIG"]).parents[1] / "lib")


@pytest.fixture(scope="module")
def preloaded(make_module_cluster):
    """A function that returns the server that preloads the library there. Its file has settings other than the defaults."""
    made: dict[str | None, Cluster] = {}

    def give(place: str | None) -> Cluster:
        if place not in made:
            made[place] = make_module_cluster(**({place: "pg_totp"} if place else {}), **OF_FILE)
        return made[place]

    return give


@pytest.fixture(params=PLACES)
def server(request, preloaded):
    return preloaded(request.param)


@pytest.fixture
def db(server):
    database = server.create_database()
    yield database
    database.drop()


def settings(session) -> dict[str, str]:
    """All but the key file, which is not shown to everyone."""
    return {name: session.execute("SELECT current_setting(%s)", [f"totp.{name}"]).fetchone()[0] for name in configured}


# --- It works --------------------------------------------------------------------------------------------------------


def test_it_is_loaded_before_the_first_call(db):
    """Otherwise the tests below would show nothing: the settings have a type, and a value in range."""
    with closing(db.connect()) as session:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="outside the valid range"):
            session.execute("SET totp.window_steps = 3")
        assert settings(session) == configured


def test_users_sign_in(db):
    role = db.create_role("enroll")
    with closing(db.connect()) as owner:
        fix_clock(owner, NOON)
        import_secret(owner, "alice", SECRET)
        assert verify(owner, "alice", code_at(SECRET, NOON)) is True
        assert verify(owner, "alice", code_at(SECRET, NOON)) is False
        owner.execute("SELECT totp_rotate_key()")
        owner.execute("CALL totp_rotate_key_online()")
    with closing(db.connect(user=role)) as session:
        assert session.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
        assert "Good%20Corp" in session.execute("SELECT otpauth_uri FROM totp_enroll('bob')").fetchone()[0]
        assert session.execute("SELECT reason FROM totp_check('bob', '1')").fetchone() == ("malformed",)
    db.execute("DROP EXTENSION pg_totp; CREATE EXTENSION pg_totp")
    assert db.value("SELECT totp_enabled('alice')") is False


def test_it_is_preloaded_in_all_three_ways_at_once(make_cluster):
    server = make_cluster(**{place: "pg_totp" for place in PLACES})
    db = server.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        active_user(conn)


# --- Startup options -------------------------------------------------------------------------------------------------


def startup(db, user: str, name: str, value: str):
    """The settings in the first call of a session with a startup option; or the SQLSTATE that ends the connection or the call."""
    option = value.replace(" ", "\\ ")
    try:
        with closing(db.connect(user=user, options=f"-c totp.{name}={option}")) as session:
            session.execute("SELECT totp_enabled('alice')")
            return settings(session)
    except psycopg.OperationalError as error:
        # libpq gives no SQLSTATE of a connection that was refused.
        assert "FATAL:  " in str(error), error
        return next(state for text, state in REFUSALS.items() if text in str(error))
    except psycopg.Error as error:
        return error.sqlstate


REFUSALS = {
    "permission denied to set parameter": "42501",
    "settings of pg_totp cannot be given as startup options": "42501",
    "cannot be changed now": "55P02",
    "invalid configuration parameter name": "42602",
    "invalid value for parameter": "22023",
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("place", [NOWHERE, *PLACES], ids=str)
def test_a_startup_option_neither_sets_nor_loses_a_setting(preloaded, place, name):
    """A role without the right sets nothing, a superuser what a session may set. The configured values stay in every session."""
    server = preloaded(place)
    db = server.create_database()
    role = db.create_role("enroll")
    refused = "55P02" if place == SHARED and name in RELOADED else "42501"
    shown = {"enrollment_ttl": "30d"}.get(name, FORGED[name])
    assert startup(db, role, name, FORGED[name]) == refused
    assert startup(db, "postgres", name, FORGED[name]) == (refused if name in RELOADED else configured | {name: shown})
    for user, spelled in ((role, "actor"), (role, "ACTOR"), ("postgres", "actor")):
        assert startup(db, user, spelled, "support:42") == configured | {"actor": "support:42"}
    db.drop()


# --- Processes of every kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "-c totp.actor=x", "-c totp.window_steps=2"])
@pytest.mark.parametrize("place", [NOWHERE, *PLACES], ids=str)
def test_parallel_workers_have_the_settings_of_their_leader(preloaded, place, options):
    """They take over the settings of their leader, whichever of the two loads the library first."""
    db = preloaded(place).create_database()
    db.execute(f"CREATE TABLE times AS SELECT '{NOON.isoformat()}'::timestamptz AS at")
    for load in ("SELECT 1", "LOAD 'pg_totp'"):
        with closing(db.connect(options=options)) as session:
            session.execute(load)
            force_parallel(session)
            plan = session.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {IN_WORKER}").fetchone()[0][0]["Plan"]
            assert plan["Node Type"] == "Gather" and plan["Workers Launched"] == 1
            assert session.execute(IN_WORKER).fetchone() == (code_at(SECRET, NOON),)
            assert session.execute("SHOW totp.window_steps").fetchone() == ("2" if "window" in options else "0",)
    db.drop()


def test_autovacuum_workers_work(make_cluster):
    server = make_cluster(**{place: "pg_totp" for place in PLACES}, autovacuum="on", autovacuum_naptime="1s")
    db = server.create_database()
    db.execute(f"CREATE TABLE t (at timestamptz); CREATE INDEX ON t (totp_code_at('{SECRET}', at)); INSERT INTO t SELECT '2030-01-01' FROM generate_series(1, 100)")
    analyzed = "SELECT count(*) FROM pg_stat_all_tables WHERE relid = 't'::regclass AND autoanalyze_count > 0"
    wait_until(lambda: db.value(analyzed) == 1, "autovacuum")
    assert "ERROR" not in server.log_text()


def test_standbys_and_replication_connections_work(make_cluster, make_standby):
    """A physical walsender is connected to no database, and reads no catalog of one."""
    primary = make_cluster(**{place: "pg_totp" for place in PLACES})
    db = primary.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        active_user(conn)
    for connection in ("dbname=postgres replication=true", f"dbname={db.name} replication=database"):
        for options in ("", " options='-c totp.actor=x'", " options='-c totp.window_steps=2'"):
            assert primary.client("psql", "-X", "-A", "-t", "-d", connection + options, stdin="IDENTIFY_SYSTEM").strip()
    standby = make_standby(primary)
    standby.wait_for_replay(primary)
    with closing(standby.connect(db.name)) as conn:
        assert conn.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
        assert error_of(conn, "SELECT totp_verify('alice', '123456')").sqlstate == "25006"
    standby.promote()
    with closing(standby.connect(db.name)) as conn:
        assert conn.execute("SELECT totp_verify('alice', '123456')").fetchone() == (False,)


def test_logical_replication_workers_work(make_cluster):
    """Background workers that connect to a database, as a launcher and a worker of logical replication."""
    server = make_cluster(**{place: "pg_totp" for place in PLACES}, wal_level="logical")
    source, target = server.create_database(), server.create_database()
    for db in (source, target):
        db.execute("CREATE TABLE t (i int PRIMARY KEY, enabled boolean)")
    target.execute("CREATE FUNCTION ask() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.enabled := public.totp_enabled('alice'); RETURN NEW; END $$;"
                   " CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION ask(); ALTER TABLE t ENABLE ALWAYS TRIGGER t")
    source.execute("CREATE PUBLICATION p FOR TABLE t")
    source.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    target.execute(f"CREATE SUBSCRIPTION s CONNECTION 'host={server.folder} dbname={source.name} user=postgres' PUBLICATION p WITH (create_slot = false, slot_name = 's')")
    source.execute("INSERT INTO t VALUES (1)")
    wait_until(lambda: target.execute("SELECT enabled FROM t WHERE i = 1") == [(False,)], "the row")


def test_a_dump_restores(server):
    db = server.create_database()
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
    restored = server.create_database(extension=False)
    restored.psql(server.client("pg_dump", "-d", db.name))
    assert restored.value("SELECT totp_enabled('alice')") is True
    for database in (restored, db):
        database.drop()


def test_single_user_mode_works(make_cluster):
    server = make_cluster(**{place: "pg_totp" for place in PLACES})
    db = server.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        active_user(conn)
    server.stop()
    shown = server.run("postgres", "--single", "-D", server.data, db.name,
                       stdin="SELECT totp_enabled('alice') AS mfa, totp_verify('alice', '000000') AS signed_in\n")
    assert 'mfa = "t"' in shown and 'signed_in = "f"' in shown


# --- What the configuration file says --------------------------------------------------------------------------------


def test_a_bad_value_in_the_file_stops_no_server(make_cluster):
    """As without preloading, but the server reports it at the start, and a reload keeps the old values."""
    server = make_cluster(shared_preload_libraries="pg_totp", totp__window_steps="9", totp__widow_steps="1", totp__lockout="never", totp__max_attempts="3")
    log = server.log_text()
    assert '9 is outside the valid range for parameter "totp.window_steps" (0 .. 2)' in log
    assert 'invalid value for parameter "totp.lockout": "never"' in log
    assert 'invalid configuration parameter name "totp.widow_steps", removing it' in log
    db = server.create_database()
    query = "SELECT current_setting('totp.window_steps'), current_setting('totp.lockout'), current_setting('totp.max_attempts')"
    assert db.execute(query) == [("1", "30s", "3")]
    with closing(db.connect()) as session:
        loaded = "SELECT pg_conf_load_time()"
        before = session.execute(loaded).fetchone()
        server.configure(totp__window_steps="2", totp__lockout="1min", totp__max_attempts="101")
        server.reload()
        wait_until(lambda: session.execute(loaded).fetchone() != before, "the reload")
    assert "contains errors; unaffected changes were applied" in server.log_text()
    assert db.execute(query) == [("2", "1min", "3")]
    server.restart()
    assert db.execute(query) == [("2", "1min", "5")]


def test_without_a_preload_the_same_is_said_in_each_session(make_cluster):
    server = make_cluster(totp__window_steps="9", totp__widow_steps="1", totp__max_attempts="3")
    assert "_steps" not in server.log_text()
    db = server.create_database()
    notices = []
    with closing(db.connect()) as session:
        session.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        session.execute("SELECT totp_enabled('alice')")
        assert session.execute("SELECT current_setting('totp.window_steps'), current_setting('totp.max_attempts')").fetchone() == ("1", "3")
    assert any("totp.window_steps" in notice for notice in notices) and any("totp.widow_steps" in notice for notice in notices)
