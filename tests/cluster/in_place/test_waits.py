"""Which session waits for which: sign-ins at every isolation level, beside locks, open transactions and removals.

A wait that must not happen ends in an error: no statement here may take longer than its timeout.
"""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from server import wait_until
from totp import LEVELS, NOON, OTHER_SECRET, SECRET, check, fix_clock, good, import_secret, is_waiting, stage, verify, wrong

IN_PLACE = ["attempts", "used_codes"]
BLOCKED_AFTER = "20s"


@pytest.fixture
def open_session(quick_db):
    """A function that opens a session with a fixed clock: in autocommit mode, or in a transaction of an isolation level."""
    opened = []

    def session(isolation=None):
        conn = quick_db.connect()
        opened.append(conn)
        fix_clock(conn, NOON)
        conn.execute(f"SET statement_timeout = '{BLOCKED_AFTER}'")
        if isolation:
            conn.execute(f"BEGIN ISOLATION LEVEL {isolation}")
            conn.execute("SELECT count(*) FROM pg_class")  # takes its snapshot
        return conn

    yield session
    for conn in opened:
        conn.close()


@pytest.fixture
def conn(open_session):
    conn = open_session()
    import_secret(conn, "alice", SECRET)
    return conn


def signs_in(conn, user_id="alice"):
    """A wrong code is judged, and a good one is."""
    assert check(conn, user_id, wrong()).reason == "wrong"
    assert check(conn, user_id, good(1)).reason == "accepted"


# --- snapshots -----------------------------------------------------------------------------

@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("change, reason", [
    ("totp_remove('alice')", "not_enrolled"), ("totp_disable('alice')", "disabled"), ("totp_rename_user('alice', 'bob')", "not_enrolled"),
    ("totp_rotate_key()", "accepted"), ("totp_enroll('alice')", "accepted"), ("totp_reset('alice')", "wrong"),
    ("totp_move_device('alice', 'default', 'bob', 'default')", "not_enrolled"), (f"totp_rename_device('alice', 'default', 'phone', '{good(-1)}')", "accepted")])
def test_with_an_old_snapshot_the_latest_state_is_judged(conn, open_session, isolation, change, reason):
    late = open_session(isolation)
    conn.execute(f"SELECT {change}")
    assert check(late, "alice", good()).reason == reason
    late.execute("COMMIT")


@pytest.mark.parametrize("isolation", LEVELS)
def test_with_an_old_snapshot_charges_and_uses_of_others_count(conn, open_session, isolation):
    late = open_session(isolation)
    for step in (-1, 0):  # before the first call of that session, and since its last
        assert verify(conn, "alice", good(step)) is True
        assert check(late, "alice", good(step)).reason == "replayed"
    for number in range(3):
        check(conn, "alice", wrong(number))
    assert check(late, "alice", wrong(3)).attempts_left == 1
    assert check(conn, "alice", wrong(4)).attempts_left == 0
    assert check(late, "alice", good(1)).reason == "locked"
    late.execute("COMMIT")


# --- who does not wait -----------------------------------------------------------------------

@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("what", ["a wrong code", "a good code", "a replay", "an unlock", "a status"])
def test_an_idle_transaction_that_judged_blocks_nobody(conn, open_session, isolation, what):
    check(conn, "alice", good(-1))
    check(conn, "alice", wrong(1))
    idle = open_session(isolation)
    if what == "an unlock":
        assert idle.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
    elif what == "a status":
        assert len(idle.execute("SELECT * FROM totp_status('alice')").fetchall()) == 1
    else:
        code, reason = {"a wrong code": (wrong(), "wrong"), "a good code": (good(), "accepted"), "a replay": (good(-1), "replayed")}[what]
        assert check(idle, "alice", code).reason == reason
    signs_in(conn)
    idle.execute("ROLLBACK")


LOCKERS = {  # each a list of sessions, each a list of statements; {lock} is SELECT FROM table WHERE user
    "key share": [["{lock} FOR KEY SHARE"]],
    "share": [["{lock} FOR SHARE"]],
    "no key update": [["{lock} FOR NO KEY UPDATE"]],
    "update": [["{lock} FOR UPDATE"]],
    "key share by two": [["{lock} FOR KEY SHARE"], ["{lock} FOR KEY SHARE"]],
    "share by three": [["{lock} FOR SHARE"]] * 3,
    "key share and no key update": [["{lock} FOR KEY SHARE"], ["{lock} FOR NO KEY UPDATE"]],
    "subtransaction": [["SAVEPOINT a", "{lock} FOR UPDATE"]],
    "subtransaction released": [["SAVEPOINT a", "{lock} FOR UPDATE", "RELEASE a"]],
    "subtransaction rolled back": [["SAVEPOINT a", "{lock} FOR UPDATE", "ROLLBACK TO a"]],
    "upgraded in subtransactions": [["{lock} FOR KEY SHARE", "SAVEPOINT a", "{lock} FOR SHARE", "SAVEPOINT b", "{lock} FOR UPDATE"]],
    "upgraded, then rolled back": [["{lock} FOR KEY SHARE", "SAVEPOINT a", "{lock} FOR UPDATE", "ROLLBACK TO a"]],
    "every lock on every row": [[f"SELECT FROM totp.{table} FOR {lock}" for table in (*IN_PLACE, "secrets")
                                 for lock in ("KEY SHARE", "SHARE", "NO KEY UPDATE", "UPDATE")]],
}


