"""Settings: what a role without the right sets before the library is loaded never takes effect, however it is set."""

from contextlib import closing
from datetime import UTC, datetime

import psycopg
import pytest
from setting_values import CONFIGURED, DEFAULTS, FORGED
from totp import NOON, code_at, enroll, error_of, verify



def by_set(db, role):
    session = db.connect(user=role)
    for name, value in FORGED.items():
        session.execute(f"SET totp.{name} = '{value}'")
    return session


def by_set_config(db, role):
    session = db.connect(user=role)
    for name, value in FORGED.items():
        session.execute("SELECT set_config(%s, %s, false)", [f"totp.{name}", value])
    return session


def by_set_local(db, role):
    session = db.connect(user=role)
    session.execute("BEGIN")
    for name, value in FORGED.items():
        session.execute(f"SET LOCAL totp.{name} = '{value}'")
    return session


def by_startup_options(db, role):
    return db.connect(user=role, options=" ".join(f"-c totp.{name}={value.replace(' ', chr(92) + ' ')}" for name, value in FORGED.items()))


def by_alter_role(db, role, where=""):
    """PostgreSQL 15 refuses this itself. If it did not, the next session would have the setting."""
    with closing(db.connect(user=role)) as session:
        for name, value in FORGED.items():
            try:
                session.execute(f"ALTER ROLE {role} {where} SET totp.{name} = '{value}'")
            except psycopg.errors.InsufficientPrivilege:
                pass
    return db.connect(user=role)


def by_alter_role_in_database(db, role):
    return by_alter_role(db, role, f"IN DATABASE {db.name}")


def by_function(db, role):
    """A function with SET clauses, around the first call of the session."""
    session = db.connect(user=role)
    clauses = " ".join(f"SET totp.{name} = '{value}'" for name, value in FORGED.items())
    try:
        session.execute(f"CREATE FUNCTION pg_temp.inside() RETURNS bool LANGUAGE plpgsql {clauses} AS $$ BEGIN RETURN totp_enabled('x'); END $$")
        session.execute("SELECT pg_temp.inside()")
    except psycopg.errors.InsufficientPrivilege:
        pass
    return session


def by_set_role(db, role):
    """A login role that sets and then becomes the role with the right to call."""
    other = db.create_role()
    db.execute(f"GRANT {role} TO {other}")
    session = db.connect(user=other)
    for name, value in FORGED.items():
        session.execute(f"SET SESSION totp.{name} = '{value}'")
    session.execute(f"SET ROLE {role}")
    return session


WAYS = [by_set, by_set_config, by_set_local, by_alter_role, by_alter_role_in_database, by_set_role, by_function]


@pytest.fixture
def role(db):
    return db.create_role("enroll")


def now(conn) -> int:
    return conn.execute("SELECT extract(epoch FROM clock_timestamp())::bigint").fetchone()[0]


def codes(secret, unix_time, steps, period=30) -> set[str]:
    return {code_at(secret, unix_time + period * step, period=period) for step in steps}


def enroll_with(conn, fits, **parameters) -> str:
    """Enrolls alice again until her secret fits."""
    while not fits(secret := enroll(conn, "alice", **parameters)):
        pass
    return secret


