"""No way to undo a transaction gives back a guess or a used code.

Each way is a script for psql: it guesses, gets the answer in a NOTICE while its transaction is open, and undoes the
transaction.
"""

import os
import socket
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import psycopg
import pytest
from amounts import amount
from totp import MAX_ATTEMPTS, NOON, NO_CODE, SECRET, check, code_at, counters, enroll, fix_clock, good, import_secret, recover, recovery_codes, wrong_codes

TRIES = amount("TRIES", 10_000, light=1_000)  # by each way
FEW = 20  # by a way that is much like another

# What a script may use: guess() says the answer before its transaction ends, and returns 0.
TOOLS = """
CREATE FUNCTION guess(code text) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
  RAISE NOTICE 'told %', CASE WHEN code LIKE '%-%' THEN totp_recover('alice', code)::text ELSE (SELECT reason FROM totp_check('alice', code)) END;
  RETURN 0;
END $$;
CREATE FUNCTION guess_and_catch(code text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM guess(code);
  RAISE 'give it back';
EXCEPTION WHEN raise_exception THEN
END $$;
CREATE TABLE parent (id integer PRIMARY KEY);
CREATE TABLE child (id integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE contended (n integer);
INSERT INTO contended VALUES (0);
CREATE EXTENSION dblink;
"""

CONNECT_RIVAL = "SELECT dblink_connect('rival', format('host=%s dbname=%s user=postgres', '{folder}', current_database()));"


class Way(NamedTuple):
    """A script, and the error in which each of its tries ends, if any."""

    each: str
    before: str = ""
    after: str = ""
    error: str | None = None
    tries: int = TRIES


WAYS = {
    "rollback": Way("BEGIN; SELECT guess('{code}'); ROLLBACK;"),
    "savepoint": Way("SAVEPOINT s; SELECT guess('{code}'); ROLLBACK TO s;", before="BEGIN;", after="ROLLBACK;"),
    "exception block": Way("SELECT guess_and_catch('{code}');"),
    "exception blocks of one statement": Way("PERFORM guess_and_catch('{code}');", before="DO $$ BEGIN", after="END $$;", tries=min(TRIES, 1_000)),
    "failing statement": Way("SELECT 1 / guess('{code}');", error="division by zero"),
    "serialization failure": Way(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT guess('{code}');"
        " SELECT dblink_exec('rival', 'UPDATE contended SET n = n + 1'); UPDATE contended SET n = n + 1; ROLLBACK;",
        before=CONNECT_RIVAL, error="could not serialize access due to concurrent update"),
    "deferred constraint": Way(
        "BEGIN; SELECT guess('{code}'); INSERT INTO child VALUES (1); COMMIT;",
        error='insert or update on table "child" violates foreign key constraint "child_id_fkey"'),
    "prepared transaction": Way("BEGIN; SELECT guess('{code}'); PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p';"),
    "canceled statement": Way(
        "SELECT guess('{code}'), pg_cancel_backend(pg_backend_pid()), pg_sleep(600);",
        error="canceling statement due to user request"),
    "failing transaction": Way("BEGIN; SELECT guess('{code}'); SELECT 1 / 0; COMMIT;", error="division by zero", tries=FEW),
    "common table expression": Way("WITH g AS (SELECT guess('{code}') AS n) SELECT 1 / n FROM g;", error="division by zero", tries=FEW),
    "nested rollbacks": Way("BEGIN; SAVEPOINT a; SAVEPOINT b; SELECT guess('{code}'); RELEASE b; ROLLBACK TO a; ROLLBACK;", tries=FEW),
    "PL/pgSQL rollback": Way("DO $$ BEGIN PERFORM guess('{code}'); ROLLBACK; END $$;", tries=FEW),
    "serializable": Way("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT guess('{code}'); ROLLBACK;", tries=FEW),
    "repeatable read": Way("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM parent; SELECT guess('{code}'); ROLLBACK;", tries=FEW),
    "read-only from now on": Way("BEGIN; SELECT guess('{code}'); SET TRANSACTION READ ONLY; ROLLBACK;", tries=FEW),
}


@pytest.fixture(scope="module")
def cluster(make_module_cluster):
    """A server that takes prepared transactions."""
    return make_module_cluster(max_prepared_transactions=1)


@pytest.fixture(scope="module")
def tools(_module_database):
    _module_database.psql(TOOLS)


@pytest.fixture
def db(tools, quick_db):
    return quick_db


def by_script(db, way, codes):
    """Try the codes by one of WAYS; the answers told, in order."""
    script = "\n".join(["LOAD 'pg_totp';", f"SET totp.clock = '{NOON.isoformat()}';", way.before.format(folder=db.cluster.folder),
                        *(way.each.format(code=code) for code in codes), way.after])
    # What psql says goes to stderr, as NOTICE or as ERROR.
    said = db.cluster.client("sh", "-c", 'exec psql "$@" 2>&1 >/dev/null', "sh", "-X", "-q", "-d", db.name, stdin=script)
    told = [line.partition("NOTICE:  told ")[2] for line in said.splitlines() if "NOTICE:  told " in line]
    errors = [line.partition("ERROR:  ")[2] for line in said.splitlines() if "ERROR:  " in line]
    assert errors == ([way.error] * len(codes) if way.error else [])
    return told


