"""Changes in place in the WAL: one record each, replayed to the byte, and read by the tools of a DBA."""

from contextlib import closing
from datetime import timedelta
from itertools import islice

import pytest
from totp import MAX_ATTEMPTS, NOON, SECRET, check, code_at, fix_clock, good, import_secret, verify, wrong, wrong_codes

IN_PLACE = ["attempts", "used_codes"]


def test_logical_decoding_goes_on_and_shows_no_change_in_place(make_cluster):
    db = make_cluster(wal_level="logical").create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        conn.execute("SELECT pg_create_logical_replication_slot('all', 'test_decoding')")
        assert verify(conn, "alice", good(-1)) is True
        assert verify(conn, "alice", wrong()) is False
        assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
        conn.execute("SELECT totp_reset('alice')")
        changes = [data for [data] in conn.execute("SELECT data FROM pg_logical_slot_get_changes('all', NULL, NULL)").fetchall()]
    seen = {" ".join(change.split(":")[:2]).removeprefix("table totp.") for change in changes if change.startswith("table")}
    # What the reset did to the rows of the old secret and the new one is there; what was counted and used is not.
    assert seen == {"audit_log  INSERT", "used_codes  DELETE", "used_codes  INSERT", "secrets  DELETE", "secrets  INSERT"}


def test_pg_rewind_takes_back_what_changed_in_place(make_cluster, make_standby):
    """It reads from the WAL which pages to copy, and finds those of our records there."""
    primary = make_cluster(wal_keep_size="1GB")
    db = primary.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        for user_id in ("alice", "bob", "carol"):
            import_secret(conn, user_id, SECRET)
    standby = make_standby(primary)
    standby.wait_for_replay(primary)
    standby.promote()
    promoted = type(db)(standby, db.name)
    later = NOON + timedelta(minutes=10)
    for database, user_id in ((db, "alice"), (promoted, "bob")):
        with closing(database.connect()) as conn:
            fix_clock(conn, NOON)
            check(conn, user_id, wrong())  # sets the floor of the promoted one
            fix_clock(conn, later)
            assert verify(conn, user_id, code_at(SECRET, later)) is True
            for code in islice(wrong_codes(SECRET, later), 3):
                assert check(conn, user_id, code).reason == "wrong"
    primary.stop()

    primary.run("pg_rewind", "--target-pgdata", primary.data,
                "--source-server", f"host={standby.folder} user=postgres dbname=postgres")
    primary.configure(unix_socket_directories=primary.folder, primary_conninfo=f"host={standby.folder} user=postgres")
    primary.run("touch", primary.data / "standby.signal")
    primary.start()
    primary.wait_for_replay(standby)
    for table in (*IN_PLACE, "floor"):
        query = f"SELECT ctid::text, t::text FROM totp.{table} AS t ORDER BY ctid"
        assert db.execute(query) == promoted.execute(query)
    assert dict(db.execute("SELECT user_id, failures FROM totp.attempts")) == {"alice": 0, "bob": 3, "carol": 0}


def test_a_judgment_is_one_record_for_the_rows_that_it_changes(make_cluster):
    """So there is no crash between the two rows. What changes nothing writes nothing."""
    db = make_cluster(autovacuum="off", bgwriter_delay="10s").create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("CREATE EXTENSION pg_walinspect")
        import_secret(conn, "alice", SECRET)
        conn.execute("VACUUM totp.attempts, totp.used_codes, totp.secrets")
        names = {conn.execute("SELECT pg_relation_filenode(%s::regclass)::text", [f"totp.{table}"]).fetchone()[0]: table for table in (*IN_PLACE, "counters")}

        def records_of(code, reason):
            """The tables that each generic WAL record of a call changes, without the record that may add to the counters after it,
            which the session does once a second at most. The call is rolled back."""
            with conn.transaction(force_rollback=True):
                [start] = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
                assert check(conn, "alice", code).reason == reason
                end, xid = conn.execute("SELECT pg_current_wal_insert_lsn(), pg_current_xact_id_if_assigned()::text").fetchone()
            assert (xid is not None) == (reason in ("wrong", "replayed"))  # for their audit rows
            conn.execute("SELECT pg_logical_emit_message(true, '', '')")  # its commit flushes what came before
            records = [] if start == end else conn.execute(
                "SELECT resource_manager, block_ref FROM pg_get_wal_records_info(%s, %s)", [start, end]).fetchall()
            tables = [{names[number] for number in names if f"/{number} " in blocks} for manager, blocks in records if manager == "Generic"]
            added.extend(tables[-1:] if tables[-1:] == [{"counters"}] else [])
            return tables[:-1] if tables[-1:] == [{"counters"}] else tables

        added = []
        for now in (NOON, NOON + timedelta(minutes=10)):  # with full-page images, and without
            fix_clock(conn, now)
            wrong = wrong_codes(SECRET, now)
            codes = [code_at(SECRET, now.timestamp() + 30 * step) for step in (-1, 0, 1)]
            assert records_of(codes[0], "accepted") == [{"used_codes"}]
            assert records_of(codes[0], "replayed") == []
            assert records_of(next(wrong), "wrong") == [{"attempts"}]
            assert records_of(codes[1], "accepted") == [{"attempts", "used_codes"}]
            for _ in range(MAX_ATTEMPTS):
                assert records_of(next(wrong), "wrong") == [{"attempts"}]
            assert records_of(codes[2], "locked") == []
            assert records_of("malformed", "locked") == []
            conn.execute("SELECT totp_unlock('alice')")
            assert records_of("malformed", "malformed") == []
        assert added  # by the first judgment of the session at least


