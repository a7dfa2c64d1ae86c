"""Each act has a server log line with what its row has, and the transaction of the row. A statement of many has lines with counts."""

import re
import secrets
from collections import Counter
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from every_function import walk
from log_lines import is_of_act, unquoted
from many_users import secret_of
from server import wait_until
from totp import LATER, NOON, OTHER_SECRET, SECRET, active_user, code_at, enroll, error_of, fix_clock, import_secret, recovery_codes, stage, verify

PROJECT = Path(__file__).parents[3]
EVENTS = set(re.findall(r'^    \w+ = "(\w+)",$', (PROJECT / "src/audit.rs").read_text(), re.MULTILINE))
# These have happened whatever becomes of the transaction, and their lines have no xid.
OUT_OF_REACH = {"failed", "disabled_code", "locked", "replayed", "unlocked", "recovery_code_used", "resynced", "restore_acknowledged"}

ROWS = "SELECT event, user_id, device, coalesce(detail, '{}'), xmin::text FROM totp.audit_log ORDER BY id"


def rows(conn) -> list[tuple]:
    return conn.execute(ROWS).fetchall()


# --- Every event ----------------------------------------------------------------------------------------------------


def test_every_event_has_a_row_and_a_line_that_says_the_same(make_cluster):
    """All events of the code and of the reference, in one walk. An event without a line, or with another detail there, is seen."""
    cluster = make_cluster()
    database = cluster.create_database()
    with closing(database.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("SET totp.actor = 'desk'")
        walk(conn)
        [[fingerprint]] = conn.execute("SELECT master_key FROM totp_keys()").fetchall()
    cluster.write_key_file(f"{secrets.token_hex(32)}\n")
    with closing(database.connect()) as conn:
        conn.execute("SET totp.actor = 'desk'")
        conn.execute("SELECT totp_forget_unreadable(%s)", [fingerprint])
        conn.execute("UPDATE totp.floor SET timeline = -timeline")  # as after a failover with recovery codes
        assert conn.execute("SELECT totp_acknowledge_restore()").fetchone() == (True,)
        written = rows(conn)
    reference = (PROJECT / "docs/reference.md").read_text()
    table = reference[reference.index("\n## Audit events"):reference.index("\n## Server log lines")]
    in_reference = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.MULTILINE))))
    assert {event for event, *_ in written} == EVENTS == in_reference

    lines = [unquoted(line) for line in re.findall(r"LOG:  (totp: event=.*)", cluster.log_text())]
    lines = [line for line in lines if line["event"] not in ("floor", "audit_pruned") and line.pop("actor", None) in ("desk", None)]
    assert {line.pop("db_user") for line in lines} == {"postgres"}
    of_acts = [line for line in lines if "xid" in line]
    assert {line["event"] for line in of_acts} == EVENTS - OUT_OF_REACH
    expected = [{"event": event, "user": user, "device": device, **detail, "xid": xmin}
                for event, user, device, detail, xmin in written if event not in OUT_OF_REACH]
    assert of_acts == [{key: value for key, value in line.items() if value is not None} for line in expected]
    of_guesses = Counter((line["event"], line.get("user"), line.get("device")) for line in lines if "xid" not in line)
    assert of_guesses == Counter((event, user, device) for event, user, device, *_ in written if event in OUT_OF_REACH)


