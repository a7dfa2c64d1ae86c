"""The tables whose rows change in place: which alterations are refused, what readers see, and what is left behind."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from amounts import amount
from totp import MAX_ATTEMPTS, NOON, NO_CODE, SECRET, check, code_at, counters, error_of, fix_clock, good, import_secret, parallel, stage, verify, wrong

SIGN_INS = amount("SIGN_INS", 100_000, light=20_000)


# --- fails closed --------------------------------------------------------------------------

ALTERATIONS = {  # see also test_altered_tables.py
    "no row": "DELETE FROM totp.{table}",
    "unlogged": "ALTER TABLE totp.{table} SET UNLOGGED",
    "another access method": "CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler; ALTER TABLE totp.{table} SET ACCESS METHOD other",
    "nullable": "ALTER TABLE totp.{table} ALTER COLUMN {column} DROP NOT NULL",
    "nullable first column": "ALTER TABLE totp.{table} ALTER COLUMN {first} DROP NOT NULL",
    "swapped": "ALTER TABLE totp.{table} RENAME COLUMN {column} TO x; ALTER TABLE totp.{table} RENAME COLUMN {other} TO {column};"
               " ALTER TABLE totp.{table} RENAME COLUMN x TO {other}",
    "later": "ALTER TABLE totp.{table} RENAME COLUMN {column} TO x; ALTER TABLE totp.{table} ADD COLUMN {column} bigint NOT NULL DEFAULT 0",
}
COLUMNS = {"attempts": ("failures", "recovery_failures", "locked_until"), "used_codes": ("uses", "recovery_mask", "time_step")}


@pytest.mark.parametrize("table", COLUMNS)
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_what_was_altered_is_refused(db, table, alteration):
    """By a session that knew the table as it was, and by one that did not."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        pending = stage(conn, "alice", device="phone")
        [[recovery_code], *_] = conn.execute("SELECT totp_reset_recovery_codes('alice')").fetchall()
        check(conn, "alice", "malformed")
        column, other, first = COLUMNS[table]
        db.psql(ALTERATIONS[alteration].format(table=table, column=column, other=other, first=first))
        with closing(db.connect()) as later:
            fix_clock(later, NOON)
            for session in (conn, later):
                for call, code in [("totp_verify('alice', %s)", good()), ("totp_check('alice', %s)", good()),
                                   ("totp_confirm('alice', %s, 'phone')", code_at(pending, NOON)), ("totp_recover('alice', %s)", recovery_code)]:
                    error = error_of(session, f"SELECT {call}", [code])
                    assert error.sqlstate == "XX001" and error.diag.message_hint, call
                for call, code in [("totp_verify('alice', %s)", wrong()), ("totp_recover('alice', %s)", NO_CODE)]:
                    # That needs the row of attempts, and is charged if it is answered.
                    answer = None
                    try:
                        [answer] = session.execute(f"SELECT {call}", [code]).fetchone()
                    except psycopg.errors.DataCorrupted as error:
                        assert error.diag.message_hint
                    assert answer is None or (answer is False and table == "used_codes" and sum(counters(session)[:2]) > 0)


@pytest.mark.parametrize("alteration", ["DELETE FROM totp.floor", "ALTER TABLE totp.floor SET UNLOGGED",
                                        "ALTER TABLE totp.floor ALTER COLUMN timeline DROP NOT NULL"])
def test_without_a_floor_nothing_is_judged(db, alteration):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
    db.execute(alteration)
    db.execute("UPDATE totp.floor SET timeline = 0")
    with closing(db.connect()) as late:  # one that has not read the floor yet
        fix_clock(late, NOON)
        error = error_of(late, "SELECT totp_verify('alice', %s)", [good()])
        assert error.sqlstate == "XX001" and error.diag.message_hint


# --- partitions ------------------------------------------------------------------------------

PARTITION = """
ALTER EXTENSION pg_totp DROP TABLE totp.{table};
ALTER TABLE totp.{table} RENAME TO {table}_before;
CREATE TABLE totp.{table} (LIKE totp.{table}_before INCLUDING ALL) PARTITION BY HASH (user_id);
DO $$ BEGIN
  FOR i IN 0..3 LOOP
    EXECUTE format('CREATE TABLE totp.{table}_%s PARTITION OF totp.{table} FOR VALUES WITH (MODULUS 4, REMAINDER %s)', i, i);
    EXECUTE format('ALTER TABLE totp.{table}_%s REPLICA IDENTITY NOTHING', i);  -- PostgreSQL 19 asks for it
  END LOOP;
END $$;
INSERT INTO totp.{table} SELECT * FROM totp.{table}_before;
DROP TABLE totp.{table}_before;
ALTER EXTENSION pg_totp ADD TABLE totp.{table};
"""


