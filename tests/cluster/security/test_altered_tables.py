"""A column, a type or a table was altered: every function answers or fails with XX001, and the server stays up.

Through the catalog: each column of each table gets each of TYPES, gets another name, and is dropped; each table is dropped.
Each time every function is called by a new session, and by one that has used it before, whose plans and caches are old.
"""


import psycopg
import pytest
from hostile_arguments import functions
from server import wait_until
from totp import NOON, NO_CODE, OTHER_SECRET, SECRET, check, enabled, enroll, fix_clock, good, import_secret, recovery_codes, verify, wrong

TABLES = ["attempts", "used_codes", "secrets", "recovery_codes", "data_keys", "floor", "counters", "audit_log", "audit_seals", "audit_keys"]

TYPES = {  # one of each size and way of passing, and what becomes of a value
    "integer": "length({}::text)", "bigint": "length({}::text)", "smallint": "length({}::text)", "boolean": "{} IS NOT NULL",
    "text": "{}::text", "bytea": "convert_to({}::text, 'UTF8')", "uuid": "md5({}::text)::uuid",
}

# Every function, with arguments with which it does something. {user} has "default", which is active, "phone", which has a
# secret that is staged, "mine", which has one that needs a proof, "old", which is disabled, and recovery codes.
CALLS = [
    "totp_verify('{user}', '{wrong}')", "totp_verify('{user}', '{first}')", "totp_check('{user}', '{second}')", "totp_check('{user}', '{second}', 'default')",
    "totp_verify('{user}', '{of_phone}')", "totp_check('{user}', '{wrong}', 'old')",
    "totp_confirm('{user}', '{wrong}', 'phone')", "totp_confirm('{user}', '{of_phone}', 'phone')",
    "totp_confirm('{user}', '{of_mine}', 'mine', '{third}')", "totp_confirm('{user}', '{of_mine}', 'mine', '{codes[1]}')",
    "totp_check_confirm('{user}', '{wrong}', 'mine', '{third}')", "totp_check_confirm('{user}', '{of_phone}', 'phone', recovery_codes => 2)",
    "totp_check_confirm('{user}', '{later_of_mine}', 'mine', '{codes[2]}', 2)",
    "totp_recover('{user}', '{no_code}')", "totp_recover('{user}', '{codes[0]}')", "totp_check_recover('{user}', '{codes[0]}')",
    "totp_resync('{user}', '{wrong}', '{first}')", "totp_resync('{user}', '{first}', '{second}')",
    "totp_enabled('{user}')", "totp_status('{user}')",
    "totp_enroll('{user}')", "totp_enroll('{user}', device => 'new')", "totp_enroll('nobody')", "totp_recovery_codes('{user}', 2, '{third}')",
    "totp_recovery_codes('{user}', 2, '{codes[3]}')", "totp_reset_recovery_codes('{user}', 2)", "totp_unenroll('{user}', '{codes[4]}', 'phone')",
    "totp_unenroll('{user}', '{codes[5]}')", "totp_rename_device('{user}', 'default', 'renamed', '{codes[6]}')",
    "totp_move_device('{user}', 'default', 'dave', 'default')",
    "totp_import('{user}', '{secret}', confirmed => true)", "totp_import('{user}', '{other}', device => 'new')", "totp_reset('{user}')",
    "totp_disable('{user}')", "totp_enable('{user}')", "totp_remove('{user}', 'phone')", "totp_remove('{user}')", "totp_unlock('{user}')",
    "totp_rename_user('{user}', 'carol')", "totp_rotate_key()", "totp.rotation_begin(10)", "totp.rotation_step(NULL, 10)", "totp.rotation_end()",
    "totp.reseal('{user}', 'default', {secret_id}, 'SHA1', 6::smallint, 30::smallint, '{sealed}', {key_id})",
    "totp.reseal_recovery_codes('{user}', {set_id}, 7::smallint, '{sealed_codes}', {key_id})",
    "totp_keys()", "totp_health()", "totp_health(true)", "totp_list()", "totp_acknowledge_restore()", "totp_stats()", "totp_metrics()", "totp_forget_unreadable('0123456789abcdef')", "totp_prune_audit('1 year')",
    "totp.seal_step()", "totp.seal_line(1)", "totp_audit_verify()", "totp_audit_verify('seal=1 last=1 rows=1 mac=" + "0" * 64 + "', 1)",
    "totp_grant('postgres', 'verify')", "totp_revoke('pg_monitor', 'verify')", "totp.routines_of('verify')", "totp.record_right(true, 'app', 'verify')", "totp_export()",
]
OUT_OF_TABLES = {"totp_qr_svg", "totp_qr_png", "totp_qr_text", "totp_code_at", "totp_read_tokens"}
ONLINE = "CALL totp_rotate_key_online(10)"  # commits, so it is called by itself

ITS_OWN = {"answer", "XX001", "22023", "42704"}
USERS = ["warm", "kept", "new"]  # for each time that the functions are called: failures add up

