"""Calls that wait for a lock, of a table, a partition or an index, answer by what is there afterward.

ALTER TABLE, as REPACK (CONCURRENTLY) of PostgreSQL 19, gives the rows to a transaction that an older snapshot does not see. A call
that took its snapshot before it waited would find an empty table, or what was disabled meanwhile as it was."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from server import wait_until
from totp import NOON, SECRET, check, fix_clock, good, import_secret, recovery_codes, wrong

REWRITE = {
    "secrets": "ALTER TABLE totp.secrets ALTER COLUMN digits TYPE smallint USING (digits + 0)::smallint",
    "recovery_codes": "ALTER TABLE totp.recovery_codes ALTER COLUMN count TYPE smallint USING (count + 0)::smallint",
    "audit_log": "ALTER TABLE totp.audit_log ALTER COLUMN actor TYPE text USING actor || ''",
    "data_keys": "ALTER TABLE totp.data_keys ALTER COLUMN master_key TYPE text COLLATE \"C\" USING master_key || ''",
}
# The table that is rewritten, the call that waits for it, and what it must answer.
CALLS = {
    "totp_enabled": ("secrets", "SELECT totp_enabled('alice')", True),
    "totp_status": ("secrets", "SELECT count(*) FROM totp_status('alice')", 1),
    "totp_list": ("secrets", "SELECT count(*) FROM totp_list()", 1),
    "totp_disable": ("secrets", "SELECT totp_disable('alice')", 1),
    "totp_remove": ("secrets", "SELECT totp_remove('alice')", 1),
    "totp_rename_user": ("secrets", "SELECT totp_rename_user('alice', 'bob')", 1),
    "totp_export": ("secrets", "SELECT count(*) FROM totp_export()", 1),
    "totp_keys": ("secrets", "SELECT sum(secrets)::int FROM totp_keys()", 1),
    "totp_recover": ("recovery_codes", "SELECT totp_recover('alice', '{recovery_code}')", True),
    "totp_stats": ("audit_log", "SELECT count FROM totp_stats('1 day') WHERE event = 'imported'", 1),
    "totp_keys, its keys": ("data_keys", "SELECT count(*) FROM totp_keys()", 1),
}


WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"


@pytest.fixture
def alice(db):
    """A session that has judged a code of alice, who has recovery codes: these."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        codes = recovery_codes(conn, "alice")
        assert check(conn, "alice", wrong()).reason == "wrong"
        yield conn, codes


def told(conn, call: str):
    return conn.execute(call).fetchone()[0]


def answer_after_a_rewrite(db, conn, table: str, rewrite: str, call: str):
    """What the call answers that waits for the rewrite, which waits for a reader."""
    with closing(db.connect()) as reader, closing(db.connect()) as dba, ThreadPoolExecutor(2) as pool:
        reader.execute(f"BEGIN; SELECT count(*) FROM {table}")
        rewritten = pool.submit(dba.execute, rewrite)
        wait_until(lambda: reader.execute(WAITS, [dba.info.backend_pid]).fetchone() == (1,), "the rewrite waits")
        answer = pool.submit(told, conn, call)
        wait_until(lambda: answer.done() or reader.execute(WAITS, [conn.info.backend_pid]).fetchone() == (1,), "the call waits")
        assert not answer.done()
        reader.execute("COMMIT")
        rewritten.result()
        return answer.result()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_waited_sees_the_rows(db, alice, name):
    (conn, codes), (table, call, answer) = alice, CALLS[name]
    call = call.format(recovery_code=codes[0])
    assert answer_after_a_rewrite(db, conn, f"totp.{table}", REWRITE[table], call) == answer
    assert check(conn, "alice", good()).reason in ("accepted", "disabled", "not_enrolled")


def test_an_export_that_waited_for_the_data_keys_opens_the_secrets(db, alice):
    """In a session that has no key yet."""
    with closing(db.connect()) as new:
        assert answer_after_a_rewrite(db, new, "totp.data_keys", REWRITE["data_keys"], "SELECT count(*) FROM totp_export()") == 1


