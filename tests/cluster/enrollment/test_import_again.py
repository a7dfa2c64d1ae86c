"""Import of a secret that the user already has: used codes stay used."""

import hashlib
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from imported_secrets import BYTES, SECRET, base32, import_, refused, status, stored, uri_of
from totp import NOON, code_at, enroll, fix_clock, verify

HALF_MINUTE = timedelta(seconds=30)


def test_a_secret_that_the_device_has_keeps_its_burnt_step(conn):
    import_(conn, "alice", SECRET, confirmed=True)
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    for confirmed in (False, True):
        import_(conn, "alice", SECRET.lower(), confirmed=confirmed, account_name="al")
        assert [state for _, state, _ in status(conn)] == ["active"]
        assert conn.execute("SELECT accepted, reason FROM totp_check('alice', %s)", [code_at(SECRET, NOON)]).fetchone() == (False, "replayed")
    assert status(conn, "account_name, last_used_at, uses") == [("al", NOON, 1)]
    assert verify(conn, "alice", code_at(SECRET, NOON + HALF_MINUTE)) is True


def test_a_pending_secret_that_the_device_has_stays_pending_or_becomes_active(conn):
    import_(conn, "alice", SECRET)
    import_(conn, "alice", SECRET)
    assert status(conn) == [("default", "pending", 2)]
    import_(conn, "alice", SECRET, confirmed=True)
    assert status(conn) == [("default", "active", 3)]
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    import_(conn, "alice", SECRET)
    assert status(conn) == [("default", "active", 4)]
    assert verify(conn, "alice", code_at(SECRET, NOON)) is False


def test_a_staged_secret_that_is_imported_again_leaves_the_active_one(conn):
    old = enroll(conn, "alice")
    assert verify(conn, "alice", code_at(old, NOON)) is True
    staged = enroll(conn, "alice")
    import_(conn, "alice", staged)
    assert status(conn) == [("default", "active", 1), ("default", "pending", 3)]
    assert verify(conn, "alice", code_at(old, NOON)) is False
    assert verify(conn, "alice", code_at(old, NOON + HALF_MINUTE)) is True
    import_(conn, "alice", old)  # the active one: what is staged goes
    assert status(conn) == [("default", "active", 4)]
    assert verify(conn, "alice", code_at(old, NOON + HALF_MINUTE)) is False


@pytest.mark.parametrize("first, second", [(30, 60), (60, 30), (30, 45), (45, 30), (15, 120), (120, 15), (30, 31)])
def test_the_burnt_step_is_kept_in_steps_of_another_length(conn, first, second):
    """No code of a time that is used up is accepted, whatever the length of the step; the next one is."""
    import_(conn, "alice", SECRET, confirmed=True, period=first)
    assert verify(conn, "alice", code_at(SECRET, NOON, period=first)) is True
    used_until = (NOON.timestamp() // first + 1) * first
    import_(conn, "alice", SECRET, period=second)
    assert [state for _, state, _ in status(conn)] == ["active"]
    refused_steps = range(int(NOON.timestamp()) // second - 1, int(used_until - 1) // second + 1)
    for step in refused_steps:
        fix_clock(conn, datetime.fromtimestamp(step * second, UTC))
        answer = conn.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(SECRET, step * second, period=second)]).fetchone()
        assert answer == ("replayed",), step
    following = refused_steps.stop * second
    fix_clock(conn, datetime.fromtimestamp(following, UTC))
    assert verify(conn, "alice", code_at(SECRET, following, period=second)) is True
    # And back: what is used up never becomes less.
    import_(conn, "alice", SECRET, period=first)
    assert verify(conn, "alice", code_at(SECRET, following, period=first)) is False
    fix_clock(conn, NOON)
    assert verify(conn, "alice", code_at(SECRET, NOON, period=first)) is False


def test_the_burnt_step_is_kept_with_other_digits_and_another_algorithm(conn):
    import_(conn, "alice", SECRET, confirmed=True, digits=8)
    assert verify(conn, "alice", code_at(SECRET, NOON, digits=8)) is True
    import_(conn, "alice", SECRET, digits=6)
    assert verify(conn, "alice", code_at(SECRET, NOON)) is False
    import_(conn, "alice", SECRET, algorithm="SHA512", digits=6)
    assert verify(conn, "alice", code_at(SECRET, NOON, "SHA512")) is False
    assert verify(conn, "alice", code_at(SECRET, NOON + HALF_MINUTE, "SHA512")) is True


def test_what_may_have_been_used_before_lost_wal_stays_used(conn, quick_db):
    """The floor: on another identity of the cluster, codes of older secrets are refused once. An import of the same secret does not change that."""
    import_(conn, "alice", SECRET, confirmed=True)
    conn.execute("UPDATE totp.floor SET system_identifier = system_identifier + 1")  # as a restored copy finds it
    later = NOON + timedelta(hours=1)
    with closing(quick_db.connect()) as restored:
        fix_clock(restored, later)
        check = "SELECT reason FROM totp_check('alice', %s)"
        assert restored.execute(check, [code_at(SECRET, later)]).fetchone() == ("replayed",)
        import_(restored, "alice", SECRET, confirmed=True)
        assert restored.execute(check, [code_at(SECRET, later)]).fetchone() == ("replayed",)
        fix_clock(restored, later + 4 * HALF_MINUTE)
        assert restored.execute(check, [code_at(SECRET, later + 4 * HALF_MINUTE)]).fetchone() == ("accepted",)


@pytest.mark.parametrize("there", ["active", "pending", "disabled"])
@pytest.mark.parametrize("given", [{}, {"confirmed": True}, {"period": 60, "digits": 8}])
def test_a_secret_that_another_device_has_is_refused(conn, quick_db, there, given):
    """Otherwise one code would count twice."""
    import_(conn, "alice", SECRET, device="phone", confirmed=there != "pending")
    if there == "disabled":
        conn.execute("SELECT totp_disable('alice', 'phone')")
    before = stored(conn)
    refused(conn, quick_db, "alice", uri_of(SECRET) if not given else SECRET, device="tablet", **given)
    assert stored(conn) == before and [device for device, _, _ in status(conn)] == ["phone"]
    import_(conn, "bob", SECRET, device="tablet", **given)  # another user may have it
    conn.execute("SELECT totp_remove('alice', 'phone')")
    import_(conn, "alice", SECRET, device="tablet", **given)


RAW, LONG = bytes.fromhex(BYTES), bytes(range(100))


@pytest.mark.parametrize("known, equivalent", [
    (RAW, RAW + b"\0"), (RAW + b"\0\0", RAW), (LONG, hashlib.sha1(LONG).digest()), (hashlib.sha1(LONG).digest(), LONG),
], ids=["with a zero byte", "without its zero bytes", "hashed", "not hashed"])
def test_a_secret_of_the_same_codes_is_the_same_secret(conn, quick_db, known, equivalent):
    """HMAC (RFC 2104 section 2) fills a key up with zero bytes, and hashes one that is longer than a block: the codes are the same."""
    import_(conn, "alice", base32(known), device="phone", confirmed=True)
    code = code_at(base32(equivalent) + "=" * (-len(base32(equivalent)) % 8), NOON)
    assert verify(conn, "alice", code) is True
    refused(conn, quick_db, "alice", base32(equivalent), device="tablet", confirmed=True)
    import_(conn, "alice", base32(equivalent), device="phone", confirmed=True)
    assert verify(conn, "alice", code) is False
