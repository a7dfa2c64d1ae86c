"""Objects that an attacker puts into the caller's search_path are never called, and never taken for ours."""

from contextlib import closing

import pytest
from capabilities import FUNCTIONS
from search_path_traps import OUR_TABLES, set_traps
from totp import NOON, code_at, error_of, fix_clock, wrong_codes


@pytest.fixture(scope="module")
def trapped(cluster):
    """A database with traps in `public`, and in the attacker's own schema. The extension is in schema `ext`."""
    database = cluster.create_database(extension=False)
    with closing(database.connect()) as conn:
        conn.execute("CREATE SCHEMA ext")
        conn.execute("CREATE EXTENSION pg_totp SCHEMA ext")
        conn.execute("CREATE SCHEMA evil")
        set_traps(conn, "evil")
        set_traps(conn, "public")
    yield database
    database.drop()


SEARCH_PATHS = ["evil, pg_catalog", "public, pg_catalog, totp", "evil, totp, public, pg_catalog, pg_temp", "pg_temp, evil, pg_catalog", "evil"]


@pytest.fixture(params=SEARCH_PATHS)
def conn(trapped, request):
    with closing(trapped.connect()) as conn:
        for table in OUR_TABLES:
            conn.execute(f"CREATE TEMPORARY TABLE {table} (LIKE totp.{table})")
            if table not in ("floor", "data_keys"):
                conn.execute(f"DELETE FROM totp.{table}")
        conn.execute("CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$")
        conn.execute(f"SET search_path = {request.param}")
        yield conn


def test_the_traps_work(trapped):
    """Otherwise the tests below would show nothing: a function without its own search_path calls them."""
    with closing(trapped.connect()) as conn:
        conn.execute("SET search_path = evil, pg_catalog")
        conn.execute("CREATE FUNCTION pg_temp.naive(pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$ BEGIN RETURN $1 = 'alice'; END $$")
        with pytest.raises(Exception, match="trapped: an operator of text"):
            conn.execute("SELECT pg_temp.naive('alice')")


def test_every_function_keeps_out_of_the_traps(conn, trapped):
    """Enroll, confirm, sign in, be refused, look, remove; all with the attacker's objects first, and the right results."""
    def one(query, *parameters):
        return conn.execute(query, parameters).fetchone()

    conn.execute("SELECT pg_catalog.set_config('totp.clock', %s, false)", [NOON.isoformat()])
    secret, _ = one("SELECT * FROM ext.totp_enroll('alice', issuer => 'Example')")
    codes = [code_at(secret, NOON.timestamp() + 30 * step) for step in (-1, 0, 1)]
    wrong = next(wrong_codes(secret, NOON))
    assert one("SELECT ext.totp_code_at(%s, '2030-01-01 12:00:00+00')", secret) == (codes[1],)
    assert one("SELECT ext.totp_enabled('alice')") == (False,)
    assert one("SELECT ext.totp_confirm('alice', %s)", codes[0]) == (True,)
    assert one("SELECT ext.totp_enabled('alice')") == (True,)
    assert one("SELECT ext.totp_verify('alice', %s)", codes[0]) == (False,)
    assert one("SELECT ext.totp_verify('alice', %s)", wrong) == (False,)
    assert one("SELECT ext.totp_verify('alice', %s)", codes[1]) == (True,)
    assert one("SELECT accepted, reason FROM ext.totp_check('alice', %s)", codes[1]) == (False, "replayed")
    assert one("SELECT accepted, reason FROM ext.totp_check('alice', %s)", codes[2]) == (True, "accepted")
    assert one("SELECT device, state, uses, failures FROM ext.totp_status('alice')") == ("default", "active", 3, 0)
    assert one("SELECT state FROM ext.totp_keys()") == ("current",)
    recovery = one("SELECT pg_catalog.array_agg(c) FROM ext.totp_reset_recovery_codes('alice') AS c")[0]
    tablet, _ = one("SELECT * FROM ext.totp_enroll('alice', device => 'tablet', keep_current => true)")
    assert one("SELECT reason FROM ext.totp_check_confirm('alice', %s, 'tablet')", codes[1]) == ("proof_required",)
    [new] = one("SELECT recovery_codes FROM ext.totp_check_confirm('alice', %s, 'tablet', %s, 3)", code_at(tablet, NOON), recovery[0])
    assert one("SELECT accepted, reason FROM ext.totp_check_recover('alice', %s)", recovery[1]) == (False, "wrong")
    assert one("SELECT ext.totp_recovery_codes('alice', 1, %s) IS NOT NULL", new[0]) == (True,)
    assert one("SELECT ext.totp_recover('alice', %s)", new[1]) == (False,)
    assert one("SELECT ext.totp_rename_device('alice', 'tablet', 'watch', %s)", code_at(tablet, NOON.timestamp() + 30)) == (True,)
    assert one("SELECT ext.totp_move_device('alice', 'watch', 'bob', 'tablet')") == (True,)
    assert one("SELECT ext.totp_resync('bob', %s, '1', 'tablet')", wrong) == (False,)
    assert one("SELECT ext.totp_unenroll('bob', %s)", wrong_codes(tablet, NOON).__next__()) == (False,)
    assert one("SELECT ext.totp_move_device('bob', 'tablet', 'alice', 'tablet')") == (True,)
    assert one("SELECT ext.totp_remove('alice', 'tablet')") == (1,)
    assert one("SELECT ext.totp_remove('alice')") == (1,)
    for table in OUR_TABLES:
        assert one(f"SELECT pg_catalog.count(*) FROM pg_temp.{table}") == (0,), table


