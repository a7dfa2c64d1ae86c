"""docs/operations/events.md: three ways to hear of an event, what ROLLBACK does to each, and what each costs."""

import json
import re
import threading
from contextlib import closing

import pytest
from documents import block, block_with, run
from health import health
from libraries import skip_without
from server import wait_until
from totp import LATER, NOON, SECRET, active_user, check, code_at, enroll, error_of, fix_clock, good, import_secret, recover, recovery_codes, states, verify, wrong

PAGE = "operations/events.md"
TRIGGER = block_with(PAGE, "CREATE TRIGGER tell")
CREATE_TRIGGER = TRIGGER[TRIGGER.index("CREATE TRIGGER"):]
ROWS_SINCE = block_with(PAGE, "now() - interval '1 day'")
OPTIONS = "'format-version', '2', 'add-tables', 'totp.audit_log', 'actions', 'insert', 'include-transaction', 'false'"


@pytest.fixture(scope="module")
def server(make_module_cluster):
    return allow_plugin(make_module_cluster(wal_level="logical", max_prepared_transactions=2))


def allow_plugin(cluster):
    """As the document says, where the minor release has that setting."""
    if cluster.psql("SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'").strip() == "1":
        cluster.psql(block(PAGE, "plugin.sql"))
        with closing(cluster.connect()) as conn:
            wait_until(lambda: "wal2json" in conn.execute("SHOW output_plugin_libraries").fetchone()[0], "the setting to be read")
    return cluster


@pytest.fixture
def db(server):
    database = server.create_database()
    yield database
    database.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    database.drop()