# What each act of a user's life writes: query, and lines without their xid.
CALLS = {
    "enrolled": ("SELECT totp_enroll('bob')", ['event=enrolled user="bob" device="default" keep_current=true version=1']),
    "imported": (f"SELECT totp_import('bob', '{OTHER_SECRET}', device => 'tablet')", ['event=imported user="bob" device="tablet" confirmed=false version=1']),
    "imported and confirmed": (f"SELECT totp_import('bob', '{OTHER_SECRET}', confirmed => true)", ['event=imported user="bob" device="default" confirmed=true version=1']),
    "confirmed by the desk": ("SELECT totp_confirm('alice', %(staged)s, 'desk')", ['event=confirmed user="alice" device="desk" proof="desk"', 'event=verified user="alice" device="desk"']),
    "confirmed without MFA": ("SELECT totp_confirm('carol', %(of_carol)s)", ['event=confirmed user="carol" device="default" proof="none"', 'event=verified user="carol" device="default"']),
    "confirmed by a code": ("SELECT totp_confirm('alice', %(proposed)s, 'new', %(code)s)",
                            ['event=verified user="alice" device="default"', 'event=confirmed user="alice" device="new" proof="code"']),
    "confirmed by a recovery code": ("SELECT totp_confirm('alice', %(proposed)s, 'new', %(recovery)s)",
                                     ['event=confirmed user="alice" device="new" proof="recovery_code"']),
    "verified": ("SELECT totp_verify('alice', %(code)s)", ['event=verified user="alice" device="default"']),
    "reset": ("SELECT totp_reset('alice')", ['event=reset user="alice" device="default" used_until=1893499200 version=2']),
    "disabled": ("SELECT totp_disable('alice', 'default')", ['event=disabled user="alice" device="default"']),
    "enabled": ("SELECT totp_enable('dave')", ['event=enabled user="dave" device="default"']),
    "removed": ("SELECT totp_remove('dave')", ['event=removed user="dave"', 'event=removed user="dave" device="default"']),
    "renamed": ("SELECT totp_rename_user('dave', 'd\"')", ['event=renamed user="dave" new_user_id="d\\""', 'event=renamed user="d\\"" old_user_id="dave"']),
    "a device renamed": ("SELECT totp_rename_device('alice', 'default', 'phone', %(code)s)",
                         ['event=verified user="alice" device="default"', 'event=renamed user="alice" device="default" new_device="phone"']),
    "moved": ("SELECT totp_move_device('frank', 'default', 'grace', 'token')",
              ['event=moved user="frank" device="default" new_user_id="grace" new_device="token"',
               'event=moved user="grace" device="token" old_user_id="frank" old_device="default"']),
    "recovery codes created": ("SELECT totp_reset_recovery_codes('alice')", ['event=recovery_codes_created user="alice"']),
    "exported": ("SELECT totp_export()", ["event=exported secrets=6"]),
}


@pytest.fixture
def people(conn) -> dict[str, str]:
    """Users for all calls, and the codes that these need."""
    alice, carol = active_user(conn), enroll(conn, "carol")
    recovery, *_ = recovery_codes(conn)
    staged, proposed = stage(conn, device="desk"), enroll(conn, "alice", device="new")
    for name in ("dave", "frank"):
        import_secret(conn, name, SECRET)
    conn.execute("SELECT totp_disable('dave')")
    enroll(conn, "eve")
    conn.execute("SET totp.audit_success = on")
    return {"staged": code_at(staged, NOON), "of_carol": code_at(carol, NOON), "proposed": code_at(proposed, NOON), "code": code_at(alice, NOON), "recovery": recovery}


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT", "close"])
@pytest.mark.parametrize("name", CALLS)
def test_the_line_is_there_at_once_and_stays_if_the_row_is_rolled_back(quick_db, conn, acts, people, name, end):
    query, expected = CALLS[name]
    before = rows(conn)
    acts()
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute("SET totp.audit_success = on")
        other.execute("BEGIN")
        other.execute(query, people)
        [[transaction]] = other.execute("SELECT pg_current_xact_id()::xid::text").fetchall()
        written = acts()
        if end != "close":
            other.execute(end)
    assert written == [f"{line} xid={transaction}" for line in expected]
    assert acts() == []
    of_acts = [row for row in rows(conn)[len(before):] if row[0] not in OUT_OF_REACH]
    assert [row[4] for row in of_acts] == ([transaction] * len(expected) if end == "COMMIT" else [])


def test_the_line_is_there_if_the_row_fails(quick_db, conn, acts):
    with closing(quick_db.connect()) as other:
        other.execute("BEGIN; LOCK TABLE totp.audit_log")
        conn.execute("SET lock_timeout = '10ms'")
        assert error_of(conn, "SELECT totp_enroll('alice')").sqlstate == "55P03"
        other.execute("ROLLBACK")
    [line] = acts()
    assert line.startswith('event=enrolled user="alice"') and rows(conn) == []


@pytest.mark.parametrize("level", ["fatal", "panic"])
def test_no_line_is_counted_that_the_server_leaves_out(conn, acts, level):
    conn.execute(f"SET log_min_messages = {level}")
    assert bulk(conn, 5) == 5
    conn.execute("RESET log_min_messages")
    assert acts() == []