PARTITION = """ALTER TABLE totp.{0} RENAME TO {0}_before; CREATE TABLE totp.{0} (LIKE totp.{0}_before INCLUDING ALL) PARTITION BY HASH (user_id);
CREATE TABLE totp.{0}_0 PARTITION OF totp.{0} FOR VALUES WITH (MODULUS 1, REMAINDER 0); ALTER TABLE totp.{0}_0 REPLICA IDENTITY NOTHING;
INSERT INTO totp.{0} SELECT * FROM totp.{0}_before"""


@pytest.mark.parametrize("name", ["totp_enabled", "totp_status", "totp_disable", "totp_remove"])
def test_a_call_that_waited_for_a_partition_sees_the_rows(db, alice, name):
    (conn, _), (_, call, answer) = alice, CALLS[name]
    db.psql(PARTITION.format("secrets"))
    assert told(conn, "SELECT totp_enabled('alice')") is True
    assert answer_after_a_rewrite(db, conn, "totp.secrets_0", "ALTER TABLE totp.secrets_0 SET UNLOGGED", call) == answer


VERIFY, RECOVER = f"SELECT totp_verify('alice', '{good()}')", "SELECT totp_recover('alice', '{recovery_code}')"
# What the call waits for, of tables that are partitioned or not. A change of an index locks it alone.
HELD = {
    "a partition of attempts": (["attempts"], "LOCK TABLE totp.attempts_0 IN SHARE MODE", VERIFY),
    "a partition of used_codes": (["used_codes"], "LOCK TABLE totp.used_codes_0 IN SHARE MODE", VERIFY),
    "an index of a partition": (["used_codes"], "ALTER INDEX totp.used_codes_0_pkey SET TABLESPACE pg_default", VERIFY),
    "the index of attempts": ([], "ALTER INDEX totp.attempts_pkey SET TABLESPACE pg_default", VERIFY),
    "the index of used_codes": ([], "ALTER INDEX totp.used_codes_pkey SET TABLESPACE pg_default", VERIFY),
    "the index of used_codes, and a recovery code": ([], "ALTER INDEX totp.used_codes_pkey SET TABLESPACE pg_default", RECOVER),
    "the index of recovery_codes, and a recovery code": ([], "ALTER INDEX totp.recovery_codes_pkey SET TABLESPACE pg_default", RECOVER),
}


@pytest.mark.parametrize("held", HELD)
def test_a_device_that_is_disabled_while_a_sign_in_waits_lets_nobody_in(db, alice, held):
    (conn, codes), (partitioned, holds, call) = alice, HELD[held]
    for table in partitioned:
        db.psql(PARTITION.format(table))
    assert check(conn, "alice", wrong()).reason == "wrong"
    with closing(db.connect()) as dba, ThreadPoolExecutor(1) as pool:
        dba.execute(f"BEGIN; {holds}")
        answer = pool.submit(told, conn, call.format(recovery_code=codes[0]))
        wait_until(lambda: answer.done() or dba.execute(WAITS, [conn.info.backend_pid]).fetchone() == (1,), "the call waits")
        assert not answer.done()
        db.execute("UPDATE totp.secrets SET disabled_at = now()")
        dba.execute("COMMIT")
        assert answer.result() is False


def test_a_seal_that_waited_for_the_keys_of_the_trail_makes_no_other(db, alice):
    conn, _ = alice
    conn.execute("CALL totp_audit_seal()")
    check(conn, "alice", wrong())
    rewrite = "ALTER TABLE totp.audit_keys ALTER COLUMN master_key TYPE text USING master_key || ''"
    with closing(db.connect()) as reader, closing(db.connect()) as dba, ThreadPoolExecutor(2) as pool:
        reader.execute("BEGIN; SELECT count(*) FROM totp.audit_keys")
        rewritten = pool.submit(dba.execute, rewrite)
        wait_until(lambda: reader.execute(WAITS, [dba.info.backend_pid]).fetchone() == (1,), "the rewrite waits")
        sealed = pool.submit(conn.execute, "CALL totp_audit_seal()")
        wait_until(lambda: sealed.done() or reader.execute(WAITS, [conn.info.backend_pid]).fetchone() == (1,), "the seal waits")
        assert not sealed.done()
        reader.execute("COMMIT")
        rewritten.result()
        sealed.result()
    assert db.value("SELECT count(*) FROM totp.audit_keys") == 1
