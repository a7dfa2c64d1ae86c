"""A table is rewritten while calls wait for it: ALTER TABLE, as REPACK (CONCURRENTLY) of PostgreSQL 19, gives its rows to a
transaction that an older snapshot does not see. A call that took its snapshot before it waited would find an empty table."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from server import wait_until
from totp import NOON, SECRET, check, fix_clock, good, import_secret, recovery_codes

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


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_waited_sees_the_rows(db, name):
    table, call, answer = CALLS[name]
    with closing(db.connect()) as conn, closing(db.connect()) as reader, closing(db.connect()) as dba, ThreadPoolExecutor(2) as pool:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        codes = recovery_codes(conn, "alice")
        conn.execute("SELECT totp_enabled('alice')")
        reader.execute(f"BEGIN; SELECT count(*) FROM totp.{table}")
        rewritten = pool.submit(dba.execute, REWRITE[table])
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
        wait_until(lambda: reader.execute(waits, [dba.info.backend_pid]).fetchone() == (1,), "the rewrite waits")
        told = pool.submit(lambda: conn.execute(call.format(recovery_code=codes[0])).fetchone()[0])
        wait_until(lambda: told.done() or reader.execute(waits, [conn.info.backend_pid]).fetchone() == (1,), "the call waits")
        assert not told.done()
        reader.execute("COMMIT")
        rewritten.result()
        assert told.result() == answer
        assert check(conn, "alice", good()).reason in ("accepted", "disabled", "not_enrolled")