def test_hash_partitions_work(db):
    users = [f"user-{i}" for i in range(16)]
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        for user_id in users[:8]:
            import_secret(conn, user_id, SECRET)
            check(conn, user_id, wrong())
            assert check(conn, user_id, good(-1)).reason == "accepted"
            check(conn, user_id, wrong())
    db.psql("".join(PARTITION.format(table=table) for table in COLUMNS))
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        for user_id in users[8:]:
            import_secret(conn, user_id, SECRET)
        for number, user_id in enumerate(users):
            with conn.transaction(force_rollback=True):
                assert check(conn, user_id, wrong()).attempts_left == MAX_ATTEMPTS - (2 if number < 8 else 1)
                assert check(conn, user_id, good(-1)).reason == ("replayed" if number < 8 else "accepted")
            assert check(conn, user_id, good(-1)).reason == "replayed"
            # To another partition and back, with all that was counted and used.
            [codes] = zip(*conn.execute("SELECT totp_reset_recovery_codes(%s, 2)", [user_id]).fetchall())
            assert conn.execute("SELECT totp_recover(%s, %s)", [user_id, codes[0]]).fetchone() == (True,)
            left = check(conn, user_id, wrong()).attempts_left
            assert left == MAX_ATTEMPTS - 1
            for names in ((user_id, "renamed"), ("renamed", user_id)):
                assert conn.execute("SELECT totp_rename_user(%s, %s)", names).fetchone() == (1,)
                assert check(conn, names[1], "malformed").attempts_left == left
                assert check(conn, names[1], good(-1)).reason == "replayed"
                assert [conn.execute("SELECT totp_recover(%s, %s)", [names[1], codes[0]]).fetchone()[0]] == [False]
            assert conn.execute("SELECT totp_recover(%s, %s)", [user_id, codes[1]]).fetchone() == (True,)
            secret = stage(conn, user_id)
            assert check(conn, user_id, code_at(secret, NOON)).reason == "accepted"
            conn.execute("SELECT totp_unlock(%s)", [user_id])
            conn.execute("SELECT totp_reset(%s)", [user_id])
        for table in COLUMNS:
            assert conn.execute(f"SELECT count(DISTINCT tableoid) FROM totp.{table}").fetchone() == (4,)

        def session(_):
            conn = db.connect()
            fix_clock(conn, NOON)
            return conn

        def guess(i, conn):
            with closing(conn):
                return check(conn, users[0], wrong(i)).reason

        assert sorted(parallel(20, guess, prepare=session)) == ["locked"] * 15 + ["wrong"] * 5
        for table in COLUMNS:
            for statement in ("VACUUM (FREEZE) totp.{0}", "VACUUM FULL totp.{0}_0", "CLUSTER totp.{0}_1 USING {0}_1_pkey"):
                conn.execute(statement.format(table))
        assert check(conn, users[0], wrong()).reason == "locked"
        for user_id in users:
            assert conn.execute("SELECT totp_remove(%s)", [user_id]).fetchone() == (1,)
        for table in COLUMNS:
            assert conn.execute(f"SELECT count(*) FROM totp.{table}").fetchone() == (0,)
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        conn.execute("ALTER TABLE totp.attempts_0 SET UNLOGGED; ALTER TABLE totp.attempts_1 SET UNLOGGED;"
                     "ALTER TABLE totp.attempts_2 SET UNLOGGED; ALTER TABLE totp.attempts_3 SET UNLOGGED")
        with pytest.raises(psycopg.errors.DataCorrupted):
            verify(conn, "alice", good())


# --- what is left behind, and what readers see ---------------------------------------------------

SIGN_IN = """
CREATE EXTENSION pgstattuple;

CREATE PROCEDURE sign_in(number integer, secret text, start timestamptz) LANGUAGE plpgsql AS $$
DECLARE
  moment timestamptz;
BEGIN
  FOR i IN 1..number LOOP
    moment := start + i * interval '30 s';
    PERFORM set_config('totp.clock', moment::text, false);
    IF totp_verify('alice', totp_code_at(secret, moment)) IS NOT TRUE THEN
      RAISE 'sign-in % was refused', i;
    END IF;
    COMMIT;
  END LOOP;
END $$;

-- Each look is at whole columns: no value that was not written, none older than the one seen before, none of another row's.
CREATE PROCEDURE watch(number integer, start timestamptz, INOUT looks bigint) LANGUAGE plpgsql AS $$
DECLARE
  now record;
  before record;
  first_step bigint := extract(epoch FROM start)::bigint / 30;
BEGIN
  SELECT * INTO before FROM totp.used_codes WHERE user_id = 'alice';
  WHILE before.uses <= number LOOP
    FOR now IN SELECT * FROM totp.used_codes LOOP
      IF now.user_id <> 'alice' THEN
        IF (now.uses, now.used_at, now.recovery_mask) IS DISTINCT FROM (0, '-infinity'::timestamptz, 0) THEN
          RAISE 'a neighbor changed: %', now;
        END IF;
      ELSIF now.uses NOT BETWEEN before.uses AND number + 1
         OR now.time_step NOT BETWEEN before.time_step AND first_step + number
         OR now.used_at NOT BETWEEN before.used_at AND start + number * interval '30 s'
         OR extract(epoch FROM now.used_at)::bigint % 30 <> 0
         OR now.recovery_mask <> 0 OR now.secret_id <> before.secret_id THEN
        RAISE 'seen % after %', now, before;
      ELSE
        before := now;
      END IF;
    END LOOP;
    looks := looks + 1;
    COMMIT;
  END LOOP;
END $$;
"""


