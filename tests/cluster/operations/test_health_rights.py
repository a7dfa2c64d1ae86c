"""totp_health() about rights: it reports, with names, each way to take over what the extension guards, and nothing else."""

import re
from contextlib import closing, contextmanager

import pytest
from capabilities import FUNCTIONS, HELPERS
from catalog import catalog
from health import health
from psycopg import sql
from server import CHECKOUT, CommandFailed
from totp import active_user, error_of

CHECKS = ("other_routines", "function_schema", "owner_functions", "maintain", "initial_privileges")
BODY = "LANGUAGE sql AS 'SELECT true'"


@pytest.fixture
def undone(conn):
    """The session, in a transaction that is rolled back: for changes of the catalog."""
    with conn.transaction(force_rollback=True):
        yield conn


@pytest.fixture
def mallory(undone):
    """A role that is not a superuser and may create in schema public."""
    undone.execute("CREATE ROLE mallory; GRANT CREATE ON SCHEMA public TO mallory")
    return "mallory"


def told(conn, check) -> tuple[str, str]:
    """Status and detail of a check. One that is not ok says what to do."""
    status, detail = health(conn)[check]
    assert (status == "ok") == detail.endswith("; nothing to do"), detail
    return status, detail


def as_role(conn, role, *statements):
    conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
    for statement in statements:
        conn.execute(statement)
    conn.execute("RESET ROLE")


def test_a_fresh_database_is_in_order(conn):
    assert {check: told(conn, check)[0] for check in CHECKS} == dict.fromkeys(CHECKS, "ok")


# --- Routines with a name of ours -----------------------------------------------------------------------------------------


def test_health_reports_a_function_that_takes_sign_ins_over(undone, mallory):
    """What JDBC sends are parameters of type varchar: a function of exactly that type comes before ours."""
    active_user(undone)
    as_role(undone, mallory, f"CREATE FUNCTION totp_verify(varchar, varchar) RETURNS boolean {BODY}")
    assert undone.execute("SELECT totp_verify('alice'::varchar, 'not a code'::varchar)").fetchone() == (True,)
    assert told(undone, "other_routines") == (
        "fail", '"public.totp_verify(character varying,character varying)" of "mallory" is not a member of the extension, and may be called'
                ' instead of its routine of that name: drop or rename it')


ROUTINES = {  # what someone creates, and what is reported
    "in another schema": (f"CREATE SCHEMA evil; CREATE FUNCTION evil.totp_check(text, text) RETURNS boolean {BODY}", "evil.totp_check(text,text)"),
    "in schema totp": (f"CREATE FUNCTION totp.totp_health() RETURNS boolean {BODY}", "totp.totp_health()"),
    "like a helper, in schema totp": (f"CREATE FUNCTION totp.rotation_begin(VARIADIC int[]) RETURNS boolean {BODY}", "totp.rotation_begin(integer[])"),
    "with defaults": (f"CREATE FUNCTION totp_enabled(varchar, int DEFAULT 1, int DEFAULT 2) RETURNS boolean {BODY}",
                      "public.totp_enabled(character varying,integer,integer)"),
    "variadic": (f"CREATE FUNCTION totp_verify(VARIADIC varchar[]) RETURNS boolean {BODY}", "public.totp_verify(character varying[])"),
    "a procedure": (f"CREATE PROCEDURE totp_rotate_key_online(bigint) {BODY}", "public.totp_rotate_key_online(bigint)"),
    "an aggregate": ("CREATE AGGREGATE totp_enabled(boolean) (sfunc = booland_statefunc, stype = boolean)", "public.totp_enabled(boolean)"),
    "in a schema with a hostile name": (f'CREATE SCHEMA "\n; nothing to do"; CREATE FUNCTION "\n; nothing to do".totp_keys() RETURNS boolean {BODY}',
                                        r'\"\u{a}; nothing to do\".totp_keys()'),
}


