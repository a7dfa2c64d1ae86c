"""The server log has one line per event. It has no code, nobody can forge it, and no client sees it."""

import csv
import io
import json
import re
from contextlib import closing
from datetime import timedelta
from itertools import islice

import pytest
from log_lines import LINE, is_of_act, unquoted
from server import wait_until
from totp import MAX_ATTEMPTS, NOON, NO_CODE, SECRET, check, code_at, enroll, fix_clock, good, import_secret, recover, recovery_codes, wrong_codes


@pytest.fixture
def log(cluster):
    """A function: the events logged since it was last called, without the line of the floor and those of acts; every line must be one."""
    position = cluster.log_end()

    def read():
        nonlocal position
        begin, position = position, cluster.log_end()
        text = cluster.log_text(begin, position)
        lines = text.split("\n")
        assert lines.pop() == ""
        events = [LINE.fullmatch(line) for line in lines]
        assert None not in events, text
        return [event[1] for event in events if "event=floor" not in event[1] and not is_of_act(event[1])]

    return read


@pytest.fixture
def conn(quick_db, log):
    with closing(quick_db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        check(conn, "alice", "malformed")
        log()
        yield conn


def audit(conn):
    return [event for [event] in conn.execute("SELECT event FROM totp.audit_log WHERE event <> 'imported' ORDER BY id").fetchall()]


def test_each_event_has_one_line(conn, log):
    good = code_at(SECRET, NOON)
    wrong = islice(wrong_codes(SECRET, NOON), MAX_ATTEMPTS + 1)
    for failures in range(1, MAX_ATTEMPTS):
        check(conn, "alice", next(wrong))
        assert log() == [f'totp: event=failed db_user="postgres" user="alice" failures={failures}']
    check(conn, "alice", next(wrong))
    assert log() == ['totp: event=failed db_user="postgres" user="alice" failures=5', 'totp: event=locked db_user="postgres" user="alice" failures=5']
    for code in (good, next(wrong), "malformed"):
        check(conn, "alice", code)
        assert log() == []
    fix_clock(conn, NOON + timedelta(seconds=30))
    check(conn, "alice", next(wrong_codes(SECRET, NOON)))
    assert log() == ['totp: event=failed db_user="postgres" user="alice" failures=6', 'totp: event=locked db_user="postgres" user="alice" failures=6']
    conn.execute("SELECT totp_unlock('alice')")
    assert log() == ['totp: event=unlocked db_user="postgres" user="alice"']
    conn.execute("SELECT totp_unlock('alice')")
    assert log() == []  # there was nothing to clear
    assert check(conn, "alice", good).reason == "accepted"
    assert log() == []
    assert check(conn, "alice", good).reason == "replayed"
    assert log() == ['totp: event=replayed db_user="postgres" user="alice" device="default"']
    assert audit(conn) == ["failed"] * 5 + ["locked", "failed", "locked", "unlocked", "replayed"]


def test_recovery_codes_have_lines_and_rows_too(conn, log):
    code, *_ = recovery_codes(conn)
    assert log() == []
    for _ in range(MAX_ATTEMPTS):
        recover(conn, NO_CODE)
    assert log() == [*(f'totp: event=failed db_user="postgres" user="alice" of="recovery_codes" failures={n}' for n in range(1, 6)),
                     'totp: event=locked db_user="postgres" user="alice" of="recovery_codes" failures=5']
    for refused in (code, NO_CODE):
        recover(conn, refused)
        assert log() == []
    conn.execute("SELECT totp_unlock('alice')")
    assert log() == ['totp: event=unlocked db_user="postgres" user="alice"']
    recover(conn, code)
    assert log() == ['totp: event=recovery_code_used db_user="postgres" user="alice"']
    recover(conn, code)
    assert log() == ['totp: event=replayed db_user="postgres" user="alice" of="recovery_codes" failures=1']
    of = {"of": "recovery_codes"}
    assert conn.execute("SELECT event, user_id, device, detail FROM totp.audit_log WHERE event <> 'imported' ORDER BY id").fetchall() == [
        ("recovery_codes_created", "alice", None, None), *[("failed", "alice", None, of)] * MAX_ATTEMPTS, ("locked", "alice", None, of),
        ("unlocked", "alice", None, None), ("recovery_code_used", "alice", None, None), ("replayed", "alice", None, of)]


def test_the_first_judgment_of_a_cluster_has_a_line(db, cluster):
    position = cluster.log_end()
    with closing(db.connect()) as conn:
        for _ in range(2):
            enroll(conn, "alice")
    with closing(db.connect()) as conn:
        enroll(conn, "alice")
    first, *others = [LINE.fullmatch(line)[1] for line in cluster.log_text(position).splitlines()]
    assert first == "totp: event=floor timeline=1" and [line.split()[1] for line in others] == ["event=enrolled"] * 3


# --- the code --------------------------------------------------------------------------

TALKATIVE = {"client_min_messages": "debug5", "log_min_error_statement": "debug5", "log_parameter_max_length": -1,
             "log_parameter_max_length_on_error": -1}


@pytest.mark.parametrize("by_parameter", [True, False])
def test_neither_log_nor_client_gets_the_statement_or_the_line(conn, log, by_parameter):
    """Whatever the session sets. What a server logs of statements by log_statement is not ours to hide."""
    heard = []
    conn.add_notice_handler(lambda notice: heard.append(
        "\n".join(filter(None, (notice.message_primary, notice.message_detail, notice.message_hint, notice.context)))))
    # PostgreSQL 18 tells its client, in debug messages, where it looks for a function's library: at the first call only.
    conn.execute("SELECT totp_verify('alice', 'malformed')")
    for name, value in TALKATIVE.items():
        conn.execute(f"SET {name} = {value}")
    codes = [code_at(SECRET, NOON)] * 2 + list(islice(wrong_codes(SECRET, NOON), 100, 100 + MAX_ATTEMPTS + 1))
    for code in codes:
        if by_parameter:
            conn.execute("SELECT totp_verify('alice', %s)", [code])
        else:
            conn.execute(f"DO $$ BEGIN PERFORM totp_verify('alice', '{code}'); END $$")  # with a context, too
    assert len(heard) > len(codes)  # debug messages did come through
    lines = log()
    assert [line.split()[1] for line in lines] == ["event=replayed"] + ["event=failed"] * 5 + ["event=locked"]
    for code in codes:
        assert code not in "".join(lines)
        assert code not in "".join(heard)
    assert "event=" not in "".join(heard)


def test_a_client_that_may_only_sign_in_gets_neither(quick_db, conn, log):
    role = quick_db.create_role("verify")
    logged = quick_db.cluster.log_end()
    with closing(quick_db.connect(user=role)) as web:
        heard = []
        web.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
        web.execute("SELECT totp_verify('alice', 'malformed')")  # as above
        web.execute("SET client_min_messages = debug5")
        web.execute(f"SELECT totp_verify('alice', '{next(wrong_codes(SECRET, NOON))}') /* marker */")
    assert heard and not any("totp" in message for message in heard)
    assert log() == [f'totp: event=failed db_user="{role}" user="alice" failures=1']
    assert "marker" not in quick_db.cluster.log_text(logged)


def test_neither_csvlog_nor_jsonlog_holds_the_statement(make_cluster):
    cluster = make_cluster(logging_collector="on", log_destination="stderr,csvlog,jsonlog", log_filename="server.log",
                           log_error_verbosity="verbose", log_min_error_statement="debug5")
    db = cluster.create_database()
    wrong = list(islice(wrong_codes(SECRET, NOON), 777000, 777005))
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        for code in wrong:
            conn.execute(f"SELECT totp_verify('alice', '{code}')")

    def text(ending):
        return (cluster.data / "log" / f"server.{ending}").read_text()

    for ending in ("log", "csv", "json"):
        wait_until(lambda: "event=locked" in text(ending), "the log collector")
        assert not any(code in text(ending) for code in wrong)
    rows = [row for row in csv.reader(io.StringIO(text("csv"))) if "event=failed" in row[13]]
    assert [row[19] for row in rows] == [""] * 5  # query
    entries = [entry for entry in map(json.loads, text("json").splitlines()) if "event=failed" in entry["message"]]
    assert len(entries) == 5 and not any("statement" in entry or "context" in entry for entry in entries)


# --- forgery ---------------------------------------------------------------------------

HOSTILE = [
    'x" failures=0\n2030-01-01 12:00:00.000 UTC [1] LOG:  totp: event=unlocked user="alice',
    "line\nbreak", "carriage\rreturn", "tab\tbell\x07escape\x1b[2Kdelete\x7f", 'quote"quote', "back\\slash\\", '\\"', "\\n", "\\u{a}", "'; --",
    "next\u0085line", "separators\u2028\u2029", "right to left \u202e", "zero\u200bwidth", "é日本語🎉", "%s%n%m$1", " ", "=", 'user="bob"',
    "\x01", "x" * 256, "\U0010ffff", 'alice" failures=0 event="unlocked', 'alice\\" failures=0', "\x1b[2K\x1b[1Aalice\x07\x9b", "a\u2028b\u2029c\x85d\x0be", "\u202eecila",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])