USERS = 100
MIX = """
CREATE PROCEDURE mix(users integer, good text, wrong text, late text) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1..users LOOP
    PERFORM totp_import('u' || i, 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', confirmed => true);
    PERFORM totp_reset_recovery_codes('u' || i, 2);
    COMMIT;
  END LOOP;
  FOR i IN 1..users LOOP
    PERFORM totp_check('u' || i, wrong);
    PERFORM totp_check('u' || i, good);
    PERFORM totp_check('u' || i, wrong);
    IF i % 2 = 0 THEN ROLLBACK; END IF;
    PERFORM totp_recover('u' || i, 'AAAAAA-AAAAAA-AAAAAA-AAAAAA');
    IF i % 3 = 0 THEN PERFORM totp_rename_user('u' || i, 'renamed' || i); END IF;
    IF i % 5 = 0 THEN PERFORM totp_remove('u' || i); END IF;
    IF i % 7 = 0 THEN PERFORM totp_enroll('u' || i); END IF;
    IF i % 11 = 0 THEN PERFORM totp_unlock('u' || i); END IF;
    PERFORM totp_check('u' || (1 + i * 37 % users), late);
    COMMIT;
  END LOOP;
END $$;
"""


def test_a_replayed_page_is_the_same_to_the_byte(make_cluster, make_standby):
    """With wal_consistency_checking, every heap record carries its page, which replay compares with its own, hint bits left out:
    on pages that changed in place too. The records of those changes themselves cannot be checked, see the next test."""
    primary = make_cluster(wal_consistency_checking="heap,heap2,btree")
    db = primary.create_database()
    standby = make_standby(primary, wal_retrieve_retry_interval="100ms")
    db.psql(MIX)
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("CALL mix(%s, %s, %s, %s)", [USERS, good(), wrong(), good(1)])
        for table in IN_PLACE:
            conn.execute(f"VACUUM (FREEZE) totp.{table}")
            conn.execute(f"DELETE FROM totp.{table} WHERE user_id LIKE '%1'")  # a record for each page, at the end
    standby.wait_for_replay(primary)
    primary.kill9()
    primary.start()
    standby.wait_for_replay(primary)
    for table in IN_PLACE:
        query = f"SELECT ctid::text, t::text FROM totp.{table} AS t ORDER BY ctid"
        rows = db.execute(query)
        assert len(rows) > USERS / 2 and rows == type(db)(standby, db.name).execute(query)


def test_wal_consistency_checking_of_generic_records_ends_recovery(make_cluster):
    """Why it must stay off: it reports the heap's hint bits, which are not logged, as a difference."""
    cluster = make_cluster(wal_consistency_checking="generic")
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        for user_id in ("alice", "bob"):
            import_secret(conn, user_id, SECRET)
        conn.execute("CHECKPOINT")
        for user_id in ("alice", "bob"):
            assert verify(conn, user_id, good()) is True
    cluster.kill9()
    with pytest.raises(RuntimeError, match="inconsistent page found"):
        cluster.start()
    cluster.configure(wal_consistency_checking="")  # too late: the records say what to check
    with pytest.raises(RuntimeError, match="inconsistent page found"):
        cluster.start()
