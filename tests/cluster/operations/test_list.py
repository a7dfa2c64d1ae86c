"""totp_list(): every user once, in the order of the bytes of the ids, page by page."""

import random
from contextlib import closing
from datetime import timedelta

import pytest
from many_users import import_users
from totp import NOON, SECRET, code_at, enroll, error_of, fix_clock, import_secret, recovery_codes, verify, wrong_codes

# Ids and prefixes of every kind of byte: wildcards, escapes, controls, the ends of each length in UTF-8, the last code point.
PIECES = ["%", "_", "\\", "a", "A", "é", "e\u0301", "ß", "ss", "'", '"', " ", "\x01", "\n", "\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff",
          "\U00010000", "\U0010ffff", "0", "9", "-", "ı", "I", "i", "z"]


def users(conn, after=None, max_=100, prefix="") -> list[str]:
    return [user for [user] in conn.execute("SELECT user_id FROM totp_list(%s, %s, %s)", [after, max_, prefix])]


def pages(conn, max_: int, prefix: str = "") -> list[str]:
    """All users, page by page."""
    found: list[str] = []
    while page := users(conn, found[-1] if found else None, max_, prefix):
        assert len(set(page)) <= max_
        found += page
    return found


@pytest.fixture
def strange(conn):
    """Ids made of these pieces, in the order of their bytes."""
    ids = sorted({a + b + c for a in PIECES for b in ("", *PIECES[:6], "\U0010ffff") for c in ("", "\U0010ffff")}, key=str.encode)
    conn.execute("SELECT count(totp_import(u, %s, account_name => 'x', confirmed => true)) FROM unnest(%s::text[]) AS u", [SECRET, ids])
    return ids


def test_all_users_in_the_order_of_the_bytes(conn, strange):
    assert users(conn, max_=10_000) == strange
    for max_ in (1, 7, len(strange)):
        assert pages(conn, max_) == strange


def test_a_prefix_is_a_prefix_whatever_its_characters(conn, strange):
    for prefix in ["", *PIECES, *(a + "\U0010ffff" for a in PIECES), "\U0010ffff" * 2, "%%", "_%", "\\\\", "\\%", "user", "é" * 200]:
        expected = [user for user in strange if user.startswith(prefix)]
        assert users(conn, max_=10_000, prefix=prefix) == expected, prefix
        assert pages(conn, 3, prefix) == expected, prefix


def test_after_need_not_be_a_user_and_may_lie_before_the_prefix_or_behind_it(conn, strange):
    for after in ["", "\x01", "A\U0010ffff\x01", "a%x", "\U0010ffff" * 3, "x" * 1000, *strange[::17]]:
        for prefix in ("", "a", "\U0010ffff", "%"):
            expected = [user for user in strange if user.encode() > after.encode() and user.startswith(prefix)]
            assert users(conn, after, 10_000, prefix) == expected, (after, prefix)


@pytest.mark.parametrize("max_", [0, -1, 10_001, 2**31 - 1, -(2**31), None])
def test_a_bad_number_of_users_is_refused(conn, max_):
    error = error_of(conn, "SELECT * FROM totp_list(max => %s)", [max_])
    assert error.sqlstate == "22023"
    assert error.diag.message_primary == ('argument "max" must not be null' if max_ is None else "invalid number of users")


def test_a_null_prefix_is_refused_and_after_null_is_the_beginning(conn):
    import_users(conn, 2)
    assert error_of(conn, "SELECT * FROM totp_list(prefix => NULL)").sqlstate == "22023"
    assert users(conn, None, 1) == users(conn, "", 1) == ["user-000000"]
    assert users(conn) == ["user-000000", "user-000001"]


def test_max_counts_users_and_not_rows(conn):
    for device in ("a", "b", "c"):
        for user in ("alice", "bob"):
            import_secret(conn, user, SECRET if device == "a" else code_secret(device), device=device)
    assert users(conn, max_=1) == ["alice"] * 3
    assert users(conn, "alice", 1) == ["bob"] * 3


def code_secret(device: str) -> str:
    return {"b": "MJXWEIDQNBXW4ZJAONSWG4TFOQQDCMRT", "c": "KRUGKIDROVUWG2ZAMJZG653OEBTG66BA"}[device]


