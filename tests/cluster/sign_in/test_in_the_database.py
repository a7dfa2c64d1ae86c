"""docs/in-the-database.md: its functions, called as PostgREST calls them, and attacked by a client, by a trigger and by raw SQL.

PostgREST is not in Debian. `Api` does its part: one transaction a request, with the role and the claims set for that transaction.
"""

import base64
import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from documents import block_with
from server import wait_until
from totp import LATER, NOON, SECRET, code_at, error_of, good, wrong

PAGE = "in-the-database.md"
KEY = "a key of the tests, of 32 bytes and more"
LOGIN = "SELECT * FROM api.login(%s, %s, %s)"
EMAIL, PASSWORD = "alice@example.com", "correct horse"


@pytest.fixture(scope="module")
def _page(cluster):
    """A database with what the page makes. Its roles are of the whole server."""
    database = cluster.create_database(extension=False)
    for text in ("CREATE ROLE authenticator", "CREATE FUNCTION api.login(", "CREATE FUNCTION api.enroll", "CREATE POLICY second_factor"):
        database.psql(block_with(PAGE, text))
    database.execute("INSERT INTO auth.token_key VALUES (%s)", [KEY])
    database.execute(f"ALTER DATABASE {database.name} SET totp.clock = '{NOON.isoformat()}'")
    database.execute(f"ALTER DATABASE {database.name} SET search_path = mfa, public")  # for the helpers of these tests
    yield database
    database.drop()
    cluster.psql("DROP ROLE authenticator, anon, web_user, auth_owner")


@pytest.fixture
def db(_page):
    """Alice, who has a second factor, and bob, who has none, each with a payment. The cost of their passwords is low."""
    _page.empty()
    with closing(_page.connect()) as conn:
        conn.execute("TRUNCATE auth.users RESTART IDENTITY; TRUNCATE api.payments")
        for email, password in ((EMAIL, PASSWORD), ("bob@example.com", "battery staple")):
            conn.execute("INSERT INTO auth.users (email, password) VALUES (%s, auth.crypt(%s, auth.gen_salt('bf', 4)))", [email, password])
        conn.execute("INSERT INTO api.payments VALUES (1, 1, 10), (2, 2, 20)")
        conn.execute("SELECT totp_import('1', %s, confirmed => true)", [SECRET])
    return _page


@pytest.fixture
def superuser(db):
    with closing(db.connect()) as conn:
        yield conn


class Api:
    """PostgREST: one connection, whose requests are transactions."""

    def __init__(self, conn) -> None:
        self.conn = conn

    def begin(self, claims: dict | None = None, method: str = "POST") -> None:
        """A request without a token is one of anon. PostgREST puts the role into the claims."""
        claims = {"role": "anon"} | (claims or {})
        self.conn.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED {'READ ONLY' if method == 'GET' else 'READ WRITE'}")
        self.conn.execute("SELECT set_config('search_path', 'api, public', true), set_config('role', %s, true),"
                          " set_config('request.jwt.claims', %s, true), set_config('request.method', %s, true)",
                          [claims["role"], json.dumps(claims), method])
        self.conn.execute("SELECT auth.pre_request()")

    def request(self, query: str, parameters=(), claims: dict | None = None, method: str = "POST") -> list[tuple]:
        self.begin(claims, method)
        try:
            rows = self.conn.execute(query, parameters).fetchall()
        except psycopg.Error:
            self.conn.execute("ROLLBACK")
            raise
        self.conn.execute("COMMIT")
        return rows

    def login(self, code: str | None, email: str | None = EMAIL, password: str | None = PASSWORD) -> tuple[str, dict | None]:
        """The answer, and the claims of the token if there is one."""
        [(answer, token, _)] = self.request(LOGIN, [email, password, code])
        assert (token is not None) == (answer == "accepted")
        return answer, token and claims_of(token)


@pytest.fixture
def api(db):
    with closing(db.connect(user="authenticator")) as conn:
        yield Api(conn)


