"""ALTER EXTENSION pg_totp UPDATE from each released version, and the SQL of a release with the library of this version.

sql/install/ has the script of each release, as it was released. tools/build.sh puts them beside the new one for these tests.
support/population.py says for which PostgreSQL each was made.
"""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from capabilities import OURS
from catalog import catalog
from population import MADE_FOR, NEXT, NOON, RELEASE_PARAMETERS, RELEASES, check_everyone, install, populate, rows
from server import BIN, wait_until
from sessions import Background
from totp import code_at, enroll, error_of, fix_clock, is_waiting, recover, verify


@pytest.fixture(params=RELEASE_PARAMETERS)
def old_db(request, cluster):
    """A database with a released version in it."""
    database = cluster.create_database(extension=False)
    install(database, request.param)
    yield database
    database.drop()


def installed(db) -> tuple[str, str]:
    """The version that the database has, and the one that it should."""
    [versions] = db.execute("SELECT installed_version, default_version FROM pg_available_extensions WHERE name = 'pg_totp'")
    return versions


def is_up_to_date(db) -> bool:
    there, wanted = installed(db)
    return there == wanted


def test_there_is_a_release_to_update_from():
    assert RELEASES and RELEASES.keys() == MADE_FOR.keys()


def test_an_update_leads_to_what_a_fresh_install_is(old_db, db):
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert is_up_to_date(old_db)
    with closing(old_db.connect()) as updated, closing(db.connect()) as fresh:
        theirs, ours = catalog(updated), catalog(fresh)
    for subject, expected in ours.items():
        assert theirs[subject] == expected, subject
    assert all(ours[subject] for subject in ("members", "functions", "columns", "constraints", "what pg_dump takes", "initial rights"))


@pytest.mark.parametrize("release", RELEASES)
def test_from_postgresql_19_on_an_update_takes_the_replica_identity_of_the_tables_away(cluster, release):
    """pg_upgrade keeps it: see in_place/test_repack.py."""
    query = "SELECT relname FROM pg_class WHERE relnamespace = 'totp'::regnamespace AND relreplident = 'n' AND relkind = 'r' ORDER BY 1"
    database = cluster.create_database(extension=False)
    database.execute(f"CREATE EXTENSION pg_totp VERSION '{release}'")
    assert database.execute(query) == []
    database.execute("ALTER EXTENSION pg_totp UPDATE")
    is_19 = int(database.value("SHOW server_version_num")) >= 190000
    assert database.execute(query) == ([("attempts",), ("counters",), ("floor",), ("used_codes",)] if is_19 else [])
    database.drop()


def test_the_health_check_says_that_an_update_is_due(old_db):
    query = "SELECT status, detail FROM totp_health() WHERE check_name = 'version'"
    [(status, detail)] = old_db.execute(query)
    assert status == "warn" and "ALTER EXTENSION pg_totp UPDATE" in detail
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert old_db.execute(query)[0][0] == "ok"


def test_an_update_changes_no_row_and_everyone_signs_in_as_before(old_db):
    known = populate(old_db)
    before = rows(old_db)
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert is_up_to_date(old_db)
    assert rows(old_db, like=before) == before
    assert all(found for _, found in before.values())
    assert known.is_approved
    assert old_db.execute("SELECT DISTINCT slot, approved FROM totp.secrets, totp_status(user_id) AS s WHERE secrets.confirmed_at IS NULL AND s.device = secrets.device"
                          " AND s.version = secrets.version") == [("pending", True)]
    check_everyone(old_db, known)


def test_the_sql_of_a_release_works_with_the_library_of_today(old_db):
    """Between the new files and ALTER EXTENSION UPDATE, however long that takes. What enrolls there is approved, as it was."""
    known = populate(old_db)
    assert known.is_approved
    check_everyone(old_db, known)
    assert not is_up_to_date(old_db)


