"""Sealing the audit trail: what a seal covers, holes, who seals, and what is refused."""

import re
from contextlib import closing
from datetime import timedelta

import pytest
from sessions import Background, session
from totp import NOON, error_of, fix_clock
from trail import Finding, check_all, deviations, seal_all, seals, unsealed, verify_trail


@pytest.fixture
def conn(db):
    """A session in a database whose audit rows begin with id 1."""
    with session(db) as conn:
        yield conn


def insert(conn, event="failed", user_id="alice", at=NOON) -> int:
    """An audit row as the library writes it; its id."""
    query = ("INSERT INTO totp.audit_log (at, event, user_id, device, actor, db_user, client_addr, application_name, detail)"
             " VALUES (%s, %s, %s, 'phone', 'web', session_user, '2001:db8::1', 'psql', '{\"of\": \"recovery codes\", \"n\": [1, {}]}') RETURNING id")
    return conn.execute(query, [at, event, user_id]).fetchone()[0]


def columns(conn, names: str) -> list[tuple]:
    return conn.execute(f"SELECT {names} FROM totp.audit_seals ORDER BY seal_id").fetchall()


# --- What a seal covers ------------------------------------------------------------


def test_every_seal_is_what_another_implementation_computes(db, conn):
    conn.execute("SELECT totp_enroll('alice')")
    conn.execute("SELECT totp_verify('alice', '000000')")
    conn.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES ('9999-12-31 23:59:59.999999+00', '', '', '', '')")
    seal_all(conn)
    with closing(db.connect()) as other, closing(db.connect()) as third:
        third.execute("BEGIN")
        insert(third)
        other.execute("BEGIN")
        insert(other)
        insert(conn)
        seal_all(conn)
        other.execute("COMMIT")
        third.execute("ROLLBACK")
    seal_all(conn)
    assert columns(conn, "row_count, holes::text, late::text") == [
        (3, "{}", "{}"), (1, "{[4,6)}", "{}"), (1, "{}", "{[5,6)}")]
    assert check_all(conn, db.cluster.key_file.read_text().strip()) == 5
    assert deviations(conn) == []


def test_a_seal_does_not_depend_on_settings(conn):
    insert(conn)
    seal_all(conn)
    for setting, value in [("DateStyle", "German"), ("TimeZone", "Asia/Kolkata"), ("bytea_output", "escape"), ("extra_float_digits", "0"),
                           ("client_encoding", "LATIN1"), ("IntervalStyle", "iso_8601"), ("default_transaction_isolation", "serializable")]:
        conn.execute(f"SET {setting} = '{value}'")
        assert deviations(conn) == []
        insert(conn)
        seal_all(conn)
    conn.execute("RESET ALL")
    assert deviations(conn) == []


def test_seals_follow_each_other_and_the_log_names_each(conn, log):
    for _ in range(3):
        insert(conn)
        seal_all(conn)
    assert columns(conn, "seal_id, first_id, last_id, row_count") == [(1, 1, 1, 1), (2, 2, 2, 1), (3, 3, 3, 1)]
    macs = [mac.hex() for [mac] in columns(conn, "mac")]
    assert log() == [f"event=audit_sealed seal={n} last={n} rows=1 mac={mac}" for n, mac in enumerate(macs, 1)]
    assert columns(conn, "previous_mac")[1:] == columns(conn, "mac")[:-1]


def test_nothing_new_makes_no_seal(conn, log):
    seal_all(conn)
    assert (seals(conn), log()) == (0, [])
    insert(conn)
    for _ in range(3):
        seal_all(conn)
    assert (seals(conn), len(log())) == (1, 1)


def test_a_seal_has_at_most_a_million_rows(conn):
    conn.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name)"
                 " SELECT now(), 'failed', 'app', 'app', 'app' FROM generate_series(1, 1000001)")
    seal_all(conn)
    assert columns(conn, "first_id, last_id, row_count") == [(1, 1_000_000, 1_000_000), (1_000_001, 1_000_001, 1)]
    assert [finding[:4] for finding in verify_trail(conn)] == [(1, 1, 1_000_000, "ok"), (2, 1_000_001, 1_000_001, "ok")]