@pytest.mark.parametrize("statement, signature", ROUTINES.values(), ids=ROUTINES)
def test_health_reports_every_routine_with_a_name_of_ours(undone, mallory, statement, signature):
    undone.execute("GRANT CREATE ON SCHEMA totp TO mallory; GRANT USAGE ON SCHEMA totp TO mallory")
    undone.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO mallory").format(sql.Identifier(undone.info.dbname)))
    as_role(undone, mallory, statement)
    status, detail = told(undone, "other_routines")
    assert status == "fail" and detail.startswith(f'"{signature}" of "mallory" is not a member')


def test_a_routine_of_a_superuser_is_reported_as_a_warning(undone, mallory):
    """It may be meant, or be what REASSIGN OWNED has left of someone who is gone."""
    as_role(undone, mallory, f"CREATE FUNCTION totp_verify(varchar, varchar) RETURNS boolean {BODY}")
    undone.execute("REASSIGN OWNED BY mallory TO postgres")
    status, detail = told(undone, "other_routines")
    assert status == "warn" and detail.startswith('"public.totp_verify(character varying,character varying)" of "postgres" is not a member')


@pytest.mark.parametrize("statement", [
    f"CREATE FUNCTION totp_verify(text, text, text, caller text) RETURNS boolean {BODY}",
    f"CREATE FUNCTION reseal(text) RETURNS boolean {BODY}",
    f"CREATE FUNCTION pg_temp.totp_verify(varchar, varchar) RETURNS boolean {BODY}",
    f"CREATE FUNCTION totp_verified(varchar, varchar) RETURNS boolean {BODY}",
], ids=["more arguments than ours", "like a helper, elsewhere", "in pg_temp", "another name"])
def test_a_routine_that_no_call_of_ours_finds_is_in_order(undone, mallory, statement):
    active_user(undone)
    as_role(undone, mallory, statement)
    undone.execute("SET LOCAL search_path = pg_temp, public")
    assert undone.execute("SELECT totp_verify('alice'::varchar, 'not a code'::varchar)").fetchone() == (False,)
    assert told(undone, "other_routines")[0] == "ok"


def test_ten_routines_are_named_those_of_superusers_last(undone, mallory):
    undone.execute(f"CREATE FUNCTION totp_verify(xml, xml) RETURNS boolean {BODY}")
    as_role(undone, mallory, *(f"CREATE FUNCTION totp_verify({kind}, {kind}) RETURNS boolean {BODY}"
                               for kind in ("varchar", "char", "bytea", "json", "jsonb", "uuid", "inet", "name", "int", "bigint", "oid")))
    _, detail = told(undone, "other_routines")
    assert detail.count('" of "mallory"') == 10 and "postgres" not in detail
    assert detail.endswith('" of "mallory" and 2 more are not members of the extension, and may be called instead of its routines of those names: drop or rename them')


# --- The functions' schema, and schema totp -------------------------------------------------------------------------------

MAKE = "make a function there that is called instead of one of pg_totp"
OWN_THERE = f"{MAKE}: ALTER SCHEMA OWNER TO a superuser"
CREATE_THERE = f"which is enough to {MAKE}: revoke it"
SCHEMAS = {  # what was done, and what is reported
    "PUBLIC": ("GRANT CREATE ON SCHEMA public TO PUBLIC", f'schema "public" is open for CREATE to PUBLIC, {CREATE_THERE}'),
    "a role": ("GRANT CREATE ON SCHEMA public TO lent", f'schema "public" is open for CREATE to "lent", {CREATE_THERE}'),
    "PUBLIC and roles": ('GRANT CREATE ON SCHEMA public TO lent, PUBLIC, "PUBLIC"', f'schema "public" is open for CREATE to PUBLIC, "PUBLIC", "lent", {CREATE_THERE}'),
    "schema totp": ("GRANT CREATE ON SCHEMA totp TO lent", f'schema "totp" is open for CREATE to "lent", {CREATE_THERE}'),
    "an owner": ("ALTER SCHEMA public OWNER TO lent",
                 f'schema "public" belongs to "lent", who is not a superuser and can drop it with every enrollment, or {OWN_THERE}'),
    "an owner of schema totp": ("ALTER SCHEMA totp OWNER TO lent", f'schema "totp" belongs to "lent", who is not a superuser and can {OWN_THERE}'),
    "an owner and a role": ("ALTER SCHEMA totp OWNER TO lent; GRANT CREATE ON SCHEMA totp TO PUBLIC",
                            f'schema "totp" belongs to "lent", who is not a superuser and can {OWN_THERE}; schema "totp" is open for CREATE to PUBLIC, {CREATE_THERE}'),
}


