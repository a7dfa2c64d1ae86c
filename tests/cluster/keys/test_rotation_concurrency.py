"""Rotations beside other sessions: which session waits, and that the final state is right."""

from dataclasses import dataclass
from datetime import timedelta

import pytest
from binding import check_confirm, confirm, new_recovery_codes, rename_device
from many_users import AT_ONCE, ONLINE, both_kinds, import_users, keys, open_everything, sign_in_all
from sessions import GUARD, Background, session
from totp import EARLIER, LATER, NOON, active_user, code_at, enroll, recover, recovery_codes, stage, states, verify, wrong_codes


levels = pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])


@pytest.fixture
def conn(quick_db):
    with session(quick_db) as conn:
        conn.execute("DELETE FROM totp.data_keys")  # and with them a rotation that a failed test left half way
        yield conn


# --- Transactions that began before the rotation and commit after it ---------------------------


@dataclass
class User:
    """A user with an active secret, and maybe one that is staged to replace it."""

    name: str
    secret: str
    staged: str | None = None


class Enroll:
    def act(self, conn, user):
        return enroll(conn, f"{user.name} new")

    def check(self, conn, user, secret):
        assert verify(conn, user.name, code_at(user.secret, NOON)) is True
        assert states(conn, f"{user.name} new") == [("default", "pending", 1)]
        assert verify(conn, f"{user.name} new", code_at(secret, NOON)) is True


class EnrollAgain:
    def act(self, conn, user):
        return enroll(conn, user.name)

    def check(self, conn, user, secret):
        assert states(conn, user.name) == [("default", "active", 1), ("default", "pending", 2)]
        assert verify(conn, user.name, code_at(user.secret, NOON)) is True
        assert confirm(conn, code_at(secret, NOON), proof=code_at(user.secret, LATER), user_id=user.name) is True
        assert states(conn, user.name) == [("default", "active", 2)]


class Confirm:
    def stage(self, conn, user):
        return enroll(conn, user.name)

    def act(self, conn, user):
        return check_confirm(conn, code_at(user.staged, EARLIER), proof=code_at(user.secret, NOON), user_id=user.name, recovery_codes=2)

    def check(self, conn, user, answer):
        assert answer.accepted
        assert states(conn, user.name) == [("default", "active", 2)]
        assert verify(conn, user.name, code_at(user.secret, LATER)) is False
        assert verify(conn, user.name, code_at(user.staged, NOON)) is True
        assert recover(conn, answer.recovery_codes[1], user.name) is True


class ConfirmApproved(Confirm):
    def stage(self, conn, user):
        return stage(conn, user.name)

    def act(self, conn, user):
        return check_confirm(conn, code_at(user.staged, EARLIER), user_id=user.name, recovery_codes=2)


class RenameDevice:
    def act(self, conn, user):
        return rename_device(conn, "default", "renamed", code_at(user.secret, NOON), user.name)

    def check(self, conn, user, answer):
        assert answer is True
        assert states(conn, user.name) == [("renamed", "active", 1)]
        assert [verify(conn, user.name, code_at(user.secret, when)) for when in (NOON, LATER)] == [False, True]


class MoveDevice:
    def act(self, conn, user):
        return conn.execute("SELECT totp_move_device(%s, 'default', %s, 'moved')", [user.name, f"{user.name} heir"]).fetchone()

    def check(self, conn, user, answer):
        assert answer == (True,)
        assert (states(conn, user.name), states(conn, f"{user.name} heir")) == ([], [("moved", "active", 1)])
        assert verify(conn, f"{user.name} heir", code_at(user.secret, NOON)) is True


class Rename:
    def act(self, conn, user):
        return conn.execute("SELECT totp_rename_user(%s, %s)", [user.name, f"{user.name} renamed"]).fetchone()

    def check(self, conn, user, answer):
        assert answer == (1,)
        assert states(conn, user.name) == []
        assert verify(conn, f"{user.name} renamed", code_at(user.secret, NOON)) is True


class Remove:
    def act(self, conn, user):
        return conn.execute("SELECT totp_remove(%s)", [user.name]).fetchone()

    def check(self, conn, user, answer):
        assert answer == (1,)
        for table in ("secrets", "used_codes", "attempts", "recovery_codes"):
            assert conn.execute(f"SELECT count(*) FROM totp.{table} WHERE user_id = %s", [user.name]).fetchone() == (0,)


class Reset:
    def act(self, conn, user):
        return conn.execute("SELECT secret FROM totp_reset(%s)", [user.name]).fetchone()[0]

    def check(self, conn, user, secret):
        assert states(conn, user.name) == [("default", "pending", 2)]
        assert verify(conn, user.name, code_at(user.secret, NOON)) is False
        assert verify(conn, user.name, code_at(secret, NOON)) is True