def drop_connection(db, conn):
    with socket.socket(fileno=os.dup(conn.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def terminate_session(db, conn):
    db.execute(f"SELECT pg_terminate_backend({conn.info.backend_pid}, 60000)")


def by_lost_session(db, lose, codes):
    """Try each code in its own transaction, and lose the session after the answer."""
    told = []
    for code in codes:
        conn = db.connect(autocommit=False)
        fix_clock(conn, NOON)
        told.append(str(recover(conn, code)).lower() if "-" in code else check(conn, "alice", code).reason)
        lose(db, conn)
        conn.close()
    return told


# How a session is lost, and how often: a connection for each try takes time.
LOSSES = {"dropped connection": (drop_connection, max(FEW, TRIES // 25)), "terminated session": (terminate_session, FEW)}
ALL_WAYS = [*WAYS, *LOSSES]


def by_way(db, way, codes):
    return by_lost_session(db, LOSSES[way][0], codes) if way in LOSSES else by_script(db, WAYS[way], codes)


def tries(way):
    return LOSSES[way][1] if way in LOSSES else WAYS[way].tries


@pytest.mark.parametrize("way", ALL_WAYS)
def test_a_guess_that_is_taken_back_is_counted(db, way):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        codes = list(islice(wrong_codes(SECRET, NOON), tries(way)))
        codes[MAX_ATTEMPTS::7] = [good()] * len(codes[MAX_ATTEMPTS::7])

        told = by_way(db, way, codes)

        assert told == ["wrong"] * MAX_ATTEMPTS + ["locked"] * (len(codes) - MAX_ATTEMPTS)
        assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (MAX_ATTEMPTS,)
        # The good code was refused, and not used up.
        assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
        assert check(conn, "alice", good()).reason == "accepted"


@pytest.mark.parametrize("way", ALL_WAYS)
def test_a_code_whose_use_is_taken_back_stays_used(db, way):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        codes = [good()] * tries(way)

        told = by_way(db, way, codes)

        assert told == ["accepted"] + ["replayed"] * (len(codes) - 1)
        assert conn.execute("SELECT failures, uses FROM totp_status('alice')").fetchone() == (0, 1)
        assert [check(conn, "alice", good(step)).reason for step in (0, 1)] == ["replayed", "accepted"]


@pytest.mark.parametrize("way", ALL_WAYS)
def test_a_first_code_whose_use_is_taken_back_stays_used(db, way):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        codes = [code_at(secret, NOON)] * 20

        told = by_way(db, way, codes)

        assert told == ["accepted"] + ["replayed"] * (len(codes) - 1)
        # What activated the secret was taken back with the transaction; the code was not.
        assert conn.execute("SELECT state, failures FROM totp_status('alice')").fetchone() == ("pending", 0)
        assert check(conn, "alice", code_at(secret, NOON.timestamp() + 30)).reason == "accepted"
        assert conn.execute("SELECT state FROM totp_status('alice')").fetchone() == ("active",)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_a_guess_at_a_recovery_code_that_is_taken_back_is_counted(db, way):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        [code] = recovery_codes(conn, count=1)

        told = by_way(db, way, [NO_CODE] * MAX_ATTEMPTS + [code, NO_CODE] * 5)

        assert told == ["false"] * (MAX_ATTEMPTS + 10)
        assert counters(conn) == (0, MAX_ATTEMPTS, False, True)
        conn.execute("SELECT totp_unlock('alice')")
        assert recover(conn, code) is True


@pytest.mark.parametrize("way", ALL_WAYS)
def test_a_recovery_code_whose_use_is_taken_back_stays_used(db, way):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        used, unused = recovery_codes(conn, count=2)

        told = by_way(db, way, [used] * 3)

        assert told == ["true", "false", "false"]
        assert (recover(conn, used), recover(conn, unused)) == (False, True)


@pytest.mark.parametrize("call", ["totp_verify('alice', %s)", "totp_confirm('alice', %s)"])
def test_every_function_that_judges_counts(db, call):
    """Also for a user who has only a pending secret."""
    with closing(db.connect()) as conn, conn.cursor() as cursor:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        first_code = code_at(secret, NOON)

        def judged(code):
            with conn.transaction(force_rollback=True):
                return cursor.execute(f"SELECT {call}", [code]).fetchone()[0]

        assert [judged(code) for code in islice(wrong_codes(secret, NOON), MAX_ATTEMPTS)] == [False] * MAX_ATTEMPTS
        assert judged(first_code) is False
        assert check(conn, "alice", first_code).reason == "locked"
        conn.execute("SELECT totp_unlock('alice')")
        assert [judged(first_code) for _ in range(3)] == [True, False, False]


def test_a_guess_whose_audit_row_cannot_be_written_is_counted(db):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        conn.execute("ALTER TABLE totp.audit_log ADD CONSTRAINT nothing_more CHECK (false) NOT VALID")
        for code in islice(wrong_codes(SECRET, NOON), MAX_ATTEMPTS):
            with pytest.raises(psycopg.errors.CheckViolation, match="nothing_more"):
                check(conn, "alice", code)
        conn.execute("ALTER TABLE totp.audit_log DROP CONSTRAINT nothing_more")
        assert check(conn, "alice", good()).reason == "locked"
