"""What a role with the capability `enroll`, and SQL injection with it, cannot do to a user who has MFA."""

import contextlib
from contextlib import ExitStack, closing
from datetime import timedelta
from itertools import islice

import psycopg
import pytest
from binding import check_confirm, confirm, new_recovery_codes, rename_device, slots, unenroll, web_session
from totp import (LEVELS, MAX_ATTEMPTS, NOON, NO_CODE, OTHER_SECRET, SECRET, check, code_at, codes_left, counters, enabled, enroll, error_of, events,
                  fix_clock, good, import_secret, parallel, recover, recovery_codes, reset, verify, wrong, wrong_codes)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture(params=LEVELS)
def level(request):
    """An isolation level, and below a session of the attacker at this level."""
    return request.param


@pytest.fixture(scope="module")
def role(_module_database):
    """A role that may only enroll."""
    return _module_database.create_role("enroll")


@pytest.fixture
def web(quick_db, role, level):
    with web_session(quick_db, role, level=level) as session:
        yield session


@pytest.fixture
def alice(conn):
    """A user with an active device `old`, whose secret is SECRET; the recovery codes, which the attacker does not have."""
    import_secret(conn, "alice", SECRET, device="old")
    return recovery_codes(conn)


def is_untouched(conn):
    """Alice still has her device, her codes and her recovery codes."""
    return slots(conn)[-1:] == [("old", "active")] and enabled(conn) and codes_left(conn) == 10


# --- before the user had MFA -----------------------------------------------------------

def test_a_secret_staged_before_is_of_no_use(conn, web):
    staged = {device: enroll(web, "alice", device=device) for device in ("old", "mine")}
    hers = enroll(conn, "alice", device="old")
    assert verify(conn, "alice", code_at(hers, NOON)) is True
    for device, secret in staged.items():
        assert check(web, "alice", code_at(secret, NOON)).reason in ("wrong", "locked")
        assert check_confirm(web, code_at(secret, NOON), device).reason == "nothing_pending"
    assert slots(conn) == [("old", "active")]


@pytest.mark.parametrize("attacker_is_first", [True, False])
def test_a_secret_staged_at_the_same_time_is_of_no_use(quick_db, role, conn, level, attacker_is_first):
    """The one that waits decides on what the other one has committed, also under an old snapshot."""
    hers = enroll(conn, "alice", device="old")
    with web_session(quick_db, role, level=level) as attacker, closing(quick_db.connect(autocommit=False)) as user:
        fix_clock(user, NOON)
        user.commit()
        attacker.execute("BEGIN")
        attacker.execute("SELECT totp_enabled('alice')")  # takes the snapshot
        if attacker_is_first:
            mine = enroll(attacker, "alice", device="mine")
            [accepted, _] = parallel(2, lambda n: verify(user, "alice", code_at(hers, NOON)) if n == 0 else attacker.execute("COMMIT"))
            assert accepted is True
            user.commit()
            assert slots(conn) == [("old", "active")]
        else:
            assert verify(user, "alice", code_at(hers, NOON)) is True
            [mine, _] = parallel(2, lambda n: enroll(attacker, "alice", device="mine") if n == 0 else user.commit())
            assert check_confirm(attacker, code_at(mine, NOON), "mine").reason == "proof_required"
            attacker.execute("COMMIT")
        assert check(attacker, "alice", code_at(mine, NOON)).reason == "wrong"


def test_recovery_codes_of_before_are_of_no_use(conn, web, alice):
    """The desk has removed the device, and the codes are from then."""
    conn.execute("SELECT totp_remove('alice', 'old')")
    mine = enroll(web, "alice")
    assert confirm(web, code_at(mine, NOON)) is True  # nothing protects a user without MFA
    conn.execute("SELECT totp_remove('alice')")
    import_secret(conn, "alice", OTHER_SECRET)
    assert all(recover(web, code) is False for code in alice[:3])
    assert codes_left(conn) == 0


# --- the count of failures -------------------------------------------------------------

