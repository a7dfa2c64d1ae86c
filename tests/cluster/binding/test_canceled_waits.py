"""A call that waits for a standby has charged the proof, or used it up: canceling the wait gives nothing back."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from binding import confirm, slots, web_session
from server import wait_until
from totp import MAX_ATTEMPTS, NO_CODE, NOON, SECRET, code_at, codes_left, counters, enroll, fix_clock, good, import_secret, recover, recovery_codes, verify, wrong


@pytest.fixture(scope="module")
def server(make_module_cluster):
    """No standby is there, though commits may ask for one."""
    return make_module_cluster(synchronous_standby_names="nobody", synchronous_commit="local")


@pytest.fixture
def database(server):
    database = server.create_database()
    yield database
    database.drop()


def end_of_wait(database, conn, proof, end):
    """Confirm with this proof in a session whose waits for a standby all end like this; what the session was told."""
    mine = enroll(conn, "alice", device="mine")
    with web_session(database, database.create_role("enroll")) as web, ThreadPoolExecutor(1) as pool:
        web.execute("SET synchronous_commit = on")
        answer = pool.submit(confirm, web, code_at(mine, NOON), "mine", proof)
        waits = f"SELECT {end}(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
        ended = []
        wait_until(lambda: answer.done() or ended.extend(conn.execute(waits, [web.info.backend_pid])), "the call to end")
        assert ended  # it did wait
        try:
            return answer.result()
        except psycopg.Error as error:
            return type(error)


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("kind", ["code", "recovery code"])
def test_a_good_proof_is_used(database, kind, end):
    with closing(database.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET, device="old")
        proof = good() if kind == "code" else recovery_codes(conn)[0]
        told = end_of_wait(database, conn, proof, end)
        assert told is (True if end == "pg_cancel_backend" else psycopg.OperationalError)
        assert slots(conn)[0] == ("mine", "active" if told is True else "proposed")
        assert (verify(conn, "alice", proof) if kind == "code" else recover(conn, proof)) is False


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("kind", ["code", "recovery code"])
def test_the_guess_that_locks_is_charged(database, kind, end):
    with closing(database.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET, device="old")
        recovery_codes(conn)
        for number in range(MAX_ATTEMPTS - 1):
            assert (verify(conn, "alice", wrong(number)) if kind == "code" else recover(conn, NO_CODE)) is False
        end_of_wait(database, conn, wrong(9) if kind == "code" else NO_CODE, end)
        place = 0 if kind == "code" else 1
        assert (counters(conn)[place], counters(conn)[place + 2]) == (MAX_ATTEMPTS, True)
        assert slots(conn) == [("mine", "proposed"), ("old", "active")] and codes_left(conn) == 10