def test_late_rows_of_a_million_come_in_parts(db, conn):
    with closing(db.connect()) as other:
        other.execute("BEGIN")
        other.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name)"
                      " SELECT now(), 'failed', 'app', 'app', 'app' FROM generate_series(1, 1000001)")
        insert(conn)
        seal_all(conn)
        other.execute("COMMIT")
    insert(conn)
    seal_all(conn)
    assert columns(conn, "row_count, late::text, closed_seal") == [
        (1, "{}", 0), (1_000_000, "{[1,1000001)}", 0), (2, "{[1000001,1000002)}", 2)]
    assert deviations(conn) == []


# --- Holes -------------------------------------------------------------------------


def test_a_row_that_commits_later_is_taken_late(db, conn):
    with closing(db.connect()) as other:
        other.execute("BEGIN")
        late = insert(other)
        insert(conn)
        seal_all(conn)
        for _ in range(3):  # it stays open as long as the transaction runs
            insert(conn)
            seal_all(conn)
        assert deviations(conn) == []
        other.execute("COMMIT")
        assert "; 1 row is not sealed" in unsealed(conn)
        assert deviations(conn) == []
        seal_all(conn)
    assert columns(conn, "late::text")[-1] == (f"{{[{late},{late + 1})}}",)
    assert deviations(conn) == []


@pytest.mark.parametrize("end", ["rolled back", "to a savepoint", "ended with its session"])
def test_an_id_that_was_given_up_closes(db, conn, end):
    with closing(db.connect()) as other:
        other.execute("BEGIN")
        other.execute("SAVEPOINT s")
        hole = insert(other)
        insert(conn)
        seal_all(conn)
        if end == "rolled back":
            other.execute("ROLLBACK")
        elif end == "to a savepoint":
            other.execute("ROLLBACK TO s")
        else:
            conn.execute("SELECT pg_terminate_backend(%s, 60000)", [other.info.backend_pid])
        seal_all(conn)
        assert columns(conn, "row_count, closed_seal")[-1] == (0, 1)
        conn.execute("INSERT INTO totp.audit_log (id, at, event, actor, db_user, application_name) VALUES (%s, now(), 'failed', '', '', '')", [hole])
        assert deviations(conn) == [(1, hole, hole, "filled")]


def test_a_prepared_transaction_keeps_its_holes_open(make_cluster):
    cluster = make_cluster(max_prepared_transactions="5")
    db = cluster.create_database()
    with closing(db.connect()) as conn, closing(db.connect()) as other:
        other.execute("BEGIN")
        late = insert(other)
        insert(conn)
        seal_all(conn)
        other.execute("PREPARE TRANSACTION 'p'")
        insert(conn)
        seal_all(conn)
    cluster.kill9()
    cluster.start()
    with closing(db.connect()) as conn:
        insert(conn)
        seal_all(conn)
        assert columns(conn, "closed_seal")[-1] == (0,)
        conn.execute("COMMIT PREPARED 'p'")
        seal_all(conn)
        assert columns(conn, "late::text")[-1] == (f"{{[{late},{late + 1})}}",)
        insert(conn)
        seal_all(conn)
        assert deviations(conn) == []


def test_an_id_that_was_taken_before_the_transaction_had_an_id_stays_open(db, conn):
    """A trigger holds the INSERT between nextval() and the row."""
    conn.execute("""
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.event = 'waits' THEN PERFORM pg_advisory_lock_shared(1); END IF; RETURN NEW; END $$""")
    conn.execute("CREATE TRIGGER wait BEFORE INSERT ON totp.audit_log FOR EACH ROW EXECUTE FUNCTION wait()")
    query = ("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES (now(), 'waits', '', '', '') RETURNING id")
    insert(conn)  # the sequence writes WAL now, which gives a transaction an id, and not again for 32 ids
    conn.execute("SELECT pg_advisory_lock(1)")
    with Background(db, query) as other:
        other.wait_until_blocked(conn)
        insert(conn)
        seal_all(conn)
        assert columns(conn, "next_xid")[-1] == (None,)
        for _ in range(3):
            insert(conn)
            seal_all(conn)
        assert columns(conn, "closed_seal")[-1] == (0,)
        conn.execute("SELECT pg_advisory_unlock(1)")
    [[late]] = other.answer
    seal_all(conn)
    insert(conn)
    seal_all(conn)
    assert (f"{{[{late},{late + 1})}}",) in columns(conn, "late::text")
    assert columns(conn, "closed_seal")[-1] > (0,)
    assert deviations(conn) == []


