"""kill -9 at random moments under load: no answer that a client got is lost. Also shows that the tests would find a loss."""

import random
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from amounts import amount
from crash_ledger import ACCEPTED_AGAIN, MAX_ATTEMPTS, PERIOD, SECOND, Ledger
from crash_load import Session, assert_no_corruption, more_of, under_load
from server import CHECKOUT, Cluster, wait_until
from totp import NO_CODE, code_at, wrong_codes

CRASHES = amount("CRASHES", 20, light=4)
OPEN = "transactions open at the kill"
SETTINGS = {"totp__enrollment_ttl": "30d"}  # a user's clock runs fast


def crash(cluster, ledger, calls, seconds=0, children=True, **load):
    """Runs the load for this many calls and seconds, kills the server while it goes on, recovers it. Returns the moment of the kill."""
    with under_load(ledger, **load) as sessions:
        begin = time.monotonic()
        more_of(ledger, "calls", calls)
        wait_until(lambda: time.monotonic() >= begin + seconds, "some failures to be older than a second")
        killed_at = time.monotonic()
        ledger.count(*(OPEN for session in sessions if session.in_transaction))
        cluster.kill9(children)
    cluster.start()
    return killed_at


def test_no_reported_answer_is_lost_when_the_server_is_killed_under_load(make_cluster):
    """No code told true is accepted again, no lock, no failure older than a second is forgotten, every secret opens."""
    cluster = make_cluster(**SETTINGS)
    db = cluster.create_database()
    ledger = Ledger(db).populate()
    numbers = random.Random(ledger.seed)
    print(f"seed {ledger.seed}")
    for number in range(CRASHES):
        killed_at = crash(cluster, ledger, numbers.randint(500, 3000), numbers.uniform(0, 2 * SECOND), children=number % 4 < 2,
                          synchronous_commit=("on", "off")[number % 2])
        ledger.settle(killed_at)
        assert ledger.findings == [], f"after kill {number + 1}, seed {ledger.seed}"
        assert_no_corruption(db)
    with closing(db.connect()) as conn:
        ledger.expect(conn, ACCEPTED_AGAIN, "replayed", ledger.ever_told)
    print(f"{CRASHES} kills", *sorted(ledger.counts.items()), sep="\n")
    assert ledger.findings == []
    assert ledger.errors == set()
    # The run did something.
    for what in ("right: accepted", "wrong: wrong", "right: locked", "used: replayed", "recovery: true", "unlock: true", "enrolled",
                 "right: replayed", "wrong recovery: false", "locks told to wrong", "locks told to wrong recovery", "verify calls", "confirm calls", OPEN):
        assert ledger.counts[what] >= CRASHES / 2, what


def test_each_loss_is_found(fresh_cluster):
    """What the harness reports after a crash that lost nothing, and after something was removed by hand."""
    db = fresh_cluster.create_database()
    ledger = Ledger(db).populate()
    accepted, locked, recovered, failed, enrolled, keyless, mistyped = [*ledger.users[0][:5], *ledger.users[1][:2]]

    def tell():
        with closing(db.connect()) as conn:
            session = Session(ledger, conn, 0)
            accepted.clock += PERIOD
            session.ask(accepted, "right", code_at(accepted.secret, accepted.clock), accepted.clock)
            for user, failures in ((locked, MAX_ATTEMPTS), (failed, 2)):
                for _ in range(failures):
                    session.ask(user, "wrong", next(wrong_codes(user.secret, user.clock)), user.clock)
            for user, failures in ((keyless, MAX_ATTEMPTS), (mistyped, 2)):
                for _ in range(failures):
                    session.ask(user, "wrong recovery", NO_CODE, user.clock)
            session.ask(recovered, "recovery", recovered.recovery_codes.pop(), recovered.clock)
        return time.monotonic() + 2 * SECOND  # killed so late that all of it must be there

    killed_at = tell()
    fresh_cluster.kill9()
    fresh_cluster.start()
    ledger.settle(killed_at)
    assert ledger.findings == []

    killed_at = tell()
    with closing(db.connect()) as conn:
        for change, user in (("used_codes SET time_step = time_step - 1, uses = uses - 1 WHERE uses > 0", accepted),
                             ("attempts SET locked_until = '-infinity' WHERE true", locked), ("attempts SET failures = 1 WHERE true", failed),
                             ("attempts SET recovery_locked_until = '-infinity' WHERE true", keyless), ("attempts SET recovery_failures = 1 WHERE true", mistyped),
                             ("used_codes SET recovery_mask = 0 WHERE recovery_mask > 0", recovered)):
            conn.execute(f"UPDATE totp.{change} AND user_id = %s", [user.name])
        conn.execute("SELECT totp_remove(%s)", [enrolled.name])
    ledger.settle(killed_at)
    found = {tuple(finding.split(": ")[:2]) for finding in ledger.findings}
    assert found == {
        (accepted.name, "an accepted code was forgotten"), (accepted.name, ACCEPTED_AGAIN), (locked.name, "a lock was forgotten"),
        (failed.name, "a failure was forgotten"), (keyless.name, "a lock of recovery codes was forgotten"),
        (mistyped.name, "a failure of recovery codes was forgotten"), (recovered.name, "a used recovery code was forgotten"),
        (recovered.name, "recovery code accepted again"), (enrolled.name, "an enrollment was forgotten")}


@pytest.fixture
def faulty_cluster():
    """A server with a build in which an answer is given before it is on disk."""
    build = ["tools/build.sh", "fault", Path(__file__).with_name("answer_before_flush.patch")]
    one = Cluster(Path(subprocess.run(build, cwd=CHECKOUT, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()))
    try:
        yield one.init(wal_writer_delay="10s", **SETTINGS).start()
    finally:
        one.remove()


def test_the_same_kills_find_a_build_that_does_not_flush(faulty_cluster):
    db = faulty_cluster.create_database()
    ledger = Ledger(db).populate()
    numbers = random.Random(ledger.seed)
    wanted = {f": {ACCEPTED_AGAIN}: told accepted 5", ": an accepted code was forgotten: "}
    for number in range(CRASHES):
        ledger.settle(crash(faulty_cluster, ledger, numbers.randint(250, 2500), maintain=False, synchronous_commit="off"))
        wanted -= {what for what in wanted for finding in ledger.findings if what in finding}
        if not wanted:
            break
    print(f"seed {ledger.seed}, found after kill {number + 1}", *ledger.findings, sep="\n")
    assert wanted == set()