class MakeRecoveryCodes:
    def act(self, conn, user):
        return new_recovery_codes(conn, code_at(user.secret, NOON), 2, user.name)

    def check(self, conn, user, codes):
        for code in codes:
            assert conn.execute("SELECT totp_recover(%s, %s)", [user.name, code]).fetchone() == (True,)


class Disable:
    def act(self, conn, user):
        return conn.execute("SELECT totp_disable(%s)", [user.name]).fetchone()

    def check(self, conn, user, answer):
        assert answer == (1,)
        assert verify(conn, user.name, code_at(user.secret, NOON)) is False
        assert conn.execute("SELECT totp_enable(%s)", [user.name]).fetchone() == (1,)
        assert verify(conn, user.name, code_at(user.secret, NOON)) is True


OPERATIONS = [Enroll(), EnrollAgain(), Confirm(), ConfirmApproved(), Rename(), RenameDevice(), MoveDevice(), Remove(), Reset(), MakeRecoveryCodes(), Disable()]


@both_kinds
@levels
@pytest.mark.parametrize("moment", ["before", "between", "after"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: type(operation).__name__)
def test_a_transaction_around_a_rotation_does_what_it_says(quick_db, conn, rotate, level, moment, operation):
    """It writes before the rotation begins; or before and while that waits for it; or only when that has ended."""
    alice, bob = users = [User(name, active_user(conn, name)) for name in ("alice", "bob")]
    if isinstance(operation, Confirm):
        for user in users:
            user.staged = operation.stage(conn, user)
    old_keys = {key for key, _ in keys(conn)}
    with session(quick_db) as old:
        old.execute(GUARD)
        old.execute(f"BEGIN ISOLATION LEVEL {level}")
        old.execute("SELECT count(*) FROM totp.secrets")  # takes the snapshot
        if moment == "after":
            conn.execute(rotate)
            answers = [operation.act(old, user) for user in users]
            old.execute("COMMIT")
        else:
            answers = [operation.act(old, alice)]
            if moment == "before":
                answers.append(operation.act(old, bob))
            with Background(quick_db, rotate) as rotating:
                rotating.wait_until_blocked(conn)
                if moment == "between":
                    answers.append(operation.act(old, bob))
                assert not rotating.future.done()
                old.execute("COMMIT")
    [(new_key, state)] = keys(conn)
    assert new_key not in old_keys and state == "current"
    for user, answer in zip(users, answers, strict=True):
        operation.check(conn, user, answer)
    open_everything(conn)


@both_kinds
@levels
def test_a_rolled_back_transaction_around_a_rotation_changes_nothing(quick_db, conn, rotate, level):
    users = [User(type(operation).__name__, active_user(conn, type(operation).__name__)) for operation in OPERATIONS]
    with session(quick_db) as old:
        for user in users:
            user.staged = enroll(conn, user.name) if user.name != "ConfirmApproved" else stage(conn, user.name)
        old.execute(f"BEGIN ISOLATION LEVEL {level}")
        for operation, user in zip(OPERATIONS, users, strict=True):
            operation.act(old, user)
        with Background(quick_db, rotate) as rotating:
            rotating.wait_until_blocked(conn)
            old.execute("ROLLBACK")
    assert len(keys(conn)) == 1
    for user in users:  # a proof at noon stays used up
        assert verify(conn, user.name, code_at(user.secret, LATER)) is True
    open_everything(conn)


@both_kinds
def test_applications_that_lock_their_own_rows_do_not_fail(quick_db, conn, rotate):
    """Two sessions lock rows of the application around their calls; neither fails on the rotation that waits between them."""
    conn.execute("DROP TABLE IF EXISTS app_users; CREATE TABLE app_users (id text PRIMARY KEY); INSERT INTO app_users VALUES ('bob')")
    secret = active_user(conn, "alice")
    lock = "SELECT FROM app_users WHERE id = 'bob' FOR UPDATE"
    with session(quick_db) as first:
        for setting in (GUARD, "SET deadlock_timeout = '20ms'", "BEGIN"):
            first.execute(setting)
        alice = enroll(first, "alice")
        with Background(quick_db, rotate) as rotating:
            rotating.wait_until_blocked(conn)
            with Background(quick_db, f"{lock}; SELECT totp_enroll('bob')") as second:
                if rotate == AT_ONCE:
                    second.wait_until_blocked(conn)  # behind the rotation, with the row locked
                first.execute(lock)
                first.execute("COMMIT")
    assert [state for _, state in keys(conn)] == ["current"]
    assert confirm(conn, code_at(alice, NOON), proof=code_at(secret, NOON)) is True
    assert states(conn, "bob") == [("default", "pending", 1)]
    open_everything(conn)
    conn.execute("DROP TABLE app_users")


# --- Sign-ins do not wait -----------------------------------------------------------------------


def signs_in_without_waiting(db, level, secret, recovery_code, when):
    """Everything that a user with an active secret does at the login, while other sessions go on."""
    with session(db, when) as conn:
        conn.execute(GUARD)
        conn.execute(f"SET default_transaction_isolation = '{level}'")
        code, wrong = code_at(secret, when), next(wrong_codes(secret, when))
        assert conn.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
        assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [wrong]).fetchone() == ("wrong",)
        assert verify(conn, "alice", code) is True
        assert verify(conn, "alice", code) is False
        assert conn.execute("SELECT totp_recover('alice', %s)", [recovery_code]).fetchone() == (True,)
        assert conn.execute("SELECT totp_recover('alice', %s)", [recovery_code]).fetchone() == (False,)
        assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [wrong]).fetchone() == ("wrong",)
        assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
        assert conn.execute("SELECT state FROM totp_status('alice')").fetchone() == ("active",)