@pytest.fixture
def conn(db):
    """A superuser's session at noon. alice and bob have a device each."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        active_user(conn, "bob")
        yield conn


def make_slot(conn) -> None:
    skip_without("wal2json")
    conn.execute("SELECT pg_create_logical_replication_slot('totp_events', 'wal2json')")


def decoded(conn) -> list[tuple]:
    """Event and user of each row that the slot has, which then go."""
    rows = conn.execute(f"SELECT data FROM pg_logical_slot_get_changes('totp_events', NULL, NULL, {OPTIONS})").fetchall()
    inserts = [change for [data] in rows if (change := json.loads(data))["action"] == "I"]  # others are messages in the WAL
    changes = [{column["name"]: column["value"] for column in change["columns"]} for change in inserts]
    return [(change["event"], change["user_id"]) for change in changes]


def disable(conn, user: str = "alice") -> None:
    """An act that each way reports."""
    assert conn.execute("SELECT totp_disable(%s)", [user]).fetchone() == (1,)


# --- ROLLBACK ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
def test_what_a_rollback_takes_back(db, conn, end):
    """A device that is confirmed, a recovery code that is used, and a wrong code: by all three ways, and in the server log."""
    db.psql(TRIGGER + "CREATE TABLE outbox (message text)")
    recovery_code, *_ = recovery_codes(conn)
    phone = enroll(conn, "alice", device="phone")
    make_slot(conn)
    logged = db.cluster.log_end()
    with closing(db.connect()) as listener:
        listener.execute("LISTEN totp_events")
        conn.execute("BEGIN")
        assert conn.execute("SELECT totp_confirm('alice', %s, 'phone', proof => %s)", [good(secret=phone), good()]).fetchone() == (True,)
        assert recover(conn, recovery_code) is True
        assert verify(conn, "alice", wrong()) is False
        conn.execute("INSERT INTO outbox VALUES ('a new device')")
        conn.execute(end)
        disable(conn, "bob")  # what comes after it, so that nobody waits for what does not come
        heard = [notification.payload for notification in listener.notifies(timeout=60, stop_after=3 if end == "COMMIT" else 1)]
    told = {id_: event for id_, event in conn.execute("SELECT id::text, event FROM totp.audit_log")}
    done = end == "COMMIT"
    assert [told[id_] for id_ in heard] == ["confirmed", "recovery_code_used"] * done + ["disabled"]
    assert decoded(conn) == [("confirmed", "alice"), ("recovery_code_used", "alice"), ("failed", "alice")] * done + [("disabled", "bob")]
    assert conn.execute("SELECT count(*) FROM outbox").fetchone() == (int(done),)
    assert [state for device, state, _ in states(conn) if device == "phone"] == ["active" if done else "pending"]
    # What stays, whatever the end.
    lines = re.findall(r"totp: event=(\w+) .*user=\"alice\"", db.cluster.log_text(logged))
    assert [event for event in lines if event in ("recovery_code_used", "failed")] == ["recovery_code_used", "failed"]
    assert check(conn, "alice", good()).reason == "replayed"
    assert recover(conn, recovery_code) is False
    assert check(conn, "alice", wrong(1)).attempts_left == 3


# --- the trigger ---------------------------------------------------------------------------------------------------

FAILS = """
CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 / 0; RETURN NULL; END $$;
CREATE TRIGGER fails AFTER INSERT ON totp.audit_log FOR EACH ROW EXECUTE FUNCTION fails();
"""


def test_a_trigger_that_fails_stops_what_writes_rows(db, conn):
    """After the guess is counted, and the code is used up."""
    failures = "SELECT failures FROM totp.attempts WHERE user_id = 'alice'"
    phone = enroll(conn, "alice", device="phone")
    db.psql(FAILS)
    assert error_of(conn, "SELECT totp_verify('alice', %s)", [wrong()]).sqlstate == "22012"
    assert conn.execute(failures).fetchone() == (1,)
    assert error_of(conn, "SELECT totp_confirm('alice', %s, 'phone', proof => %s)", [good(secret=phone), good()]).sqlstate == "22012"
    assert check(conn, "alice", good(1)).reason == "accepted"  # which has no row
    fix_clock(conn, LATER)
    conn.execute("SET totp.audit_success = on")
    assert error_of(conn, "SELECT totp_verify('alice', %s)", [good(2)]).sqlstate == "22012"
    db.psql("DROP TRIGGER fails ON totp.audit_log")
    assert ("phone", "pending", 1) in states(conn)
    assert check(conn, "alice", good(2)).reason == "replayed"


def test_the_trigger_of_the_document_cannot_stop_a_call(db, conn):
    """Its one statement fails here, and each call does what it does without a trigger."""
    db.psql(TRIGGER.replace("pg_notify(", "no_such_function("))
    assert check(conn, "alice", wrong()).attempts_left == 4
    phone = enroll(conn, "alice", device="phone")
    assert conn.execute("SELECT totp_confirm('alice', %s, 'phone', proof => %s)", [good(secret=phone), good()]).fetchone() == (True,)
    disable(conn, "bob")
    assert conn.execute("SELECT event, user_id FROM totp.audit_log ORDER BY id DESC LIMIT 2").fetchall() == [("disabled", "bob"), ("confirmed", "alice")]


def test_a_transaction_that_has_notified_cannot_be_prepared(db, conn):
    db.psql(TRIGGER)
    conn.execute("BEGIN")
    assert verify(conn, "alice", wrong()) is False
    conn.execute("PREPARE TRANSACTION 'a guess'")
    conn.execute("COMMIT PREPARED 'a guess'")
    conn.execute("BEGIN")
    disable(conn)
    assert error_of(conn, "PREPARE TRANSACTION 'an act'").sqlstate == "0A000"


def test_anyone_can_listen_and_notify(db, conn):
    """So the payload is an id, and the row is what counts."""
    db.psql(TRIGGER)
    with closing(db.connect(user=db.create_role())) as stranger:
        stranger.execute("LISTEN totp_events")
        disable(conn)
        stranger.execute("NOTIFY totp_events, 'anything'")
        heard = [notification.payload for notification in stranger.notifies(timeout=60, stop_after=2)]
        assert error_of(stranger, "SELECT FROM totp.audit_log").sqlstate == "42501"
    assert sorted(heard) == sorted([str(conn.execute("SELECT max(id) FROM totp.audit_log").fetchone()[0]), "anything"])


def test_commits_that_notify_wait_for_each_other(fresh_cluster):
    """One that waits for a synchronous standby lets every other one wait, and none that does not notify."""
    db = fresh_cluster.create_database()
    db.psql(TRIGGER)
    with closing(db.connect(options="-c lock_timeout=60s")) as watch:
        for user in ("alice", "bob"):
            import_secret(watch, user, SECRET)
        fresh_cluster.configure(synchronous_standby_names="nobody")
        fresh_cluster.reload()
        waits = "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE application_name = %s"

        def waiting(name) -> tuple:
            return watch.execute(waits, [name]).fetchone()

        def act(user, commits):
            with closing(db.connect(application_name=user, options=f"-c synchronous_commit={commits}")) as conn:
                disable(conn, user)

        watch.execute("SET synchronous_commit = local")
        wait_until(lambda: watch.execute("SHOW synchronous_standby_names").fetchone() == ("nobody",), "the setting to be read")
        first, second = (threading.Thread(target=act, args=arguments) for arguments in (("alice", "on"), ("bob", "local")))
        first.start()
        wait_until(lambda: waiting("alice") == ("IPC", "SyncRep"), "the first commit to wait for a standby")
        second.start()
        wait_until(lambda: waiting("bob") == ("Lock", "object"), "the second commit to wait for the first")
        assert check(watch, "alice", "000000", "default").reason == "wrong"  # a row without a notification
        assert second.is_alive()
        fresh_cluster.configure(synchronous_standby_names="")
        fresh_cluster.reload()
        first.join()
        second.join()
        assert watch.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'disabled'").fetchone() == (2,)


def test_a_dump_leaves_the_trigger_out(db, conn, make_standby):
    """And has its function. What pg_upgrade takes along, and a standby, have the trigger."""
    triggers = block_with(PAGE, "FROM pg_trigger")
    db.psql(TRIGGER)
    assert {name: state for name, state in health(conn).items() if state[0] != "ok"}.keys() == {"test_clock"}
    dump = db.cluster.client("pg_dump", "-d", db.name)
    restored = db.cluster.create_database(extension=False)
    restored.psql(dump)
    assert restored.psql("SELECT count(*) FROM pg_proc WHERE proname = 'tell'") == "1\n"
    assert restored.psql(triggers) == ""
    restored.psql(CREATE_TRIGGER)
    assert restored.psql(triggers) == db.psql(triggers) == "tell|O\n"
    restored.drop()
    assert "CREATE TRIGGER tell" in db.cluster.client("pg_dump", "-d", db.name, "--binary-upgrade", "--schema-only")
    standby = make_standby(db.cluster)
    assert standby.psql(triggers, db.name) == "tell|O\n"


# --- logical decoding ----------------------------------------------------------------------------------------------


def test_the_statements_of_logical_decoding(db, conn):
    skip_without("wal2json")
    run(db, PAGE, "slot.sql")
    try:
        disable(conn)
        run(db, PAGE, "read.sql", "notifier")
        run(db, PAGE, "watch.sql")
        end = conn.execute("SELECT pg_current_wal_flush_lsn()").fetchone()[0]
        command = block(PAGE, "follow.sh").rstrip().replace("-d app ", f"-d {db.name} --endpos={end} ")
        followed = db.cluster.client("sh", "-c", command)
        assert [json.loads(line)["action"] for line in followed.splitlines()] == ["B", "I", "C"]
        assert "disabled" in followed
    finally:
        conn.execute("SELECT pg_drop_replication_slot('totp_events')")
        conn.execute("DROP ROLE notifier")


def test_what_is_confirmed_does_not_come_again(db, conn):
    make_slot(conn)
    disable(conn)
    changes = "SELECT lsn, data FROM pg_logical_slot_peek_changes('totp_events', NULL, NULL, 'format-version', '2', 'add-tables', 'totp.audit_log')"
    first = conn.execute(changes).fetchall()
    disable(conn, "bob")  # after it was read
    assert first == conn.execute(changes).fetchall()[:len(first)]
    run(db, PAGE, "confirm.sql", last=first[-1][0])
    assert decoded(conn) == [("disabled", "bob")]


def test_decoding_follows_the_commits(db, conn):
    """Not the ids. A prepared transaction is there when it is committed."""
    make_slot(conn)
    with closing(db.connect()) as other:
        other.execute("BEGIN")
        disable(other)
        disable(conn, "bob")
        assert decoded(conn) == [("disabled", "bob")]
        other.execute("PREPARE TRANSACTION 'later'")
        conn.execute("SELECT totp_enable('bob')")
        assert decoded(conn) == [("enabled", "bob")]
        other.execute("COMMIT PREPARED 'later'")
    assert decoded(conn) == [("disabled", "alice")]
    assert conn.execute("SELECT user_id FROM totp.audit_log WHERE event = 'disabled' ORDER BY id").fetchall() == [("alice",), ("bob",)]


def dead_rows(conn, table: str) -> int:
    """How many dead rows VACUUM must leave there."""
    said = []
    handler = lambda notice: said.append(notice.message_primary)  # noqa: E731
    conn.add_notice_handler(handler)
    conn.execute(f"VACUUM (VERBOSE, INDEX_CLEANUP off) {table}")
    conn.remove_notice_handler(handler)
    return int(re.search(r"(\d+) are dead but not yet removable", "\n".join(said))[1])


def write_wal(conn) -> None:
    """A file of WAL, and a checkpoint, which removes old ones."""
    conn.execute("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'filler', 'x')")
    conn.execute("CHECKPOINT")


def test_a_slot_holds_back_wal_and_catalog_rows(fresh_cluster):
    """Until they are confirmed. Rows of other tables go."""
    fresh_cluster.configure(wal_level="logical", min_wal_size="32MB", max_wal_size="32MB", autovacuum="off")
    fresh_cluster.restart()
    db = allow_plugin(fresh_cluster).create_database()
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        conn.execute("CREATE TABLE t (n int)")
        make_slot(conn)
        needed = conn.execute("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots").fetchone()[0]
        disable(conn)
        for _ in range(5):
            write_wal(conn)
        conn.execute("INSERT INTO t VALUES (1); DELETE FROM t; CREATE TABLE gone (); DROP TABLE gone")
        is_there = f"SELECT count(*) FROM pg_ls_waldir() WHERE name = '{needed}'"
        assert conn.execute(is_there).fetchone() == (1,)
        assert (dead_rows(conn, "t"), dead_rows(conn, "pg_catalog.pg_class") > 0) == (0, True)
        conn.execute("CHECKPOINT")  # has a list of running transactions, up to which the slot can go
        assert decoded(conn) == [("disabled", "alice")]
        decoded(conn)
        write_wal(conn)
        assert conn.execute(is_there).fetchone() == (0,)
        assert dead_rows(conn, "pg_catalog.pg_class") == 0


def test_a_slot_beyond_its_limit_is_lost_and_the_table_has_the_rows(fresh_cluster):
    """Users sign in all the while."""
    fresh_cluster.configure(wal_level="logical", min_wal_size="32MB", max_wal_size="32MB", max_slot_wal_keep_size="16MB")
    fresh_cluster.restart()
    db = allow_plugin(fresh_cluster).create_database()
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        make_slot(conn)
        disable(conn)
        for _ in range(5):
            write_wal(conn)
        assert conn.execute("SELECT wal_status FROM pg_replication_slots").fetchone() == ("lost",)
        assert error_of(conn, f"SELECT pg_logical_slot_get_changes('totp_events', NULL, NULL, {OPTIONS})").sqlstate == "55000"
        conn.execute("SELECT totp_enable('alice'), pg_drop_replication_slot('totp_events')")
        make_slot(conn)
        assert [event for event, _, _ in conn.execute(ROWS_SINCE)] == ["imported", "disabled", "enabled"]
        assert verify(conn, "alice", code_at(SECRET, conn.execute("SELECT now()").fetchone()[0])) is True


def test_a_promoted_standby_has_no_slot(fresh_cluster, make_standby):
    """And a slot for new rows can be made there; the table has the ones from before."""
    fresh_cluster.configure(wal_level="logical")
    fresh_cluster.restart()
    db = allow_plugin(fresh_cluster).create_database()
    standby = make_standby(fresh_cluster)
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        make_slot(conn)
        disable(conn)
    standby.wait_for_replay(fresh_cluster)
    fresh_cluster.stop("immediate")
    standby.promote()
    with closing(standby.connect(db.name)) as conn:
        assert conn.execute("SELECT FROM pg_replication_slots").rowcount == 0
        make_slot(conn)
        assert [event for event, _, _ in conn.execute(ROWS_SINCE)] == ["imported", "disabled"]
        conn.execute("SELECT totp_enable('alice')")
        assert decoded(conn) == [("enabled", "alice")]
