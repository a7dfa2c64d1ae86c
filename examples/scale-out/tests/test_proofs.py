"""A proof that is given through a router is judged on the shard of its user, and counts there whatever the client does."""

from contextlib import closing

import pytest
from binding import check_confirm, confirm, new_recovery_codes, rename_device, slots, unenroll
from many_users import import_users, secret_of
from router_load import code_of, conn, role, router  # noqa: F401
from shards import users_of
from totp import NOON, check, code_at, enroll, error_of, parallel, recover, recovery_codes, verify, wrong_code


@pytest.fixture
def web(router, role):
    """A session of a web application: it has the capability `enroll` and nothing else."""
    with closing(router.database.connect(role("enroll"))) as session:
        yield session


def _slots(router, user: str) -> list[tuple[str, str]]:
    """Device and slot of each secret of this user."""
    with closing(router.shard_of(user).database.connect()) as direct:
        return slots(direct, user)


def _failures(router, user: str) -> list[tuple]:
    """The counter of this user on each shard that has one."""
    return [(shard.name, *row) for shard in router.shards
            for row in shard.database.execute("SELECT failures, recovery_failures FROM totp.attempts WHERE user_id = %s", [user])]


def test_a_device_is_bound_with_a_proof_and_not_without(router, conn, web):
    [user] = import_users(conn, 1, prefix="bound")
    code = code_at(enroll(web, user, device="tablet"), NOON)
    assert check(web, user, code).reason == "wrong"  # it is no candidate at a sign-in
    assert check_confirm(web, code, "tablet", user_id=user).reason == "proof_required"
    error = error_of(web, "SELECT totp_confirm(%s, %s, 'tablet')", [user, code])
    assert error.sqlstate == "42501" and error.diag.message_primary.endswith("a proof of an authenticator is required")
    with web.transaction(force_rollback=True):  # which undoes nothing on a shard
        told = check_confirm(web, code, "tablet", code_of(user), user, recovery_codes=2)
    assert (told.accepted, told.reason, len(told.recovery_codes)) == (True, "accepted", 2)
    assert verify(web, user, code_of(user)) is False and verify(web, user, code) is False  # both are used up
    assert recover(web, told.recovery_codes[0], user) is True
    assert _slots(router, user) == [("default", "active"), ("tablet", "active")]


@pytest.mark.parametrize("bind", [
    lambda web, user, proof: check_confirm(web, code_at(enroll(web, user, device="new"), NOON), "new", proof, user).accepted,
    lambda web, user, proof: confirm(web, code_at(enroll(web, user, device="new"), NOON), "new", proof, user),
    lambda web, user, proof: new_recovery_codes(web, proof, user_id=user) != [],
    lambda web, user, proof: unenroll(web, proof, user_id=user),
    lambda web, user, proof: rename_device(web, "default", "other", proof, user),
], ids=["check_confirm", "confirm", "recovery_codes", "unenroll", "rename_device"])
def test_guesses_of_a_proof_are_charged_on_the_shard_and_no_rollback_takes_them_back(router, conn, web, request, bind):
    [user] = import_users(conn, 1, prefix=f"guess-{request.node.callspec.id}")
    codes = recovery_codes(conn, user, 1)
    before = _slots(router, user)
    for proof in [wrong_code(code_of(user))] * 3 + ["AAAAAA-AAAAAA-AAAAAA-AAAAAA"] * 2:
        with web.transaction(force_rollback=True):
            assert bind(web, user, proof) is False
    assert _failures(router, user) == [(router.shard_of(user).name, 3, 2)]
    for _ in range(2):
        assert bind(web, user, wrong_code(code_of(user))) is False
    assert check(web, user, code_of(user)).reason == "locked" and bind(web, user, code_of(user)) is False
    assert [slot for slot in _slots(router, user) if slot[1] != "proposed"] == before
    assert recover(web, codes[0], user) is True and bind(web, user, code_of(user)) is True


def test_one_proof_binds_one_device(router, conn):
    """In several sessions of the router at once."""
    [user] = import_users(conn, 1, prefix="one-proof")
    sessions = [router.database.connect() for _ in range(6)]
    try:
        codes = [code_at(enroll(session, user, device=f"new {n}"), NOON) for n, session in enumerate(sessions)]
        told = parallel(6, lambda n: check_confirm(sessions[n], codes[n], f"new {n}", code_of(user), user).reason)
    finally:
        for session in sessions:
            session.close()
    assert sorted(told) == ["accepted"] + ["proof_replayed"] * 5


def test_what_needs_no_proof_is_for_the_support_desk(router, conn, web):
    """On the router, and on the connection that the router has for the capability `enroll`."""
    [user] = import_users(conn, 1, prefix="desk")
    calls = ["totp_reset_recovery_codes(%s, 10{})", "totp_move_device(%s, 'default', 'x', 'default'{})", "totp_reset(%s, 'default'{})",
             "totp_remove(%s, NULL{})", "totp_disable(%s, NULL{})"]
    with closing(router.shard_of(user).database.connect("totp_router_enroll")) as direct:
        for call in calls:
            assert error_of(web, f"SELECT {call.format('')}", [user]).sqlstate == "42501", call
            inside = "totp_shard." + call.format(", 'me'")
            assert error_of(direct, f"SELECT {inside}", [user]).sqlstate == "42501", call
    for call in calls[:1] + calls[2:]:
        assert conn.execute(f"SELECT {call.format('')} IS NULL", [user]).fetchone() == (False,), call


def test_a_user_page_removes_what_there_is(router, conn, web):
    [user] = import_users(conn, 1, prefix="leaves")
    recovery_codes(conn, user)
    assert unenroll(web, code_of(user), user_id=user) is True
    assert conn.execute("SELECT totp_enabled(%s)", [user]).fetchone() == (False,)
    for table in ("secrets", "attempts", "recovery_codes"):
        assert router.shard_of(user).database.execute(f"SELECT FROM totp.{table} WHERE user_id = %s", [user]) == []


def test_a_token_from_stock_is_moved_with_its_used_codes(router, conn):
    """Only on one shard: see test_router.py. Its new owner is a user with MFA at once."""
    [stock] = import_users(conn, 1, prefix="stock")
    [owner] = users_of(router.partitions_of(router.shard_of(stock)), 1, "owner")
    assert verify(conn, stock, code_of(stock)) is True
    assert conn.execute("SELECT totp_move_device(%s, 'default', %s, 'token')", [stock, owner]).fetchone() == (True,)
    code = code_at(secret_of(stock), NOON)
    assert (check(conn, owner, code).reason, check(conn, stock, code).reason) == ("replayed", "not_enrolled")
    assert check_confirm(conn, code_at(enroll(conn, owner), NOON), user_id=owner).reason == "proof_required"