@pytest.mark.parametrize("table", [*IN_PLACE, "secrets"])
@pytest.mark.parametrize("locker", LOCKERS)
def test_row_locks_block_no_sign_in(conn, open_session, table, locker):
    lockers = []
    for statements in LOCKERS[locker]:
        lockers.append(open_session("READ COMMITTED"))
        for statement in statements:
            lockers[-1].execute(statement.format(lock=f"SELECT FROM totp.{table} WHERE user_id = 'alice'"))
    signs_in(conn)
    # Nor are the lockers' own calls blocked, and what was changed under their locks stays.
    assert check(lockers[0], "alice", good(1)).reason == "replayed"
    for one in lockers:
        one.execute("COMMIT")
    assert conn.execute("SELECT failures, uses FROM totp_status('alice')").fetchone() == (0, 1)
    assert check(conn, "alice", good(1)).reason == "replayed"


def test_row_locks_of_the_same_transaction_block_nothing(conn):
    for table in (*IN_PLACE, "secrets"):
        conn.execute("BEGIN")
        conn.execute(f"SELECT FROM totp.{table} FOR UPDATE")
    signs_in(conn)
    conn.execute("ROLLBACK")


@pytest.mark.parametrize("change, isolation", [
    *(("totp_enroll('alice')", isolation) for isolation in LEVELS),
    *((change, "READ COMMITTED") for change in ("totp_enroll('alice', device => 'phone')", "totp_reset_recovery_codes('alice')", "totp_disable('alice', 'phone')",
                                                "totp_remove('alice', 'phone')", "totp_reset('alice', 'phone')", "totp_rotate_key()",
                                                "totp_rename_user('bob', 'carol')", "totp_remove('bob')", "totp_move_device('bob', 'default', 'carol', 'default')",
                                                f"totp_rename_device('alice', 'default', 'phone', '{good(-1)}')"))])
def test_open_transactions_that_touch_something_else_block_nobody(conn, open_session, change, isolation):
    import_secret(conn, "bob", OTHER_SECRET)
    if "disable" in change or "remove" in change or "reset" in change:
        import_secret(conn, "alice", OTHER_SECRET, device="phone")
    writer = open_session(isolation)
    writer.execute(f"SELECT {change}")
    signs_in(conn)
    writer.execute("ROLLBACK")


def test_sign_ins_at_serializable_do_not_fail_on_one_another(conn, open_session):
    sessions = [open_session("SERIALIZABLE") for _ in range(4)]
    for step, one in zip((-1, 0, 1), sessions):
        assert check(one, "alice", good(step)).reason == "accepted"
    assert check(sessions[3], "alice", wrong()).reason == "wrong"
    for one in sessions:
        one.execute("COMMIT")


# --- who waits, and the answer then ------------------------------------------------------

ENDS = {  # change: (reason after COMMIT, reason after ROLLBACK) of a good code of the secret
    "totp_remove('alice')": ("not_enrolled", "accepted"),
    "totp_remove('alice', 'default')": ("not_enrolled", "accepted"),
    "totp_reset('alice')": ("wrong", "accepted"),
    "totp_move_device('alice', 'default', 'bob', 'default')": ("not_enrolled", "accepted"),
    "totp_rename_user('alice', 'bob')": ("not_enrolled", "accepted"),
    f"totp_import('alice', '{OTHER_SECRET}', confirmed => true)": ("wrong", "accepted"),
}
HOW = {
    "": ["SELECT {change}"],
    "in a subtransaction": ["SAVEPOINT a", "SELECT {change}"],
    "in a subtransaction that is released": ["SAVEPOINT a", "SELECT {change}", "RELEASE a"],
    "after a lock": ["SELECT FROM totp.{table} WHERE user_id = 'alice' FOR UPDATE", "SAVEPOINT a", "SELECT {change}"],
}


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("change", ENDS)
def test_a_sign_in_waits_for_the_removal_of_its_secret(conn, open_session, change, end, isolation):
    waits_for_the_removal(conn, open_session, change, end, isolation, HOW[""])


@pytest.mark.parametrize("how", [how for how in HOW if how])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("table", IN_PLACE)
def test_a_sign_in_waits_for_a_removal_in_a_subtransaction(conn, open_session, table, end, how):
    change = {"attempts": "totp_remove('alice')", "used_codes": "totp_reset('alice')"}[table]
    statements = [statement.format(change=change, table=table) for statement in HOW[how]]
    waits_for_the_removal(conn, open_session, change, end, "READ COMMITTED", statements)