@pytest.mark.parametrize("statement, expected", SCHEMAS.values(), ids=SCHEMAS)
def test_health_reports_a_schema_that_is_open_to_others(undone, statement, expected):
    undone.execute('CREATE ROLE lent; CREATE ROLE "PUBLIC"')
    undone.execute(statement)
    assert told(undone, "function_schema") == ("fail", expected)


def test_health_reports_the_owner_of_a_schema_of_its_own(cluster):
    """The documented installation, by someone who made the schema as a role that is not a superuser."""
    db = cluster.create_database(extension=False)
    role = db.create_role()
    db.execute(f"CREATE SCHEMA mfa AUTHORIZATION {role}; CREATE EXTENSION pg_totp SCHEMA mfa")
    db.execute(f"ALTER DATABASE {db.name} SET search_path = mfa")
    with closing(db.connect()) as conn:
        assert told(conn, "function_schema") == ("fail", f'schema "mfa" belongs to "{role}", who is not a superuser and can drop it with every enrollment, or {OWN_THERE}')
        conn.execute("ALTER SCHEMA mfa OWNER TO postgres")
        assert told(conn, "function_schema")[0] == "ok"
    db.drop()



@pytest.mark.parametrize("statement", [
    "GRANT USAGE ON SCHEMA public, totp TO lent, PUBLIC",
    "GRANT CREATE ON SCHEMA public, totp TO root",
    "ALTER SCHEMA public OWNER TO root; ALTER SCHEMA totp OWNER TO root",
    "CREATE SCHEMA other AUTHORIZATION lent; GRANT CREATE ON SCHEMA other TO PUBLIC",
], ids=["USAGE", "CREATE by a superuser", "owned by a superuser", "another schema"])
def test_a_schema_that_is_not_open_to_others_is_in_order(undone, statement):
    undone.execute("CREATE ROLE lent; CREATE ROLE root SUPERUSER")
    undone.execute(statement)
    assert told(undone, "function_schema")[0] == "ok"


@pytest.fixture
def owned_by_app(cluster):
    """A database without the extension that belongs to a role which is no superuser; the database and the role."""
    database = cluster.create_database(extension=False)
    role = database.create_role()
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {role}")
    yield database, role
    database.drop()


def test_health_reports_that_the_owner_of_the_database_owns_schema_public(owned_by_app):
    """Through pg_database_owner; and may drop it, though nothing in it is theirs."""
    database, role = owned_by_app
    database.execute("CREATE EXTENSION pg_totp")
    with closing(database.connect()) as conn:
        expected = f'schema "public" belongs to "{role}" (the owner of the database), who is not a superuser and can drop it with every enrollment, or {OWN_THERE}'
        assert told(conn, "function_schema") == ("warn", expected)
    with closing(database.connect(user=role)) as session, session.transaction(force_rollback=True):
        session.execute("DROP SCHEMA public CASCADE")
        assert session.execute("SELECT FROM pg_extension WHERE extname = 'pg_totp'").rowcount == 0

    database.execute("ALTER SCHEMA public OWNER TO postgres")
    with closing(database.connect()) as conn:
        assert told(conn, "function_schema")[0] == "ok"
    with closing(database.connect(user=role)) as session:
        assert error_of(session, "DROP SCHEMA public CASCADE").sqlstate == "42501"


def test_health_reports_create_for_the_owner_of_the_database(owned_by_app):
    database, role = owned_by_app
    with closing(database.connect()) as conn:
        conn.execute("CREATE EXTENSION pg_totp; ALTER SCHEMA public OWNER TO postgres; GRANT CREATE ON SCHEMA public TO pg_database_owner")
        assert told(conn, "function_schema") == ("warn", f'schema "public" is open for CREATE to "{role}" (the owner of the database), {CREATE_THERE}')