def claims_of(token: str) -> dict:
    """What PostgREST reads in a token of ours: by another implementation than that of the page."""
    header, claims, signature = token.split(".")

    def raw(part: str) -> bytes:
        assert not set(part) & set("+/=\n")
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    assert json.loads(raw(header)) == {"alg": "HS256", "typ": "JWT"}
    assert hmac.compare_digest(raw(signature), hmac.digest(KEY.encode(), f"{header}.{claims}".encode(), hashlib.sha256))
    return json.loads(raw(claims))


def failures(conn) -> int:
    """Of alice."""
    return conn.execute("SELECT failures FROM totp.attempts WHERE user_id = '1'").fetchone()[0]


def failed_rows(conn) -> int:
    return conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'failed'").fetchone()[0]


# --- The way of a user -------------------------------------------------------------------------


def test_from_a_password_to_a_second_factor(db, api):
    """The first token is good until it expires. From the confirmation on it shows no row."""
    answer, before = api.login(None, "Bob@Example.com", "battery staple")
    assert (answer, before["role"], before["sub"], before["aal"]) == ("accepted", "web_user", "2", "aal1")
    payments = "SELECT id FROM api.payments"
    assert api.request(payments, claims=before, method="GET") == [(2,)]

    [(uri,)] = api.request("SELECT api.enroll()", claims=before)
    secret = uri.split("secret=")[1].split("&")[0]
    assert api.request(payments, claims=before, method="GET") == [(2,)]  # pending: not yet a second factor
    [(accepted, reason, _, codes)] = api.request("SELECT * FROM api.confirm(%s)", [code_at(secret, NOON)], claims=before)
    assert (accepted, reason, len(codes)) == (True, "accepted", 10)
    assert api.request(payments, claims=before, method="GET") == []

    assert api.login(None, "bob@example.com", "battery staple") == ("code_required", None)
    answer, after = api.login(code_at(secret, LATER), "bob@example.com", "battery staple")
    assert (answer, after["sub"], after["aal"]) == ("accepted", "2", "aal2")
    assert api.request(payments, claims=after, method="GET") == [(2,)]

    assert db.execute("SELECT event, actor, db_user FROM totp.audit_log WHERE user_id = '2' AND event IN ('enrolled', 'confirmed') ORDER BY id") == [
        ("enrolled", "2", "authenticator"), ("confirmed", "2", "authenticator")]


def test_another_device_needs_a_proof(api):
    _, alice = api.login(good())
    [(uri,)] = api.request("SELECT api.enroll()", claims=alice)
    new_code = code_at(uri.split("secret=")[1].split("&")[0], NOON)
    confirm = "SELECT accepted, reason FROM api.confirm(%s, %s)"
    assert api.request(confirm, [new_code, None], claims=alice) == [(False, "proof_required")]
    assert api.request(confirm, [new_code, good()], claims=alice) == [(False, "proof_replayed")]
    assert api.request(confirm, [new_code, good(1)], claims=alice) == [(True, "accepted")]


def test_a_refusal_leaves_its_row_and_its_actor(superuser, api):
    assert api.login(wrong()) == ("wrong", None)
    assert superuser.execute("SELECT user_id, actor, db_user FROM totp.audit_log WHERE event = 'failed'").fetchall() == [("1", "anon", "authenticator")]


# --- What a client sends -----------------------------------------------------------------------


@pytest.mark.parametrize("email, password, code, answer", [
    (None, PASSWORD, good(), "refused"), (EMAIL, None, good(), "refused"), (None, None, None, "refused"),
    ("nobody@example.com", None, None, "refused"), ("nobody@example.com", "x", "123456", "refused"), ("", "", "", "refused"),
    (EMAIL, "wrong horse", good(), "refused"), (EMAIL, PASSWORD, None, "code_required"), (EMAIL, PASSWORD, "", "malformed"),
])
def test_what_is_missing_or_wrong_signs_nobody_in_and_charges_nobody(superuser, api, email, password, code, answer):
    assert api.login(code, email, password) == (answer, None)
    assert failures(superuser) == 0
    assert api.login(good())[0] == "accepted"


