"""ALTER EXTENSION pg_totp UPDATE from each released version, and the SQL of a release with the library of this version.

sql/install/ has the script of each release, as it was released. tools/build.sh puts them beside the new one for these tests.
"""

import re
import subprocess
from contextlib import closing

import pytest
from catalog import catalog
from population import NEXT, NOON, RELEASES, check_everyone, populate, rows
from server import BIN
from totp import code_at, enroll, error_of, fix_clock, verify


@pytest.fixture(params=RELEASES)
def old_db(request, cluster):
    """A database with a released version in it."""
    database = cluster.create_database(extension=False)
    database.execute(f"CREATE EXTENSION pg_totp VERSION '{request.param}'")
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
    assert RELEASES


def test_an_update_leads_to_what_a_fresh_install_is(old_db, db):
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert is_up_to_date(old_db)
    with closing(old_db.connect()) as updated, closing(db.connect()) as fresh:
        theirs, ours = catalog(updated), catalog(fresh)
    for subject, expected in ours.items():
        assert theirs[subject] == expected, subject
    assert all(ours[subject] for subject in ("members", "functions", "columns", "constraints", "what pg_dump takes", "initial rights"))


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
    check_everyone(old_db, known)


def test_the_sql_of_a_release_works_with_the_library_of_today(old_db):
    """Between the new files and ALTER EXTENSION UPDATE, however long that takes."""
    check_everyone(old_db, populate(old_db))
    assert not is_up_to_date(old_db)


# Functions of which the update makes new ones, and the arguments they had.
NEW_ARGUMENTS = {"totp_import": "text, text, text, text, text, text, integer, integer, boolean, boolean"}


def grants(db, name) -> set[tuple[str, bool]]:
    """Who may execute a function, and whether they may grant it."""
    query = ("SELECT CASE WHEN a.grantee = 0 THEN 'public' ELSE pg_get_userbyid(a.grantee) END, a.is_grantable FROM pg_proc,"
             f" LATERAL aclexplode(proacl) a WHERE proname = '{name}'")
    return set(db.execute(query))


def test_an_update_keeps_the_grants_on_functions_that_it_makes_again(old_db, db):
    plain, granter, former = (old_db.create_role() for _ in range(3))
    for name in NEW_ARGUMENTS:
        old_db.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {plain}, PUBLIC; GRANT EXECUTE ON FUNCTION {name} TO {granter} WITH GRANT OPTION")
    # Such a grant is none that was made, and a fresh installation takes it away.
    old_db.execute(f"ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {former}")
    before = {name: grants(old_db, name) for name in NEW_ARGUMENTS}
    assert all({(plain, False), ("public", False), (granter, True)} < kept for kept in before.values())
    old_db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert {name: grants(old_db, name) for name in NEW_ARGUMENTS} == before
    # pg_dump takes them along: they are not grants of the extension itself.
    dump = old_db.cluster.client("pg_dump", "-s", "-d", old_db.name)
    for name in NEW_ARGUMENTS:
        for role in (plain, granter, "PUBLIC"):
            assert [line for line in dump.splitlines() if f".{name}(" in line and line.startswith("GRANT") and f" TO {role}" in line], role
    with closing(old_db.connect()) as updated, closing(db.connect()) as fresh:
        assert catalog(updated)["initial rights"] == catalog(fresh)["initial rights"]
    for role in (plain, granter, former):
        old_db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        old_db.roles.remove(role)


def test_an_update_names_the_view_that_stands_in_its_way(old_db):
    old_db.execute("CREATE VIEW importing AS SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')")
    before = installed(old_db)
    with closing(old_db.connect()) as conn:
        error = error_of(conn, "ALTER EXTENSION pg_totp UPDATE")
        assert error.sqlstate == "2BP01" and "importing depends on function" in error.diag.message_detail
    assert installed(old_db) == before
    old_db.execute("DROP VIEW importing; ALTER EXTENSION pg_totp UPDATE")
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
    """What it has kept from before, its plans and keys, must still serve."""
    with closing(old_db.connect()) as session, closing(old_db.connect()) as in_transaction:
        for conn in (session, in_transaction):
            fix_clock(conn, NOON)
        secrets = {name: enroll(session, name) for name in ("alice", "bob")}
        assert verify(session, "alice", code_at(secrets["alice"], NOON)) is True
        in_transaction.execute("BEGIN")
        assert verify(in_transaction, "bob", code_at(secrets["bob"], NOON)) is True
        old_db.execute("SET lock_timeout = '60s'; ALTER EXTENSION pg_totp UPDATE")
        assert verify(in_transaction, "bob", code_at(secrets["bob"], NEXT)) is True
        in_transaction.execute("ROLLBACK")
        for name, conn in (("alice", session), ("bob", in_transaction)):
            assert verify(conn, name, code_at(secrets[name], NOON)) is False
        assert verify(session, "alice", code_at(secrets["alice"], NEXT)) is True
        assert verify(session, "bob", code_at(secrets["bob"], NEXT)) is False


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
    assert len(with_other_arguments) == len(NEW_ARGUMENTS)
    restored.psql("".join(line for line in dump if line not in with_other_arguments))
    assert is_up_to_date(restored)
    after = rows(restored, like=rows(old_db))
    assert {table: after[table] for table in before} == before