def test_startup_options_end_the_session_s_use(db, role):
    """PostgreSQL would drop them and, with them, what the administrator configured: so the library refuses to load."""
    with closing(by_startup_options(db, role)) as session:
        for _ in range(2):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="startup options"):
                session.execute("SELECT totp_verify('alice', '000000')")
    with closing(db.connect(user=role, options="-c totp.actor=support:42")) as session:
        assert session.execute("SELECT totp_enabled('alice'), current_setting('totp.actor')").fetchone() == (False, "support:42")
    with closing(db.connect(options="-c totp.window_steps=2")) as session:
        assert session.execute("SELECT totp_enabled('alice'), current_setting('totp.window_steps')").fetchone() == (False, "2")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_placeholders_of_a_role_without_the_right_are_dropped(db, role, way):
    with closing(way(db, role)) as session:
        session.execute("SELECT totp_enabled('alice')")  # loads the library
        for name, value in DEFAULTS.items():
            assert session.execute("SELECT current_setting(%s)", [f"totp.{name}"]).fetchone() == (value,), name
        assert session.execute("SELECT count(*) FROM pg_settings WHERE name LIKE 'totp.%%' AND setting IS DISTINCT FROM reset_val AND name <> 'totp.key_file'", []).fetchone() == (0,)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_placeholders_change_no_answer(db, role, way):
    """The very first call loads the library. It too must use the true settings."""
    with closing(db.connect()) as owner:
        # The codes of the forged time are no codes of the true time, nor of half an hour after it.
        begun, near_noon = now(owner), range(-2, 3)
        secret = enroll_with(owner, lambda s: len(codes(s, NOON.timestamp(), near_noon) - codes(s, begun, range(-2, 60))) == 5)
        assert verify(owner, "alice", code_at(secret, now(owner))) is True
    forged, *more = sorted(codes(secret, NOON.timestamp(), near_noon))
    with closing(way(db, role)) as session:
        assert session.execute("SELECT reason, attempts_left FROM totp_check('alice', %s)", [forged]).fetchone() == ("wrong", 4)
    with closing(way(db, role)) as session:
        secret, uri = session.execute("SELECT * FROM totp_enroll('bob')").fetchone()
        assert "Evil" not in uri
        if session.info.transaction_status.name == "INTRANS":
            session.execute("COMMIT")
    created, expires = db.execute("SELECT created_at, expires_at FROM totp.secrets WHERE user_id = 'bob'")[0]
    assert abs((created - datetime.now(UTC)).total_seconds()) < 3600 and (expires - created).total_seconds() == 3600
    # Five wrong codes lock, and for 30 seconds, whatever was forged.
    with closing(way(db, role)) as session:
        for code in more:
            session.execute("SELECT totp_verify('alice', %s)", [code])
        reason, left, retry_at, at = session.execute("SELECT reason, attempts_left, retry_at, clock_timestamp() FROM totp_check('alice', '000000')").fetchone()
        assert (reason, left) == ("locked", 0)
        assert (retry_at - at).total_seconds() <= 30
    [(length,)] = db.execute("SELECT extract(epoch FROM locked_until - last_failed_at)::float FROM totp.attempts WHERE user_id = 'alice'")
    assert length == 30


@pytest.mark.parametrize("way", WAYS[:1] + WAYS[3:4], ids=lambda way: way.__name__)
def test_a_forged_window_accepts_no_older_code(db, role, way):
    with closing(db.connect()) as owner:
        begun = now(owner)
        secret = enroll_with(owner, lambda s: not codes(s, begun, [-2], 120) & codes(s, begun, range(-1, 15), 120), period=120)
    [old] = codes(secret, begun, [-2], 120)
    with closing(way(db, role)) as session:
        # Two steps old when it is given, or older by then; never younger.
        assert session.execute("SELECT totp_verify('alice', %s)", [old]).fetchone() == (False,)


@pytest.fixture(scope="module")
def configured(make_module_cluster):
    """A server whose configuration file has another value for every setting than the default."""
    return make_module_cluster(**{f"totp__{name}": value for name, value in CONFIGURED.items()})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_placeholders_do_not_mask_what_the_administrator_configured(configured, way):
    """A dropped value must not leave the default: the file's value counts, in the very first call of the session too."""
    db = configured.create_database()
    role = db.create_role("enroll")
    try:
        with closing(way(db, role)) as session:
            _, uri = session.execute("SELECT * FROM totp_enroll('alice')").fetchone()
            assert "Good%20Corp" in uri
            for name, value in CONFIGURED.items():
                assert session.execute("SELECT current_setting(%s)", [f"totp.{name}"]).fetchone() == (value,), name
        with closing(db.connect()) as owner:
            owner.execute("LOAD 'pg_totp'")
            assert owner.execute("SHOW totp.key_file").fetchone() == (str(configured.key_file),)
    finally:
        db.drop()


