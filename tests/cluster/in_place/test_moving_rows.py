"""Charges and sign-ins while other commands move the rows: none lost, none invented, no other row changed.

The sessions that count run in the server, as procedures that commit and roll back, and record each answer.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from amounts import amount
from server import wait_until
from totp import NOON, ORPHANS, SECRET, code_at, fix_clock, import_secret

WRONG = "00000000"
CHARGES = amount("CHARGES", 64_000, light=6_400)
RACES = amount("RACES", 10_000, light=1_000)
SESSIONS = 32
CHARGES_A_USER = 50
HARD_LIMIT = 100

MAINTENANCE = [
    "VACUUM FULL totp.attempts", "VACUUM (FREEZE) totp.attempts", "CLUSTER totp.attempts USING attempts_pkey",
    "VACUUM FULL totp.used_codes", "VACUUM (FREEZE) totp.used_codes", "CLUSTER totp.used_codes USING used_codes_pkey",
    "VACUUM FULL totp.secrets", "REINDEX INDEX CONCURRENTLY totp.attempts_pkey"]
SINCE_19 = ["REPACK totp.attempts", "REPACK totp.used_codes USING INDEX used_codes_pkey", "REPACK USING INDEX"]  # the last: what has been clustered

# Users with an odd number are renamed from "stay-7" to "moved-7" and back, and reset. Those with an even number, "go-8", are
# removed and come back; a trigger notes what the row held: it reads it after it was marked as deleted.
# After a reset nobody here knows the secret. One guess in about ten million is right by chance; that is noted.
LOAD = """
CREATE TABLE told (who integer, number bigint, by_chance boolean);
CREATE TABLE removed (who integer, failures bigint);
CREATE TABLE done ();
CREATE TABLE names (who integer PRIMARY KEY, name text NOT NULL);

CREATE FUNCTION going_on(sessions integer) RETURNS boolean LANGUAGE sql VOLATILE AS 'SELECT count(*) < sessions FROM done';

CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.removed VALUES (substr(OLD.user_id, 4)::integer, OLD.failures);
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER DELETE ON totp.attempts FOR EACH ROW WHEN (OLD.user_id LIKE 'go-%') EXECUTE FUNCTION note();

CREATE PROCEDURE charge(session integer, calls integer, users integer, code text) LANGUAGE plpgsql AS $$
DECLARE
  numbers bigint[] := array_fill(0, ARRAY[users]);
  by_chance boolean[] := array_fill(false, ARRAY[users]);
  who integer;
  name text;
  answer text;
BEGIN
  FOR i IN 1..calls LOOP
    who := 1 + (session * calls + i) % users;
    FOREACH name IN ARRAY CASE who % 2 WHEN 0 THEN '{go-}'::text[] ELSE '{stay-,moved-,stay-}' END LOOP
      SELECT reason INTO STRICT answer FROM totp_check(name || who, code);
      EXIT WHEN answer <> 'not_enrolled';
    END LOOP;
    CASE answer
      WHEN 'wrong' THEN numbers[who] := numbers[who] + 1;
      WHEN 'accepted' THEN by_chance[who] := true;
      WHEN 'not_enrolled' THEN NULL;
    END CASE;
    IF i % 3 = 0 THEN COMMIT; ELSE ROLLBACK; END IF;
  END LOOP;
  INSERT INTO told SELECT i, numbers[i], by_chance[i] FROM generate_series(1, users) AS i;
END $$;

CREATE PROCEDURE rename_and_reset(sessions integer, users integer) LANGUAGE plpgsql AS $$
DECLARE
  old_name text;
  new_name text;
BEGIN
  WHILE going_on(sessions) LOOP
    FOR i IN 1..users BY 2 LOOP
      SELECT name INTO STRICT old_name FROM names WHERE who = i;
      new_name := CASE WHEN old_name LIKE 'stay-%' THEN 'moved-' ELSE 'stay-' END || i;
      PERFORM totp_rename_user(old_name, new_name);
      UPDATE names SET name = new_name WHERE who = i;
      IF i % 3 = 0 THEN PERFORM totp_reset(new_name); END IF;
      IF i % 5 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
    END LOOP;
  END LOOP;
END $$;

CREATE PROCEDURE remove_and_enroll(sessions integer, users integer, secret text) LANGUAGE plpgsql AS $$
BEGIN
  WHILE going_on(sessions) LOOP
    FOR i IN 2..users BY 2 LOOP
      PERFORM totp_remove('go-' || i);
      IF i % 5 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
      PERFORM totp_import('go-' || i, secret, digits => 8, confirmed => true);
      COMMIT;
    END LOOP;
  END LOOP;
END $$;

