"""The audit log records every event and who caused it, holds no secret, and loses nothing. The line of an event outlives its row."""

import base64
import os
import re
from contextlib import ExitStack, closing

import psycopg
import pytest
from every_function import walk
from totp import EARLIER, LATER, MAX_ATTEMPTS, NOON, active_user, code_at, enroll, error_of, fix_clock, parallel, recovery_codes, verify, wrong_codes


def audit(conn, columns="event, user_id, device"):
    """Without the capabilities that a test gives its roles."""
    return conn.execute(f"SELECT {columns} FROM totp.audit_log WHERE event <> 'granted' ORDER BY id").fetchall()


# --- Who, about which user, when, from where ------------------------------------------------------------------------


def test_every_event_of_the_design_is_written(db):
    """One walk through all functions that change anything or judge a code."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        walk(conn)
        assert {event for [event] in conn.execute("SELECT event FROM totp.audit_log")} == {
            "enrolled", "imported", "confirmed", "verified", "failed", "disabled_code", "replayed", "locked", "unlocked", "reset", "disabled", "enabled", "removed", "renamed",
            "recovery_codes_created", "recovery_codes_removed", "recovery_code_used", "moved", "resynced", "key_rotated", "exported", "granted", "revoked"}  # "unreadable_forgotten": test_lost_master_key.py


def test_no_secret_code_uri_or_key_is_in_any_audit_row_or_log_line(fresh_cluster):
    """Not the text, not its bytes in hexadecimal or base64, and no key of any kind."""
    db = fresh_cluster.create_database()
    begin = fresh_cluster.log_end()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("SET totp.actor = 'support'")
        shown = walk(conn)
        shown.discard("alice@example.com")
        assert len(shown) > 25
        raw = {base64.b32decode(text) for text in shown if re.fullmatch(r"[A-Z2-7]{32,}", text)}
        assert len(raw) >= 5
        shown |= {part for text in shown for part in text.split("-")} | {text.replace("-", "") for text in shown}
        sealed = conn.execute("SELECT encode(sealed, 'hex') FROM totp.secrets UNION SELECT encode(wrapped, 'hex') FROM totp.data_keys").fetchall()
        shown |= {secret.hex() for secret in raw} | {base64.b64encode(secret).decode().rstrip("=") for secret in raw}
        shown |= {text for [text] in sealed} | {fresh_cluster.key_file.read_text().strip()}
        # Without id and time, whose digits are nobody's code.
        rows = "\n".join(row for [row] in audit(conn, "concat_ws('|', event, user_id, device, actor, db_user, client_addr, application_name, detail)"))
        lines = "\n".join(re.findall(r"LOG:  totp: (.*)", fresh_cluster.log_text(begin)))
        for text in shown:
            if len(text) >= 6:
                assert text.lower() not in rows.lower()
                assert text.lower() not in lines.lower()
        whole_log = fresh_cluster.log_text(begin)
        for text in shown:
            if len(text) >= 16:  # a six-digit code may be part of a time or a process id there
                assert text not in whole_log


def test_where_a_call_came_from(make_cluster):
    """Over TCP, by another role, through SET ROLE, with and without an actor."""
    address = f"127.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250 + 1}.5"
    cluster = make_cluster()
    db = cluster.create_database()
    role = db.create_role("enroll")
    # Every user of the machine reaches that address: it is for this role, and not for the superuser.
    (cluster.data / "pg_hba.conf").write_text(f"local all all trust\nhost all {role} 127.0.0.0/8 trust\n")
    cluster.configure(listen_addresses=address)
    cluster.restart()
    with closing(psycopg.connect(host=address, port=5432, dbname=db.name, user=role, application_name="web", autocommit=True)) as web:
        [[seen_from]] = web.execute("SELECT host(inet_client_addr())").fetchall()
        enroll(web, "alice")
        with web.transaction():
            web.execute("SET LOCAL totp.actor = 'support:42'")
            enroll(web, "bob")
        enroll(web, "carol")
    with closing(db.connect(application_name="psql")) as conn:
        conn.execute(f"SET ROLE {role}")
        enroll(conn, "dave")
        conn.execute("RESET ROLE")
        columns = "user_id, actor, db_user, host(client_addr), application_name"
        assert audit(conn, columns) == [("alice", role, role, seen_from, "web"), ("bob", "support:42", role, seen_from, "web"), ("carol", role, role, seen_from, "web"),
                                        ("dave", "postgres", "postgres", None, "psql")]


def test_a_long_actor_is_cut_at_a_whole_character(conn):
    conn.execute("SELECT set_config('totp.actor', %s, false)", ["x" * 255 + "é" * 1_000])
    enroll(conn, "alice")
    assert audit(conn, "actor") == [("x" * 255,)]


def test_an_actor_set_before_the_library_is_loaded_counts(db):
    """An application sets it when it takes a connection from its pool, before any call."""
    role = db.create_role("enroll")
    with closing(db.connect(user=role)) as web:
        web.execute("SET totp.actor = 'support:42'")
        enroll(web, "alice")
    with closing(db.connect(user=role, options="-c totp.actor=support:43")) as web:
        enroll(web, "bob")
    with closing(db.connect()) as conn:
        assert audit(conn, "user_id, actor") == [("alice", "support:42"), ("bob", "support:43")]


def test_the_time_of_a_row_is_that_of_the_call_and_not_of_the_transaction(quick_db):
    with closing(quick_db.connect()) as conn:  # no fixed clock
        conn.execute("BEGIN")
        enroll(conn, "alice")
        enroll(conn, "bob")
        [[first], [second]] = audit(conn, "at")
        begun, now = conn.execute("SELECT now(), clock_timestamp()").fetchone()
        assert begun < first < second < now
        conn.execute("ROLLBACK")


def test_accepted_codes_are_audited_only_if_the_setting_says_so(conn):
    secret = active_user(conn)
    conn.execute("DELETE FROM totp.audit_log")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    assert audit(conn) == []
    conn.execute("SET totp.audit_success = on")
    assert verify(conn, "alice", code_at(secret, LATER)) is True
    assert audit(conn) == [("verified", "alice", "default")]


# --- The server log outlives a ROLLBACK -------------------------------------------------------------------

PREPARE = {  # what happens before, outside of the transaction
    "failed": lambda conn, secret, codes: None,
    "locked": lambda conn, secret, codes: [verify(conn, "alice", next(wrong_codes(secret, NOON))) for _ in range(MAX_ATTEMPTS - 1)],
    "replayed": lambda conn, secret, codes: None,
    "unlocked": lambda conn, secret, codes: verify(conn, "alice", next(wrong_codes(secret, NOON))),
    "recovery_code_used": lambda conn, secret, codes: None,
    "recovery code replayed": lambda conn, secret, codes: conn.execute("SELECT totp_recover('alice', %s)", [codes[0]]),
    "recovery code failed": lambda conn, secret, codes: None,
}
CALL = {  # query, and the line that it writes
    "failed": ("SELECT totp_verify('alice', %(wrong)s)", ['event=failed user="alice" failures=1']),
    "locked": ("SELECT totp_verify('alice', %(wrong)s)", ['event=failed user="alice" failures=5', 'event=locked user="alice" failures=5']),
    "replayed": ("SELECT totp_verify('alice', %(used)s)", ['event=replayed user="alice" device="default"']),
    "unlocked": ("SELECT totp_unlock('alice')", ['event=unlocked user="alice"']),
    "recovery_code_used": ("SELECT totp_recover('alice', %(recovery)s)", ['event=recovery_code_used user="alice"']),
    "recovery code replayed": ("SELECT totp_recover('alice', %(recovery)s)", ['event=replayed user="alice" of="recovery_codes" failures=1']),
    "recovery code failed": ("SELECT totp_recover('alice', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')", ['event=failed user="alice" of="recovery_codes" failures=1']),
}


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT", "close"])
@pytest.mark.parametrize("event", CALL)
def test_the_line_stays_if_the_row_is_rolled_back(quick_db, conn, log, event, end):
    query, lines = CALL[event]
    secret = active_user(conn)
    codes = recovery_codes(conn)
    PREPARE[event](conn, secret, codes)
    before, logged = audit(conn), len(log())
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute("BEGIN")
        other.execute(query, {"wrong": next(wrong_codes(secret, NOON)), "used": code_at(secret, EARLIER), "recovery": codes[0]})
        if end != "close":
            other.execute(end)
    assert log()[logged:] == lines
    written = [(re.search(r"event=(\w+)", line)[1], "alice") for line in lines]
    assert [row[:2] for row in audit(conn)[len(before):]] == (written if end == "COMMIT" else [])


def test_the_line_is_there_if_the_row_fails(quick_db, conn, log):
    """The lock is set, whatever becomes of the statement."""
    secret = active_user(conn)
    PREPARE["locked"](conn, secret, None)
    logged = len(log())
    with closing(quick_db.connect()) as other:
        other.execute("BEGIN; LOCK TABLE totp.audit_log")
        conn.execute("SET lock_timeout = '10ms'")
        error = error_of(conn, "SELECT totp_verify('alice', %s)", [next(wrong_codes(secret, NOON))])
    assert error.sqlstate == "55P03"
    assert log()[logged:] == CALL["locked"][1]
    assert conn.execute("SELECT reason FROM totp_check('alice', '000000')").fetchone() == ("locked",)


# --- Forgery --------------------------------------------------------------------------------------------------

def test_names_in_detail_are_text_and_not_json(conn):
    name = '", "actor": "admin", "x": "'
    active_user(conn)
    conn.execute("SELECT totp_rename_user('alice', %s)", [name])
    assert audit(conn, "event, user_id, detail")[-2:] == [
        ("renamed", "alice", {"new_user_id": name, "used_until": str(int(NOON.timestamp()))}), ("renamed", name, {"old_user_id": "alice"})]


# --- Nothing is taken away ----------------------------------------------------------------------------------------

CAPABILITIES = [(), ("verify",), ("enroll",), ("admin",), ("audit",), ("verify", "enroll", "admin", "audit")]


@pytest.mark.parametrize("capabilities", CAPABILITIES, ids=lambda c: "+".join(c) or "none")
def test_nobody_but_the_owner_changes_audit_rows(db, capabilities):
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        active_user(conn)
        before = audit(conn, "*")
    role = db.create_role(*capabilities)
    with closing(db.connect(user=role)) as other:
        for query in ("UPDATE totp.audit_log SET actor = 'x'", "DELETE FROM totp.audit_log", "TRUNCATE totp.audit_log", "DROP TABLE totp.audit_log",
                      "INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES (now(), 'verified', 'x', 'x', 'x')",
                      "ALTER TABLE totp.audit_log DISABLE TRIGGER ALL", "ALTER TABLE totp.audit_log RENAME TO x", "SELECT nextval('totp.audit_ids')",
                      "CREATE RULE r AS ON INSERT TO totp.audit_log DO INSTEAD NOTHING", "COPY totp.audit_log FROM STDIN",
                      "SELECT totp_prune_audit('1 second')", "CREATE TRIGGER t BEFORE INSERT ON totp.audit_log EXECUTE FUNCTION suppress_redundant_updates_trigger()"):
            assert error_of(other, query).sqlstate == "42501", query
    with closing(db.connect()) as conn:
        assert audit(conn, "*") == before


def test_no_function_that_may_be_granted_changes_an_audit_row(db):
    """All of them, called by a role with every capability: what was written stays as it was."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        proof = code_at(active_user(conn), NOON)
        written = audit(conn, "*")
    role = db.create_role("verify", "enroll", "admin", "audit")
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute(f"SET ROLE {role}")
        callable_now = {name for [name] in conn.execute("""
            SELECT DISTINCT p.proname FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
              JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_totp' WHERE has_function_privilege(p.oid, 'EXECUTE')""")}
        calls = [
            "totp_verify('alice', '123456')", "totp_check('alice', '123456')", "totp_confirm('alice', '123456')", "totp_recover('alice', 'x')",
            "totp_check_confirm('alice', '123456')", "totp_check_recover('alice', 'x')", "totp_resync('alice', '123456', '654321')",
            "totp_enabled('alice')", "totp_status('alice')", "totp_enroll('alice')", "totp_import('bob', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')",
            "totp_move_device('bob', 'default', 'carol', 'phone')", "totp_enroll('erin')", "totp_rename_device('erin', 'default', 'phone')", "totp_unenroll('erin', NULL)", f"totp_recovery_codes('alice', 10, '{proof}')", "totp_reset_recovery_codes('alice')",
            "totp_reset('alice')", "totp_disable('alice')", "totp_enable('alice')", "totp_unlock('alice')",
            "totp_rename_user('alice', 'alicia')", "totp_rotate_key()", "totp.rotation_begin(1000)", "totp.rotation_step(NULL, 10)", "totp.rotation_end()",
            "totp_keys()", "totp_stats()", "totp_metrics()", "totp_audit_verify()", "totp_health()", "totp_list()", "totp_read_tokens('<KeyContainer/>')",
            "totp_code_at('GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', now())",
            *[f"totp_qr_{kind}('otpauth://totp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')" for kind in ("svg", "png", "text")], "totp_remove('alicia')"]
        assert callable_now == {call.split("(")[0].removeprefix("totp.") for call in calls} | {"totp_rotate_key_online"}
        conn.execute("CALL totp_rotate_key_online()")
        for call in calls:
            conn.execute(f"SELECT * FROM {call}")
        conn.execute("RESET ROLE")
        rows = audit(conn, "*")
        assert rows[:len(written)] == written
        assert len(rows) > len(written) + 10


def test_parallel_calls_write_a_row_each(quick_db, conn):
    """Audit rows of 20 sessions at once: none is lost, each has its own number."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect(application_name=f"session {number}"))) for number in range(20)]
        for session in sessions:
            fix_clock(session, NOON)
        answers = parallel(20, lambda i: [enroll(sessions[i], f"user-{i}-{n}") for n in range(10)])
        assert [a for a in answers if isinstance(a, Exception)] == []
    assert conn.execute("SELECT count(*), count(DISTINCT id), count(DISTINCT user_id), count(DISTINCT application_name) FROM totp.audit_log").fetchone() == (200, 200, 200, 20)
