"""Recovery codes: a set, its replacement, each code good once, and what happens to a set in the life of its user."""

import re
from contextlib import ExitStack, closing

import pytest
from sessions import Background
from totp import (LEVELS, MAX_ATTEMPTS, NOON, NO_CODE, active_user, code_at, codes_left, counters, enroll, error_of, events, fix_clock, parallel, recover,
                  recovery_codes, reset, stage, verify)

# --- A set of codes ---------------------------------------------------------------------------------


def test_the_codes_have_the_documented_form(conn, alice):
    codes = [code for _ in range(20) for code in recovery_codes(conn, count=20)]
    assert all(re.fullmatch(r"[A-Z2-7]{6}(-[A-Z2-7]{6}){3}", code) for code in codes)
    assert len(set(codes)) == 400


def test_each_code_is_good_once_in_any_order(conn, alice):
    codes = recovery_codes(conn)
    assert codes_left(conn) == 10
    for number, code in enumerate(codes[5:] + codes[:5], start=1):
        assert recover(conn, code) is True
        assert recover(conn, code) is False
        assert codes_left(conn) == 10 - number
    assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (0,)  # a used code is no guess
    assert verify(conn, "alice", code_at(alice, NOON)) is True


@pytest.mark.parametrize("call", ["totp_recovery_codes('alice'{}, proof => '{}')", "totp_reset_recovery_codes('alice'{})"])
@pytest.mark.parametrize("argument, count", [("", 10), (", 1", 1), (", 2", 2), (", 19", 19), (", 20", 20)])
def test_a_set_has_as_many_codes_as_asked_for_and_ten_by_default(conn, alice, argument, count, call):
    codes = [code for [code] in conn.execute(f"SELECT {call.format(argument, code_at(alice, NOON))}")]
    assert len(set(codes)) == count == codes_left(conn)
    assert [recover(conn, code) for code in codes] == [True] * count
    assert codes_left(conn) == 0