CREATE PROCEDURE enrol_and_remove_many(sessions integer) LANGUAGE plpgsql AS $$
BEGIN
  WHILE going_on(sessions) LOOP
    PERFORM totp_enroll('many-' || i) FROM generate_series(1, 200) AS i;
    COMMIT;
    PERFORM totp_remove('many-' || i) FROM generate_series(1, 200) AS i;
    COMMIT;
  END LOOP;
END $$;
"""

# No user here is left without devices, whose failures would stay.
NOTHING_ELSE = f"""{ORPHANS}
UNION ALL
SELECT 'attempts of nobody', user_id FROM totp.attempts a WHERE NOT EXISTS (SELECT FROM totp.secrets s WHERE s.user_id = a.user_id)"""

RACE = f"""
CREATE TABLE done ();
CREATE FUNCTION going_on(sessions integer) RETURNS boolean LANGUAGE sql VOLATILE AS 'SELECT count(*) < sessions FROM done';

CREATE PROCEDURE enroll(number integer) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1..number LOOP
    PERFORM totp_enroll('racer', digits => 8);
    IF i % 4 = 0 THEN
      PERFORM totp_import('racer', '{SECRET}', digits => 8, confirmed => true);
      PERFORM totp_reset_recovery_codes('racer', 1);
    END IF;
    IF i % 5 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
  END LOOP;
END $$;

CREATE PROCEDURE remove(sessions integer, INOUT devices bigint) LANGUAGE plpgsql AS $$
BEGIN
  WHILE going_on(sessions) LOOP
    devices := devices + totp_remove('racer');
    COMMIT;
    PERFORM totp_remove('racer', 'default');
    ROLLBACK;
  END LOOP;
END $$;

CREATE PROCEDURE judge(sessions integer, code text, INOUT reasons jsonb) LANGUAGE plpgsql AS $$
DECLARE
  answer text;
BEGIN
  WHILE going_on(sessions) LOOP
    SELECT reason INTO STRICT answer FROM totp_check('racer', code);
    reasons := reasons || jsonb_build_object(answer, coalesce((reasons ->> answer)::bigint, 0) + 1);
    COMMIT;
  END LOOP;
END $$;

CREATE VIEW orphans (what, user_id) AS {NOTHING_ELSE};

CREATE PROCEDURE watch(sessions integer, INOUT looks bigint) LANGUAGE plpgsql AS $$
DECLARE
  orphan record;
BEGIN
  WHILE going_on(sessions) LOOP
    SELECT * INTO orphan FROM orphans;
    IF FOUND THEN
      RAISE 'there is a %', orphan;
    END IF;
    looks := looks + 1;
    COMMIT;
  END LOOP;
