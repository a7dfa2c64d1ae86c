"""Counting and pruning the audit log: totp_stats and totp_prune_audit."""

from contextlib import closing
from datetime import timedelta

import pytest
from totp import EARLIER, LATER, NOON, active_user, enroll, error_of, fix_clock

DAY = timedelta(days=1)


def audit(conn, columns="event, user_id, device"):
    return conn.execute(f"SELECT {columns} FROM totp.audit_log ORDER BY id").fetchall()


# --- totp_stats ---------------------------------------------------------------------------------------------------


def test_stats_count_by_event(conn):
    for when, event, user in [(NOON - 2 * DAY, "failed", "alice"), (NOON - DAY, "failed", "alice"), (NOON - timedelta(hours=23), "failed", "alice"), (EARLIER, "failed", "alice"),
                              (NOON, "failed", "bob"), (EARLIER, "locked", "alice"), (NOON, "key_rotated", None)]:
        conn.execute("INSERT INTO totp.audit_log (at, event, user_id, actor, db_user, application_name) VALUES (%s, %s, %s, '', '', '')", [when, event, user])
    day = [("failed", 3, 2, NOON), ("key_rotated", 1, 0, NOON), ("locked", 1, 1, EARLIER)]
    assert conn.execute("SELECT * FROM totp_stats()").fetchall() == day
    assert conn.execute("SELECT * FROM totp_stats('1 minute')").fetchall() == [("failed", 2, 2, NOON), *day[1:]]
    assert conn.execute("SELECT * FROM totp_stats(since => '1 week')").fetchall() == [("failed", 5, 2, NOON), *day[1:]]
    assert conn.execute("SELECT * FROM totp_stats('0')").fetchall() == []
    assert error_of(conn, "SELECT * FROM totp_stats(NULL)").sqlstate == "22023"


def test_stats_at_every_level_see_what_is_committed(quick_db, conn):
    for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
        with closing(quick_db.connect()) as other:
            fix_clock(other, LATER)
            other.execute(f"BEGIN ISOLATION LEVEL {level}")
            [[before]] = other.execute("SELECT coalesce(sum(count), 0) FROM totp_stats()").fetchall()
            enroll(conn, "alice")
            assert other.execute("SELECT sum(count) FROM totp_stats()").fetchone() == (before + 1,)


# --- totp_prune_audit -----------------------------------------------------------------------------------------------


def test_prune_deletes_what_is_older_and_says_so(conn, log):
    for days in (400, 366, 365, 364, 1):
        conn.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES (%s, 'failed', '', '', '')", [NOON - days * DAY])
    assert conn.execute("SELECT totp_prune_audit('365 days')").fetchone() == (2,)
    assert [at for [at] in audit(conn, "at")] == [NOON - 365 * DAY, NOON - 364 * DAY, NOON - DAY]
    assert conn.execute("SELECT totp_prune_audit('365 days')").fetchone() == (0,)
    assert log() == ["event=audit_pruned rows=2", "event=audit_pruned rows=0"]


@pytest.mark.parametrize("interval", ["0", "-1 day", "1 day -25 hours", "1 month -29 days", "-1 month", None])
def test_prune_refuses_what_would_delete_everything(conn, interval):
    active_user(conn)
    before = audit(conn)
    assert error_of(conn, "SELECT totp_prune_audit(%s::interval)", [interval]).sqlstate == "22023"
    assert audit(conn) == before


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_prune_reaches_rows_that_came_since(quick_db, conn, level):
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON + 10 * DAY)
        other.execute(f"BEGIN ISOLATION LEVEL {level}")
        other.execute("SELECT count(*) FROM totp.audit_log")
        active_user(conn)
        assert other.execute("SELECT totp_prune_audit('1 day')").fetchone() == (2,)
        other.execute("COMMIT")
    assert audit(conn) == []


def test_a_rolled_back_prune_deletes_nothing_and_is_in_the_log(conn, log):
    active_user(conn)
    fix_clock(conn, NOON + 2 * DAY)
    conn.execute("BEGIN")
    assert conn.execute("SELECT totp_prune_audit('1 day')").fetchone() == (2,)
    conn.execute("ROLLBACK")
    assert len(audit(conn)) == 2
    assert "event=audit_pruned rows=2" in log()