def test_accepted_sign_ins_leave_nothing_behind_and_readers_see_whole_values(make_cluster):
    db = make_cluster(autovacuum="off").create_database()
    db.psql(SIGN_IN)
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        for user_id in ("neighbor-1", "alice", "neighbor-2"):
            import_secret(conn, user_id, SECRET)
        assert verify(conn, "alice", good()) is True
        conn.execute("VACUUM totp.attempts, totp.used_codes, totp.secrets")

        def leftovers():
            return conn.execute("""
                SELECT pg_snapshot_xmax(pg_current_snapshot())::text, c.relname, pg_total_relation_size(c.oid),
                       t.tuple_count, t.dead_tuple_count, t.free_space
                  FROM pg_class c, pgstattuple(c.oid) t
                 WHERE c.relnamespace = 'totp'::regnamespace AND c.relkind = 'r' ORDER BY relname""").fetchall()

        before = leftovers()
        with closing(db.connect()) as watching, closing(db.connect()) as signing, ThreadPoolExecutor(2) as pool:
            looks = pool.submit(lambda: watching.execute("CALL watch(%s, %s, 0)", [SIGN_INS, NOON]).fetchone()[0])
            pool.submit(lambda: signing.execute("CALL sign_in(%s, %s, %s)", [SIGN_INS, SECRET, NOON])).result()
            assert looks.result() > 1000
        assert leftovers() == before
        assert {row[4] for row in before} == {0}
        assert conn.execute("SELECT uses FROM totp_status('alice')").fetchone() == (SIGN_INS + 1,)


def test_an_open_cursor_blocks_no_sign_in(quick_db, conn):
    """It keeps the page pinned, which holds off VACUUM and not us."""
    import_secret(conn, "alice", SECRET)
    conn.execute("SET statement_timeout = '20s'")
    with closing(quick_db.connect(autocommit=False)) as reader:
        for table in COLUMNS:
            reader.execute(f"DECLARE in_{table} CURSOR FOR SELECT * FROM totp.{table}")
            reader.execute(f"FETCH 1 FROM in_{table}")
        assert check(conn, "alice", wrong()).reason == "wrong"
        assert check(conn, "alice", good()).reason == "accepted"
        reader.execute("MOVE BACKWARD ALL FROM in_used_codes")
        assert reader.execute("SELECT uses FROM totp.used_codes").fetchone() == (1,)  # not of its snapshot: as a sequence


def test_cancels_at_any_moment_lose_no_charge_and_leave_no_lock(db):
    """A statement that is canceled somewhere inside may be charged and not told, never told and not charged."""
    users = 40
    with closing(db.connect()) as conn, closing(db.connect()) as judge:
        for one in (conn, judge):
            fix_clock(one, NOON)
        for user in range(users):
            import_secret(conn, f"user-{user}", SECRET)
        victim = judge.info.backend_pid
        over = False

        def cancel():
            cancels = 0
            while not over:
                conn.execute("SELECT pg_cancel_backend(%s)", [victim])
                cancels += 1
            return cancels

        told, canceled = {user: 0 for user in range(users)}, 0
        with ThreadPoolExecutor(1) as pool:
            cancels = pool.submit(cancel)
            try:
                for i in range(users * 1000):  # on a busy machine few of the cancels meet a call
                    if i >= users * 50 and canceled > 10:
                        break
                    try:
                        told[i % users] += check(judge, f"user-{i % users}", wrong()).reason == "wrong"
                    except psycopg.errors.QueryCanceled:
                        canceled += 1
            finally:
                over = True
            assert cancels.result() > 100 and canceled > 10
        for user in range(users):
            [failures] = conn.execute("SELECT failures FROM totp_status(%s)", [f"user-{user}"]).fetchone()
            assert told[user] <= failures <= MAX_ATTEMPTS
            conn.execute("SELECT totp_unlock(%s)", [f"user-{user}"])
            assert check(conn, f"user-{user}", good()).reason == "accepted"