# --- The transaction of a line is that of its row ---------------------------------------------------------------------


def test_an_act_in_a_savepoint_names_the_subtransaction(conn, acts):
    """So a savepoint that is rolled back takes the row, and leaves a line whose xid no row has."""
    conn.execute("BEGIN")
    enroll(conn, "before")
    conn.execute("SAVEPOINT one")
    enroll(conn, "undone")
    conn.execute("SAVEPOINT two")
    enroll(conn, "undone too")
    conn.execute("ROLLBACK TO one")
    enroll(conn, "inside")
    conn.execute("RELEASE one")
    enroll(conn, "after")
    conn.execute("COMMIT")
    of_rows = {user: xmin for _, user, _, _, xmin in rows(conn)}
    of_lines = {(line := unquoted(f"totp: {text}"))["user"]: line["xid"] for text in acts()}
    assert of_rows.keys() == {"before", "inside", "after"} and of_rows.items() <= of_lines.items()
    assert of_rows["before"] == of_rows["after"] != of_rows["inside"]
    assert of_lines.keys() - of_rows.keys() == {"undone", "undone too"}
    assert not {of_lines["undone"], of_lines["undone too"]} & set(of_rows.values())


def test_an_exception_block_names_its_subtransaction(conn, acts):
    conn.execute("""DO $$ BEGIN
      FOR n IN 1 .. 5 LOOP
        BEGIN
          PERFORM totp_enroll('user-' || n);
          IF n IN (2, 4) THEN RAISE 'no'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
      END LOOP;
    END $$""")
    lines = [unquoted(f"totp: {line}") for line in acts()]
    assert [line["user"] for line in lines] == [f"user-{n}" for n in range(1, 6)]  # each has a transaction of its own, so none is counted
    assert [(user, xmin) for _, user, _, _, xmin in rows(conn)] == [(line["user"], line["xid"]) for line in lines if line["user"] in ("user-1", "user-3", "user-5")]


# --- A statement of many ------------------------------------------------------------------------------------------------

MANY = "SELECT count(totp_import('user-' || n, %s)) FROM generate_series(1, %s) AS n"


def bulk(conn, users: int) -> int:
    return conn.execute(MANY, [SECRET, users]).fetchone()[0]


def named(event="imported", users=(1, 2), detail=' device="default" confirmed=false version=1') -> list[str]:
    return [f'event={event} user="user-{n}"{detail}' for n in users]


def without_xid(lines: list[str], xid: str) -> list[str]:
    assert {line.split(" xid=")[1] for line in lines} == {xid}
    return [line.split(" xid=")[0] for line in lines]


def test_a_statement_of_many_names_two_users_and_counts_the_rest(conn, acts):
    assert bulk(conn, 50) == 50
    [xid] = {xmin for *_, xmin in rows(conn)}
    assert without_xid(acts(), xid) == [*named(), "event=imported count=48"]
    assert bulk(conn, 2) == 2  # another version of the same two
    assert [line.split(" xid=")[0] for line in acts()] == named(detail=' device="default" confirmed=false version=2')


def test_everything_about_the_first_two_users_has_a_line(conn, acts):
    for user in range(1, 6):
        for device in ("a", "b"):
            enroll(conn, f"user-{user}", device=device)
    acts()
    conn.execute("SELECT totp_remove('user-' || n), totp_import('user-' || n, %s) FROM generate_series(1, 5) AS n", [SECRET])
    lines = [line.split(" xid=")[0] for line in acts()]
    assert lines[:8] == [line for n in (1, 2) for line in (*named("removed", [n], ""), *named("removed", [n], ' device="a"'), *named("removed", [n], ' device="b"'),
                                                           *named(users=[n]))]
    assert sorted(lines[8:]) == ["event=imported count=3", "event=removed count=9"]


def test_the_next_statement_that_acts_tells_the_count_of_the_last(conn, acts):
    conn.execute("BEGIN")
    bulk(conn, 10)
    assert len(acts()) == 2
    conn.execute("SELECT 1")
    assert acts() == []
    enroll(conn, "alice")
    [counted, line] = acts()
    assert counted.startswith("event=imported count=8 xid=") and line.startswith('event=enrolled user="alice"')
    bulk(conn, 10)
    assert len(acts()) == 2
    conn.execute("COMMIT")
    assert [line.split(" xid=")[0] for line in acts()] == ["event=imported count=8"]
    conn.execute("BEGIN; COMMIT")
    assert acts() == []