CALLS = ["totp_recovery_codes", "totp_reset_recovery_codes"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("count", [0, -1, 21, 256, 257, 2**31 - 1, -(2**31), None])
def test_any_other_number_is_refused(conn, alice, count, call):
    codes = recovery_codes(conn)
    error = error_of(conn, f"SELECT {call}('alice', %s::int)", [count])
    assert error.sqlstate == "22023"
    if count is not None:
        assert error.diag.message_detail == "It must be 1 to 20."
    assert codes_left(conn) == 10
    assert recover(conn, codes[0]) is True


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("user_id, sqlstate", [("nobody", "42704"), (None, "22023"), ("", "22023"), ("x" * 257, "22023")])
def test_a_user_is_required(conn, user_id, sqlstate, call):
    assert error_of(conn, f"SELECT {call}(%s)", [user_id]).sqlstate == sqlstate


@pytest.mark.parametrize("make", [enroll, stage, lambda conn, user: reset(conn) if active_user(conn) else None], ids=["enrolled", "imported", "reset"])
def test_an_active_device_is_required_but_for_the_desk(conn, make):
    """Who is about to enroll gets a set with the first confirmation, by totp_check_confirm()."""
    make(conn, "alice")
    assert error_of(conn, "SELECT totp_recovery_codes('alice')").sqlstate == "42704"
    assert conn.execute("SELECT count(*) FROM totp.recovery_codes").fetchone() == (0,)
    [code] = recovery_codes(conn, count=1)
    assert recover(conn, code) is True


@pytest.mark.parametrize("change", [str.lower, lambda c: c.replace("-", ""), lambda c: c.replace("-", " "), lambda c: f"\t {c}\r\n",
                                    lambda c: "-".join(c), lambda c: c.replace("-", "--"), str.swapcase,
                                    lambda c: c.replace("-", "\u2010"), lambda c: c.replace("-", "\u2013"), lambda c: c.replace("-", "\u00a0"),
                                    lambda c: "\ufeff" + c.replace("-", "\u2212") + "\u200b"])
def test_case_spaces_and_dashes_do_not_matter(conn, alice, change):
    [code] = recovery_codes(conn, count=1)
    assert recover(conn, change(code)) is True
    assert recover(conn, code) is False


@pytest.mark.parametrize("entry", ["", " ", "-", " - - ", "123456", "AAAAAA", "0" * 24, "A" * 23, "A" * 25, "A" * 1_000_000, "AAAAAA-AAAAAA-AAAAAA-AAAAA1",
                                   "'; SELECT 1", "Ａ" * 24, "ＡＢＣＤＥＦ-ＡＢＣＤＥＦ-ＡＢＣＤＥＦ-ＡＢＣＤＥＦ", None], ids=lambda entry: repr(entry)[:30])
def test_what_cannot_be_a_code_is_false_and_not_charged(conn, alice, entry):
    code, *_ = recovery_codes(conn)
    for _ in range(MAX_ATTEMPTS + 1):
        assert recover(conn, entry) is False
    assert conn.execute("SELECT recovery_failures FROM totp.attempts").fetchone() == (0,)
    assert recover(conn, code) is True


@pytest.mark.parametrize("user_id", ["nobody", "", None, "x" * 300])
def test_a_code_of_alice_is_no_code_of_others(conn, alice, user_id):
    code, *_ = recovery_codes(conn)
    for entry in (NO_CODE, code, None):
        assert recover(conn, entry, user_id) is False
    assert recover(conn, code) is True


def test_codes_of_another_user_are_wrong(conn, alice):
    active_user(conn, "bob")
    recovery_codes(conn)
    [code, *_] = recovery_codes(conn, "bob")
    assert recover(conn, code) is False
    assert conn.execute("SELECT recovery_failures FROM totp.attempts WHERE user_id = 'alice'").fetchone() == (1,)
    assert recover(conn, code, "bob") is True


# --- The old set ------------------------------------------------------------------------------------


def test_a_new_set_kills_the_old_one_in_the_same_statement(quick_db, conn, alice):
    old = recovery_codes(conn)
    assert recover(conn, old[0]) is True
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        conn.execute("BEGIN")
        new = recovery_codes(conn)
        assert recover(conn, old[1]) is False
        assert codes_left(conn) == 10
        conn.execute("COMMIT")
        assert recover(other, old[2]) is False
        assert recover(other, new[2]) is True
    assert conn.execute("SELECT count(*) FROM totp.used_codes").fetchone() == (2,)  # of the secret and of the new set


def test_a_new_set_that_is_rolled_back_leaves_the_old_one(conn, alice):
    old = recovery_codes(conn)
    assert recover(conn, old[0]) is True
    conn.execute("BEGIN")
    new = recovery_codes(conn)
    conn.execute("ROLLBACK")
    assert recover(conn, new[0]) is False
    assert recover(conn, old[0]) is False
    assert recover(conn, old[1]) is True
    assert codes_left(conn) == 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("call", ["totp_recovery_codes('alice', proof => '{}')", "totp_reset_recovery_codes('alice')"])
@pytest.mark.parametrize("end, answer", [("COMMIT", False), ("ROLLBACK", True)])
def test_an_entry_waits_for_an_open_replacement_and_obeys_it(quick_db, conn, alice, level, call, end, answer):
    old = recovery_codes(conn)
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute(f"BEGIN ISOLATION LEVEL {level}")
        assert len(other.execute(f"SELECT {call.format(code_at(alice, NOON))}").fetchall()) == 10
        with Background(quick_db, f"SELECT totp_recover('alice', '{old[0]}')") as entering:
            entering.wait_until_blocked(conn)
            other.execute(end)
        assert entering.answer == [(answer,)]


@pytest.mark.parametrize("level", LEVELS)
def test_new_codes_count_for_a_transaction_that_began_before_them(quick_db, conn, alice, level):
    old = recovery_codes(conn)
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        other.execute(f"BEGIN ISOLATION LEVEL {level}")
        other.execute("SELECT count(*) FROM pg_class")
        new = recovery_codes(conn)
        assert recover(other, old[0]) is False
        assert recover(other, new[0]) is True
        assert codes_left(other) == 9
        other.execute("COMMIT")
    assert recover(conn, new[0]) is False
    assert codes_left(conn) == 9


# --- Once, whatever happens --------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_one_of_50_sessions_gets_in(quick_db, conn, alice, level):
    codes = recovery_codes(conn, count=5)
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(50)]
        for session in sessions:
            fix_clock(session, NOON)
        for used, code in enumerate(codes, start=1):

            def begin(i):
                sessions[i].execute(f"BEGIN ISOLATION LEVEL {level}")
                sessions[i].execute("SELECT count(*) FROM pg_class")

            def enter(i, _):
                answer = recover(sessions[i], code)  # noqa: B023
                sessions[i].execute("COMMIT")
                return answer

            answers = parallel(50, enter, prepare=begin)
            assert [a for a in answers if isinstance(a, Exception)] == []
            assert sorted(answers) == [False] * 49 + [True]
            assert codes_left(conn) == 5 - used
            conn.execute("SELECT totp_unlock('alice')")
    assert len(events(conn, "recovery_code_used")) == 5
    # A used code is charged, so the lock refuses the rest of them.
    assert events(conn, "replayed") == [("replayed", "alice", None, {"of": "recovery_codes"})] * MAX_ATTEMPTS * 5


