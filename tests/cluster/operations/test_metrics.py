"""totp_metrics(): names and values that Prometheus can take, and no table of users read."""

import math
import re
from contextlib import closing
from datetime import timedelta

import psycopg
import pytest
from health import health
from totp import NOON, SECRET, enroll, error_of, fix_clock, import_secret, recovery_codes

STATUSES = {"ok": 0, "warn": 1, "fail": 2}


def metrics(conn) -> dict[str, float]:
    rows = conn.execute("SELECT metric, value FROM totp_metrics()").fetchall()
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_every_row_is_one_that_prometheus_can_take(conn):
    """A name, a finite number, and a help that does not change. Counters end in _total."""
    first = conn.execute("SELECT metric, value, help FROM totp_metrics()").fetchall()
    enroll(conn, "alice")
    recovery_codes(conn, "alice")
    second = conn.execute("SELECT metric, value, help FROM totp_metrics()").fetchall()
    assert [(metric, help) for metric, _, help in first] == [(metric, help) for metric, _, help in second]
    for metric, value, help in second:
        assert re.fullmatch(r"totp_[a-z_]*[a-z]", metric) and math.isfinite(value)
        assert re.fullmatch(r"[A-Z][^\n\\]*\.", help)
    assert len([metric for metric, *_ in second if metric.endswith("_total")]) == 5


def test_the_value_of_a_check_is_its_worst_status(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        enroll(conn, "alice")
        conn.execute("CREATE TRIGGER t BEFORE INSERT ON totp.attempts EXECUTE FUNCTION suppress_redundant_updates_trigger()")
        conn.execute("CREATE TRIGGER t BEFORE INSERT ON totp.counters EXECUTE FUNCTION suppress_redundant_updates_trigger()")
        conn.execute("INSERT INTO totp.data_keys VALUES (1000000, 'retiring', '0123456789abcdef', '', now())")
        found = {name.removeprefix("totp_health_"): value for name, value in metrics(conn).items() if name.startswith("totp_health_")}
        told = health(conn)
    assert {name: STATUSES[told[name][0]] for name in found if name in told} == {name: value for name, value in found.items() if name in told}
    assert {"master_key", "lost_master_key", "rights", "version", "key_rotation", "table_secrets"} <= found.keys()
    assert {name: value for name, value in found.items() if value} == {
        "test_clock": 2, "table_attempts": 2, "table_counters": 1, "lost_master_key": 2, "key_rotation": 1,
        **({"function_schema": found["function_schema"]} if found["function_schema"] else {})}


def test_the_age_of_the_data_key_is_that_of_the_current_one(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        assert metrics(conn)["totp_data_key_age_seconds"] == 0
        enroll(conn, "alice")
        fix_clock(conn, NOON + timedelta(days=2))
        assert metrics(conn)["totp_data_key_age_seconds"] == 2 * 86400
        conn.execute("SELECT totp.rotation_begin(1)")
        fix_clock(conn, NOON + timedelta(days=2, seconds=7))
        assert metrics(conn)["totp_data_key_age_seconds"] == 7


def test_a_table_that_cannot_be_read_is_told_and_hides_nothing_else(db):
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        before = metrics(conn)
        conn.execute("ALTER TABLE totp.secrets RENAME digits TO length")
        after = metrics(conn)
    assert after["totp_health_table_secrets"] == 2
    of_rows = {"totp_enrolled_devices", "totp_data_key_age_seconds", "totp_health_lost_master_key", "totp_health_key_rotation"}
    assert before.keys() - after.keys() <= of_rows | {name for name in before if name.startswith("totp_health_")}
    assert {"totp_codes_wrong_total", "totp_master_keys_loaded", "totp_health_master_key"} <= after.keys()


FILL = """
INSERT INTO totp.secrets (user_id, device, slot, secret_id, version, key_id, sealed, algorithm, digits, period, account_name, created_at, confirmed_at)
SELECT 'u' || n, 'default', 'active', n, 1, 1, decode(repeat('00', 80), 'hex'), 'SHA1', 6, 30, 'u' || n, now(), now() FROM generate_series(%s::int, %s::int) AS n"""
USERS = 50_000


def test_the_number_of_devices_is_counted_while_there_are_few_and_estimated_then(db):
    with closing(db.connect()) as conn:
        assert metrics(conn)["totp_enrolled_devices"] == 0
        import_secret(conn, "alice", SECRET)
        enroll(conn, "bob")
        assert metrics(conn)["totp_enrolled_devices"] == 2
        conn.execute(FILL, [1, USERS // 2])
        assert metrics(conn)["totp_enrolled_devices"] == pytest.approx(USERS / 2, rel=0.5)  # nothing is known yet
        conn.execute("ANALYZE totp.secrets")
        assert metrics(conn)["totp_enrolled_devices"] == pytest.approx(USERS / 2 + 2, rel=0.01)
        conn.execute(FILL, [USERS // 2 + 1, USERS])
        assert metrics(conn)["totp_enrolled_devices"] == pytest.approx(USERS + 2, rel=0.05)


READ = """
SELECT relname, seq_scan, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables
 WHERE schemaname = 'totp' AND relname IN ('secrets', 'used_codes', 'attempts', 'recovery_codes', 'audit_log')"""


def test_no_table_of_users_is_read(db):
    """Whatever its size: not even a first row, but for samples of 32 pages."""
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        conn.execute(FILL, [1, USERS])
        conn.execute("ANALYZE totp.secrets")
        conn.execute("INSERT INTO totp.attempts SELECT now(), now(), now(), 1, 1, 'u' || n FROM generate_series(1, %s) AS n", [USERS])
        conn.execute("INSERT INTO totp.used_codes SELECT 1, now(), 1, 0, n, 'u' || n FROM generate_series(1, %s) AS n", [USERS])
    with closing(db.connect()) as conn:
        conn.execute("BEGIN")
        metrics(conn)
        read = {table: (scans, rows) for table, scans, rows in conn.execute(READ).fetchall()}
    rows_of_samples = [read.pop(table) for table in ("used_codes", "attempts")]
    assert all(scans == 0 and 0 < rows <= 32 * 150 for scans, rows in rows_of_samples)
    assert read == dict.fromkeys(("secrets", "recovery_codes", "audit_log"), (0, 0))


def test_the_role_of_an_auditor_reads_the_metrics_and_no_table(db):
    role = db.create_role("audit")
    with closing(db.connect()) as conn:
        conn.execute(f"SET ROLE {role}")
        assert metrics(conn)["totp_master_keys_loaded"] == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT FROM totp.counters")
    with closing(db.connect()) as conn:
        conn.execute(f"SET ROLE {db.create_role('enroll')}")
        assert error_of(conn, "SELECT totp_metrics()").sqlstate == "42501"
