"""A lost master key: calls that need it name it and change nothing, and totp_forget_unreadable() removes what nobody can open."""

import re

import psycopg
import pytest
from health import health
from many_users import AT_ONCE, ONLINE, import_users, keys, open_everything
from master_keys import FIX, MINUTE, NEW, OLD, OTHER, RESTORE, fingerprint_of_current, master_keys, nothing_told, reload_and_wait, replace_key_file, tables
from master_keys import db, key_cluster, module_db, people  # noqa: F401 - fixtures
from sessions import session
from totp import NOON, ORPHANS, active_user, code_at, enroll, error_of, recovery_codes, stage, verify, wrong_codes

# --- A lost master key --------------------------------------------------------------------------------


@pytest.fixture
def lost(key_cluster, db):
    """A session after the loss of OLD: "alice" is active, with recovery codes, "bob" is pending. What they had, and the fingerprint."""
    with session(db) as conn:
        had = {"alice": enroll(conn, "alice"), "bob": enroll(conn, "bob")}
        assert verify(conn, "alice", code_at(had["alice"], NOON - MINUTE / 2)) is True
        had["recovery code"] = recovery_codes(conn)[0]
        assert verify(conn, "alice", next(wrong_codes(had["alice"], NOON))) is False
    fingerprint = fingerprint_of_current(db)
    replace_key_file(key_cluster, f"{NEW}\n")
    with session(db) as conn:
        yield conn, had, fingerprint


NEED_THE_KEY = [
    "SELECT totp_verify('alice', %(alice)s)",
    "SELECT totp_verify('alice', %(alice)s, 'default')",
    "SELECT totp_verify('alice', %(wrong)s)",
    "SELECT * FROM totp_check('alice', %(alice)s)",
    "SELECT * FROM totp_check('alice', %(wrong)s)",
    "SELECT * FROM totp_check('alice', %(alice)s, 'default')",
    "SELECT totp_verify('bob', %(bob)s)",
    "SELECT totp_confirm('bob', %(bob)s)",
    "SELECT totp_check_confirm('bob', %(bob)s, recovery_codes => 3)",
    "SELECT totp_recover('alice', %(recovery code)s)",
    "SELECT totp_recover('alice', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')",
    "SELECT totp_check_recover('alice', %(recovery code)s)",
    "SELECT totp_resync('alice', %(alice)s, %(wrong)s)",
    "SELECT totp_enroll('alice')",
    "SELECT totp_enroll('carol')",
    "SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')",
    "SELECT totp_import('carol', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')",
    "SELECT totp_reset('alice')",
    "SELECT totp_recovery_codes('alice')",
    "SELECT totp_recovery_codes('alice', proof => %(alice)s)",
    "SELECT totp_recovery_codes('alice', proof => %(recovery code)s)",
    "SELECT totp_reset_recovery_codes('alice')",
    "SELECT totp_unenroll('alice', %(alice)s)",
    "SELECT totp_unenroll('alice', %(recovery code)s)",
    "SELECT totp_rename_device('alice', 'default', 'phone', %(alice)s)",
    "SELECT totp_rename_device('bob', 'default', 'phone')",
    "SELECT totp_move_device('alice', 'default', 'carol', 'default')",
    "SELECT totp_rename_user('alice', 'carol')",
    "SELECT totp_export()",
    AT_ONCE,
    ONLINE,
    "SELECT totp.rotation_begin(1000)",
    "SELECT totp.rotation_step(NULL, 10)",
]


@pytest.mark.parametrize("query", NEED_THE_KEY)
def test_whatever_needs_the_lost_key_names_it_and_changes_nothing(db, lost, query):
    conn, had, fingerprint = lost
    arguments = {"alice": code_at(had["alice"], NOON), "bob": code_at(had["bob"], NOON), "wrong": next(wrong_codes(had["alice"], NOON))}
    before = tables(db)
    error = error_of(conn, query, {**had, **arguments})
    assert error.sqlstate == "F0000"
    assert error.diag.message_primary == f"sealed under master key {fingerprint}, which is not loaded"
    assert error.diag.message_hint == RESTORE
    nothing_told(error, OLD, NEW)
    assert tables(db) == before