def test_a_schema_for_the_extension_alone_is_in_order(owned_by_app):
    """The documented way, also if the database is not a superuser's."""
    database, role = owned_by_app
    with closing(database.connect()) as conn:
        conn.execute("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa; SET search_path = mfa")
        conn.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        assert {check: told(conn, check)[0] for check in CHECKS} == dict.fromkeys(CHECKS, "ok")
        conn.execute("GRANT CREATE ON SCHEMA mfa TO PUBLIC")
        assert told(conn, "function_schema") == ("fail", f'schema "mfa" is open for CREATE to PUBLIC, {CREATE_THERE}')


# --- The owner's functions ------------------------------------------------------------------------------------------------

OWNERS = sorted(name for name, (_, least) in FUNCTIONS.items() if least == "owner") + sorted(name for name, least in HELPERS.items() if least == "owner")


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("grantee, shown", [("lent", '"lent"'), ("PUBLIC", "PUBLIC"), ("root", '"root"')])
def test_health_reports_an_owners_function_that_is_granted(undone, name, grantee, shown):
    undone.execute("CREATE ROLE lent; CREATE ROLE root SUPERUSER")
    [[signature]] = undone.execute("SELECT format('%%I.%%s', pronamespace::regnamespace, oid::regprocedure) FROM pg_proc WHERE proname = %s", [name])
    signature = signature.removeprefix("totp.") if ".totp." in signature else signature
    undone.execute(f"GRANT EXECUTE ON ROUTINE {signature} TO {grantee}")
    assert told(undone, "owner_functions") == ("warn", f'EXECUTE is granted on functions that only their owner should execute, "{signature}" to {shown}: revoke it')


def test_health_reports_a_blanket_grant(undone):
    for number in range(3):
        undone.execute(f"CREATE ROLE lent_{number}; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO lent_{number} WITH GRANT OPTION")
    as_role(undone, "lent_0", "GRANT EXECUTE ON FUNCTION totp_export() TO lent_1")
    _, detail = told(undone, "owner_functions")
    assert detail.startswith('EXECUTE is granted on functions that only their owner should execute, "public.totp_acknowledge_restore()" to "lent_0", "public.totp_acknowledge_restore()" to "lent_1", ')
    # Of both roles; not the procedure, which is no function; and one by the one to the other.
    granted = 3 * len([name for name, (_, least) in FUNCTIONS.items() if least == "owner" and name != "totp_audit_seal"])
    assert detail.endswith(f" and {granted - 10} more: revoke it")


def test_what_totp_grant_gives_is_in_order(undone):
    undone.execute("CREATE ROLE lent")
    for capability in ("verify", "enroll", "admin", "audit"):
        undone.execute("SELECT totp_grant('lent', %s)", [capability])
    assert {check: told(undone, check)[0] for check in CHECKS} == dict.fromkeys(CHECKS, "ok")


# --- MAINTAIN -------------------------------------------------------------------------------------------------------------


ENOUGH = "which is enough to lock and rewrite tables that change in place, while sign-ins wait or fail: revoke it"
MAINTAIN = {  # what was granted, and what is reported
    "a table": ("GRANT MAINTAIN ON totp.attempts TO lent", f'MAINTAIN is granted on "totp.attempts" to "lent", {ENOUGH}'),
    "a table, PUBLIC": ("GRANT MAINTAIN ON totp.used_codes TO PUBLIC", f'MAINTAIN is granted on "totp.used_codes" to PUBLIC, {ENOUGH}'),
    "a table, a superuser": ("GRANT MAINTAIN ON totp.floor TO root", f'MAINTAIN is granted on "totp.floor" to "root", {ENOUGH}'),
    "a member": ("GRANT pg_maintain TO lent", f'"lent" is in pg_maintain, {ENOUGH}'),
    "a member of a member": ("GRANT pg_maintain TO team; GRANT team TO lent", f'"lent", "team" are in pg_maintain, {ENOUGH}'),
    "both": ("GRANT pg_maintain TO lent; GRANT MAINTAIN ON totp.floor TO team",
             f'MAINTAIN is granted on "totp.floor" to "team"; "lent" is in pg_maintain, {ENOUGH}'),
    "another table": ("CREATE TABLE mine (); GRANT MAINTAIN ON mine, totp.secrets, totp.audit_log TO lent", None),
    "a member who is a superuser": ("GRANT pg_maintain TO root", None),
}