def test_grant_keeps_out_of_the_traps(conn, trapped):
    role = trapped.create_role()
    for capability in ("verify", "enroll", "admin", "audit"):
        conn.execute("SELECT ext.totp_grant(%s, %s)", [role, capability])
    with closing(trapped.connect(user=role)) as session:
        session.execute("SET search_path = evil, pg_catalog")
        assert session.execute("SELECT ext.totp_verify('nobody', '123456')").fetchone() == (False,)
        session.execute("SELECT FROM totp.audit_log")
    for capability in ("verify", "enroll", "admin", "audit"):
        conn.execute("SELECT ext.totp_revoke(%s, %s)", [role, capability])
    with closing(trapped.connect(user=role)) as session:
        assert error_of(session, "SELECT ext.totp_verify('nobody', '123456')").sqlstate == "42501"


def test_every_later_function_keeps_out_of_the_traps(conn, trapped):
    """The functions that the tests above do not name: no trap is called, whatever the answer is."""
    named = {"totp_grant", "totp_revoke"}
    existing = {name for [name] in trapped.execute("SELECT proname::pg_catalog.text FROM pg_catalog.pg_proc WHERE pronamespace = 'ext'::pg_catalog.regnamespace")}
    for name in existing & set(FUNCTIONS) - named:
        query = FUNCTIONS[name][0].replace(name, f"ext.{name}")
        try:
            conn.execute(query)
        except Exception as error:
            assert error.sqlstate not in ("ZZ001", "42883", "42725", "42P01", "42703", "42804"), (name, error)


def test_creating_the_extension_keeps_out_of_the_traps(cluster):
    """CREATE EXTENSION runs as a superuser: objects in the schemas that it looks into must not be run by it."""
    database = cluster.create_database(extension=False)
    try:
        with closing(database.connect()) as conn:
            set_traps(conn, "public")
            conn.execute("SET search_path = public, pg_catalog")
            conn.execute("CREATE EXTENSION pg_totp SCHEMA public")
            conn.execute("SET search_path = pg_catalog")
            fix_clock(conn, NOON)
            secret, _ = conn.execute("SELECT * FROM public.totp_enroll('alice')").fetchone()
            assert conn.execute("SELECT public.totp_verify('alice', %s)", [code_at(secret, NOON)]).fetchone() == (True,)
    finally:
        database.drop()


def test_an_unprivileged_caller_cannot_lend_its_search_path(trapped):
    """The same with the attacker as the caller, who has nothing but 'verify', temporary tables and its own schema."""
    role = trapped.create_role()
    with closing(trapped.connect()) as owner:
        owner.execute("SELECT ext.totp_grant(%s, 'verify')", [role])
        owner.execute(f"GRANT USAGE ON SCHEMA evil TO {role}")
        owner.execute("SELECT ext.totp_remove('mallory')")
        owner.execute("SELECT ext.totp_enroll('mallory')")
    with closing(trapped.connect(user=role)) as session:
        for table in OUR_TABLES:
            session.execute(f"CREATE TEMPORARY TABLE {table} (user_id text, device text, secret_id bigint, sealed bytea, time_step bigint)")
        session.execute("SET search_path = pg_temp, evil, pg_catalog")
        assert session.execute("SELECT reason FROM ext.totp_check('mallory', '12345678')").fetchone() == ("malformed",)
        assert session.execute("SELECT device, state FROM ext.totp_status('mallory')").fetchone() == ("default", "pending")
        assert session.execute("SELECT ext.totp_enabled('mallory')").fetchone() == (False,)
