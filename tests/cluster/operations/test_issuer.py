"""totp.issuer: a value that is no issuer is refused where it is set. One from before the library was loaded is ignored, and told."""

from contextlib import closing

import pytest
from health import health
from master_keys import reload_and_wait
from totp import error_of

RULE = "An issuer must be at most 256 bytes long, in UTF-8, without a colon or a control character."
BAD = {"colon": "https://auth.example.com", "line": "Example\nCorp", "escape": "\x1b[2J", "C1": "a\x9b", "long": "x" * 257, "long in bytes": "é" * 129}
GOOD = ["", "Example", "Zoë & Söhne (GmbH) 100%", "x" * 256, "é" * 128, " Example"]
COLON = BAD["colon"]
FINE = ("ok", "totp.issuer is valid wherever it is set; nothing to do")


def told(*places) -> tuple[str, str]:
    """What totp_health() says of a bad value in these places."""
    return ("warn", f"totp.issuer is not valid {', '.join(places)}, so sessions ignore it: set an issuer of at most 256 bytes, without a colon or a control character")


def issuer_of(session, user="alice") -> str | None:
    """The issuer that the session gives to a new secret."""
    session.execute("SELECT totp_enroll(%s)", [user])
    return session.execute("SELECT issuer FROM totp.secrets WHERE user_id = %s", [user]).fetchone()[0]


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_value_is_refused_where_it_is_set(db, value):
    role = db.create_role()
    literal = "'" + value + "'"
    with closing(db.connect()) as conn:
        conn.execute("LOAD 'pg_totp'")
        conn.execute("SET totp.issuer = 'Good Corp'")
        for statement in ("SET totp.issuer = {}", "SET LOCAL totp.issuer = {}", "SELECT set_config('totp.issuer', {}, false)", f"ALTER ROLE {role} SET totp.issuer = {{}}",
                          f"ALTER DATABASE {db.name} SET totp.issuer = {{}}", f"ALTER ROLE {role} IN DATABASE {db.name} SET totp.issuer = {{}}"):
            error = error_of(conn, statement.format(literal))
            assert (error.sqlstate, error.diag.message_detail) == ("22023", RULE), statement
            assert error.diag.message_primary.startswith('invalid value for parameter "totp.issuer": ')
        if "\n" not in value:  # which ALTER SYSTEM refuses by itself
            assert error_of(conn, f"ALTER SYSTEM SET totp.issuer = {literal}").diag.message_detail == RULE
        assert issuer_of(conn) == "Good Corp"
        assert health(conn)["issuer"] == FINE


@pytest.mark.parametrize("value", GOOD, ids=lambda value: value[:10] or "none")
def test_a_good_value_is_taken(db, value):
    db.execute("SELECT set_config('totp.issuer', %s, false)", [value])  # as a placeholder, without the library
    with closing(db.connect()) as conn:
        conn.execute("SELECT set_config('totp.issuer', %s, false)", [value])
        assert issuer_of(conn, "before") == (value or None)
        conn.execute("SELECT set_config('totp.issuer', %s, false)", [value])
        assert issuer_of(conn, "after") == (value or None)


def first_call(db, user="postgres") -> tuple[list[str], str | None]:
    """The warnings of a session's first call, with their DETAIL, and the issuer that it gives."""
    warnings = []
    with closing(db.connect(user=user)) as session:
        session.add_notice_handler(lambda notice: warnings.append((notice.severity, notice.message_primary, notice.message_detail)))
        issuer = session.execute("SELECT otpauth_uri LIKE '%%issuer=%%' FROM totp_enroll('alice')", []).fetchone()[0]
    return warnings, issuer


WARNED = [("WARNING", f'invalid value for parameter "totp.issuer": "{COLON}"', RULE)]


def test_a_bad_value_of_a_role_or_database_is_told(db):
    """A session without the library does not know that the value is bad."""
    role, other = db.create_role("enroll"), db.create_role("enroll")
    db.execute(f"ALTER ROLE {role} SET totp.issuer = '{COLON}'")
    db.execute(f"ALTER ROLE {other} SET totp.issuer = 'Example'")
    assert first_call(db, role) == (WARNED, False)
    assert first_call(db, other) == ([], True)
    with closing(db.connect()) as conn:
        assert health(conn)["issuer"] == told(f'for role "{role}"')
    db.execute(f"ALTER ROLE {other} IN DATABASE {db.name} SET totp.issuer = 'a:b'")
    db.execute(f"ALTER DATABASE {db.name} SET totp.issuer = 'a:b'")
    with closing(db.connect()) as conn:
        assert health(conn)["issuer"] == told(f'for role "{role}"', f'for database "{db.name}"', f'for role "{other}" in database "{db.name}"')
    for what in (f"ROLE {role}", f"ROLE {other} IN DATABASE {db.name}", f"DATABASE {db.name}"):
        db.execute(f"ALTER {what} RESET totp.issuer")
    with closing(db.connect()) as conn:
        assert health(conn)["issuer"] == FINE


def test_a_bad_value_of_another_database_is_told_there(cluster, db):
    elsewhere = cluster.create_database(extension=False)
    db.execute(f"ALTER DATABASE {elsewhere.name} SET totp.issuer = 'a:b'")
    with closing(db.connect()) as conn:
        assert health(conn)["issuer"] == FINE
    elsewhere.drop()


@pytest.mark.parametrize("preload", ["", "pg_totp"], ids=["loaded by the first call", "preloaded"])
def test_a_bad_value_in_the_file_stops_nothing_and_is_told(make_cluster, preload):
    server = make_cluster(totp__issuer=COLON, shared_preload_libraries=preload)
    assert (WARNED[0][1] in server.log_text()) is bool(preload)
    db = server.create_database()
    assert first_call(db) == ([] if preload else WARNED, False)
    with closing(db.connect()) as conn:
        assert health(conn)["issuer"] == told("in the configuration file")
        for value, expected in (("Good Corp", FINE), ("a:b", told("in the configuration file"))):
            server.configure(TOTP__Issuer=value)  # the last line counts, and the name in any case
            reload_and_wait(server, conn)
            assert health(conn)["issuer"] == expected
        assert conn.execute("SHOW totp.issuer").fetchone() == ("Good Corp",)


def test_bytes_that_are_no_text_in_the_file_are_told(make_cluster):
    server = make_cluster()
    with open(server.data / "postgresql.conf", "ab") as conf:
        conf.write(b"totp.issuer = 'Zo\xeb'\n")
    server.restart()
    db = server.create_database()
    with closing(db.connect()) as conn:
        assert issuer_of(conn) is None
        assert health(conn)["issuer"] == told("in the configuration file")


def test_an_owner_who_may_not_read_the_file_gets_the_rest(make_cluster):
    db = make_cluster(totp__issuer=COLON).create_database()
    role = db.create_role()
    db.execute(f"ALTER FUNCTION totp_health(boolean) OWNER TO {role}; GRANT USAGE ON SCHEMA totp TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA totp TO {role}")
    with closing(db.connect()) as conn:
        assert health(conn)["issuer"] == FINE
        conn.execute(f"GRANT EXECUTE ON FUNCTION pg_show_all_file_settings() TO {role}")
        assert health(conn)["issuer"] == told("in the configuration file")
