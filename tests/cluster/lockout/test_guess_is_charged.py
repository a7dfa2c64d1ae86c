"""A wrong code is always charged: it waits for, and fails on, its user's row of attempts and nothing else.

Alice has the devices "a" and "b". Some transaction holds "a", which sorts first: another one, or the one that guesses. A
code of "b" is answered at once, so a wrong code that had to wait, or ended in an error, would be an answer without a charge.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import islice

import psycopg
import pytest
from server import wait_until
from totp import LEVELS, MAX_ATTEMPTS, NOON, NO_CODE, OTHER_SECRET, SECRET, check, counters, error_of, events, good, import_secret, is_waiting, recover, recovery_codes

A, B, OTHER = SECRET, OTHER_SECRET, "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U"

OF_A = "WHERE user_id = 'alice' AND secret_id = (SELECT secret_id FROM totp.secrets WHERE user_id = 'alice' AND device = 'a' LIMIT 1)"
OF_SET = "WHERE user_id = 'alice' AND secret_id = (SELECT set_id FROM totp.recovery_codes WHERE user_id = 'alice')"

HOLDS = {  # what the transaction that holds "a" has done
    "removed": ["SELECT totp_remove('alice', 'a')"],
    "reset": ["SELECT secret FROM totp_reset('alice', 'a')"],
    "moved": ["SELECT totp_move_device('alice', 'a', 'carol', 'a')"],
    "renamed": [f"SELECT totp_rename_device('alice', 'a', 'c', '{good(-1, B)}')"],
    "removed with a proof": [f"SELECT totp_unenroll('alice', '{good(-1, B)}', 'a')"],
    "imported again": [f"SELECT totp_import('alice', '{A}', device => 'a', confirmed => true)"],
    "imported, removed, imported": [f"SELECT totp_import('alice', '{A}', device => 'a', confirmed => true)", "SELECT totp_remove('alice', 'a')",
                                    f"SELECT totp_import('alice', '{A}', device => 'a', confirmed => true)"],
    "imported over": [f"SELECT totp_import('alice', '{OTHER}', device => 'a', confirmed => true)"],
    "succeeded": [f"SELECT totp_verify('alice', '{good(0, OTHER)}')"],  # the first code of a secret that was staged
    "row of used codes deleted": [f"DELETE FROM totp.used_codes {OF_A}"],
    "rows deleted": [f"DELETE FROM totp.used_codes {OF_A}", "DELETE FROM totp.secrets WHERE user_id = 'alice' AND device = 'a'"],
}
PENDING_HOLDS = {  # the same for "a" with nothing but a secret that is staged
    **{how: HOLDS[how] for how in ("removed", "reset", "moved", "renamed", "removed with a proof", "succeeded", "row of used codes deleted", "rows deleted")},
    "staged again": ["SELECT secret FROM totp_enroll('alice', device => 'a')"],
    "imported again": [f"SELECT totp_import('alice', '{OTHER}', device => 'a')"],
    "imported again and confirmed": [f"SELECT totp_import('alice', '{OTHER}', device => 'a', confirmed => true)"],
}
RECOVERY_HOLDS = {  # and for the set of recovery codes
    "replaced": ["SELECT totp_reset_recovery_codes('alice')"],
    "replaced with a proof": [f"SELECT totp_recovery_codes('alice', 10, '{good(-1, B)}')"],
    "row of used codes deleted": [f"DELETE FROM totp.used_codes {OF_SET}"],
    "rows deleted": [f"DELETE FROM totp.used_codes {OF_SET}", "DELETE FROM totp.recovery_codes WHERE user_id = 'alice'"],
}
STATES = ["open", "prepared", "waiting for a standby"]
ENDS = {  # what would end a wait that should not be
    "lock_timeout": "SET lock_timeout = '200ms'",
    "statement_timeout": "SET statement_timeout = '5s'",
    "cancel": "SELECT",
}


@pytest.fixture(scope="module")
def cluster(make_module_cluster):
    """A server with prepared transactions, and no standby though commits may ask for one."""
    return make_module_cluster(max_prepared_transactions=1, synchronous_standby_names="nobody", synchronous_commit="local")


@pytest.fixture(scope="module")
def roles(_module_database):
    """A role for each capability. In its sessions too it is noon."""
    _module_database.execute(f"ALTER DATABASE {_module_database.name} SET totp.clock = '{NOON.isoformat()}'")
    return {capability: _module_database.create_role(capability) for capability in ("verify", "enroll")}


@pytest.fixture
def conn(roles, quick_db):
    with closing(quick_db.connect()) as conn:
        import_secret(conn, "alice", A, device="a")
        import_secret(conn, "alice", B, device="b")
        yield conn


def stage(conn, how):
    """What must be there before "a" can be held so."""
    if how == "succeeded":
        import_secret(conn, "alice", OTHER, device="a", confirmed=False)


def hold(conn, statements):
    """Hold it, in the open transaction of this session. The secrets that it got by that."""
    secrets = []
    for statement in statements:
        cursor = conn.execute(statement)
        secrets += [row[0] for row in cursor.fetchall()] if statement.startswith("SELECT secret ") else []
    return secrets


@contextmanager
def held(db, watch, statements, state):
    """Another transaction holds it until the end of the block, and is in this state."""
    with ExitStack() as stack:
        holder = stack.enter_context(closing(db.connect()))
        holder.execute("BEGIN")
        hold(holder, statements)
        if state == "prepared":
            holder.execute("PREPARE TRANSACTION 'held'")
            stack.callback(holder.execute, "ROLLBACK PREPARED 'held'")
        if state == "waiting for a standby":
            holder.execute("SET LOCAL synchronous_commit = on")
            stack.enter_context(ThreadPoolExecutor(1)).submit(holder.execute, "COMMIT")
            stack.callback(watch.execute, "SELECT pg_cancel_backend(%s)", [holder.info.backend_pid])
            waits = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
            wait_until(lambda: watch.execute(waits, [holder.info.backend_pid]).fetchone()[0], "it to wait for a standby")
        yield


@contextmanager
def asking(db, watch, role, end, isolation):
    """A function that asks for the one value of a query, in a transaction of that role. A wait for a lock ends in an error."""
    with closing(db.connect(user=role)) as session, ThreadPoolExecutor(1) as pool:
        session.execute(ENDS[end])
        session.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        session.execute("SELECT count(*) FROM pg_class")  # takes its snapshot

        def ask(query, *parameters):
            if end != "cancel":
                return session.execute(query, parameters).fetchone()[0]
            answer = pool.submit(session.execute, query, parameters)
            wait_until(lambda: answer.done() or is_waiting(watch, session), "an answer")
            if not answer.done():
                watch.execute("SELECT pg_cancel_backend(%s)", [session.info.backend_pid])
            return answer.result().fetchone()[0]

        yield ask
        session.execute("ROLLBACK")


def wrong(number=MAX_ATTEMPTS, secrets=()):
    """Codes that none of our secrets has near noon, nor one of these."""
    near = {good(step, secret) for step in range(-3, 4) for secret in (A, B, OTHER, *secrets)}
    return list(islice((code for code in map("{:06}".format, range(10**6)) if code not in near), number))


CHECK = "SELECT reason FROM totp_check('alice', %s)"
CONFIRM = "SELECT totp_confirm('alice', %s, 'a')"
RECOVER = "SELECT totp_recover('alice', %s)"


# --- another transaction holds a device ----------------------------------------------------------


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", HOLDS)
def test_a_wrong_code_depends_on_no_device(quick_db, conn, roles, how, state, end, isolation):
    stage(conn, how)
    with held(quick_db, conn, HOLDS[how], state), asking(quick_db, conn, roles["verify"], end, isolation) as ask:
        assert ask(CHECK, good(0, B)) == "accepted"
        assert [ask(CHECK, code) for code in [*wrong(), good(1, B)]] == ["wrong"] * MAX_ATTEMPTS + ["locked"]
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)
    assert check(conn, "alice", good(1, B)).reason == "locked"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("call", ["totp_verify('alice', %s)", "totp_verify('alice', %s, 'a')", "totp_verify('alice', %s, 'b')",
                                  "(totp_check('alice', %s, 'a')).accepted"])
def test_a_wrong_code_of_any_call_depends_on_no_device(quick_db, conn, roles, call, state):
    """Naming a device does not help: even if that device is the locked one, a wrong code does not depend on it."""
    with held(quick_db, conn, HOLDS["removed"], state), asking(quick_db, conn, roles["verify"], "lock_timeout", "READ COMMITTED") as ask:
        assert [ask(f"SELECT {call}", code) for code in wrong()] == [False] * MAX_ATTEMPTS
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", PENDING_HOLDS)
def test_a_wrong_first_code_does_not_depend_on_its_device(quick_db, conn, roles, how, state, end, isolation):
    conn.execute("SELECT totp_remove('alice', 'a')")
    import_secret(conn, "alice", OTHER, device="a", confirmed=False)
    with held(quick_db, conn, PENDING_HOLDS[how], state), asking(quick_db, conn, roles["enroll"], end, isolation) as ask:
        assert [ask(CONFIRM, code) for code in wrong()] == [False] * MAX_ATTEMPTS
        assert ask(CHECK, good(0, B)) == "locked"
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)


def test_brute_force_through_a_wait_finds_nothing(quick_db, conn, roles):
    """One session that may only verify, beside a removal that stays open: it gives up each wait at once, and tries the next code."""
    told = []
    with held(quick_db, conn, HOLDS["removed"], "prepared"), closing(quick_db.connect(user=roles["verify"])) as session:
        session.execute("SET lock_timeout = '1ms'")
        for code in [*wrong(1000), good(0, B)]:
            try:
                told.append(session.execute(CHECK, [code]).fetchone()[0])
            except psycopg.Error as error:
                told.append(error.sqlstate)
    assert told == ["wrong"] * MAX_ATTEMPTS + ["locked"] * (len(told) - MAX_ATTEMPTS)
    assert counters(conn) == (told.count("wrong"), 0, True, False)
    assert len(events(conn, "failed")) == MAX_ATTEMPTS


# --- the own transaction holds it ------------------------------------------------------------------

# The answer to a right code of "a" then, if it is not a plain one. A ROLLBACK would give back what is used on a copy.
OWN = {"imported again": {"55000"}, "imported, removed, imported": {"55000", "replayed"}, "imported over": {"55000", "accepted"},
       "row of used codes deleted": {"XX001"}}


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("how", HOLDS)
def test_a_wrong_code_depends_on_no_device_that_the_same_transaction_locked(quick_db, conn, how, isolation):
    stage(conn, how)
    with closing(quick_db.connect()) as own:
        own.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        secrets = hold(own, HOLDS[how])
        assert check(own, "alice", good(0, B)).reason == "accepted"
        if how in OWN:
            assert told(own, CHECK, good(0, OTHER if how == "imported over" else A)) in OWN[how]
        assert [told(own, CHECK, code) for code in [*wrong(secrets=secrets), good(1, B)]] == ["wrong"] * MAX_ATTEMPTS + ["locked"]
        own.execute("ROLLBACK")
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)


@pytest.mark.parametrize("how", PENDING_HOLDS)
def test_a_wrong_first_code_depends_on_no_device_that_the_same_transaction_locked(quick_db, conn, how):
    conn.execute("SELECT totp_remove('alice', 'a')")
    import_secret(conn, "alice", OTHER, device="a", confirmed=False)
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN")
        secrets = hold(own, PENDING_HOLDS[how])
        answers = [told(own, CONFIRM, code) for code in wrong(secrets=secrets)]
        # With nothing pending there is nothing to guess.
        nothing_pending = how in ("removed", "moved", "renamed", "removed with a proof", "succeeded", "rows deleted", "imported again and confirmed")
        assert answers == [False] * MAX_ATTEMPTS
        own.execute("ROLLBACK")
    assert counters(conn)[0] == (0 if nothing_pending else MAX_ATTEMPTS)


def told(conn, query, code):
    """The answer, or the SQLSTATE of the error, after which the transaction goes on."""
    try:
        with conn.transaction():
            return conn.execute(query, [code]).fetchone()[0]
    except psycopg.Error as error:
        return error.sqlstate


# --- the row of attempts itself ----------------------------------------------------------------------

BY_HAND = ["CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM totp.attempts", "DELETE FROM totp.attempts", "INSERT INTO totp.attempts SELECT * FROM kept"]
COPIES = {  # of the row of attempts: what is charged there, a ROLLBACK forgets
    "renamed": ["SELECT totp_rename_user('alice', 'carol')", "SELECT totp_rename_user('carol', 'alice')"],
    "removed and imported": ["SELECT totp_remove('alice')", f"SELECT totp_import('alice', '{A}', device => 'a', confirmed => true)",
                             f"SELECT totp_import('alice', '{B}', device => 'b', confirmed => true)"],
    "deleted and inserted": BY_HAND,
    "deleted and inserted in a subtransaction": ["SAVEPOINT a", *BY_HAND, "RELEASE a"],
}


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("how", COPIES)
def test_no_code_is_judged_on_a_copy_of_the_attempts_that_the_same_transaction_made(quick_db, conn, how, isolation):
    """Alike for a right and a wrong one: an error that tells one from the other is an answer."""
    import_secret(conn, "alice", OTHER, device="c", confirmed=False)
    recovery_code = recovery_codes(conn)[0]
    judged = [(CHECK, [good(0, A), good(0, B), *wrong(1)]), ("SELECT totp_verify('alice', %s, 'b')", [good(0, B), *wrong(1)])]
    if how != "removed and imported":
        judged += [("SELECT totp_confirm('alice', %s, 'c')", [good(0, OTHER), *wrong(1)]), (RECOVER, [recovery_code, NO_CODE])]
    with closing(quick_db.connect()) as own:
        own.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        for statement in COPIES[how]:
            own.execute(statement)
        for query, codes in judged:
            shown = set()
            for code in codes:
                with own.transaction(force_rollback=True):
                    error = error_of(own, query, [code])
                assert error.sqlstate == "55000", (query, code)
                shown.add((error.diag.message_primary, error.diag.message_detail, error.diag.message_hint))
            assert len(shown) == 1
        own.execute("ROLLBACK")
    assert counters(conn) == (0, 0, False, False)
    assert check(conn, "alice", wrong(1)[0]).attempts_left == MAX_ATTEMPTS - 1
    assert [check(conn, "alice", good(0, secret)).reason for secret in (A, B)] == ["accepted", "accepted"]
    assert (recover(conn, NO_CODE), recover(conn, recovery_code)) == (False, True)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_that_a_savepoint_took_back_does_not_count(quick_db, conn, how):
    with closing(quick_db.connect()) as own:
        own.execute("BEGIN; SAVEPOINT before")
        for statement in COPIES[how]:
            own.execute(statement)
        own.execute("ROLLBACK TO before")
        assert check(own, "alice", wrong(1)[0]).attempts_left == MAX_ATTEMPTS - 1
        assert check(own, "alice", good(0, A)).reason == "accepted"
        own.execute("ROLLBACK")
    assert check(conn, "alice", good(0, A)).reason == "replayed"


@pytest.mark.parametrize("how", ["renamed", "deleted and inserted", "imported again"])
def test_a_copy_is_judged_as_soon_as_it_is_committed(conn, how):
    check(conn, "alice", good(-1, B))
    with conn.transaction():
        for statement in (COPIES | HOLDS)[how]:
            conn.execute(statement)
    assert check(conn, "alice", wrong(1)[0]).attempts_left == MAX_ATTEMPTS - 1
    assert check(conn, "alice", good(-1, B)).reason == "replayed"
    assert [check(conn, "alice", good(0, secret)).reason for secret in (A, B)] == ["accepted", "accepted"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("state", ["open", "prepared"])
@pytest.mark.parametrize("what", ["SELECT totp_remove('alice')", "SELECT totp_rename_user('alice', 'carol')", "DELETE FROM totp.attempts"])
def test_if_the_attempts_are_locked_every_code_waits(quick_db, conn, roles, what, state, end):
    """Right or wrong, so who gives up the wait has been told nothing; and nothing is charged or used up."""
    recovery_code = recovery_codes(conn)[0]
    with held(quick_db, conn, [what], state):
        for query, code in [(CHECK, good(0, B)), (CHECK, wrong(1)[0]), (RECOVER, recovery_code), (RECOVER, NO_CODE)]:
            with asking(quick_db, conn, roles["verify"], end if end != "statement_timeout" else "lock_timeout", "READ COMMITTED") as ask:
                with pytest.raises((psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)):
                    ask(query, code)
    assert counters(conn) == (0, 0, False, False)
    assert (check(conn, "alice", good(0, B)).reason, recover(conn, recovery_code)) == ("accepted", True)


# --- a row of used codes that is missing ---------------------------------------------------------------


def test_a_missing_row_of_used_codes_affects_its_device_only(conn):
    conn.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM totp.used_codes {OF_A}")
    conn.execute(f"DELETE FROM totp.used_codes {OF_A}")
    assert [told(conn, CHECK, code) for code in [*wrong(2), good(0, B)]] == ["wrong", "wrong", "accepted"]
    assert [told(conn, query, good(0, A)) for query in (CHECK, "SELECT totp_verify('alice', %s, 'a')")] == ["XX001", "XX001"]
    assert [told(conn, CHECK, code) for code in [*wrong(), good(0, A)]] == ["wrong"] * MAX_ATTEMPTS + ["locked"]
    assert counters(conn) == (MAX_ATTEMPTS, 0, True, False)
    conn.execute("INSERT INTO totp.used_codes SELECT * FROM kept; SELECT totp_unlock('alice')")
    assert told(conn, CHECK, good(0, A)) == "accepted"  # no error used it up


def test_a_missing_row_of_a_set_affects_its_codes_only(conn):
    codes = recovery_codes(conn)
    conn.execute(f"DELETE FROM totp.used_codes {OF_SET}")
    error = error_of(conn, RECOVER, [codes[0]])
    assert error.sqlstate == "XX001" and "totp_health()" in error.diag.message_hint
    assert [told(conn, RECOVER, NO_CODE) for _ in range(MAX_ATTEMPTS)] == [False] * MAX_ATTEMPTS
    assert counters(conn) == (0, MAX_ATTEMPTS, False, True)
    assert told(conn, RECOVER, codes[0]) is False


# --- recovery codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", RECOVERY_HOLDS)
def test_a_wrong_recovery_code_does_not_depend_on_its_set(quick_db, conn, roles, how, state, end, isolation):
    right = recovery_codes(conn)[0]
    with held(quick_db, conn, RECOVERY_HOLDS[how], state), asking(quick_db, conn, roles["verify"], end, isolation) as ask:
        assert [ask(RECOVER, NO_CODE) for _ in range(MAX_ATTEMPTS)] == [False] * MAX_ATTEMPTS
        assert ask(RECOVER, right) is False  # locked
        assert ask(CHECK, good(0, B)) == "accepted"
    assert counters(conn) == (0, MAX_ATTEMPTS, False, True)


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("how", ["replaced", "row of used codes deleted"])
def test_a_wrong_recovery_code_depends_on_no_set_that_the_same_transaction_locked(quick_db, conn, how, isolation):
    right = recovery_codes(conn)[0]
    with closing(quick_db.connect()) as own:
        own.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        hold(own, RECOVERY_HOLDS[how])
        if how == "row of used codes deleted":
            assert told(own, RECOVER, right) == "XX001"
        assert [told(own, RECOVER, NO_CODE) for _ in range(MAX_ATTEMPTS)] == [False] * MAX_ATTEMPTS
        own.execute("ROLLBACK")
    assert counters(conn) == (0, MAX_ATTEMPTS, False, True)
    assert recover(conn, right) is False


def test_a_used_recovery_code_is_charged_like_a_wrong_one(conn, log):
    """So there is an end to the rows that it writes. No window ends it: a set may be years old."""
    codes = recovery_codes(conn)
    assert recover(conn, codes[0]) is True
    for number in range(1, MAX_ATTEMPTS + 1):
        assert recover(conn, codes[0]) is False
        assert counters(conn) == (0, number, False, number == MAX_ATTEMPTS)
    of = {"of": "recovery_codes"}
    rows = [("replayed", "alice", None, of)] * MAX_ATTEMPTS + [("locked", "alice", None, of)]
    assert events(conn, "failed", "replayed", "locked") == rows
    lines = [line.split(" failures=")[0] for line in log() if "recovery_code_used" not in line]
    assert lines == ['event=replayed user="alice" of="recovery_codes"'] * MAX_ATTEMPTS + ['event=locked user="alice" of="recovery_codes"']

    conn.execute("SELECT totp_recover('alice', %s) FROM generate_series(1, 1000)", [codes[0]])
    assert recover(conn, codes[1]) is False
    assert events(conn, "failed", "replayed", "locked") == rows and len(log()) == MAX_ATTEMPTS + 2
    assert counters(conn) == (0, MAX_ATTEMPTS, False, True)
    assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
    assert (recover(conn, codes[0]), recover(conn, codes[1])) == (False, True)
    assert counters(conn) == (0, 0, False, False)