def test_transactions_that_write_no_audit_row_keep_no_hole_open(db, conn):
    with closing(db.connect()) as reader, closing(db.connect()) as writer:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM totp.audit_log")
        writer.execute("BEGIN")
        writer.execute("CREATE TABLE other (x int)")
        conn.execute("SELECT nextval('totp.audit_ids')")
        insert(conn)
        seal_all(conn)
        seal_all(conn)
        assert columns(conn, "holes::text, closed_seal") == [("{[1,2)}", 0), ("{}", 1)]


# --- One sealing at a time, which waits for nobody -----------------------------------


def test_sealing_waits_for_no_lock_of_a_writer_and_no_writer_waits_for_it(db, conn):
    with closing(db.connect()) as other:
        other.execute("BEGIN")
        insert(other)
        other.execute("UPDATE totp.audit_log SET actor = actor")
        conn.execute("SET lock_timeout = 1")
        seal_all(conn)
        conn.execute("BEGIN")
        conn.execute("SELECT * FROM totp.seal_step()")
        other.execute("SET lock_timeout = 1")
        insert(other)
        other.execute("COMMIT")
        conn.execute("ROLLBACK")


def test_a_second_sealing_says_so_and_does_nothing(db, conn):
    insert(conn)
    with closing(db.connect()) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM totp.seal_step()")
        notices = []
        conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        conn.execute("SET lock_timeout = 1")
        seal_all(conn)
        assert (notices, seals(conn)) == (["pg_totp: another session is sealing"], 0)


def test_a_seal_that_the_log_names_survives_a_kill(fresh_cluster):
    fresh_cluster.configure(fsync="on", wal_writer_delay="10s")
    fresh_cluster.restart()
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        conn.execute("SET synchronous_commit = off")
        insert(conn)
        seal_all(conn)
    fresh_cluster.kill9()
    fresh_cluster.start()
    [line] = re.findall(r"totp: event=audit_sealed .*", fresh_cluster.log_text())
    with closing(db.connect()) as conn:
        assert [finding.status for finding in verify_trail(conn, line)] == ["ok"]


# --- Refusals ----------------------------------------------------------------------


def test_sealing_in_a_transaction_is_refused(conn):
    insert(conn)
    conn.execute("BEGIN")
    assert error_of(conn, "CALL totp_audit_seal()").sqlstate == "2D000"
    conn.execute("ROLLBACK")
    assert seals(conn) == 0


def test_only_the_owner_seals(db, conn):
    insert(conn)
    role = db.create_role("admin", "audit")
    for call in ("CALL totp_audit_seal()", "SELECT * FROM totp.seal_step()", "SELECT totp.seal_line(1)"):
        with closing(db.connect(role)) as other:
            assert error_of(other, call).sqlstate == "42501"
    conn.execute(f"GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public, totp TO {role}")
    with closing(db.connect(role)) as other:
        for call in ("CALL totp_audit_seal()", "SELECT * FROM totp.seal_step()", "SELECT totp.seal_line(1)"):
            assert error_of(other, call).sqlstate == "42501"
    assert seals(conn) == 0


def test_who_has_audit_verifies_and_reads_seals_but_no_keys(db, conn):
    insert(conn)
    seal_all(conn)
    with closing(db.connect(db.create_role("audit"))) as auditor:
        assert deviations(auditor) == []
        assert seals(auditor) == 1
        assert error_of(auditor, "SELECT * FROM totp.audit_keys").sqlstate == "42501"
    for capability in ("verify", "enroll"):
        with closing(db.connect(db.create_role(capability))) as other:
            assert error_of(other, "SELECT * FROM totp_audit_verify()").sqlstate == "42501"


def test_without_a_master_key_nothing_is_sealed(make_cluster):
    cluster = make_cluster()
    db = cluster.create_database()
    cluster.write_key_file("")
    with closing(db.connect()) as conn:
        insert(conn)
        assert error_of(conn, "CALL totp_audit_seal()").sqlstate == "F0000"
        assert seals(conn) == 0