def test_codes_of_an_own_secret_clear_no_failure(conn, web, alice):
    for number in range(3):
        check(web, "alice", wrong(number))
    mine = enroll(web, "alice", device="mine")
    mine_at = code_at(mine, NOON)
    assert check_confirm(web, mine_at, "mine").reason == "proof_required" and counters(conn)[0] == 3
    assert check_confirm(web, mine_at, "mine", NO_CODE).reason == "proof_wrong" and counters(conn)[0] == 3
    assert verify(web, "alice", mine_at) is False and counters(conn)[0] == 4
    assert check_confirm(web, mine_at, "mine", wrong(7)).reason == "proof_wrong" and counters(conn)[0] == 5
    assert check(web, "alice", mine_at).reason == check_confirm(web, mine_at, "mine", good()).reason == "locked"
    assert is_untouched(conn)


def test_nor_for_a_user_whose_token_waits_for_its_first_code(conn, web):
    """No MFA yet, so the own secret counts by its code alone. If that is rolled back, the guesses at the token still count."""
    import_secret(conn, "alice", SECRET, confirmed=False, device="token")
    for number in range(MAX_ATTEMPTS - 1):
        check(web, "alice", wrong(number))
    for number in range(3):
        mine = enroll(web, "alice", device=f"mine{number}")
        web.execute("BEGIN")
        assert confirm(web, code_at(mine, NOON), f"mine{number}") is True
        web.execute("ROLLBACK")
        assert counters(conn)[0] == MAX_ATTEMPTS - 1
    check(web, "alice", wrong(8))
    assert counters(conn)[2] is True


def test_own_secrets_do_not_lower_the_hard_limit(conn, web, alice):
    """It shrinks with the number of secrets that a guess is compared with."""
    for number in range(10):
        enroll(web, "alice", device=f"mine{number}")
    conn.execute("SET totp.window_steps = 2")
    conn.execute("UPDATE totp.attempts SET failures = 25")  # the limit of eleven secrets would be 18
    assert check(conn, "alice", wrong()).retry_at is not None


# --- what others have staged -----------------------------------------------------------

@pytest.mark.parametrize("has_mfa", [True, False])
def test_what_the_desk_has_staged_stays(conn, web, has_mfa):
    if has_mfa:
        import_secret(conn, "alice", SECRET, device="token")
        desk = reset(conn, device="token")
    else:
        import_secret(conn, "alice", OTHER_SECRET, confirmed=False, device="token")
        desk = OTHER_SECRET
    before = conn.execute("SELECT * FROM totp.secrets WHERE device = 'token'").fetchall()
    enroll(web, "alice", device="token")
    enroll(web, "alice", device="token", keep_current=False)
    for call in ("totp_unenroll('alice', NULL)", "totp_unenroll('alice', NULL, 'token')", "totp_unenroll('alice', '000000', 'token')",
                 "totp_rename_device('alice', 'token', 'x')"):
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            web.execute(f"SELECT {call}")
    assert conn.execute("SELECT * FROM totp.secrets WHERE device = 'token' AND slot = 'pending'").fetchall() == before
    assert confirm(conn, code_at(desk, NOON), "token") is True


def test_staged_secrets_take_nobody_s_place(conn, web, alice):
    for number in range(30):
        enroll(web, "alice", device=f"mine{number}")
    assert len(slots(conn)) == 11
    import_secret(conn, "alice", OTHER_SECRET, device="desk")
    hers = enroll(conn, "alice", device="hers")
    assert confirm(conn, code_at(hers, NOON), "hers", alice[0]) is True


def test_an_export_and_import_approves_nothing(conn, web, alice):
    """A superuser moves all secrets to another server while the attacker has staged one."""
    mine = enroll(web, "alice", device="mine")
    exported = conn.execute("SELECT user_id, device, state, otpauth_uri FROM totp_export()").fetchall()
    conn.execute("SELECT totp_remove('alice')")
    for user_id, device, state, uri in exported:
        conn.execute("SELECT totp_import(%s, %s, device => %s, confirmed => %s)", [user_id, uri, device, state == "active"])
    assert slots(conn) == [("old", "active")]
    assert verify(web, "alice", code_at(mine, NOON)) is False and verify(conn, "alice", good()) is True