def waits_for_the_removal(conn, open_session, change, end, isolation, statements):
    remover, late = open_session(LEVELS[-1 - LEVELS.index(isolation)]), open_session(isolation)
    for statement in statements:
        remover.execute(statement.format(change=change))
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(check, late, "alice", good())
        wait_until(lambda: told.done() or is_waiting(conn, late), "the sign-in to wait")
        assert not told.done(), told.result()
        remover.execute(end)
        assert told.result().reason == ENDS[change][end == "ROLLBACK"]
    late.execute("COMMIT")
    if end == "ROLLBACK":
        assert check(conn, "alice", good()).reason == "replayed"


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_the_old_code_waits_for_the_first_code_of_the_next_secret(conn, open_session, end):
    secret = stage(conn)
    new, late = open_session("READ COMMITTED"), open_session()
    assert check(new, "alice", good(0, secret)).reason == "accepted"
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(check, late, "alice", good())
        wait_until(lambda: told.done() or is_waiting(conn, late), "the sign-in to wait")
        new.execute(end)
        assert told.result().reason == ("wrong" if end == "COMMIT" else "accepted")
    assert check(conn, "alice", good(0, secret)).reason == "replayed"


def test_a_wait_can_be_canceled_and_uses_nothing_up(conn, open_session):
    remover, late = open_session("READ COMMITTED"), open_session()
    remover.execute("SELECT totp_reset('alice')")
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(check, late, "alice", good())
        wait_until(lambda: told.done() or is_waiting(conn, late), "the sign-in to wait")
        conn.execute("SELECT pg_cancel_backend(%s)", [late.info.backend_pid])
        with pytest.raises(psycopg.errors.QueryCanceled):
            told.result()
    remover.execute("ROLLBACK")
    assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (0,)
    assert check(late, "alice", good()).reason == "accepted"


# --- a removal that was taken back ---------------------------------------------------------

BEFORE = {"nothing": "SELECT", "an enrollment": "SELECT totp_enroll('alice', device => 'phone')",
          "FOR KEY SHARE": "SELECT FROM totp.{table} FOR KEY SHARE", "FOR UPDATE": "SELECT FROM totp.{table} FOR UPDATE"}


@pytest.mark.parametrize("who", ["the same session", "another session"])
@pytest.mark.parametrize("table", IN_PLACE)
@pytest.mark.parametrize("before", BEFORE)
def test_a_removal_that_a_savepoint_took_back_blocks_nobody(conn, open_session, before, table, who):
    """Its row may carry a multixact of a locker that lives and a deleter that has aborted: it is not being deleted."""
    change = {"attempts": "totp_remove('alice')", "used_codes": "totp_reset('alice')"}[table]
    remover = open_session("READ COMMITTED")
    for statement in (BEFORE[before].format(table=table), "SAVEPOINT a", f"SELECT {change}", "ROLLBACK TO a"):
        remover.execute(statement)
    signs_in(remover if who == "the same session" else conn)
    remover.execute("ROLLBACK")
    assert conn.execute("SELECT uses FROM totp_status('alice')").fetchone() == (1,)


# --- copies --------------------------------------------------------------------------------

def test_a_rename_takes_along_what_happened_while_it_waited(conn, open_session):
    """It reads the row after the delete: charges and sign-ins go on until then."""
    writer, admin = open_session("READ COMMITTED"), open_session()
    writer.execute("SELECT totp_enroll('alice', device => 'phone')")
    with ThreadPoolExecutor(1) as pool:
        renamed = pool.submit(admin.execute, "SELECT totp_rename_user('alice', 'bob')")
        wait_until(lambda: renamed.done() or is_waiting(conn, admin), "the rename to wait")
        assert check(conn, "alice", good()).reason == "accepted"
        for number in range(3):
            assert check(conn, "alice", wrong(number)).reason == "wrong"
        writer.execute("COMMIT")
        renamed.result()
    assert check(conn, "bob", good()).reason == "replayed"
    assert check(conn, "bob", wrong(3)).attempts_left == 1


def test_an_import_of_the_same_secret_takes_along_what_happened_while_it_waited(conn, open_session):
    locker, admin = open_session("READ COMMITTED"), open_session()
    locker.execute("SELECT FROM totp.used_codes FOR KEY SHARE")
    with ThreadPoolExecutor(1) as pool:
        imported = pool.submit(import_secret, admin, "alice", SECRET)
        wait_until(lambda: imported.done() or is_waiting(conn, admin), "the import to wait")
        assert check(conn, "alice", good()).reason == "accepted"
        locker.execute("COMMIT")
        imported.result()
    assert check(conn, "alice", good()).reason == "replayed"
    assert conn.execute("SELECT uses FROM totp_status('alice')").fetchone() == (1,)