def test_a_standby_verifies_and_does_not_seal(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        insert(conn)
        seal_all(conn)
        insert(conn)
    standby = make_standby(fresh_cluster)
    standby.wait_for_replay(fresh_cluster)
    with closing(standby.connect(db.name)) as conn:
        assert [finding.status for finding in verify_trail(conn)] == ["ok"]
        assert error_of(conn, "CALL totp_audit_seal()").sqlstate == "25006"


def test_verification_sees_one_state_however_it_is_fetched(db, conn):
    for _ in range(3):
        insert(conn)
        seal_all(conn)
    with conn.transaction(), conn.cursor("named") as cursor:
        cursor.itersize = 1
        cursor.execute("SELECT totp_audit_verify()")
        first = cursor.fetchone()
        with closing(db.connect()) as other:
            other.execute("DELETE FROM totp.audit_log")
        rest = cursor.fetchall()
    assert [row[0].split(",")[3] if isinstance(row[0], str) else row[0][3] for row in [first, *rest]] == ["ok"] * 4
    assert [status for *_, status in deviations(conn)] == ["missing"] * 3


def test_verification_from_a_seal_on(conn):
    for _ in range(4):
        insert(conn)
        seal_all(conn)
    conn.execute("UPDATE totp.audit_log SET actor = 'x' WHERE id = 2")
    assert [finding.seal_id for finding in verify_trail(conn, since_seal=3)] == [3, 4]
    assert deviations(conn) == [(2, 2, 2, "changed")]
    assert verify_trail(conn, since_seal=9) == []


GOOD = f"seal=1 last=1 rows=1 mac={'0' * 64}"


@pytest.mark.parametrize("anchor", ["", "seal", "seal=1", GOOD[:-1], GOOD + "0", GOOD + " x", GOOD.replace("1", "", 1), GOOD.replace("=1", "=-1"),
                                    GOOD.replace("mac", "MAC"), GOOD[:-1] + "g", GOOD.replace("=1", "=99999999999999999999", 1), GOOD.replace(" ", ",")])
def test_what_is_no_anchor_is_refused(conn, anchor):
    assert error_of(conn, "SELECT * FROM totp_audit_verify(%s)", [anchor]).sqlstate == "22023"


def test_an_intact_trail_has_a_row_per_seal(conn):
    insert(conn)
    seal_all(conn)
    assert verify_trail(conn) == [Finding(1, 1, 1, "ok", None)]


# --- Health ------------------------------------------------------------------------


def health(conn) -> dict:
    return {name: (status, detail) for name, status, detail in conn.execute("SELECT check_name, status, detail FROM totp_health()")
            if name in ("audit_seals", "audit_ids", "audit_keys")}


def test_health_says_when_rows_wait_for_a_seal(conn):
    assert health(conn) == {}
    insert(conn)
    seal_all(conn)
    assert {status for status, _ in health(conn).values()} == {"ok"}
    fix_clock(conn, NOON + timedelta(hours=9))
    assert {status for status, _ in health(conn).values()} == {"ok"}  # nothing has happened since
    insert(conn, at=NOON + timedelta(hours=7, minutes=59))
    assert health(conn)["audit_seals"][0] == "warn"
    seal_all(conn)
    assert health(conn)["audit_seals"][0] == "ok"


def test_health_says_when_the_sequence_has_a_cache(conn):
    insert(conn)
    seal_all(conn)
    conn.execute("ALTER SEQUENCE totp.audit_ids CACHE 20")
    assert health(conn)["audit_ids"][0] == "warn"


def test_a_writer_locks_the_log_before_it_takes_an_id(db, conn):
    """By that lock a sealing knows that an id may still get its row. Here the writer waits for the sequence."""
    conn.execute("SELECT totp_enroll('first')")
    with closing(db.connect()) as holder:
        holder.execute("BEGIN; ALTER SEQUENCE totp.audit_ids NO CYCLE")
        with Background(db, "SELECT totp_enroll('alice')") as writer:
            writer.wait_until_blocked(conn)
            locks = conn.execute("SELECT relation::regclass::text, granted FROM pg_locks WHERE pid = %s AND relation IN (%s::regclass, %s::regclass)",
                                 [writer.conn.info.backend_pid, "totp.audit_log", "totp.audit_ids"]).fetchall()
            assert sorted(locks) == [("totp.audit_ids", False), ("totp.audit_log", True)]
            holder.execute("COMMIT")