def test_what_works_without_the_lost_key(lost):
    conn, _, fingerprint = lost
    assert conn.execute("SELECT totp_enabled('alice'), totp_enabled('bob')").fetchone() == (True, False)
    assert conn.execute("SELECT state, failures, recovery_codes_left FROM totp_status('alice')").fetchone() == ("active", 1, 10)
    assert master_keys(conn) == [("current", fingerprint, False)]
    health = dict(conn.execute("SELECT check_name, status || ': ' || detail FROM totp_health()").fetchall())
    assert health["lost_master_key"].startswith(f"fail: what is sealed under master key {fingerprint}, which is not loaded, cannot be opened")
    assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
    assert conn.execute("SELECT totp_disable('alice')").fetchone() == (1,)
    assert conn.execute("SELECT totp_enable('alice')").fetchone() == (1,)
    assert conn.execute("SELECT reason FROM totp_check('nobody', '123456')").fetchone() == ("not_enrolled",)
    assert conn.execute("SELECT totp_remove('bob')").fetchone() == (1,)


def test_the_lost_key_is_found_again(key_cluster, lost):
    conn, had, _ = lost
    assert error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(had["alice"], NOON)]).sqlstate == "F0000"
    replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
    assert verify(conn, "alice", code_at(had["alice"], NOON)) is True
    assert conn.execute("SELECT totp_recover('alice', %(recovery code)s)", had).fetchone() == (True,)
    assert conn.execute("SELECT totp_confirm('bob', %s)", [code_at(had["bob"], NOON)]).fetchone() == (True,)


# --- A key that was thrown away ------------------------------------------------------------------------


HINT = re.compile(r"Nothing is sealed under its data keys. If it was thrown away, run (SELECT \* FROM totp_forget_unreadable\('[0-9a-f]{16}'\)). "
                  r"If not, add it again to the file that totp.key_file names, below the current one.")


@pytest.fixture
def tried(key_cluster, db) -> str:
    """A key was tried with a user who was removed again, and then thrown away; its fingerprint."""
    with session(db) as conn:
        enroll(conn, "tester")
        conn.execute("SELECT totp_reset_recovery_codes('tester'), totp_remove('tester')")
    fingerprint = fingerprint_of_current(db)
    replace_key_file(key_cluster, f"{NEW}\n")
    return fingerprint


@pytest.mark.parametrize("query", ["SELECT totp_enroll('alice')", "SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", AT_ONCE, ONLINE])
def test_a_key_that_sealed_nothing_may_be_forgotten(db, tried, query):
    """The HINT has the call, and after it everything works."""
    with session(db) as conn:
        error = error_of(conn, query)
        assert (error.sqlstate, error.diag.message_primary) == ("F0000", f"sealed under master key {tried}, which is not loaded")
        nothing_told(error, OLD, NEW)
        [forget] = HINT.fullmatch(error.diag.message_hint).groups()
        assert health(conn)["lost_master_key"] == (
            "fail", f"nothing is sealed under master key {tried}, which is not loaded: if it was thrown away, {forget}; if not, add it to the key file again")
        assert conn.execute(forget).fetchall() == []
        assert health(conn)["lost_master_key"][0] == "ok"
        assert verify(conn, "alice", code_at(enroll(conn, "alice"), NOON)) is True