def test_the_sql_of_a_release_asks_for_no_proof(old_db):
    """It has no argument for one. So until the update everything is as it was."""
    with closing(old_db.connect()) as conn:
        fix_clock(conn, NOON)
        assert error_of(conn, "SELECT totp_recovery_codes('nobody')").sqlstate == "42704"
        secret = enroll(conn, "alice")
        assert conn.execute("SELECT totp_confirm('alice', %s)", [code_at(secret, NOON)]).fetchone() == (True,)
        codes = [code for [code] in conn.execute("SELECT totp_recovery_codes('alice', 3)")]
        assert [recover(conn, code) for code in codes] == [True] * 3
        assert len(conn.execute("SELECT * FROM totp_check('alice', '123456')").fetchone()) == 5
        assert len(conn.execute("SELECT * FROM totp_status('alice')").fetchone()) == 15
        secret = enroll(conn, "alice", keep_current=False)
        assert conn.execute("SELECT count(*) FROM totp_status('alice')").fetchone() == (1,)
        assert verify(conn, "alice", code_at(secret, NOON)) is True
        tablet = enroll(conn, "alice", device="tablet")
        assert verify(conn, "alice", code_at(tablet, NOON)) is True


# Functions of which the update makes new ones: with new arguments, new columns, or other contents.
NEW_ARGUMENTS = ["totp_confirm", "totp_import", "totp_recovery_codes", "totp_health"]
CHANGED = [*NEW_ARGUMENTS, "totp_check", "totp_status"]
MADE_AGAIN = [*CHANGED, "totp_enroll", "totp_grant"]

C_FUNCTIONS = """
SELECT p.proname, pg_get_function_arguments(p.oid) || ' ' || pg_get_function_result(p.oid), p.prosrc FROM pg_proc p
  JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'c'
  JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'pg_totp'"""


def test_a_session_with_the_old_library_finds_no_function_that_has_changed(old_db):
    """It would ignore a proof, read columns that are not there, or stage as approved. No release has these symbols: could not find function."""
    old = {name: (signature, symbol) for name, signature, symbol in old_db.execute(C_FUNCTIONS)}
    known = {symbol for _, symbol in old.values()}
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    new = {name: (signature, symbol) for name, signature, symbol in old_db.execute(C_FUNCTIONS)}
    changed = {name for name in old.keys() & new.keys() if old[name][0] != new[name][0]}
    assert changed == set(CHANGED)
    assert old.keys() <= new.keys() and len(new) > len(old) + 5
    elsewhere = {name for name, (_, symbol) in new.items() if symbol not in known}
    assert elsewhere == changed | {"totp_enroll"} | (new.keys() - old.keys())


def grants(db, name) -> set[tuple[str, bool]]:
    """Who may execute a function, and whether they may grant it."""
    query = ("SELECT CASE WHEN a.grantee = 0 THEN 'public' ELSE pg_get_userbyid(a.grantee) END, a.is_grantable FROM pg_proc,"
             f" LATERAL aclexplode(proacl) a WHERE proname = '{name}'")
    return set(db.execute(query))


def test_an_update_keeps_the_grants_on_functions_that_it_makes_again(old_db, db):
    plain, granter, former = (old_db.create_role() for _ in range(3))
    for name in MADE_AGAIN:
        old_db.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {plain}, PUBLIC; GRANT EXECUTE ON FUNCTION {name} TO {granter} WITH GRANT OPTION")
    # Such a grant is none that was made, and a fresh installation takes it away.
    old_db.execute(f"ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {former}")
    before = {name: grants(old_db, name) for name in MADE_AGAIN}
    assert all({(plain, False), ("public", False), (granter, True)} < kept for kept in before.values())
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert {name: grants(old_db, name) for name in MADE_AGAIN} == before
    # pg_dump takes them along: they are not grants of the extension itself.
    dump = old_db.cluster.client("pg_dump", "-s", "-d", old_db.name)
    for name in MADE_AGAIN:
        for role in (plain, granter, "PUBLIC"):
            assert [line for line in dump.splitlines() if f".{name}(" in line and line.startswith("GRANT") and f" TO {role}" in line], role
    with closing(old_db.connect()) as updated, closing(db.connect()) as fresh:
        assert catalog(updated)["initial rights"] == catalog(fresh)["initial rights"]
    for role in (plain, granter, former):
        old_db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        old_db.roles.remove(role)