@pytest.mark.parametrize("statement, expected", MAINTAIN.values(), ids=MAINTAIN)
def test_health_reports_maintain(undone, statement, expected):
    if undone.info.server_version < 170000:  # there is no such privilege
        assert told(undone, "maintain")[0] == "ok"
        assert error_of(undone, statement).sqlstate in ("42601", "42704")
        return
    undone.execute("CREATE ROLE lent; CREATE ROLE team; CREATE ROLE root SUPERUSER")
    undone.execute(statement)
    status, detail = told(undone, "maintain")
    assert (status, detail) == ("warn", expected) if expected else status == "ok"


# --- Privileges of roles that are gone ------------------------------------------------------------------------------------

FAILS = "which pg_dump writes as a name, so that a restore fails there or loses grants: "
REPAIR = "put a role that exists into pg_init_privs, as backup-and-restore.md says, or "
CAPABILITIES = "SELECT grantee::regrole::text, p.oid::regprocedure::text FROM pg_proc p, aclexplode(p.proacl) WHERE proname LIKE 'totp%' AND grantee <> proowner ORDER BY 1, 2"
# The statement of the documentation; it takes the OID as :gone.
[UPDATE] = re.findall(r"```sql\n(UPDATE pg_init_privs.*?)```", (CHECKOUT / "docs/operations/backup-and-restore.md").read_text(), re.DOTALL)


@pytest.fixture
def abandoned(cluster):
    """A database whose extension was created by a superuser who is gone: the database, that role's OID, a role with `enroll`."""
    database = cluster.create_database(extension=False)
    with closing(cluster.connect()) as conn:
        conn.execute("CREATE ROLE dba SUPERUSER LOGIN")
        [[oid]] = conn.execute("SELECT oid FROM pg_roles WHERE rolname = 'dba'").fetchall()
    database.psql("CREATE EXTENSION pg_totp", user="dba")
    app = database.create_role("enroll")
    database.execute("REASSIGN OWNED BY dba TO postgres; DROP ROLE dba")
    yield database, oid, app
    database.drop()


@contextmanager
def restored(cluster, database):
    """A copy of a database, by a dump in the custom format. It goes with the block, also if the restore fails."""
    dump = cluster.folder / f"{database.name}.dump"
    cluster.client("pg_dump", "-d", database.name, "-Fc", "-f", dump)
    copy = cluster.create_database(extension=False)
    try:
        cluster.client("pg_restore", "--exit-on-error", "-d", copy.name, dump)
        yield copy
    finally:
        copy.drop()


def leaves_initial_privileges(database) -> bool:
    return database.value("SELECT current_setting('server_version_num')::int < 170000")


def test_the_creator_of_the_extension_is_gone(cluster, abandoned):
    """pg_dump then writes REVOKE … FROM a number: told before, and taken back by the documented statement."""
    database, oid, _ = abandoned
    if leaves_initial_privileges(database):
        count = database.value(f"SELECT count(*) FROM pg_init_privs WHERE initprivs::text LIKE '%{oid}%'")
        with closing(database.connect()) as conn:
            expected = f'initial privileges of {count} objects name a role that is gone (OID {oid}), {FAILS}{REPAIR}create the role "{oid}" before a restore'
            assert count > 30 and told(conn, "initial_privileges") == ("warn", expected)
        with pytest.raises(CommandFailed, match=f'role "{oid}" does not exist'), restored(cluster, database):
            pass
        database.psql(f"\\set gone {oid}\n{UPDATE}")
    with closing(database.connect()) as conn:
        assert told(conn, "initial_privileges")[0] == "ok"
    with restored(cluster, database) as copy, closing(database.connect()) as conn, closing(copy.connect()) as other:
        assert catalog(conn) == catalog(other)