# The outcome of each call, which is taken back but for what changes in place.
OUTCOMES = """
CREATE FUNCTION outcomes(calls text[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  told text[] := '{}';
  call text;
BEGIN
  FOREACH call IN ARRAY calls LOOP
    BEGIN
      EXECUTE call;
      RAISE SQLSTATE 'OK000';
    EXCEPTION WHEN OTHERS THEN
      told := told || CASE SQLSTATE WHEN 'OK000' THEN 'answer' ELSE SQLSTATE END;
    END;
  END LOOP;
  RETURN told;
END $$"""


class Altered:
    """A database whose tables are altered and made again, and a session that lives through it. A crash of the server ends that one."""

    def __init__(self, db):
        self.db, self.crashes = db, 0
        self.connect()
        db.execute(OUTCOMES)
        self.dba.execute("CREATE SCHEMA kept")
        codes, mine = {}, {}
        for user in USERS:
            import_secret(self.dba, user, SECRET)
            import_secret(self.dba, user, SECRET[::-1].replace("1", "2"), device="old")
            import_secret(self.dba, user, OTHER_SECRET, device="phone", confirmed=False)
            codes[user] = recovery_codes(self.dba, user, count=7)
            mine[user] = enroll(self.dba, user, device="mine")
            self.dba.execute("SELECT totp_disable(%s, 'old')", [user])
            assert check(self.dba, user, "malformed").reason == "malformed"
        assert verify(self.dba, USERS[0], wrong()) is False  # there is a floor, and an audit row of a failure
        self.dba.execute("SELECT totp_unlock(%s)", [USERS[0]])
        self.calls = {user: self.calls_of(user, codes[user], mine[user]) for user in USERS}
        self.dba.execute("ALTER EXTENSION pg_totp DROP VIEW totp.rotation_progress; DROP VIEW totp.rotation_progress")
        for table in TABLES:
            self.dba.execute(f"ALTER EXTENSION pg_totp DROP TABLE totp.{table}")
            self.dba.execute(f"CREATE TABLE kept.{table} (LIKE totp.{table} INCLUDING ALL); INSERT INTO kept.{table} SELECT * FROM totp.{table}")
        self.usual = self.outcomes(self.kept, "kept")

    def connect(self):
        self.dba, self.kept = self.db.connect(), self.db.connect()
        for conn in (self.dba, self.kept):
            begin(conn)

    def close(self):
        self.dba.close()
        self.kept.close()

    def calls_of(self, user, codes, mine):
        [(secret_id, key_id, sealed)] = self.dba.execute(
            "SELECT secret_id, key_id, sealed::text FROM totp.secrets WHERE user_id = %s AND device = 'default'", [user]).fetchall()
        [(set_id, sealed_codes)] = self.dba.execute("SELECT set_id, sealed::text FROM totp.recovery_codes WHERE user_id = %s", [user]).fetchall()
        values = {"user": user, "wrong": wrong(), "first": good(-1), "second": good(), "third": good(1), "of_mine": good(0, mine),
                  "later_of_mine": good(1, mine), "codes": codes, "of_phone": good(0, OTHER_SECRET), "no_code": NO_CODE,
                  "secret": SECRET, "other": "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U", "secret_id": secret_id, "key_id": key_id,
                  "sealed": sealed, "set_id": set_id, "sealed_codes": sealed_codes}
        return [f"SELECT * FROM {call.format(**values)}" for call in CALLS]

    def outcomes(self, conn, user):
        return conn.execute("SELECT outcomes(%s)", [self.calls[user]]).fetchone()[0]

    def make_again(self, *tables):
        """These tables as they were made, with what was in them; and what was counted and used."""
        self.dba.execute("BEGIN; DROP TABLE IF EXISTS totp.elsewhere")
        for table in tables:
            self.dba.execute(f"DROP TABLE IF EXISTS totp.{table} CASCADE; CREATE TABLE totp.{table} (LIKE kept.{table} INCLUDING ALL);"
                             f"ALTER TABLE totp.{table} REPLICA IDENTITY NOTHING")  # PostgreSQL 19 asks for it, of those that change in place
        for table in {*tables, "attempts", "used_codes"}:
            self.dba.execute(f"DELETE FROM totp.{table}; INSERT INTO totp.{table} SELECT * FROM kept.{table}")
        self.dba.execute("COMMIT")

    def after(self, table, change, wanted=ITS_OWN, online=False):
        """Returns what is wrong after a change of the table: which session got which answer, by how many calls, the first of them. Empty if nothing is."""
        self.outcomes(self.kept, "warm")
        change(self.dba)
        found = {}
        try:
            for user in ("kept", "new"):
                if user == "new":
                    begin(conn := self.db.connect())
                else:
                    conn = self.kept
                told = list(zip(CALLS, self.outcomes(conn, user), self.usual, strict=True))
                if online:
                    told.append((ONLINE, outcome(conn, ONLINE), "answer"))
                for call, state, usual in told:
                    if state not in wanted | {usual}:
                        found.setdefault((user, state), []).append(call)
            conn.close()
        except psycopg.errors.QueryCanceled as error:
            found[user, error.sqlstate] = ["a call that does not end"]
        except psycopg.OperationalError as error:
            found[user, str(error).splitlines()[0]] = ["some call"]
            self.recover()
        self.make_again(table, *["secrets", "recovery_codes", "data_keys"] if online else [])
        return ", ".join(f"{user} {state} by {len(calls)} as {calls[0]}" for (user, state), calls in found.items())

    def recover(self):
        """Wait for the end of a crash, and begin new sessions."""
        self.close()
        cluster, self.crashes = self.db.cluster, self.crashes + 1
        wait_until(lambda: cluster.log_text().count("database system is ready to accept connections") > self.crashes, "the server to recover")
        self.connect()