def test_an_update_keeps_the_owner_of_functions_that_it_makes_again(old_db):
    owner, plain = old_db.create_role(), old_db.create_role()
    for name in MADE_AGAIN:
        old_db.execute(f"ALTER FUNCTION {name} OWNER TO {owner}; GRANT EXECUTE ON FUNCTION {name} TO {plain}")
    before = {name: grants(old_db, name) for name in MADE_AGAIN}
    assert all(kept == {(owner, False), (plain, False)} for kept in before.values())
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert {name: grants(old_db, name) for name in MADE_AGAIN} == before
    assert {name: old_db.value(f"SELECT proowner::regrole::text FROM pg_proc WHERE proname = '{name}'") for name in MADE_AGAIN} == dict.fromkeys(MADE_AGAIN, owner)
    for name in MADE_AGAIN:
        old_db.execute(f"ALTER FUNCTION {name} OWNER TO postgres; REVOKE ALL ON FUNCTION {name} FROM {owner}, {plain}")


def test_an_update_opens_new_functions_to_nobody(old_db):
    """Also with default privileges. Roles get them by totp_grant()."""
    role, former = old_db.create_role("enroll"), old_db.create_role()
    old_db.execute(f"ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {former}, PUBLIC")
    before = {name for [name] in old_db.execute(OURS)}
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    new = {name for [name] in old_db.execute(OURS)} - before
    assert new >= {"totp_check_confirm", "totp_check_recover", "totp_unenroll", "totp_rename_device", "totp_move_device", "totp_reset_recovery_codes",
                   "totp_resync",
                   "totp_list", "totp_acknowledge_restore"}
    for name in new:
        assert grants(old_db, name) == {("postgres", False)}, name
    old_db.execute(f"SELECT totp_grant('{role}', 'enroll')")
    assert {name for name in new if (role, False) in grants(old_db, name)} == {"totp_check_confirm", "totp_check_recover", "totp_unenroll", "totp_rename_device",
                                                                                 "totp_resync"}
    old_db.execute(f"DROP OWNED BY {former}")


@pytest.mark.parametrize("call", ["totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "totp_confirm('alice', '123456')", "totp_recovery_codes('alice')",
                                  "totp_check('alice', '123456')", "totp_status('alice')", "totp_health()", "totp_enroll('alice')", "totp_grant('postgres', 'verify')"])
def test_an_update_names_the_view_that_stands_in_its_way(old_db, call):
    old_db.execute(f"CREATE VIEW calling AS SELECT 1 FROM {call}")
    before = installed(old_db)
    with closing(old_db.connect()) as conn:
        error = error_of(conn, "ALTER EXTENSION pg_totp UPDATE")
        assert error.sqlstate == "2BP01" and "calling depends on function" in error.diag.message_detail
    assert installed(old_db) == before
    old_db.execute("DROP VIEW calling; ALTER EXTENSION pg_totp UPDATE")
    assert is_up_to_date(old_db)


OWNERS_CALLS = {
    "totp_export()": "SELECT * FROM totp_export()",
    "totp_prune_audit(interval)": "SELECT totp_prune_audit('1 year')",
    "totp_forget_unreadable(text)": "SELECT * FROM totp_forget_unreadable('0123456789abcdef')",
}