END $$;
"""


def run_beside(db, leading, others):
    """Run each statement in its own session, all at once. The others go on until all of the leading ones have ended."""
    def lead(statement):
        try:
            return run(statement)
        finally:
            db.execute("INSERT INTO done DEFAULT VALUES")

    def run(statement):
        with closing(db.connect()) as conn:
            fix_clock(conn, NOON)
            if callable(statement):
                return statement(conn)
            answer = conn.execute(*statement)
            return answer.fetchone()[0] if answer.description else None

    with ThreadPoolExecutor(len(leading) + len(others)) as pool:
        running = [*(pool.submit(lead, statement) for statement in leading), *(pool.submit(run, statement) for statement in others)]
        return [one.result() for one in running][len(leading):]


def assert_sound(db, standby):
    """Nothing is corrupt, here and on the standby, and both have the same rows. Ends with both servers stopped."""
    db.execute("CREATE EXTENSION amcheck")
    standby.wait_for_replay(db.cluster)
    for server in (db.cluster, standby):
        server.client("pg_amcheck", "--heapallindexed", "--jobs=2", db.name)
    for table in ("attempts", "used_codes", "secrets", "recovery_codes", "floor", "counters"):
        query = f"SELECT ctid::text, xmin::text, t::text FROM totp.{table} AS t ORDER BY ctid"
        rows = [type(db)(server, db.name).execute(query) for server in (db.cluster, standby)]
        assert rows[0] == rows[1]
    for server in (standby, db.cluster):
        server.stop()
        assert "Bad checksums:  0" in server.run("pg_checksums", "--check", "-D", server.data)


def test_charges_beside_everything_that_moves_rows(make_cluster, make_standby):
    assert code_at(SECRET, NOON, digits=8) != WRONG
    users = CHARGES // CHARGES_A_USER
    cluster = make_cluster(totp__max_attempts=HARD_LIMIT, totp__hard_limit=HARD_LIMIT, max_connections=60)
    db = cluster.create_database()
    db.psql(LOAD)
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("INSERT INTO names SELECT i, CASE i %% 2 WHEN 0 THEN 'go-' ELSE 'stay-' END || i FROM generate_series(1, %s) AS i", [users])
        conn.execute("SELECT totp_import(name, %s, digits => 8, confirmed => true) FROM names ORDER BY who", [SECRET])
    standby = make_standby(cluster)

    def maintain(conn):
        rounds = 0
        statements = MAINTENANCE + (SINCE_19 if conn.info.server_version >= 190000 else [])
        while conn.execute("SELECT going_on(%s)", [SESSIONS]).fetchone()[0]:
            for statement in statements:
                conn.execute(statement)
            rounds += 1
        return rounds

    rounds, *_ = run_beside(
        db, [("CALL charge(%s, %s, %s, %s)", [session, CHARGES // SESSIONS, users, WRONG]) for session in range(SESSIONS)], [
            maintain,
            ("CALL rename_and_reset(%s, %s)", [SESSIONS, users]),
            ("CALL remove_and_enroll(%s, %s, %s)", [SESSIONS, users, SECRET]),
            ("CALL enrol_and_remove_many(%s)", [SESSIONS])])

    assert rounds >= 1
    # Each user got as many failures as its row has now, and those that were removed had.
    accounts = db.execute("""
        SELECT who, name, told.number, coalesce(gone.failures, 0), coalesce(a.failures, -1)
          FROM names
          JOIN (SELECT who, sum(number), bool_or(by_chance) FROM told GROUP BY who) AS told (who, number, by_chance) USING (who)
          LEFT JOIN (SELECT who, sum(failures) FROM removed GROUP BY who) AS gone (who, failures) USING (who)
          LEFT JOIN totp.attempts a ON a.user_id = name
         WHERE NOT by_chance ORDER BY who""")
    assert [row for row in accounts if row[2] != row[3] + row[4]] == []
    assert len(accounts) >= users - 2
    assert sum(row[2] for row in accounts) > CHARGES * 0.8  # the rest came while their user was away
    assert sum(row[3] for row in accounts) > 0
    events = dict(db.execute("SELECT event, count(*) FROM totp.audit_log GROUP BY event"))
    assert events["renamed"] > users / 4 and events["reset"] > users / 40 and events["removed"] > users / 4
    assert db.execute(NOTHING_ELSE) == []
    assert_sound(db, standby)


def test_races_of_enrolling_against_removing_one_user(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    db.psql(RACE)
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "somebody", SECRET)
    standby = make_standby(fresh_cluster)

    enrolling = [("CALL enroll(%s)", [RACES // 2])] * 2
    *removed, judged, looks = run_beside(db, enrolling, [
        *[("CALL remove(2, 0)", [])] * 2, ("CALL judge(2, %s, '{}')", [WRONG]), ("CALL watch(2, 0)", [])])

    assert min(removed) > 0 and sum(removed) > RACES / 200 and looks > RACES / 100
    assert set(judged) <= {"wrong", "not_enrolled", "locked", "accepted"} and judged["wrong"] > 10
    assert db.execute(NOTHING_ELSE) == []
    assert db.value("SELECT count(*) FROM totp.secrets WHERE user_id = 'racer'") <= 2  # an active one, and one that is staged
    assert_sound(db, standby)


def test_a_removal_whose_row_went_while_it_waited_leaves_the_next_enrollment_alone(db):
    """It locks the new row, or removes nothing: it never removes a secret without its user's row."""
    def removal(conn):
        conn.execute("BEGIN")
        return conn.execute("SELECT totp_remove('racer')").fetchone()[0]

    def waits_for(conn, what):
        return db.value("SELECT wait_event_type = 'Lock' AND wait_event = %s FROM pg_stat_activity WHERE pid = %s",
                        [what, conn.info.backend_pid])

    with (closing(db.connect()) as first, closing(db.connect()) as second, closing(db.connect()) as enrolling,
          closing(db.connect()) as blocker, ThreadPoolExecutor(2) as pool):
        enrolling.execute("SELECT totp_enroll('racer')")
        first.execute("BEGIN")
        for table in ("attempts", "used_codes", "secrets"):  # a removal that leaves the table of recovery codes alone
            first.execute(f"DELETE FROM totp.{table}")
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE totp.recovery_codes IN ACCESS EXCLUSIVE MODE")
        removed = pool.submit(removal, second)
        wait_until(lambda: waits_for(second, "transactionid"), "the second removal to wait for the first")
        first.execute("COMMIT")
        wait_until(lambda: removed.done() or waits_for(second, "relation"), "the second removal to go on")
        enrolling.execute("SELECT totp_enroll('racer')")
        blocker.execute("ROLLBACK")
        removed.result()
        enrolled = pool.submit(enrolling.execute, "SELECT totp_enroll('racer')")
        wait_until(lambda: enrolled.done() or waits_for(enrolling, "transactionid"), "the enrollment to be done, or to wait")
        second.execute("COMMIT")
        enrolled.result()
    assert db.value("SELECT count(*) FROM totp.secrets") == 1
    assert db.execute(NOTHING_ELSE) == []