STEPS = [AT_ONCE, "SELECT totp.rotation_begin(1000)", "SELECT * FROM totp.rotation_step(NULL, 1000)", "SELECT totp.rotation_end()"]


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("step", STEPS, ids=["at once", "begin", "step", "end"])
def test_a_sign_in_does_not_wait_for_an_open_rotation(quick_db, conn, step, end, level):
    secret = active_user(conn, "alice")
    codes = recovery_codes(conn)
    with session(quick_db) as rotating:
        for earlier in STEPS[1:STEPS.index(step)]:
            rotating.execute(earlier)
        rotating.execute("BEGIN")
        rotating.execute(step)
        signs_in_without_waiting(quick_db, level, secret, codes[0], NOON)
        rotating.execute(end)
    signs_in_without_waiting(quick_db, level, secret, codes[1], NOON + timedelta(minutes=1))
    conn.execute(ONLINE)
    signs_in_without_waiting(quick_db, level, secret, codes[2], NOON + timedelta(minutes=2))


@both_kinds
def test_a_sign_in_does_not_wait_for_a_rotation_that_waits(quick_db, conn, rotate):
    secret = active_user(conn, "alice")
    codes = recovery_codes(conn)
    with session(quick_db) as writing:
        writing.execute("BEGIN")
        enroll(writing, "alice")
        with Background(quick_db, rotate) as rotating:
            rotating.wait_until_blocked(conn)
            signs_in_without_waiting(quick_db, "read committed", secret, codes[0], NOON)
            assert not rotating.future.done()
            writing.execute("COMMIT")


def test_a_batch_holds_up_nobody_but_its_own_users(quick_db, conn):
    for user in ("a", "b", "c", "d"):
        active_user(conn, user)
    conn.execute("SELECT totp.rotation_begin(1000)")
    with session(quick_db) as rotating, session(quick_db) as other:
        other.execute(GUARD)
        rotating.execute("BEGIN")
        assert rotating.execute("SELECT * FROM totp.rotation_step(NULL, 2)").fetchone() == (2, "b")
        for user in ("c", "d", "new"):
            enroll(other, user)
        other.execute("SELECT totp_remove('d')")
        with Background(quick_db, "SELECT totp_enroll('a')") as enrolling:
            enrolling.wait_until_blocked(conn)
            rotating.execute("COMMIT")
    assert states(conn, "a") == [("default", "active", 1), ("default", "pending", 2)]
    conn.execute(ONLINE)
    open_everything(conn)


# --- Who writes while an online rotation ends ---------------------------------------------------


@levels
@pytest.mark.parametrize("first, second", [("phone", "tablet"), ("tablet", "phone")])
def test_a_transaction_on_two_devices_commits_while_the_rotation_ends(quick_db, conn, level, first, second):
    """The batches left its user out; the end of the rotation waits for it, and not it for the rotation."""
    for device in ("phone", "tablet"):
        active_user(conn, "alice", device=device)
    conn.execute("SELECT totp.rotation_begin(1000)")
    with session(quick_db) as writing:
        writing.execute(GUARD)
        writing.execute(f"BEGIN ISOLATION LEVEL {level}")
        assert writing.execute("SELECT totp_disable('alice', %s)", [first]).fetchone() == (1,)
        with Background(quick_db, ONLINE) as rotating:
            rotating.wait_until_blocked(conn)
            assert writing.execute("SELECT totp_disable('alice', %s)", [second]).fetchone() == (1,)
            writing.execute("COMMIT")
    assert states(conn, "alice") == [("phone", "disabled", 1), ("tablet", "disabled", 1)]
    assert [state for _, state in keys(conn)] == ["current"]
    open_everything(conn)