def test_the_columns_are_those_of_totp_status(conn):
    """For users in every state: pending, staged over an active device, disabled, used, failed, locked with and without an end, with recovery codes."""
    for name in ("active", "used", "staged", "disabled", "failed", "locked", "stuck", "codes"):
        import_secret(conn, name, SECRET, issuer="Example")
    enroll(conn, "pending")
    enroll(conn, "staged")
    assert verify(conn, "used", code_at(SECRET, NOON)) is True
    conn.execute("SELECT totp_disable('disabled')")
    for user, failures in (("failed", 2), ("locked", 5)):
        for _ in range(failures):
            verify(conn, user, next(wrong_codes(SECRET, NOON)))
    conn.execute("UPDATE totp.attempts SET failures = 100, locked_until = 'infinity' WHERE user_id = 'stuck'")
    recovery_codes(conn, "codes", 7)
    same = "device, state, account_name, issuer, created_at, confirmed_at, last_used_at, uses, failures, locked, locked_until, recovery_codes_left"
    for now in (NOON, NOON + timedelta(hours=2)):
        fix_clock(conn, now)
        listed = conn.execute(f"SELECT user_id, {same} FROM totp_list()").fetchall()
        status = conn.execute(f"SELECT s.user_id, {same} FROM (SELECT DISTINCT user_id FROM totp.secrets) AS s, totp_status(s.user_id) ORDER BY s.user_id COLLATE \"C\", device, state <> 'active'")
        assert listed == status.fetchall() and len(listed) == 10


def test_a_missing_row_hides_only_what_is_in_it(conn):
    import_users(conn, 3)
    recovery_codes(conn, "user-000001")
    what = "SELECT user_id, last_used_at, uses, failures, locked, locked_until, recovery_codes_left FROM totp_list()"
    [before, _, after] = conn.execute(what).fetchall()
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM totp.attempts WHERE user_id = 'user-000001'")
        assert conn.execute(what).fetchall() == [before, ("user-000001", None, 0, None, None, None, 10), after]
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM totp.used_codes WHERE user_id = 'user-000001'")
        assert conn.execute(what).fetchall() == [before, ("user-000001", None, None, 0, False, None, 0), after]


def test_users_with_recovery_codes_alone_have_no_row_as_in_totp_status(conn):
    import_secret(conn, "alice", SECRET)
    recovery_codes(conn, "alice")
    conn.execute("SELECT totp_remove('alice', 'default')")
    assert users(conn) == [] == conn.execute("SELECT * FROM totp_status('alice')").fetchall()


def test_it_works_in_a_read_only_transaction_and_at_every_isolation_level(conn):
    import_users(conn, 3)
    for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
        conn.execute(f"BEGIN ISOLATION LEVEL {level} READ ONLY")
        assert len(users(conn)) == 3
        conn.execute("ROLLBACK")


def test_it_works_on_a_standby(fresh_cluster, make_standby):
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        there = import_users(conn, 250)
    standby = make_standby(fresh_cluster)
    standby.wait_for_replay(fresh_cluster)
    with closing(standby.connect(db.name)) as conn:
        assert pages(conn, 100) == there
        assert {name for name, status in conn.execute("SELECT check_name, status FROM totp_health(true)") if status == "fail"} == set()


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_missed_or_shown_twice_while_others_come_and_go(quick_db, conn, seed):
    """Between the pages, and at the very places where the pages end."""
    chance = random.Random(seed)
    stay = import_users(conn, 400)
    come_and_go = set(import_users(conn, 400, prefix="user-000123-guest") + import_users(conn, 200, prefix="a") + import_users(conn, 200, prefix="z"))
    with closing(quick_db.connect()) as other:
        fix_clock(other, NOON)
        found: list[str] = []
        while page := users(conn, found[-1] if found else None, 37):
            found += page
            gone = chance.sample(sorted(come_and_go), 25) + [user for user in page[-1:] if user in come_and_go]
            other.execute("SELECT count(totp_remove(u)) FROM unnest(%s::text[]) AS u", [gone])
            come_and_go -= set(gone)
            new = {f"{page[-1][:100]}{chance.choice(['', 'x', '-'])}{chance.random()}" for _ in range(10)} | {f"{chance.choice('amz')}-{chance.random()}" for _ in range(10)}
            other.execute("SELECT count(totp_import(u, %s, confirmed => true)) FROM unnest(%s::text[]) AS u", [SECRET, sorted(new)])
            come_and_go |= new
            if len(found) > 5000:
                break
    assert found == sorted(found, key=str.encode) and len(set(found)) == len(found)
    assert [user for user in found if user in set(stay)] == stay
