"""The first device of a user, of many that ask at once."""

from contextlib import ExitStack
from datetime import timedelta

import pytest
from binding import confirm, slots, web_session
from psycopg import Error
from totp import LEVELS, NOON, code_at, enroll, fix_clock, import_secret, parallel, verify

CALLS = {
    "totp_confirm": confirm,
    "totp_verify": lambda session, code, device: verify(session, "alice", code),
}


@pytest.fixture(scope="module")
def role(_module_database):
    """A role that may only enroll."""
    return _module_database.create_role("enroll")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_of_many_first_devices_at_once_one_counts(quick_db, role, conn, call, level):
    """Each session sees a user without MFA when it asks. The one that waits decides on what the other one has committed."""
    count = 6
    for hour in range(5):
        when = NOON + timedelta(hours=hour)
        fix_clock(conn, when)
        secrets = [enroll(conn, "alice", device=f"d{number}") for number in range(count)]
        with ExitStack() as stack:
            sessions = [stack.enter_context(web_session(quick_db, role, when, level)) for _ in range(count)]
            answers = parallel(count, lambda n: answer(call, sessions[n], code_at(secrets[n], when), f"d{n}"))
        assert answers.count(True) == 1 and answers.count(False) == count - 1
        assert [slot for _, slot in slots(conn)] == ["active"]
        conn.execute("SELECT totp_remove('alice')")


def answer(call, session, code, device):
    """What it says: also the SQLSTATE of an error."""
    try:
        return call(session, code, device)
    except Error as error:
        return error.sqlstate


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_first_device_takes_a_place(conn, call):
    """What the desk has staged keeps its places. The code is not used up."""
    for number in range(10):
        import_secret(conn, "alice", chr(ord("A") + number) * 31 + "Q", confirmed=False, device=f"d{number}")
    hers = enroll(conn, "alice", device="hers")
    assert answer(call, conn, code_at(hers, NOON), "hers") == "54000"
    assert len(slots(conn)) == 11
    conn.execute("SELECT totp_remove('alice', 'd0')")
    assert answer(call, conn, code_at(hers, NOON), "hers") is True
