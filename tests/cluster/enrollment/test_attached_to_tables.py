"""What an owner has attached to the tables counts for rows that the extension stores without a statement.

Such a row is inserted as logical replication does it. A trigger, a rule, a policy, or a column more makes it an INSERT.
"""

from contextlib import closing

import psycopg
import pytest
from imported_secrets import SECRET
from totp import error_of

IMPORT = f"SELECT totp_import(%s, '{SECRET}', confirmed => true)"


@pytest.fixture
def conn(db):
    """A session in a database whose tables may be changed."""
    with closing(db.connect()) as conn:
        yield conn


def import_(conn, *users: str) -> None:
    conn.execute(f"SELECT totp_import(u, '{SECRET}', confirmed => true) FROM unnest(%s::text[]) u", [list(users)])


def enrolled(conn) -> list[str]:
    return [user for user, in conn.execute("SELECT user_id FROM totp.secrets ORDER BY 1").fetchall()]


ATTACHED = {
    "a row trigger": """CREATE FUNCTION copied() RETURNS trigger LANGUAGE plpgsql AS
                        $$BEGIN INSERT INTO public.copy VALUES (NEW.user_id); RETURN NEW; END$$;
                        CREATE TRIGGER copied AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION copied()""",
    "a statement trigger": """CREATE FUNCTION copied() RETURNS trigger LANGUAGE plpgsql AS
                              $$BEGIN INSERT INTO public.copy SELECT user_id FROM added; RETURN NULL; END$$;
                              CREATE TRIGGER copied AFTER INSERT ON {table} REFERENCING NEW TABLE AS added
                              FOR EACH STATEMENT EXECUTE FUNCTION copied()""",
    "a rule": "CREATE RULE copied AS ON INSERT TO {table} DO ALSO INSERT INTO public.copy VALUES (NEW.user_id)",
}


@pytest.mark.parametrize("table", ["totp.secrets", "totp.used_codes", "totp.audit_log"])
@pytest.mark.parametrize("attached", ATTACHED)
def test_what_is_attached_to_a_table_sees_every_row(conn, table, attached):
    import_(conn, "alice")
    conn.execute(f"CREATE TABLE copy (user_id text); {ATTACHED[attached].format(table=table)}")
    import_(conn, "bob", "carol")
    assert conn.execute("SELECT user_id FROM copy ORDER BY 1").fetchall() == [("bob",), ("carol",)]


@pytest.mark.parametrize("table", ["totp.secrets", "totp.used_codes", "totp.audit_log"])
def test_a_column_that_was_added_gets_its_default(conn, table):
    import_(conn, "alice")
    conn.execute(f"ALTER TABLE {table} ADD COLUMN extra text DEFAULT 'old'; ALTER TABLE {table} ALTER COLUMN extra SET DEFAULT 'new'")
    import_(conn, "bob")
    assert conn.execute(f"SELECT user_id, extra FROM {table} ORDER BY 1").fetchall() == [("alice", "old"), ("bob", "new")]


@pytest.mark.parametrize("column, table", [("account_name", "totp.secrets"), ("user_id", "totp.used_codes"), ("user_id", "totp.audit_log")])
def test_a_constraint_that_was_added_counts_at_once(conn, column, table):
    with conn.transaction():
        import_(conn, "alice", "bob")
        conn.execute(f"ALTER TABLE {table} ADD CHECK ({column} <> 'eve')")
        with pytest.raises(psycopg.errors.CheckViolation), conn.transaction():
            import_(conn, "carol", "eve")
        import_(conn, "dave")
    assert enrolled(conn) == ["alice", "bob", "dave"]
    assert error_of(conn, IMPORT, ["eve"]).sqlstate == "23514"


def test_a_function_of_a_constraint_counts_as_it_is_now(conn):
    conn.execute("CREATE FUNCTION is_good(text) RETURNS boolean IMMUTABLE LANGUAGE sql RETURN $1 <> 'eve'")
    conn.execute("ALTER TABLE totp.secrets ADD CHECK (is_good(account_name))")
    with conn.transaction():
        import_(conn, "alice")
        conn.execute("CREATE OR REPLACE FUNCTION is_good(text) RETURNS boolean IMMUTABLE LANGUAGE sql RETURN $1 <> 'bob'")
        with pytest.raises(psycopg.errors.CheckViolation), conn.transaction():
            import_(conn, "bob")
        import_(conn, "eve")
    assert enrolled(conn) == ["alice", "eve"]


def test_an_index_that_was_added_has_every_row(conn):
    conn.execute("CREATE EXTENSION amcheck")
    conn.execute("CREATE INDEX audit_partial ON totp.audit_log (user_id) WHERE event = 'imported'")
    conn.execute("CREATE UNIQUE INDEX secrets_lower ON totp.secrets (lower(user_id))")
    import_(conn, "alice", "bob")
    for index in ("audit_partial", "totp.secrets_lower", "totp.secrets_pkey", "totp.used_codes_pkey", "totp.audit_log_event_at"):
        name = index if "." in index else f"totp.{index}"
        conn.execute("SELECT bt_index_check(%s, true)", [name])
    assert error_of(conn, IMPORT, ["BOB"]).sqlstate == "23505"


@pytest.mark.parametrize("taken_away", [
    "REVOKE INSERT ON totp.audit_log FROM {owner}",
    "ALTER TABLE totp.audit_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
])
def test_an_owner_who_may_not_insert_is_refused(cluster, taken_away):
    database = cluster.create_database(extension=False)
    owner = database.create_role()
    database.execute(f"ALTER ROLE {owner} SUPERUSER")
    with closing(database.connect(user=owner)) as conn:
        conn.execute("CREATE EXTENSION pg_totp")
        import_(conn, "alice")
        conn.execute(f"ALTER ROLE {owner} NOSUPERUSER")
        conn.execute(taken_away.format(owner=owner))
        assert error_of(conn, IMPORT, ["bob"]).sqlstate == "42501"
        assert enrolled(conn) == ["alice"]
    database.drop()


def test_a_function_of_a_constraint_sees_the_rows_of_the_statement(conn):
    """Marked STABLE, it sees what an INSERT of that moment would: each row that was added before."""
    conn.execute("CREATE FUNCTION few(u text) RETURNS boolean LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT count(*) < 2 FROM totp.secrets WHERE user_id = u); END'")
    conn.execute("ALTER TABLE totp.secrets ADD CHECK (few(user_id))")
    error = error_of(conn, "SELECT totp_import('alice', repeat(chr(64 + n), 20), device => n::text, encoding => 'raw') FROM generate_series(1, 4) n")
    assert error.sqlstate == "23514"
    assert conn.execute("SELECT count(*) FROM totp.secrets").fetchone() == (0,)