def test_no_name_can_forge_a_line_or_a_row(quick_db, conn, log, name):
    with closing(quick_db.connect(application_name=name)) as other:
        fix_clock(other, NOON)
        other.execute("SELECT set_config('totp.actor', %s, false)", [name])
        import_secret(other, name, SECRET, account_name="someone", device=name)
        for guess in (good(), good(), *islice(wrong_codes(SECRET, NOON), MAX_ATTEMPTS)):
            check(other, name, guess)
        other.execute("SELECT totp_unlock(%s)", [name])
    lines = log()
    by = {"db_user": "postgres", "actor": name, "user": name}
    failed = [{"event": "failed", **by, "failures": f"{number}"} for number in range(1, MAX_ATTEMPTS + 1)]
    assert [unquoted(line) for line in lines] == [
        {"event": "replayed", **by, "device": name}, *failed, {"event": "locked", **by, "failures": f"{MAX_ATTEMPTS}"}, {"event": "unlocked", **by}]
    assert all(re.fullmatch("[ -~]*", line) for line in lines)
    rows = conn.execute("SELECT event, user_id, actor, device FROM totp.audit_log WHERE actor = %s ORDER BY id", [name]).fetchall()
    assert rows == [("imported", name, name, name), ("replayed", name, name, name), *[("failed", name, name, None)] * MAX_ATTEMPTS,
                    ("locked", name, name, None), ("unlocked", name, name, None)]


def test_the_user_id_of_a_call_that_finds_no_user_is_not_logged(conn, log):
    for name in HOSTILE:
        check(conn, name, "123456")
    assert log() == []