def test_placeholders_of_a_superuser_do_take_effect(db):
    """The control: otherwise the tests above could not fail."""
    with closing(db.connect()) as session:
        session.execute("SET totp.clock = '2030-01-01 12:00:00+00'")
        session.execute("SET totp.window_steps = '2'")
        secret = session.execute("SELECT secret FROM totp_enroll('alice')").fetchone()[0]
        assert verify(session, "alice", code_at(secret, NOON.timestamp() - 60)) is True


@pytest.mark.parametrize("name", FORGED)
def test_once_loaded_the_role_may_not_set_them(db, role, name):
    reload_only = name in ("key_file", "max_attempts", "lockout", "lockout_max", "hard_limit")
    with closing(db.connect(user=role)) as session:
        session.execute("SELECT totp_enabled('alice')")
        for query in (f"SET totp.{name} = '{FORGED[name]}'", f"SET LOCAL totp.{name} = '{FORGED[name]}'", f"SELECT set_config('totp.{name}', '{FORGED[name]}', false)",
                      f"ALTER ROLE {role} SET totp.{name} = '{FORGED[name]}'", f"ALTER SYSTEM SET totp.{name} = '{FORGED[name]}'"):
            assert error_of(session, query).sqlstate == ("55P02" if reload_only and not query.startswith("ALTER SYSTEM") else "42501"), query
    with closing(db.connect()) as owner:
        owner.execute("LOAD 'pg_totp'")
        if reload_only:
            assert error_of(owner, f"SET totp.{name} = '{FORGED[name]}'").sqlstate == "55P02"
        else:
            owner.execute(f"SET totp.{name} = '{FORGED[name]}'")


def test_the_actor_is_for_everyone(db, role):
    with closing(db.connect(user=role)) as session:
        session.execute("SET totp.actor = 'operator 7'")
        session.execute("SELECT totp_enroll('alice')")
        session.execute("SET totp.actor = 'Zoë; \"quote\"'")
        session.execute("SELECT totp_enroll('alice')")
        session.execute("RESET totp.actor")
        session.execute("SELECT totp_enroll('alice')")
    assert db.execute("SELECT actor, db_user::text FROM totp.audit_log WHERE event = 'enrolled' ORDER BY id") == [
        ("operator 7", role), ('Zoë; "quote"', role), (role, role)]


def test_an_unknown_setting_of_the_prefix_is_refused(db, role):
    for user in ("postgres", role):
        with closing(db.connect(user=user)) as session:
            session.execute("SELECT totp_enabled('alice')")
            assert error_of(session, "SET totp.widow_steps = 1").sqlstate == "42602"


def test_the_key_file_is_shown_to_no_one_without_the_right(db, role):
    with closing(db.connect(user=role)) as session:
        session.execute("SELECT totp_enabled('alice')")
        assert error_of(session, "SHOW totp.key_file").sqlstate == "42501"
        assert error_of(session, "SELECT current_setting('totp.key_file')").sqlstate == "42501"
        assert session.execute("SELECT setting FROM pg_settings WHERE name = 'totp.key_file'").fetchall() in ([], [(None,)])


@pytest.mark.parametrize("name, low, high", [("window_steps", 0, 2), ("enrollment_ttl", 60, 2592000), ("max_devices", 1, 20)])
def test_settings_have_ranges(db, name, low, high):
    with closing(db.connect()) as owner:
        owner.execute("LOAD 'pg_totp'")
        for value in (low, high):
            owner.execute(f"SET totp.{name} = {value}")
        for value in (low - 1, high + 1, "'x'"):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                owner.execute(f"SET totp.{name} = {value}")


def test_discard_and_reset_keep_the_true_settings(db, role):
    with closing(db.connect(user=role)) as session:
        session.execute("SET totp.clock = '2030-01-01 12:00:00+00'")
        session.execute("SELECT totp_enabled('alice')")
        for command in ("RESET ALL", "DISCARD ALL", "RESET totp.actor"):
            session.execute(command)
            assert session.execute("SHOW totp.clock").fetchone() == ("",)
            assert session.execute("SELECT totp_verify('alice', '123456')").fetchone() == (False,)