def test_who_does_not_know_the_password_locks_nobody(superuser, api):
    for number in range(10):
        assert api.login(wrong(number), password="wrong horse") == ("refused", None)
    assert failures(superuser) == 0


def test_a_get_judges_nothing(superuser, api):
    for code in (wrong(), good()):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            api.request(LOGIN, [EMAIL, PASSWORD, code], method="GET")
    assert failures(superuser) == 0
    assert api.login(good())[0] == "accepted"


def test_nor_does_a_function_that_is_stable(superuser, api):
    """PostgREST looks at the volatility, and begins a read-only transaction for it."""
    def method() -> str:
        volatility = superuser.execute("SELECT provolatile FROM pg_proc WHERE oid = 'api.login'::regproc").fetchone()[0]
        return "POST" if volatility in ("v", b"v") else "GET"

    assert method() == "POST"
    superuser.execute("ALTER FUNCTION api.login STABLE")
    try:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            api.request(LOGIN, [EMAIL, PASSWORD, good()], method=method())
    finally:
        superuser.execute("ALTER FUNCTION api.login VOLATILE")
    assert api.login(good())[0] == "accepted"


def test_the_claims_of_a_request_end_with_it(api):
    _, alice = api.login(good())
    payments = "SELECT id FROM api.payments"
    assert api.request(payments, claims=alice) == [(1,)]
    assert api.request(payments, claims={"role": "web_user"}) == []
    with pytest.raises(psycopg.errors.DivisionByZero):
        api.request("SELECT 1 / 0", claims=alice)
    assert api.conn.execute("SELECT current_user, current_setting('totp.actor')").fetchone() == ("authenticator", "")
    api.conn.execute("SET ROLE anon")
    assert api.conn.execute("SELECT auth.claim('sub')").fetchone() == (None,)


def test_a_token_without_a_user_sees_no_row_whatever_the_other_policy_says(superuser, api):
    superuser.execute("CREATE POLICY everyone ON api.payments TO web_user USING (true)")
    try:
        for claims in ({}, {"aal": "aal2"}):
            assert api.request("SELECT id FROM api.payments", claims={"role": "web_user"} | claims) == []
    finally:
        superuser.execute("DROP POLICY everyone ON api.payments")


def test_enrollment_without_a_user_is_an_error(api):
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        api.request("SELECT api.enroll()", claims={"role": "web_user"})
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        api.request("SELECT api.enroll()")


# --- A request that ends otherwise --------------------------------------------------------------


def _rolled_back(api):
    """As PostgREST does if the client asks for one object and filters it away: 406."""
    api.conn.execute("ROLLBACK")


def _raises(api):
    with pytest.raises(psycopg.errors.RaiseException):
        api.conn.execute("DO $$ BEGIN RAISE 'refused'; END $$")
    api.conn.execute("ROLLBACK")


def _a_trigger_raises(api):
    with pytest.raises(psycopg.errors.RaiseException):
        api.conn.execute("INSERT INTO api.sessions VALUES (1)")
    api.conn.execute("ROLLBACK")


def _a_deferred_trigger_raises(api):
    api.conn.execute("INSERT INTO api.later VALUES (1)")
    with pytest.raises(psycopg.errors.RaiseException):
        api.conn.execute("COMMIT")


def _is_canceled(api):
    api.conn.execute("RESET ROLE")  # who may cancel itself
    with pytest.raises(psycopg.errors.QueryCanceled):
        api.conn.execute("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)")
    api.conn.execute("ROLLBACK")


