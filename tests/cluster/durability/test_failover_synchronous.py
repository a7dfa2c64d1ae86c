"""A standby before its promotion, and what a synchronous one has after the primary is killed under load."""

import os
import random
import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta

from crash_ledger import NOON, Ledger
from crash_load import assert_no_corruption, more_of, under_load
from server import Database, wait_until
from totp import SECRET, check, code_at, error_of, fix_clock, import_secret, stage, verify, wrong_codes

NOW = datetime.fromtimestamp(NOON, UTC)
NEVER = float("-inf")
# For the standby, or for a lock of one that waits for the standby.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s) AND (wait_event = 'SyncRep' OR wait_event_type = 'Lock')"


def test_everything_reported_is_on_the_promoted_synchronous_standby(make_cluster, make_standby):
    """Each true, each lock, each unlock and each recovery code; other failures may be lost. And before it, a standby judges nothing."""
    primary = make_cluster(totp__enrollment_ttl="30d")
    db = primary.create_database()
    ledger = Ledger(db).populate()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOW)
        import_secret(conn, "alice", SECRET, device="old")
        secret = stage(conn)
        recovery_code = conn.execute("SELECT totp_reset_recovery_codes('alice', 1)").fetchone()[0]
    standby = make_standby(primary)
    primary.make_synchronous()
    standby.wait_for_replay(primary)
    calls = [("SELECT totp_verify('alice', %s)", code_at(secret, NOON - 30)), ("SELECT accepted FROM totp_check('alice', %s)", code_at(secret, NOON)),
             ("SELECT totp_confirm('alice', %s)", code_at(secret, NOON + 30)), ("SELECT totp_recover('alice', %s)", recovery_code)]
    stays = standby.connect(db.name)  # connected over the promotion
    watch = db.connect()
    fix_clock(stays, NOW)
    for call, code in [calls[2], *calls]:
        assert error_of(stays, call, [code]).sqlstate == "25006"
    assert error_of(stays, "SELECT totp_enroll(%s)", ["bob"]).sqlstate == "25006"

    with under_load(ledger) as sessions:
        wanted = ("right: accepted", "wrong: wrong", "locks told to wrong", "locks told to wrong recovery", "recovery: true", "unlock: true")
        wait_until(lambda: all(ledger.counts[what] > 5 for what in wanted), "everything to have been told")
        more_of(ledger, "calls", random.Random(ledger.seed).randint(1, 1500))
        ledger.count(*("transactions open at the kill" for session in sessions if session.in_transaction))
        # From now on the standby gets nothing: an answer to a session that did not wait for it is lost.
        [sender] = watch.execute("SELECT pid FROM pg_stat_replication").fetchone()
        os.kill(sender, signal.SIGSTOP)
        wait_until(lambda: watch.execute(WAITING, [[session.conn.info.backend_pid for session in sessions]]).fetchone()[0] == len(sessions),
                   "every session to wait for the standby")
        primary.kill9()
    standby.promote()
    ledger.db = Database(standby, db.name)
    with closing(stays):
        # The floor, at a time before the codes of the load: so it refuses none of them.
        assert check(stays, "hot 0", next(wrong_codes(ledger.hot[0].secret, NOON))).reason == "wrong"
        assert stays.execute("SELECT floor_at FROM totp.floor").fetchone() == (NOW,)
        # What the standby refused is not used up. The pending secret is as old as the floor.
        for call, code in [calls[2], calls[3]]:
            assert stays.execute(call, [code]).fetchone() == (True,), call
    ledger.settle(killed_at=NEVER)
    print(f"seed {ledger.seed}", *sorted(ledger.counts.items()), *ledger.findings, sep="\n")
    assert ledger.findings == []
    assert ledger.errors == set()
    assert_no_corruption(ledger.db)


def test_a_user_waits_at_most_four_periods(db, cluster):
    """Wherever in its period the failover comes, whatever the window: two minutes for the default period."""
    kinds = [(window, period) for window in (0, 1, 2) for period in (15, 30, 60, 120)]
    with closing(db.connect()) as conn:
        fix_clock(conn, NOW - timedelta(hours=1))
        for kind in kinds:
            import_secret(conn, f"{kind}", SECRET, period=kind[1])
    for second in (0, 29, 119):
        floor = NOW + timedelta(seconds=second, microseconds=999_999)
        copy = Database(cluster, f"{db.name}_{second}")
        cluster.psql(f"CREATE DATABASE {copy.name} TEMPLATE {db.name}")
        with closing(copy.connect()) as conn:
            for window, period in kinds:
                conn.execute("SELECT set_config('totp.window_steps', %s, false)", [str(window)])
                fix_clock(conn, floor)
                retry_at = check(conn, f"{window, period}", code_at(SECRET, floor, period=period)).retry_at
                assert timedelta(0) < retry_at - floor <= timedelta(seconds=4 * period)
                fix_clock(conn, retry_at)
                assert verify(conn, f"{window, period}", code_at(SECRET, retry_at, period=period)) is True
        copy.drop()