def interrupted(conn, function: str, at: int) -> None:
    """A statement of 50, in which the session gets a signal after so many."""
    conn.execute(f"SELECT totp_import('user-' || n, %s), CASE WHEN n = %s THEN {function}(pg_backend_pid()) END FROM generate_series(1, 50) AS n", [SECRET, at])


def fails_at_commit(conn) -> None:
    conn.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    conn.execute("BEGIN; INSERT INTO t VALUES (1), (1)")
    bulk(conn, 50)
    conn.execute("COMMIT")


ENDS = {  # how a transaction of 50 ends without its rows
    "error": lambda conn: conn.execute(f"SELECT totp_import('user-' || n, '{SECRET}'), 1 / (n - 50) FROM generate_series(1, 50) AS n"),
    "error in a block": lambda conn: conn.execute(f"BEGIN; {MANY.replace('%s', repr(SECRET), 1).replace('%s', '50')}; SELECT 1 / 0"),
    "ROLLBACK": lambda conn: conn.execute(f"BEGIN; {MANY.replace('%s', repr(SECRET), 1).replace('%s', '50')}; ROLLBACK"),
    "ROLLBACK TO": lambda conn: conn.execute(f"BEGIN; SAVEPOINT s; {MANY.replace('%s', repr(SECRET), 1).replace('%s', '50')}; ROLLBACK TO s; COMMIT"),
    "COMMIT that fails": fails_at_commit,
    "cancel": lambda conn: interrupted(conn, "pg_cancel_backend", 50),
    "terminate": lambda conn: interrupted(conn, "pg_terminate_backend", 50),
    "close": lambda conn: (conn.execute("BEGIN"), bulk(conn, 50), conn.close()),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_count_is_told_if_the_rows_are_rolled_back(db, acts, end):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("SELECT totp_enabled('nobody')")
        acts()
        try:
            ENDS[end](conn)
        except psycopg.Error as error:
            assert error.sqlstate in ("22012", "23505", "57014", "57P01"), error
        lines = []
        wait_until(lambda: lines.extend(acts()) or len(lines) > 2, "the session to end")
    [xid] = {line.split(" xid=")[1] for line in lines}
    assert without_xid(lines, xid) == [*named(), "event=imported count=48"]
    assert db.execute("SELECT count(*) FROM totp.audit_log") == [(0,)]
    assert db.execute("SELECT pg_xact_status(%s::text::xid8)", [xid]) == [("aborted",)]


@pytest.mark.parametrize("at", [3, 30])
def test_a_cancel_in_the_middle_tells_what_was_done_until_then(conn, acts, at):
    with pytest.raises(psycopg.errors.QueryCanceled):
        interrupted(conn, "pg_cancel_backend", at)
    counted = acts()[-1]
    # The signal is handled at the next check for interrupts, which is in the same row or in the next one.
    assert int(re.search(r"event=imported count=(\d+) xid=", counted)[1]) in (at - 2, at - 1)
    assert rows(conn) == []


@pytest.mark.parametrize("end", ["COMMIT PREPARED", "ROLLBACK PREPARED"])
def test_the_count_is_told_when_the_transaction_is_prepared(make_cluster, end):
    cluster = make_cluster(max_prepared_transactions=1)
    database = cluster.create_database()
    with closing(database.connect()) as conn:
        conn.execute("BEGIN")
        bulk(conn, 50)
        conn.execute("PREPARE TRANSACTION 'p'")
    lines = [line for line in re.findall(r"LOG:  totp: (event=.*)", cluster.log_text()) if is_of_act(line)]
    cluster.restart("immediate")
    with closing(database.connect()) as conn:
        conn.execute(f"{end} 'p'")
        enroll(conn, "alice")
        assert [line.split(" xid=")[0].replace(' db_user="postgres"', "") for line in lines] == [*named(), "event=imported count=48"]
        with_xid = conn.execute("SELECT count(*) FROM totp.audit_log WHERE xmin::text = %s", [lines[2].split(" xid=")[1]]).fetchone()
        assert with_xid == ((50,) if end.startswith("COMMIT") else (0,))
    assert cluster.log_text().count("event=imported") == 3


def test_a_statement_of_two_savepoints_counts_each(conn, acts):
    """A count is of one transaction, so that it can be compared with the rows."""
    conn.execute("""DO $$ BEGIN
      PERFORM totp_enroll('user-' || n) FROM generate_series(1, 10) AS n;
      BEGIN
        PERFORM totp_enroll('user-' || n) FROM generate_series(11, 20) AS n;
        RAISE 'no';
      EXCEPTION WHEN raise_exception THEN NULL;
      END;
      PERFORM totp_enroll('user-' || n) FROM generate_series(21, 30) AS n;
    END $$""")
    in_log = Counter()
    for line in acts():
        values = unquoted(f"totp: {line}")
        in_log[values["xid"]] += int(values.get("count", 1))
    in_rows = Counter(xmin for *_, xmin in rows(conn))
    assert in_rows.items() <= in_log.items() and sorted(in_log.values()) == [10, 20] and sum(in_rows.values()) == 20


def test_a_count_is_of_one_actor(conn, acts):
    conn.execute("""SELECT count(totp_import('user-' || n, %s)) FROM generate_series(1, 10) AS n
                     WHERE set_config('totp.actor', CASE WHEN n <= 5 THEN 'one' ELSE 'two' END, false) <> ''""", [SECRET])
    lines = [line.split(" xid=")[0] for line in acts()]
    assert [line for line in lines if "count" in line] == ['event=imported actor="one" count=3', 'event=imported actor="two" count=3']
    assert len(lines) == 6


# --- Details --------------------------------------------------------------------------------------------------------------


def details(conn, event) -> list[dict]:
    return [detail for name, _, _, detail, _ in rows(conn) if name == event]


def test_a_rotation_names_the_master_keys(make_cluster):
    """An auditor sees that the master key was changed, by which rotation."""
    cluster = make_cluster()
    database = cluster.create_database()
    old = cluster.key_file.read_text()
    with closing(database.connect()) as conn:
        import_secret(conn, "alice", secret_of("alice"))
        [[first]] = conn.execute("SELECT master_key FROM totp_keys()").fetchall()
        conn.execute("SELECT totp_rotate_key()")
        cluster.write_key_file(f"{secrets.token_hex(32)}\n{old}")
        conn.execute("CALL totp_rotate_key_online()")
        [[second]] = conn.execute("SELECT master_key FROM totp_keys()").fetchall()
        assert first != second
        expected = [{"key_id": "2", "secrets": "1", "from_master_key": first, "to_master_key": first},
                    {"key_id": "3", "secrets": "1", "from_master_key": first, "to_master_key": second}]
        assert details(conn, "key_rotated") == expected
        # Rotations that were left half way, each under another master key.
        for _ in range(2):
            conn.execute("SELECT totp.rotation_begin(10)")
            cluster.write_key_file(f"{secrets.token_hex(32)}\n{cluster.key_file.read_text()}")
        conn.execute("SELECT totp_rotate_key()")
        *_, last = details(conn, "key_rotated")
        [[third]] = conn.execute("SELECT master_key FROM totp_keys()").fetchall()
        assert last["to_master_key"] == third
        [known, other] = sorted(last["from_master_key"].split(","), key=lambda key: key != second)
        assert known == second and other not in (first, second, third)


def test_an_export_tells_how_many_secrets(conn, acts):
    for n, state in enumerate(("active", "pending", "disabled")):
        import_secret(conn, f"user-{n}", SECRET, confirmed=state != "pending")
    conn.execute("SELECT totp_disable('user-2')")
    acts()
    assert len(conn.execute("SELECT * FROM totp_export()").fetchall()) == 3
    assert details(conn, "exported") == [{"secrets": "3"}]
    assert [line.split(" xid=")[0] for line in acts()] == ["event=exported secrets=3"]


def test_an_accepted_code_has_a_line_if_the_setting_says_so(conn, acts):
    secret = active_user(conn)
    acts()
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    assert acts() == []
    conn.execute("SET totp.audit_success = on")
    assert verify(conn, "alice", code_at(secret, LATER)) is True
    assert [line.split(" xid=")[0] for line in acts()] == ['event=verified user="alice" device="default"']