def test_a_dump_from_before_is_restored_beside_a_role_of_that_name(cluster, abandoned):
    database, oid, app = abandoned
    database.execute(f'CREATE ROLE "{oid}"')
    with restored(cluster, database) as copy, closing(copy.connect()) as conn:
        conn.execute(f'DROP ROLE "{oid}"')
        assert told(conn, "initial_privileges")[0] == "ok"
        assert {role for role, _ in conn.execute(CAPABILITIES)} == {app}


INITIAL = "UPDATE pg_init_privs SET initprivs = initprivs || {} WHERE objoid = 'totp_keys()'::regprocedure"
ONE = f'a role that is gone (OID 4000000001), {FAILS}{{}}create the role "4000000001" before a restore'
PRIVILEGES = {  # a change of the catalog after which it names a role that never was, and what is reported
    "a grantee": (INITIAL.format("makeaclitem(4000000001, 10, 'EXECUTE', false)"), f"initial privileges of 1 object name {ONE.format(REPAIR)}"),
    "a grantor": (INITIAL.format("makeaclitem(0, 4000000001, 'EXECUTE', false)"), f"initial privileges of 1 object name {ONE.format(REPAIR)}"),
    "functions": ("UPDATE pg_proc SET proacl = proacl || makeaclitem(4000000001, 10, 'EXECUTE', false) WHERE proname IN ('totp_keys', 'totp_health')",
                  f"privileges of 2 objects name {ONE.format('')}"),
    "a table": ("UPDATE pg_class SET relacl = ARRAY[makeaclitem(4000000001, 10, 'SELECT', false)] WHERE oid = 'totp.audit_log'::regclass",
                f"privileges of 1 object name {ONE.format('')}"),
    "a column": ("UPDATE pg_attribute SET attacl = ARRAY[makeaclitem(4000000001, 10, 'SELECT', false)] WHERE attrelid = 'totp.audit_log'::regclass AND attname = 'at'",
                 f"privileges of 1 object name {ONE.format('')}"),
    "the schema": ("UPDATE pg_namespace SET nspacl = ARRAY[makeaclitem(4000000001, 10, 'USAGE', false)] WHERE nspname = 'totp'",
                   f"privileges of 1 object name {ONE.format('')}"),
    "of two kinds": (INITIAL.format("makeaclitem(4000000001, 10, 'EXECUTE', false)")
                     + "; UPDATE pg_proc SET proacl = proacl || makeaclitem(4000000002, 10, 'EXECUTE', false) WHERE proname = 'totp_keys'",
                     "initial privileges of 1 object and privileges of 1 object name roles that are gone (OIDs 4000000001, 4000000002),"
                     f' {FAILS}{REPAIR}create roles "4000000001", "4000000002" before a restore'),
}


@pytest.mark.parametrize("change, expected", PRIVILEGES.values(), ids=PRIVILEGES)
def test_health_reports_each_privilege_of_a_role_that_is_gone(undone, change, expected):
    undone.execute(change)
    assert told(undone, "initial_privileges") == ("warn", expected)


def test_a_grantee_who_is_gone_is_left_behind_by_a_dump(cluster, db):
    """GRANT at the time of DROP ROLE: the way by a role of that name, as the detail says, and DROP OWNED BY it then."""
    app = db.create_role("enroll")
    db.execute("UPDATE pg_proc SET proacl = proacl || makeaclitem(4000000001, 10, 'EXECUTE', false) WHERE proname = 'totp_keys'")
    with pytest.raises(CommandFailed, match='role "4000000001" does not exist'), restored(cluster, db):
        pass
    db.execute('CREATE ROLE "4000000001"')
    with restored(cluster, db) as copy, closing(copy.connect()) as conn:
        conn.execute('DROP OWNED BY "4000000001"; DROP ROLE "4000000001"')
        assert told(conn, "initial_privileges")[0] == "ok"
        assert {role for role, _ in conn.execute(CAPABILITIES)} == {app}


def test_privileges_of_other_objects_do_not_matter(undone):
    undone.execute(f"CREATE FUNCTION mine() RETURNS boolean {BODY}")
    undone.execute("UPDATE pg_proc SET proacl = ARRAY[makeaclitem(4000000001, 10, 'EXECUTE', false)] WHERE proname = 'mine'")
    assert told(undone, "initial_privileges")[0] == "ok"