def test_all_codes_of_a_set_are_good_at_once(quick_db, conn, alice):
    """Each sets its own bit in one row: none is lost."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(quick_db.connect())) for _ in range(20)]
        for session in sessions:
            fix_clock(session, NOON)
        for _ in range(10):
            codes = recovery_codes(conn, count=20)
            assert parallel(20, lambda i: recover(sessions[i], codes[i])) == [True] * 20  # noqa: B023
            assert codes_left(conn) == 0
            assert parallel(20, lambda i: recover(sessions[i], codes[i])) == [False] * 20  # noqa: B023
            assert counters(conn)[1] == MAX_ATTEMPTS  # charged, up to the lock
            conn.execute("SELECT totp_unlock('alice')")


# --- Over the life of a user ---------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["SELECT totp_reset('alice', 'phone')", "SELECT totp_enroll('alice', device => 'phone')",
                                   "SELECT totp_unenroll('alice', '{proof}', 'phone')", "SELECT totp_rename_device('alice', 'phone', 'tablet', '{proof}')",
                                   "SELECT totp_move_device('alice', 'phone', 'bob', 'phone')", "SELECT totp_remove('alice', 'phone')",
                                   "SELECT totp_disable('alice', 'phone')", "SELECT totp_unlock('alice')"])
def test_codes_survive_what_is_done_to_one_device(conn, alice, query):
    active_user(conn, "alice", device="phone")
    codes = recovery_codes(conn)
    assert recover(conn, codes[0]) is True
    conn.execute(query.format(proof=code_at(alice, NOON)))
    assert recover(conn, codes[0]) is False
    assert recover(conn, codes[1]) is True
    assert codes_left(conn) == 8


@pytest.mark.parametrize("level", LEVELS)
def test_what_support_does_counts_at_once(quick_db, conn, alice, level):
    """Also in a transaction that began before. What support has disabled is not a way in, whatever else is enrolled; the code stays good."""
    codes = recovery_codes(conn)
    with closing(quick_db.connect()) as old:
        fix_clock(old, NOON)
        old.execute(f"BEGIN ISOLATION LEVEL {level}")
        old.execute("SELECT totp_enabled('alice')")
        conn.execute("SELECT totp_disable('alice')")
        assert recover(old, codes[0]) is False
        enroll(conn, "alice", device="of someone who only has the password")
        assert recover(old, codes[0]) is False
        conn.execute("SELECT totp_enable('alice', 'default')")
        assert recover(old, codes[0]) is True
        for _ in range(MAX_ATTEMPTS):
            recover(old, NO_CODE)
        assert recover(old, codes[1]) is False
        conn.execute("SELECT totp_unlock('alice')")
        assert recover(old, codes[1]) is True
        conn.execute("SELECT totp_reset('alice')")
        assert recover(old, codes[2]) is True  # a reset keeps them
        conn.execute("SELECT totp_remove('alice')")
        assert recover(old, codes[3]) is False
        old.execute("COMMIT")


# --- Rows that someone wrote into the tables --------------------------------------------------------------

CHANGES = {
    "moved": "UPDATE totp.recovery_codes SET user_id = 'alice' WHERE user_id = 'mallory'",
    "contents of another": "UPDATE totp.recovery_codes SET sealed = (SELECT sealed FROM totp.recovery_codes WHERE user_id = 'mallory') WHERE user_id = 'alice'",
    "number of another": """UPDATE totp.recovery_codes a SET (sealed, set_id) = (SELECT m.sealed, m.set_id FROM totp.recovery_codes m
                             WHERE m.user_id = 'mallory') WHERE a.user_id = 'alice'""",
    "older contents": "UPDATE totp.recovery_codes SET sealed = (SELECT sealed FROM older) WHERE user_id = 'alice'",
    "another count": "UPDATE totp.recovery_codes SET count = count + 1 WHERE user_id = 'alice'",
    "a changed byte": "UPDATE totp.recovery_codes SET sealed = set_byte(sealed, 40, get_byte(sealed, 40) # 1) WHERE user_id = 'alice'",
    "cut off": "UPDATE totp.recovery_codes SET sealed = substr(sealed, 1, 20) WHERE user_id = 'alice'",
    "empty": "UPDATE totp.recovery_codes SET sealed = '' WHERE user_id = 'alice'",
    "plain hashes": "UPDATE totp.recovery_codes SET sealed = sha256('x') WHERE user_id = 'alice'",
    "a sealed secret": """UPDATE totp.recovery_codes r SET (sealed, set_id) = (SELECT s.sealed, s.secret_id FROM totp.secrets s
                           WHERE s.user_id = 'alice') WHERE r.user_id = 'alice'""",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_planted_and_moved_rows_open_nothing(conn, alice, change):
    active_user(conn, "mallory")
    old_codes = recovery_codes(conn)
    conn.execute("CREATE TEMP TABLE older AS SELECT * FROM totp.recovery_codes")
    codes, of_mallory = recovery_codes(conn), recovery_codes(conn, "mallory")
    if change == CHANGES["moved"]:
        conn.execute("DELETE FROM totp.recovery_codes WHERE user_id = 'alice'")
    conn.execute(change)
    # The row of used codes that belongs to it, so that nothing is wrong but the seal.
    conn.execute("""INSERT INTO totp.used_codes SELECT 0, '-infinity', 0, 0, set_id, user_id FROM totp.recovery_codes WHERE user_id = 'alice'
                    ON CONFLICT DO NOTHING""")
    for code in (codes[0], old_codes[0], of_mallory[0], NO_CODE):
        error = error_of(conn, "SELECT totp_recover('alice', %s)", [code])
        assert (error.sqlstate, error.diag.message_primary, error.diag.message_detail) == ("XX001", "sealed value does not open", None)
    assert counters(conn) == (0, 0, False, False)
    assert error_of(conn, "SELECT totp_rotate_key()").sqlstate == "XX001"
    assert verify(conn, "alice", code_at(alice, NOON)) is True


def test_who_writes_to_the_tables_brings_back_what_was_there_until_the_next_rotation(quick_db, conn, alice):
    """docs/security-model.md says so. A seal cannot tell when it was made. A session that has the old data key keeps it."""
    old_codes = recovery_codes(conn)
    conn.execute("CREATE TEMP TABLE old_set AS SELECT * FROM totp.recovery_codes; CREATE TEMP TABLE old_used AS SELECT * FROM totp.used_codes")
    put_back = ("DELETE FROM totp.recovery_codes; INSERT INTO totp.recovery_codes SELECT * FROM old_set;"
                "DELETE FROM totp.used_codes; INSERT INTO totp.used_codes SELECT * FROM old_used")
    assert recover(conn, old_codes[0]) is True
    conn.execute(put_back)
    assert recover(conn, old_codes[0]) is True
    recovery_codes(conn)
    conn.execute(put_back)
    assert recover(conn, old_codes[0]) is True
    recovery_codes(conn)
    conn.execute("SELECT totp_rotate_key()")
    conn.execute(put_back)
    with closing(quick_db.connect()) as later:
        fix_clock(later, NOON)
        assert error_of(later, "SELECT totp_recover('alice', %s)", [old_codes[1]]).sqlstate == "XX001"


# --- Audit ---------------------------------------------------------------------------------------------------