def test_until_the_update_nobody_calls_what_is_for_the_owner(old_db):
    """0.1.0 declares these SECURITY DEFINER: they cannot tell who calls them. What was granted on them stays, and opens nothing."""
    role = old_db.create_role()
    for name in OWNERS_CALLS:
        old_db.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {role}")
    populate(old_db)
    old_db.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES ('2020-01-01', 'failed', '', '', '')")
    old_db.execute("INSERT INTO totp.data_keys VALUES (1000000, 'retiring', '0123456789abcdef', '', now())")
    before = rows(old_db)
    with closing(old_db.connect()) as superuser, closing(old_db.connect(user=role)) as other:
        for call in OWNERS_CALLS.values():
            for session in (superuser, other):
                error = error_of(session, call)
                assert error.sqlstate == "42501" and "ALTER EXTENSION pg_totp UPDATE" in error.diag.message_hint
        assert rows(old_db) == before
        superuser.execute("ALTER EXTENSION pg_totp UPDATE")
        for name, call in OWNERS_CALLS.items():
            assert superuser.execute("SELECT has_function_privilege(%s, %s, 'EXECUTE')", [role, name]).fetchone() == (True,)
            assert error_of(other, call).sqlstate == "42501"
        assert rows(old_db) == before
        for call in OWNERS_CALLS.values():
            superuser.execute(call)
    assert old_db.value("SELECT count(*) FROM totp.audit_log WHERE at < '2021-01-01'") == 0
    assert old_db.value("SELECT count(*) FROM totp.data_keys WHERE master_key = '0123456789abcdef'") == 0


@pytest.mark.parametrize("script", RELEASES.values(), ids=RELEASES)
def test_the_library_has_every_function_that_a_release_calls(script):
    folder = subprocess.run([BIN / "pg_config", "--pkglibdir"], check=True, text=True, capture_output=True).stdout.strip()
    listed = subprocess.run(["nm", "--dynamic", "--defined-only", f"{folder}/pg_totp.so"], check=True, text=True, capture_output=True).stdout
    exported = {line.split()[-1] for line in listed.splitlines()}
    called = re.findall(r"^AS 'MODULE_PATHNAME', '(\w+)';$", script.read_text(), re.MULTILINE)
    assert len(called) > 20
    assert set(called) <= exported


def test_a_session_goes_on_over_the_update(old_db):
    """What it has kept from before, its plans and keys, must still serve. Also in a transaction whose snapshot is older."""
    with closing(old_db.connect()) as session, closing(old_db.connect()) as in_transaction:
        for conn in (session, in_transaction):
            fix_clock(conn, NOON)
        secrets = {name: enroll(session, name) for name in ("alice", "bob")}
        assert verify(session, "alice", code_at(secrets["alice"], NOON)) is True
        assert verify(in_transaction, "bob", code_at(secrets["bob"], NOON)) is True
        in_transaction.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        in_transaction.execute("SELECT count(*) FROM pg_class")
        old_db.execute("SET lock_timeout = '60s'; ALTER EXTENSION pg_totp UPDATE")
        assert verify(in_transaction, "bob", code_at(secrets["bob"], NEXT)) is True
        in_transaction.execute("ROLLBACK")
        for name, conn in (("alice", session), ("bob", in_transaction)):
            assert verify(conn, name, code_at(secrets[name], NOON)) is False
        assert verify(session, "alice", code_at(secrets["alice"], NEXT)) is True
        assert verify(session, "bob", code_at(secrets["bob"], NEXT)) is False


def test_what_was_counted_before_the_update_is_added_after_it(old_db):
    """The SQL of 0.1.0 has no table for it."""
    with closing(old_db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        for _ in range(2):
            verify(conn, "alice", code_at(secret, NOON))
        pid = conn.info.backend_pid
        old_db.execute("ALTER EXTENSION pg_totp UPDATE")
        assert old_db.execute("SELECT count(*), sum(accepted) FROM totp.counters") == [(16, 0)]
    wait_until(lambda: not old_db.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]), "the session to end")
    assert old_db.execute("SELECT sum(accepted), sum(replayed) FROM totp.counters") == [(1, 1)]


def test_an_update_opens_the_new_tables_to_nobody(old_db):
    """Also with default privileges."""
    former = old_db.create_role()
    old_db.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {former}, PUBLIC")
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    granted = """SELECT c.relname, a.grantee FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
                  WHERE c.relnamespace = 'totp'::regnamespace AND a.grantee <> c.relowner"""
    assert old_db.execute(granted) == []
    old_db.execute(f"DROP OWNED BY {former}")