@pytest.mark.parametrize("first, second", [("alice", "bob"), ("bob", "alice")])
@pytest.mark.parametrize("act", ["totp_disable", "totp_remove", "totp_reset"])
def test_a_transaction_on_two_users_commits_while_the_rotation_ends(quick_db, conn, act, first, second):
    for user in ("alice", "bob"):
        active_user(conn, user)
    with session(quick_db) as writing, session(quick_db) as another:
        conn.execute("SELECT totp.rotation_begin(1000)")
        for one in (writing, another):
            one.execute(GUARD)
            one.execute("BEGIN")
        writing.execute(f"SELECT {act}(%s)", [first])
        another.execute("SELECT totp_disable(%s)", [second])
        with Background(quick_db, "CALL totp_rotate_key_online()") as rotating:
            rotating.wait_until_blocked(conn)  # neither user is free
            another.execute("ROLLBACK")
            writing.execute(f"SELECT {act}(%s)", [second])
            writing.execute("COMMIT")
    assert [state for _, state in keys(conn)] == ["current"]
    open_everything(conn)


# --- Two rotations ------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [AT_ONCE, ONLINE], ids=["at once", "online"])
@pytest.mark.parametrize("second", [AT_ONCE, ONLINE], ids=["at once", "online"])
def test_two_rotations_at_once_leave_one_data_key(quick_db, conn, first, second):
    users = import_users(conn, 300)
    with Background(quick_db, first), Background(quick_db, second):
        pass
    assert [state for _, state in keys(conn)] == ["current"]
    assert open_everything(conn) == (300, 0)
    assert sign_in_all(conn, users, NOON) == 300


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@both_kinds
def test_a_rotation_waits_for_one_in_an_open_transaction(quick_db, conn, rotate, end):
    secret = active_user(conn, "alice")
    with session(quick_db) as rotating:
        rotating.execute("BEGIN")
        [[opened, _]] = rotating.execute(AT_ONCE).fetchall()
        with Background(quick_db, rotate) as waiting:
            waiting.wait_until_blocked(conn)
            rotating.execute(end)
    [(key, state)] = keys(conn)
    assert key > opened and state == "current"
    assert verify(conn, "alice", code_at(secret, NOON)) is True


def test_a_rotation_at_once_takes_over_one_that_is_half_way(quick_db, conn):
    users = import_users(conn, 20)
    conn.execute("SELECT totp.rotation_begin(1000)")
    assert conn.execute("SELECT * FROM totp.rotation_step(NULL, 5)").fetchone() == (5, users[4])
    old_keys = {key for key, _ in keys(conn)}
    assert len(old_keys) == 2
    [[key, moved]] = conn.execute(AT_ONCE).fetchall()
    assert key not in old_keys and moved == 20
    assert keys(conn) == [(key, "current")]
    # The other session's next steps have nothing left to do.
    assert conn.execute("SELECT * FROM totp.rotation_step(%s, 5)", [users[4]]).fetchone() == (0, None)
    assert conn.execute("SELECT totp.rotation_end()").fetchone() == (True,)
    assert keys(conn) == [(key, "current")]
    assert sign_in_all(conn, users, NOON) == 20


def test_two_online_rotations_share_the_work(quick_db, conn):
    users = import_users(conn, 20)
    with session(quick_db) as other:
        assert conn.execute("SELECT totp.rotation_begin(1000)").fetchone() == (20,)
        assert conn.execute("SELECT * FROM totp.rotation_step(NULL, 5)").fetchone() == (5, users[4])
        half_way = keys(conn)
        assert other.execute("SELECT totp.rotation_begin(1000)").fetchone() == (15,)
        assert keys(conn) == half_way  # it goes on with the same data key
        assert other.execute("SELECT * FROM totp.rotation_step(NULL, 100)").fetchone() == (15, users[-1])
        assert other.execute("SELECT totp.rotation_end()").fetchone() == (True,)
        assert conn.execute("SELECT * FROM totp.rotation_step(%s, 5)", [users[4]]).fetchone() == (0, None)
        assert conn.execute("SELECT totp.rotation_end()").fetchone() == (True,)
    assert [state for _, state in keys(conn)] == ["current"]
    assert sign_in_all(conn, users, NOON) == 20