def test_a_reset_takes_nothing_from_what_was_only_staged(conn, web, alice):
    enroll(web, "alice", device="old", issuer="Evil", digits=8)
    assert "Evil" not in conn.execute("SELECT otpauth_uri FROM totp_reset('alice', 'old')").fetchone()[0]


def test_staging_does_not_make_a_user_one_without_mfa(conn, web, alice):
    """The active secret is gone with a lost master key. What was staged to replace it alone shows that the user had one."""
    enroll(web, "alice", device="old")
    conn.execute("DELETE FROM totp.secrets WHERE slot = 'active'")
    for number in range(25):
        enroll(web, "alice", device=f"mine{number}")
    mine = enroll(web, "alice", device="mine")
    assert check_confirm(web, code_at(mine, NOON), "mine").reason == "proof_required"


# --- guessing a proof ------------------------------------------------------------------

CALLS = {
    "totp_confirm": "totp_confirm('alice', '{mine}', 'mine', '{proof}')",
    "totp_check_confirm": "(SELECT accepted FROM totp_check_confirm('alice', '{mine}', 'mine', '{proof}', 10))",
    "totp_recovery_codes": "(SELECT count(*) > 0 FROM totp_recovery_codes('alice', 10, '{proof}'))",
    "totp_unenroll": "totp_unenroll('alice', '{proof}')",
    "totp_unenroll, a device": "totp_unenroll('alice', '{proof}', 'old')",
    "totp_rename_device": "totp_rename_device('alice', 'old', 'hardware', '{proof}')",
}
UNDONE = {
    "nothing": ["SELECT {call}"],
    "rollback": ["BEGIN", "SELECT {call}", "ROLLBACK"],
    "savepoint": ["BEGIN", "SAVEPOINT s", "SELECT {call}", "ROLLBACK TO s", "COMMIT"],
    "exception block": ["DO $$ BEGIN PERFORM {call}; RAISE 'undo'; EXCEPTION WHEN raise_exception THEN END $$"],
}
PREPARED = ["BEGIN", "SELECT {call}", "PREPARE TRANSACTION 'p'", "ROLLBACK PREPARED 'p'"]


@pytest.mark.parametrize("statements", UNDONE.values(), ids=UNDONE)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", ["code", "recovery code"])
def test_a_proof_is_guessed_as_often_as_a_code(conn, web, alice, call, statements, kind):
    guess(conn, web, alice, call, statements, kind)


def test_a_prepared_transaction_gives_no_guess_back(make_cluster):
    database = make_cluster(max_prepared_transactions=2).create_database()
    role = database.create_role("enroll")
    for kind in ("code", "recovery code"):
        for call in CALLS.values():
            database.empty()
            with closing(database.connect()) as conn, web_session(database, role) as web:
                fix_clock(conn, NOON)
                import_secret(conn, "alice", SECRET, device="old")
                guess(conn, web, recovery_codes(conn), call, PREPARED, kind)


def guess(conn, web, alice, call, statements, kind):
    """Five guesses, then the lock, whatever is rolled back. While locked, the right proof is refused too."""
    mine = enroll(web, "alice", device="mine")
    guesses = [wrong(number) for number in range(MAX_ATTEMPTS)] if kind == "code" else [NO_CODE] * MAX_ATTEMPTS
    for number, proof in enumerate([*guesses, good() if kind == "code" else alice[0]], 1):
        for statement in statements:
            web.execute(statement.format(call=call.format(mine=code_at(mine, NOON), proof=proof)))
        place = 0 if kind == "code" else 1
        assert counters(conn)[place] == min(number, MAX_ATTEMPTS)
    assert counters(conn)[place + 2] is True
    assert is_untouched(conn)


