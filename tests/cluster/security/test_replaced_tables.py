"""Something else in place of a table, and what totp_health() says of a table that cannot be read."""

from contextlib import closing

import psycopg
import pytest
from health import health
from totp import NO_CODE, NOON, SECRET, fix_clock, good, import_secret, recovery_codes

TABLES = ["attempts", "audit_log", "data_keys", "floor", "recovery_codes", "secrets", "used_codes"]
VIEW = """
ALTER TABLE totp.{table} RENAME TO before;
CREATE VIEW totp.{table} AS SELECT *, 0::oid AS tableoid, 5 AS ctid, '1'::xid AS xmin FROM totp.before;
"""


CALLS = {
    "totp_verify('alice', %s)": good(), "totp_recover('alice', %s)": NO_CODE, "totp_import('bob', %s)": SECRET, "totp_unlock(%s)": "alice", "totp_remove(%s)": "alice",
    "totp_rename_user(%s, 'bob')": "alice", "totp_enroll(%s)": "alice", "totp_reset_recovery_codes(%s)": "alice", "totp_status(%s)": "alice",
    "totp_recovery_codes('alice', 10, %s)": good(), "totp_check_recover('alice', %s)": NO_CODE, "totp_unenroll('alice', %s)": good(),
    f"totp_resync('alice', '{good(5)}', %s)": good(6),
    "totp_rename_device('alice', 'default', 'phone', %s)": good(), "totp_move_device(%s, 'default', 'bob', 'default')": "alice",
    "totp_check_confirm('carol', %s, recovery_codes => 3)": good(),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_view_in_place_of_a_table_is_refused(quick_db, conn, table):
    """Its columns ctid and xmin may be of any type: read as a place, a number is an address in memory."""
    import_secret(conn, "alice", SECRET)
    import_secret(conn, "carol", SECRET, confirmed=False)
    recovery_codes(conn)
    errors = []
    for call, argument in CALLS.items():
        with closing(quick_db.connect()) as late:  # one that knows neither floor nor keys, in a transaction that nobody sees
            fix_clock(late, NOON)
            late.execute("SET totp.audit_success = on")
            late.execute("BEGIN")
            late.execute(VIEW.format(table=table))
            try:
                late.execute(f"SELECT {call}", [argument])
            except psycopg.Error as error:
                errors.append(error.sqlstate)
    assert errors and set(errors) == {"XX001"}  # what does not read the table goes on


@pytest.mark.parametrize("table, column", [("attempts", "user_id"), ("attempts", "failures"), ("used_codes", "uses"), ("floor", "timeline"), ("secrets", "version"),
                                           ("data_keys", "master_key"), ("recovery_codes", "count"), ("audit_log", "actor")])
def test_health_reports_a_table_that_cannot_be_read(conn, table, column):
    """It is what a HINT sends people to. All that does not read the tables is reported too."""
    import_secret(conn, "alice", SECRET)
    with conn.transaction(force_rollback=True):
        conn.execute(f"ALTER TABLE totp.{table} ALTER {column} TYPE varchar")
        found = health(conn)
        status, detail = found[f"table_{table}"]
        assert status == "fail" and detail.startswith(f"table totp.{table}: ")
        assert [name for name in found if name.startswith("table_") and found[name][0] == "fail"] == [f"table_{table}"]
        assert {"version", "master_key", "rights", "other_routines"} < found.keys()
    assert health(conn).get(f"table_{table}", ("ok",))[0] == "ok"