def test_an_update_waits_for_open_transactions_that_have_signed_in(old_db):
    """It changes a constraint of totp.secrets. Nothing deadlocks: who signs in waits for the update."""
    with closing(old_db.connect()) as signing_in, closing(old_db.connect()) as late, closing(old_db.connect()) as watch:
        for conn in (signing_in, late):
            fix_clock(conn, NOON)
        secrets = {name: enroll(signing_in, name) for name in ("alice", "bob")}
        signing_in.execute("BEGIN")
        assert verify(signing_in, "alice", code_at(secrets["alice"], NOON)) is True
        with Background(old_db, "ALTER EXTENSION pg_totp UPDATE") as updating, ThreadPoolExecutor(1) as pool:
            updating.wait_until_blocked(watch)
            answer = pool.submit(verify, late, "bob", code_at(secrets["bob"], NOON))
            wait_until(lambda: answer.done() or is_waiting(watch, late), "the sign-in to wait")
            signing_in.execute("COMMIT")
            assert answer.result() is True
    assert is_up_to_date(old_db)


def test_a_prepared_statement_that_names_its_columns_goes_on_over_the_update(old_db):
    """Poolers and drivers prepare for as long as a connection lives. PostgreSQL refuses new columns there, as docs/operations/upgrade.md says."""
    statements = {"named": "SELECT accepted, reason FROM totp_check('nobody', '000000')", "status": "SELECT device, state FROM totp_status('nobody')",
                  "verify": "SELECT totp_verify('nobody', '000000')", "star": "SELECT * FROM totp_check('nobody', '000000')"}
    with closing(old_db.connect()) as session:
        for name, query in statements.items():
            session.execute(f"PREPARE {name} AS {query}")
        before = {name: session.execute(f"EXECUTE {name}").fetchall() for name in statements}
        old_db.execute("ALTER EXTENSION pg_totp UPDATE")
        assert error_of(session, "EXECUTE star").sqlstate == "0A000"
        for name in ("named", "status", "verify"):
            assert session.execute(f"EXECUTE {name}").fetchall() == before[name]


def test_an_update_that_is_rolled_back_leaves_the_old_version(old_db):
    before = installed(old_db)
    with closing(old_db.connect()) as conn, closing(old_db.connect()) as other:
        was = catalog(other)
        conn.execute("BEGIN")
        conn.execute("ALTER EXTENSION pg_totp UPDATE")
        conn.execute("ROLLBACK")
        assert catalog(other) == was
        fix_clock(conn, NOON)
        assert verify(conn, "alice", code_at(enroll(conn, "alice"), NOON)) is True
    assert installed(old_db) == before


def test_a_dump_of_a_release_restores_into_the_version_of_today(old_db, make_cluster):
    """The other way to update: the dump names no version, so the restore makes the new one and fills it.

    Its GRANT on a function that has got arguments fails, and psql goes on: upgrade.md says to call totp_grant() again."""
    populate(old_db)
    before = rows(old_db)
    del before["floor"]  # the identity of a cluster is not dumped
    server = make_cluster()
    server.psql("".join(f"CREATE ROLE {role};\n" for role in old_db.roles))
    restored = server.create_database("restored", extension=False)
    dump = old_db.cluster.client("pg_dump", "-d", old_db.name).splitlines(keepends=True)
    with_other_arguments = [line for line in dump if line.startswith("GRANT ") and any(f".{name}(" in line for name in NEW_ARGUMENTS)]
    assert {re.search(r"\.(\w+)\(", line)[1] for line in with_other_arguments} == set(NEW_ARGUMENTS)
    restored.psql("".join(line for line in dump if line not in with_other_arguments))
    assert is_up_to_date(restored)
    after = rows(restored, like=rows(old_db))
    assert {table: after[table] for table in before} == before