@pytest.mark.parametrize("kept", ["secret", "recovery codes"])
def test_a_key_that_sealed_anything_is_not_to_be_forgotten(key_cluster, db, kept):
    """Neither if a newer data key of it seals nothing."""
    with session(db) as conn:
        assert verify(conn, "alice", code_at(enroll(conn, "alice"), NOON)) is True
        if kept == "recovery codes":
            conn.execute("SELECT totp_reset_recovery_codes('alice'), totp_remove('alice', 'default')")
        conn.execute("SELECT totp.rotation_begin(1000)")
    fingerprint = fingerprint_of_current(db)
    replace_key_file(key_cluster, f"{NEW}\n")
    with session(db) as conn:
        for query in ("SELECT totp_enroll('bob')", AT_ONCE):
            error = error_of(conn, query)
            assert (error.sqlstate, error.diag.message_hint) == ("F0000", RESTORE)
        details = [detail for name, detail in conn.execute("SELECT check_name, detail FROM totp_health()") if name == "lost_master_key"]
        assert len(details) == 1  # of two data keys
        assert details[0].startswith(f"what is sealed under master key {fingerprint}, which is not loaded, cannot be opened")


@pytest.mark.parametrize("query", ["SELECT totp_enroll('bob')", "SELECT totp_import('bob', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "SELECT totp_recovery_codes('alice')"])
def test_a_session_that_knows_the_data_key_seals_nothing_under_a_key_that_is_gone(key_cluster, db, query):
    with session(db) as conn:
        assert verify(conn, "alice", code_at(enroll(conn, "alice"), NOON)) is True
        replace_key_file(key_cluster, f"{NEW}\n")
        reload_and_wait(key_cluster, conn)
        before = tables(db)
        error = error_of(conn, query)
        assert (error.sqlstate, error.diag.message_hint) == ("F0000", RESTORE)
        assert tables(db) == before


def test_a_broken_key_file_is_no_thrown_away_key(key_cluster, db, tried):
    replace_key_file(key_cluster, "")
    with session(db) as conn:
        assert error_of(conn, "SELECT totp_enroll('alice')").diag.message_hint == FIX
        assert "cannot be opened: add it to the key file again" in health(conn)["lost_master_key"][1]
        assert "forget" not in health(conn)["lost_master_key"][1]


def test_whether_a_key_sealed_anything_is_looked_up_by_index(key_cluster, db):
    """Also if nearly all secrets are under another one."""
    with session(db) as conn:
        import_users(conn, 2000)
        conn.execute("ANALYZE totp.secrets")
        replace_key_file(key_cluster, f"{OTHER}\n{OLD}\n")
        conn.execute("SELECT totp.rotation_begin(1000)")
    replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
    with session(db) as conn:
        conn.execute("BEGIN")
        with pytest.raises(psycopg.errors.ConfigFileError), conn.transaction():
            conn.execute("SELECT totp_enroll('bob')")
        scans = conn.execute("SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relid = 'totp.secrets'::regclass").fetchone()
        assert scans[0] == 0 and scans[1] > 0
        conn.execute("ROLLBACK")
        assert HINT.fullmatch(error_of(conn, "SELECT totp_enroll('bob')").diag.message_hint)


# --- totp_forget_unreadable ----------------------------------------------------------------------------

FORGET = "SELECT user_id, device FROM totp_forget_unreadable(%s)"


def test_forget_removes_what_cannot_be_opened_and_nothing_else(key_cluster, db):
    """The master key was changed by an online rotation that never ended, and the old one is gone."""
    names = ("active", "both", "devices", "moved", "pending", "staged")
    with session(db) as conn:
        had = {}
        for name in names:
            had[name] = enroll(conn, name)
            if name != "pending":
                assert verify(conn, name, code_at(had[name], NOON - MINUTE / 2)) is True
                recovery_codes(conn, name)
        staged_before = enroll(conn, "staged")
        replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
        conn.execute("SELECT totp.rotation_begin(1000)")
        [(old_key, _), (new_key, _)] = keys(conn)
        old = conn.execute("SELECT master_key FROM totp_keys() WHERE state = 'retiring'").fetchone()[0]
        # "moved" went over with all that it has.
        with session(db) as others:
            others.execute("BEGIN")
            others.execute("SELECT FROM totp.attempts WHERE user_id <> 'moved' FOR UPDATE")
            assert conn.execute("SELECT moved FROM totp.rotation_step(NULL, 100)").fetchone() == (1,)
            others.execute("ROLLBACK")
        # "both": the active secret is under the old key, the staged one under the new. "devices": one device each, and new recovery codes.
        staged_after = stage(conn, "both")
        tablet = active_user(conn, "devices", device="tablet")
        recovery_code = recovery_codes(conn, "devices")[0]
        # "staged": the active secret went over and the staged one did not.
        hide = {"secrets": "user_id = 'staged' AND slot = 'proposed'", "recovery_codes": "user_id = 'staged'"}
        for table, rows in hide.items():
            conn.execute(f"CREATE TEMP TABLE hidden_{table} AS SELECT * FROM totp.{table} WHERE {rows}")
            conn.execute(f"DELETE FROM totp.{table} WHERE {rows}")
        with session(db) as others:
            others.execute("BEGIN")
            others.execute("SELECT FROM totp.attempts WHERE user_id <> 'staged' FOR UPDATE")
            assert conn.execute("SELECT moved FROM totp.rotation_step(NULL, 100)").fetchone() == (1,)
            others.execute("ROLLBACK")
        for table in hide:
            conn.execute(f"INSERT INTO totp.{table} SELECT * FROM hidden_{table}")
    replace_key_file(key_cluster, f"{NEW}\n")
    with session(db) as conn:
        conn.execute("SET totp.actor = 'ops:7'")
        forgotten = conn.execute(FORGET, [old]).fetchall()
        assert forgotten == [("active", "default"), ("active", None), ("both", "default"), ("both", None), ("devices", "default"),
                             ("pending", "default"), ("staged", None)]
        lost = sorted([*forgotten, ("staged", "default")], key=lambda row: (row[0], row[1] or "~"))
        audited = conn.execute("SELECT user_id, device, actor, at, detail FROM totp.audit_log WHERE event = 'unreadable_forgotten' ORDER BY id").fetchall()
        until = {("active", "default"): NOON, ("both", "default"): NOON, ("devices", "default"): NOON}  # of the codes that confirmed them
        used = {row: {"used_until": str(int(when.timestamp()))} for row, when in until.items()}
        assert audited == [(*row, "ops:7", NOON, {"master_key": old} | used.get(row, {})) for row in lost]
        assert keys(conn) == [(new_key, "current")]

        left = conn.execute("SELECT user_id, device, slot FROM totp.secrets ORDER BY 1, 2, 3").fetchall()
        assert left == [("both", "default", "pending"), ("devices", "tablet", "active"), ("moved", "default", "active"), ("staged", "default", "active")]
        assert conn.execute("SELECT user_id FROM totp.recovery_codes ORDER BY 1").fetchall() == [("devices",), ("moved",)]
        assert conn.execute(ORPHANS).fetchall() == []
        assert open_everything(conn) == (4, 2)
        for name, secret, device in [("both", staged_after, None), ("devices", tablet, "tablet"), ("moved", had["moved"], None), ("staged", had["staged"], None)]:
            assert verify(conn, name, code_at(secret, NOON), device) is True
        assert conn.execute("SELECT totp_recover('devices', %s)", [recovery_code]).fetchone() == (True,)
        for name, secret in [("active", had["active"]), ("pending", had["pending"]), ("staged", staged_before)]:
            assert verify(conn, name, code_at(secret, NOON + MINUTE / 2)) is False
        for name in ("active", "pending"):
            secret = enroll(conn, name)
            assert verify(conn, name, code_at(secret, NOON)) is True
        conn.execute(ONLINE)
        assert open_everything(conn) == (6, 2)
        assert conn.execute("SELECT count(*) FROM totp_health(true) WHERE check_name IN ('rows', 'data_keys', 'lost_master_key') AND status = 'ok'").fetchone() == (3,)


def test_forget_lists_a_device_once_and_audits_each_of_its_secrets(key_cluster, db):
    with session(db) as conn:
        assert verify(conn, "alice", code_at(enroll(conn, "alice"), NOON)) is True
        enroll(conn, "alice")
        fingerprint = conn.execute("SELECT master_key FROM totp_keys()").fetchone()[0]
    replace_key_file(key_cluster, f"{NEW}\n")
    with session(db) as conn:
        assert conn.execute(FORGET, [fingerprint]).fetchall() == [("alice", "default")]
        assert conn.execute("SELECT user_id, device FROM totp.audit_log WHERE event = 'unreadable_forgotten'").fetchall() == [("alice", "default")] * 2


def test_forgetting_a_key_that_sealed_nothing_is_audited(key_cluster, db):
    with session(db) as conn:
        enroll(conn, "alice")
        conn.execute("SELECT totp_remove('alice')")
        fingerprint = conn.execute("SELECT master_key FROM totp_keys()").fetchone()[0]
    replace_key_file(key_cluster, f"{NEW}\n")
    with session(db) as conn:
        assert conn.execute(FORGET, [fingerprint]).fetchall() == []
        assert conn.execute("SELECT user_id, detail FROM totp.audit_log WHERE event = 'unreadable_forgotten'").fetchall() == [(None, {"master_key": fingerprint})]
        assert keys(conn) == []


def test_forget_everything_and_start_again(db, lost):
    conn, had, fingerprint = lost
    assert conn.execute(FORGET, [fingerprint]).fetchall() == [("alice", "default"), ("alice", None), ("bob", "default")]
    assert keys(conn) == []
    assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(had["alice"], NOON)]).fetchone() == ("not_enrolled",)
    assert conn.execute("SELECT totp_recover('alice', %(recovery code)s)", had).fetchone() == (False,)
    secret = enroll(conn, "alice")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    [(state, new, loaded)] = master_keys(conn)
    assert (state, loaded) == ("current", True) and new != fingerprint