def begin(conn):
    fix_clock(conn, NOON)
    conn.execute("SET statement_timeout = '20s'")  # against a call that does not end; no measure of speed


def outcome(conn, statement):
    """Of a statement in its own transaction."""
    try:
        conn.execute(statement)
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        return error.sqlstate
    return "answer"


@pytest.fixture(scope="module")
def altered(make_module_cluster):
    altered = Altered(make_module_cluster(autovacuum="off").create_database())
    yield altered
    altered.close()


def columns(conn, table):
    """Name and type of each, as it was made."""
    return conn.execute("SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0",
                        [f"kept.{table}"]).fetchall()


def retype(table, column, kind):
    """A function that gives the column this type, and drops what prevents it."""

    def change(conn):
        alter = f"ALTER TABLE totp.{table} ALTER {column} TYPE {kind} USING {TYPES[kind].format(column)}"
        try:
            conn.execute(alter)
        except psycopg.Error:
            dependents = conn.execute("""
                SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', c.conrelid::regclass, c.conname)
                  FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
                 WHERE c.conrelid = %(table)s::regclass AND a.attname = %(column)s AND c.contype <> 'n'  -- a type does not matter to NOT NULL
                UNION ALL
                SELECT format('DROP INDEX IF EXISTS %%s', i.indexrelid::regclass)
                  FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
                 WHERE i.indrelid = %(table)s::regclass AND a.attname = %(column)s""", {"table": f"totp.{table}", "column": column}).fetchall()
            for [drop] in sorted(dependents):  # constraints first: they take their index along
                conn.execute(drop)
            conn.execute(f"ALTER TABLE totp.{table} ALTER {column} DROP DEFAULT")
            conn.execute(alter)

    return change


def test_every_function_and_every_table_is_among_them(altered):
    called = {call.partition("(")[0].removeprefix("totp.") for call in [*CALLS, ONLINE.removeprefix("CALL "), "totp_audit_seal()"]}
    assert {function.name for function in functions(altered.dba)} - OUT_OF_TABLES == called
    tables = altered.dba.execute("SELECT relname FROM pg_class WHERE relnamespace = 'totp'::regnamespace AND relkind IN ('r', 'p')").fetchall()
    assert {table for [table] in tables} == set(TABLES)
    assert set(altered.usual) <= ITS_OWN - {"XX001"} | {"55000", "42501"}  # nothing to rotate; totp.reseal outside of a rotation
    assert [state for call, state in zip(CALLS, altered.usual, strict=True) if call.startswith(("totp_verify", "totp_check", "totp_enroll"))] == ["answer"] * 13


def nothing(found):
    """Nothing is wrong after any of these changes."""
    told = "\n".join(f"{change}: {what}" for change, what in found.items() if what)
    assert not told, told


@pytest.mark.parametrize("table", TABLES)
def test_a_column_of_another_type_is_no_crash(altered, table):
    changes = {f"{column} {other}": retype(table, column, other)
               for column, kind in columns(altered.dba, table) for other in TYPES if other != kind}
    nothing({name: altered.after(table, change) for name, change in changes.items()})


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", ["DROP COLUMN {} CASCADE", "RENAME COLUMN {} TO elsewhere"])
def test_a_missing_column_is_no_crash(altered, table, change):
    online = table in ("secrets", "recovery_codes", "data_keys", "audit_log")
    changes = [f"ALTER TABLE totp.{table} {change.format(column)}" for column, _ in columns(altered.dba, table)]
    nothing({change: altered.after(table, lambda conn: conn.execute(change), online=online) for change in changes})  # noqa: B023


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", ["DROP TABLE totp.{} CASCADE", "ALTER TABLE totp.{} RENAME TO elsewhere"])
def test_a_missing_table_is_no_crash(altered, table, change):
    nothing({change: altered.after(table, lambda conn: conn.execute(change.format(table)), online=True)})


@pytest.mark.parametrize("table", TABLES)
def test_a_column_added_at_the_end_does_not_matter(altered, table):
    change = f"ALTER TABLE totp.{table} ADD COLUMN later text NOT NULL DEFAULT 'x', ADD COLUMN last integer"
    nothing({change: altered.after(table, lambda conn: conn.execute(change), wanted=set(), online=True)})
    assert enabled(altered.dba, "kept")