@pytest.mark.parametrize("statements", [UNDONE["rollback"], UNDONE["savepoint"], UNDONE["exception block"]], ids=["rollback", "savepoint", "exception block"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", ["code", "recovery code"])
def test_a_proof_that_was_rolled_back_is_used(conn, web, alice, call, statements, kind):
    mine = enroll(web, "alice", device="mine")
    proof = good() if kind == "code" else alice[0]
    for statement in statements:
        web.execute(statement.format(call=call.format(mine=code_at(mine, NOON), proof=proof)))
    assert slots(conn)[-1] == ("old", "active")
    assert (verify(conn, "alice", proof) if kind == "code" else recover(conn, proof)) is False
    for other in CALLS.values():
        assert web.execute(f"SELECT {other.format(mine=code_at(mine, NOON + timedelta(seconds=30)), proof=proof)}").fetchone() == (False,)
    assert slots(conn)[-1] == ("old", "active")


def test_a_canceled_wait_gives_no_guess_back(quick_db, role, conn, alice):
    """The wait for another writer of the user comes before the proof is looked at."""
    with web_session(quick_db, role) as web, closing(quick_db.connect(autocommit=False)) as writer:
        mine = enroll(web, "alice", device="mine")
        writer.execute("SELECT FROM totp.attempts WHERE user_id = 'alice' FOR UPDATE")
        web.execute("SET lock_timeout = '200ms'")
        for proof in (wrong(), good(), NO_CODE, alice[0]):
            for call in CALLS.values():
                error = error_of(web, f"SELECT {call.format(mine=code_at(mine, NOON), proof=proof)}")
                assert error.sqlstate == "55P03"  # alike for right and wrong ones
        writer.rollback()
    assert counters(conn) == (0, 0, False, False) and codes_left(conn) == 10
    assert verify(conn, "alice", good()) is True


# --- one proof, one use ----------------------------------------------------------------

@pytest.mark.parametrize("kind", ["code", "recovery code"])
def test_one_proof_binds_one_device(quick_db, role, conn, alice, kind):
    """Twenty sessions at once, each with another device."""
    proof = good() if kind == "code" else alice[0]
    count = 10
    secrets = [enroll(conn, "alice", device=f"new{number}") for number in range(count)]
    with ExitStack() as stack:
        sessions = [stack.enter_context(web_session(quick_db, role)) for _ in range(count)]
        answers = parallel(count, lambda n: confirm(sessions[n], code_at(secrets[n], NOON), f"new{n}", proof))
    assert answers.count(True) == 1
    assert [slot for _, slot in slots(conn)].count("active") == 2


@pytest.mark.parametrize("kind", ["code", "recovery code"])
def test_a_proof_is_no_sign_in_besides(quick_db, role, conn, alice, kind):
    """Of a confirmation and a sign-in with one code, one is accepted."""
    for round in range(10):
        when = NOON + round * HOUR
        fix_clock(conn, when)
        proof = code_at(SECRET, when) if kind == "code" else alice[round]
        new = enroll(conn, "alice", device=f"new{round}")
        with web_session(quick_db, role, when) as first, web_session(quick_db, role, when) as second:
            sign_in = (lambda: verify(second, "alice", proof)) if kind == "code" else (lambda: recover(second, proof))
            answers = parallel(2, lambda n: confirm(first, code_at(new, when), f"new{round}", proof) if n == 0 else sign_in())
        assert sorted(answers) == [False, True]
        conn.execute("SELECT totp_unlock('alice')")
        conn.execute("SELECT totp_remove('alice', %s)", [f"new{round}"])


# --- what is no proof ------------------------------------------------------------------

def test_codes_of_secrets_that_are_not_active_are_no_proof(conn, web, alice):
    pending = "B" * 31 + "Q"
    import_secret(conn, "alice", pending, confirmed=False, device="desk")
    mine, other = enroll(web, "alice", device="mine"), enroll(web, "alice", device="other")
    for number, secret in enumerate((pending, mine, other), 1):
        assert check_confirm(web, code_at(mine, NOON), "mine", code_at(secret, NOON)).reason == "proof_wrong"
        assert counters(conn)[0] == number
    assert slots(conn) == [("desk", "pending"), ("mine", "proposed"), ("old", "active"), ("other", "proposed")]


def test_an_expired_secret_is_none_and_cannot_be_confirmed(quick_db, role, conn, alice):
    with web_session(quick_db, role) as web:
        mine = enroll(web, "alice", device="mine")
    later = NOON + DAY
    fix_clock(conn, later)
    with web_session(quick_db, role, later) as web:
        assert check_confirm(web, code_at(mine, later), "mine", code_at(SECRET, later)).reason == "expired"
        again = enroll(web, "alice", device="again")
        assert check_confirm(web, code_at(again, later), "again", code_at(mine, later)).reason == "proof_wrong"
    assert verify(conn, "alice", code_at(SECRET, later)) is True


def test_with_all_devices_disabled_only_the_desk_binds(conn, web, alice):
    conn.execute("SELECT totp_disable('alice')")
    mine = enroll(web, "alice", device="mine")
    for proof in (good(), alice[0], NO_CODE, wrong(), code_at(mine, NOON)):
        assert check_confirm(web, code_at(mine, NOON), "mine", proof).reason == "proof_wrong"
        assert new_recovery_codes(web, proof) == [] and unenroll(web, proof) is False
    assert error_of(web, "SELECT totp_confirm('alice', %s, 'mine')", [code_at(mine, NOON)]).sqlstate == "42501"
    assert check(web, "alice", code_at(mine, NOON)).reason == "disabled"
    assert counters(conn) == (0, 0, False, False) and codes_left(conn) == 10
    import_secret(conn, "alice", OTHER_SECRET, confirmed=False, device="desk")
    assert confirm(web, code_at(OTHER_SECRET, NOON), "desk") is True


def test_a_secret_that_expires_after_a_reset_does_not_end_mfa(conn, web, quick_db, role, alice):
    reset(conn, device="old")
    with web_session(quick_db, role, NOON + DAY) as later:
        mine = enroll(later, "alice", device="mine")
        assert check_confirm(later, code_at(mine, NOON + DAY), "mine").reason == "proof_required"
        assert verify(later, "alice", code_at(mine, NOON + DAY)) is False


# --- removal ---------------------------------------------------------------------------

def test_no_name_removes_the_last_device(conn, web, alice):
    for device in ("old", None):
        error = error_of(web, "SELECT totp_unenroll('alice', NULL, %s)", [device])
        assert error.sqlstate == "42501"
        assert unenroll(web, wrong(), device) is False
    for call in ("totp_remove('alice')", "totp_disable('alice')", "totp_reset('alice', 'old')", "totp_reset_recovery_codes('alice')",
                 "totp_move_device('alice', 'old', 'mallory', 'x')", "totp_import('alice', 'x')", "totp_rename_user('alice', 'x')", "totp_unlock('alice')"):
        assert error_of(web, f"SELECT {call}").sqlstate == "42501"
    assert error_of(web, "SELECT totp_enroll('alice', device => 'old', keep_current => false)").sqlstate == "42501"
    assert error_of(web, "SELECT totp_rename_device('alice', 'old', 'hardware')").sqlstate == "42501"
    assert error_of(web, "SELECT totp_recovery_codes('alice')").sqlstate == "42501"
    assert is_untouched(conn)


def test_the_setting_is_out_of_reach(conn, web, alice):
    mine = enroll(web, "alice", device="mine")
    assert error_of(web, "SET totp.require_proof = off").sqlstate in ("42501", "55P02")
    assert error_of(web, "SELECT set_config('totp.require_proof', 'off', false)").sqlstate in ("42501", "55P02")
    assert check_confirm(web, code_at(mine, NOON), "mine").reason == "proof_required"


def test_every_guess_and_use_is_in_the_audit_log(conn, web, alice):
    mine = enroll(web, "alice", device="mine")
    for proof in islice(wrong_codes(SECRET, NOON), 2):
        confirm(web, code_at(mine, NOON), "mine", proof)
    unenroll(web, NO_CODE)
    assert rename_device(web, "old", "renamed", good()) is True
    rows = [(event, detail) for event, _, _, detail in events(conn, "failed", "renamed")]
    assert rows == [("failed", None), ("failed", None), ("failed", {"of": "recovery_codes"}), ("renamed", {"new_device": "renamed"})]