def test_a_rolled_back_forget_changes_nothing(db, lost, key_cluster):
    conn, had, fingerprint = lost
    before = tables(db)
    conn.execute("BEGIN")
    assert len(conn.execute(FORGET, [fingerprint]).fetchall()) == 3
    conn.execute("ROLLBACK")
    assert tables(db) == before
    replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
    assert verify(conn, "alice", code_at(had["alice"], NOON)) is True


@pytest.mark.parametrize("name", ["0123456789abcdef", "0123456789abcde", "0123456789abcdef0", "", "no fingerprint", "0123456789ABCDEF' OR '1'='1", "x" * 1_000_000, None],
                         ids=lambda name: repr(name)[:24])
def test_forget_refuses_a_key_that_is_unknown(db, lost, name):
    before = tables(db)
    error = error_of(lost[0], FORGET, [name])
    assert error.sqlstate == "22023"
    if name is not None:
        assert error.diag.message_primary == "no data key is wrapped by this master key"
        assert error.diag.message_hint == "Name a fingerprint that totp_keys() shows as not loaded."
    assert tables(db) == before


@pytest.mark.parametrize("text", [f"{OLD}\n", f"{NEW}\n{OLD}\n", f"{OLD}\n{NEW}\n"], ids=["alone", "second", "first"])
def test_forget_refuses_a_key_that_is_in_the_file(key_cluster, db, lost, text):
    conn, had, fingerprint = lost
    assert error_of(conn, "SELECT totp_verify('alice', '000000')").sqlstate == "F0000"  # the session has not read it yet
    replace_key_file(key_cluster, text)
    before = tables(db)
    error = error_of(conn, FORGET, [fingerprint])
    assert (error.sqlstate, error.diag.message_primary) == ("22023", "master key is loaded")
    assert tables(db) == before
    assert verify(conn, "alice", code_at(had["alice"], NOON)) is True


@pytest.mark.parametrize("text", ["", "# nothing\n", OLD[:63], None], ids=["empty", "comment", "truncated", "missing"])
def test_forget_refuses_if_no_key_is_loaded(key_cluster, db, lost, text):
    """Otherwise a broken file would be taken for a lost key, and everything would be removed."""
    conn, _, fingerprint = lost
    replace_key_file(key_cluster, text)
    before = tables(db)
    assert error_of(conn, FORGET, [fingerprint]).sqlstate == "F0000"
    assert tables(db) == before