def _times_out(api):
    api.conn.execute("SET LOCAL statement_timeout = '1ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        api.conn.execute("SELECT pg_sleep(60)")
    api.conn.execute("ROLLBACK")


def _back_to_a_savepoint(api):
    api.conn.execute("ROLLBACK TO before_the_guess; COMMIT")


def _is_dropped(api):
    api.conn.close()


ENDINGS = [_rolled_back, _raises, _a_trigger_raises, _a_deferred_trigger_raises, _is_canceled, _times_out, _back_to_a_savepoint, _is_dropped]


@pytest.fixture
def triggers(superuser):
    """Tables of the application whose triggers raise."""
    superuser.execute("""
        CREATE TABLE api.sessions (n int); CREATE TABLE api.later (n int);
        GRANT INSERT ON api.sessions, api.later TO anon;
        CREATE FUNCTION api.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE TRIGGER no AFTER INSERT ON api.sessions FOR EACH STATEMENT EXECUTE FUNCTION api.no();
        CREATE CONSTRAINT TRIGGER no AFTER INSERT ON api.later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION api.no()""")
    yield
    superuser.execute("DROP TABLE api.sessions, api.later; DROP FUNCTION api.no()")


def judged(db, code: str, ending) -> str:
    """The answer that the client saw, in a request on a connection of its own that then ended in this way."""
    with closing(db.connect(user="authenticator")) as conn:
        api = Api(conn)
        api.begin()
        conn.execute("SAVEPOINT before_the_guess")
        answer = conn.execute(LOGIN, [EMAIL, PASSWORD, code]).fetchone()[0]
        ending(api)
        return answer


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_guess_is_charged_however_the_request_ends(db, superuser, log, triggers, ending):
    """Its audit row goes with the transaction, and its line in the server log stays."""
    assert [judged(db, wrong(number), ending) for number in range(6)] == ["wrong"] * 5 + ["locked"]
    assert judged(db, good(), ending) == "locked"
    assert (failures(superuser), failed_rows(superuser)) == (5, 0)
    assert len([line for line in log() if line.startswith("event=failed")]) == 5


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_code_is_used_however_the_request_ends(db, api, triggers, ending):
    """There is no token then, and the code is none any more: a trigger on sessions locks its user out until the next one."""
    assert judged(db, good(), ending) == "accepted"
    assert api.login(good()) == ("replayed", None)
    assert api.login(good(1))[0] == "accepted"


def test_a_guess_whose_answer_was_canceled_is_charged(db, superuser):
    """Others see the charge while the call is still at work."""
    with closing(db.connect(user="authenticator")) as conn, ThreadPoolExecutor(1) as thread:
        api = Api(conn)
        api.begin()
        call = thread.submit(conn.execute, "SELECT answer, pg_sleep(60) FROM api.login(%s, %s, %s)", [EMAIL, PASSWORD, wrong()])
        wait_until(lambda: failures(superuser) == 1 or call.done(), "the charge")
        superuser.execute("SELECT pg_cancel_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg.errors.QueryCanceled):
            call.result()
        conn.execute("ROLLBACK")
    assert (failures(superuser), failed_rows(superuser)) == (1, 0)


def test_many_guesses_in_one_request_are_charged_one_by_one(superuser, api):
    """As several mutations of one GraphQL request are one transaction."""
    api.begin()
    answers = [api.conn.execute(LOGIN, [EMAIL, PASSWORD, wrong(number)]).fetchone()[0] for number in range(6)]
    assert (answers, failures(superuser)) == (["wrong"] * 5 + ["locked"], 5)
    api.conn.execute("ROLLBACK")


# --- Who runs SQL of their own ------------------------------------------------------------------

ROLES = ["authenticator", "anon", "web_user"]
FUNCTIONS = "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace IN ('mfa'::regnamespace, 'totp'::regnamespace)"
TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'totp'::regnamespace AND relkind IN ('r', 'v', 'S')"


@pytest.mark.parametrize("role", ROLES)
def test_no_role_of_a_request_reaches_the_extension(superuser, role):
    functions = [name for [name] in superuser.execute(FUNCTIONS)]
    tables = [name for [name] in superuser.execute(TABLES)]
    assert len(functions) > 40 and len(tables) > 5
    assert [f for f in functions if superuser.execute("SELECT has_function_privilege(%s, %s, 'EXECUTE')", [role, f]).fetchone()[0]] == []
    assert [t for t in tables if superuser.execute("SELECT has_table_privilege(%s, %s, 'SELECT, INSERT, UPDATE, DELETE')", [role, t]).fetchone()[0]] == []
    superuser.execute(f"SET ROLE {role}")
    assert error_of(superuser, "SELECT mfa.totp_verify('1', '123456')").sqlstate == "42501"
    assert error_of(superuser, "SELECT * FROM auth.users").sqlstate == "42501"
    assert error_of(superuser, "SELECT * FROM auth.token_key").sqlstate == "42501"
    assert error_of(superuser, "SELECT auth.token('{}')").sqlstate == "42501"


@pytest.mark.parametrize("role", ["anon", "web_user"])
def test_nor_in_a_schema_that_is_exposed_with_privileges_by_default(db, cluster, role):
    """As Supabase sets them for what is made in public."""
    other = cluster.create_database(extension=False)
    try:
        other.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO {role}")
        other.execute("CREATE EXTENSION pg_totp SCHEMA public")
        with closing(other.connect()) as conn:
            conn.execute(f"SET ROLE {role}")
            for call in ("totp_verify('1', '123456')", "totp_enroll('1')", "totp_enabled('1')"):
                assert error_of(conn, f"SELECT {call}").sqlstate == "42501"
    finally:
        other.drop()


def test_who_runs_sql_sets_any_claim(api):
    """What the page says of SQL injection: the policy is as good as the claims. Not so the code itself."""
    api.begin()
    api.conn.execute("""SET LOCAL ROLE web_user; SET LOCAL request.jwt.claims = '{"sub": "1", "aal": "aal2"}'""")
    assert api.conn.execute("SELECT id FROM api.payments").fetchall() == [(1,)]
    api.conn.execute("ROLLBACK")


# --- The policy --------------------------------------------------------------------------------


@pytest.mark.parametrize("claims, rows", [
    ({"sub": "1", "aal": "aal2"}, [(1,)]), ({"sub": "1", "aal": "aal1"}, []), ({"sub": "1"}, []), ({"sub": "2", "aal": "aal1"}, [(2,)]),
    ({"sub": "2"}, [(2,)]), ({"aal": "aal2"}, []), ({}, []),
])
def test_who_sees_what(api, claims, rows):
    assert api.request("SELECT id FROM api.payments", claims=claims | {"role": "web_user"}, method="GET") == rows


def test_the_policy_asks_once_and_leaves_a_parallel_plan(superuser, api):
    """Calls are counted by PostgreSQL, those of parallel workers too."""
    superuser.execute("INSERT INTO api.payments SELECT n, 2, n FROM generate_series(3, 1000) AS n; ANALYZE api.payments; SELECT pg_stat_reset()")
    conn = api.conn
    superuser.execute("ALTER ROLE authenticator SET track_functions = 'all'")
    try:
        with closing(psycopg.connect(conn.info.dsn, autocommit=True)) as conn:
            api = Api(conn)
            api.begin({"role": "web_user", "sub": "2", "aal": "aal1"}, "GET")
            conn.execute("SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0")
            query = "SELECT count(*) FROM api.payments"
            plan = "\n".join(row for [row] in conn.execute(f"EXPLAIN {query}"))
            assert "Workers Planned" in plan
            assert conn.execute(query).fetchone() == (999,)
            conn.execute("COMMIT; SELECT pg_stat_force_next_flush()")
        calls = "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_user_functions WHERE funcname = 'totp_enabled'"
        assert superuser.execute(calls).fetchone() == (1,)
    finally:
        superuser.execute("ALTER ROLE authenticator RESET track_functions")
