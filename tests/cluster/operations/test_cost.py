"""What totp_health() and totp_list() read: not more, however many users there are. The plans are those that ran."""

import json
from contextlib import closing
from datetime import timedelta

import pytest
from many_users import synthetic_users
from totp import NOON, fix_clock, import_secret

USERS = 30_000
OF_USERS = {"secrets", "used_codes", "attempts", "recovery_codes", "audit_log"}
CHEAP = ["totp_health()", "totp_list()", "totp_list('user-00015000', 100)", "totp_list(NULL, 100, 'user-0002')", "totp_list('user-00020000', 100, 'user-0001')", "totp_list(NULL, 1, 'zzz')"]


@pytest.fixture
def conn(db):
    """A session in which auto_explain sends the plans of all statements as notices."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        import_secret(conn, "alice", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")
        conn.execute("LOAD 'auto_explain'")
        for name, value in {"log_min_duration": 0, "log_analyze": "on", "log_timing": "off", "log_nested_statements": "on", "log_format": "json", "log_level": "notice"}.items():
            conn.execute(f"SET auto_explain.{name} = {value}")
        yield conn


def scans(conn, call: str, tables: set[str] = OF_USERS) -> list[tuple[str, str, float]]:
    """Each scan of one of these tables that a call led to: node type, table, rows read."""
    explained = []

    def note(notice):
        _, found, plan = notice.message_primary.partition("plan:")
        explained.extend([json.loads(plan)] if found else [])

    conn.add_notice_handler(note)
    conn.execute(f"SELECT * FROM {call}")
    conn.remove_notice_handler(note)
    assert len(explained) > 1
    found = [(each, _scans(each["Plan"], tables)) for each in explained]
    assert not [each for each, scans in found if scans and "JIT" in each]  # to compile it would take longer than to run it
    return [scan for _, scans in found for scan in scans]


def _scans(node: dict, tables: set[str] = OF_USERS) -> list[tuple[str, str, float]]:
    found = [scan for child in node.get("Plans", []) for scan in _scans(child, tables)]
    table = node.get("Relation Name")
    if table in tables:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        found.append((node["Node Type"], table, (node["Actual Rows"] + removed) * node["Actual Loops"]))
    return found


def sequential(conn) -> dict[str, int]:
    """How many sequential scans of each table there were, by PostgreSQL's own count."""
    conn.execute("SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
    return dict(conn.execute("SELECT relname, seq_scan FROM pg_stat_user_tables WHERE schemaname = 'totp' AND relname = ANY (%s)", [list(OF_USERS)]).fetchall())


def is_cheap(conn, call: str) -> None:
    before = sequential(conn)
    read = scans(conn, call)
    assert read, call
    for node, table, rows in read:
        assert node in ("Index Scan", "Index Only Scan", "Tid Range Scan"), (call, node, table)
        assert rows <= 10_000, (call, node, table, rows)
    assert sequential(conn) == before


@pytest.mark.parametrize("known", ["analyzed", "never analyzed", "planned for empty tables"])
@pytest.mark.parametrize("setting", ["plan_cache_mode = auto", "plan_cache_mode = force_custom_plan", "enable_tidscan = off", "jit_above_cost = 0"])
def test_no_cheap_call_scans_a_table_of_users(conn, known, setting):
    """Whatever PostgreSQL knows of the tables, and also in a session that has planned everything before they grew."""
    conn.execute(f"SET {setting}")
    if known == "planned for empty tables":
        for call in CHEAP:
            conn.execute(f"SELECT * FROM {call}")
    conn.execute("SET auto_explain.log_min_duration = -1")
    synthetic_users(conn, USERS, at="clock_timestamp()")
    conn.execute("INSERT INTO totp.audit_log (at, event, user_id, actor, db_user, application_name) SELECT %s, 'failed', 'alice', '', '', '' FROM generate_series(1, 20000)", [NOON])
    if known == "analyzed":
        conn.execute("ANALYZE")
    conn.execute("SET auto_explain.log_min_duration = 0")
    for call in CHEAP:
        is_cheap(conn, call)


def test_a_lost_master_key_is_found_by_index(conn):
    conn.execute("SET auto_explain.log_min_duration = -1")
    synthetic_users(conn, USERS, at="clock_timestamp()")
    conn.execute("INSERT INTO totp.data_keys SELECT n, 'retiring', '0123456789abcdef', '', now() FROM generate_series(1000, 1002) AS n")
    conn.execute("ANALYZE")
    conn.execute("SET auto_explain.log_min_duration = 0")
    is_cheap(conn, "totp_health()")
    [[detail]] = conn.execute("SELECT detail FROM totp_health() WHERE check_name = 'lost_master_key'")
    assert detail.startswith("nothing is sealed under master key 0123456789abcdef")


def test_the_last_seal_is_found_by_index(conn):
    """Also in a session that has looked for it when there was none, and PostgreSQL knew that."""
    conn.execute("VACUUM totp.audit_seals")
    assert scans(conn, "totp_health()", {"audit_seals"}) == [("Index Scan", "audit_seals", 0)]
    conn.execute("SET auto_explain.log_min_duration = -1")
    conn.execute("CALL totp_audit_seal()")
    conn.execute("""INSERT INTO totp.audit_seals SELECT (jsonb_populate_record(s, jsonb_build_object('seal_id', n))).*
                      FROM totp.audit_seals AS s, generate_series(2, 3000) AS n""")
    conn.execute("SET auto_explain.log_min_duration = 0")
    assert scans(conn, "totp_health()", {"audit_seals"}) == [("Index Scan", "audit_seals", 1)]


def test_the_view_of_a_rotation_reads_every_secret_in_a_rotation_and_none_at_other_times(conn):
    def read():
        [[[plan]]] = conn.execute("EXPLAIN (ANALYZE, FORMAT json) SELECT * FROM totp.rotation_progress").fetchall()
        return sum(rows for _, table, rows in _scans(plan["Plan"]) if table == "secrets")

    conn.execute("SET auto_explain.log_min_duration = -1")
    synthetic_users(conn, 300, at="clock_timestamp()")
    assert read() == 0
    conn.execute("SELECT totp.rotation_begin(1)")
    assert read() >= 301


def test_the_end_of_the_audit_log_is_read_however_much_it_has_of_the_last_hour(conn):
    """Not by the index on the time alone, which has the rows of all events: also if all rows were of one event when they were counted."""
    insert = "INSERT INTO totp.audit_log (at, event, user_id, actor, db_user, application_name) SELECT %s, %s, 'u' || n, '', '', '' FROM generate_series(1, 30000) AS n"
    conn.execute("SET auto_explain.log_min_duration = -1; DELETE FROM totp.audit_log")
    conn.execute(insert, [NOON, "failed"])
    conn.execute("VACUUM ANALYZE totp.audit_log")
    conn.execute(insert, [NOON, "verified"])
    conn.execute("SET auto_explain.log_min_duration = 0")
    is_cheap(conn, "totp_health()")
    [[detail]] = conn.execute("SELECT detail FROM totp_health() WHERE check_name = 'failures_over_many_users'")
    assert detail.startswith("10000 users had a wrong code in the last hour, and ")


INSERT = "INSERT INTO totp.audit_log (at, event, user_id, actor, db_user, application_name) SELECT %s, %s, 'u' || n, '', '', '' FROM generate_series(1, %s) AS n"
SIGNS = ["failures_over_many_users", "replays"]


def signs(conn) -> list[tuple[str, str]]:
    return conn.execute("SELECT status, detail FROM totp_health() WHERE check_name = ANY (%s) ORDER BY check_name", [SIGNS]).fetchall()


@pytest.fixture
def plain(db):
    """A session at noon."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        yield conn


def insert(conn, event: str, number: int, is_kept: bool) -> None:
    with conn.transaction(force_rollback=not is_kept):
        conn.execute(INSERT, [NOON, event, number])


def entries_read(conn, call: str) -> int:
    """How many entries of the index on events a call reads."""
    number = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'audit_log_event_at'"
    conn.execute("SELECT pg_stat_force_next_flush()")
    [[before]] = conn.execute(number)
    conn.execute(f"SELECT * FROM {call}")
    conn.execute("SELECT pg_stat_force_next_flush()")
    [[after]] = conn.execute(number)
    return after - before


def test_entries_of_transactions_that_were_rolled_back_are_read_up_to_a_limit(plain):
    """They stay in the index until VACUUM. PostgreSQL marks those that a query meets, and would read past all marked ones."""
    for event in ("failed", "replayed"):
        insert(plain, event, 15, is_kept=True)
        insert(plain, event, 50_000, is_kept=False)
    found = signs(plain)
    for call in ("totp_health()", "totp_metrics()"):
        assert 20_000 <= entries_read(plain, call) <= 20_002
    [failures, replays] = found
    assert failures[1].startswith("10000 users had a wrong code in the last hour, and ")
    assert replays == ("warn", "10000 or more used codes were tried again in the last hour, in transactions that committed or not: a client sends codes twice,"
                               " or someone intercepts them; look at totp.audit_log")
    plain.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    for event in ("failed", "replayed"):
        assert plain.execute("SELECT count(*) FROM totp.audit_log WHERE event = %s AND at >= %s", [event, NOON]).fetchall() == [(15,)]
    assert signs(plain) == found


def test_the_metrics_count_used_codes_until_there_are_enough_to_warn(plain):
    for number, value in {9: 0, 10: 1, 5_000: 1}.items():
        plain.execute("TRUNCATE totp.audit_log")
        insert(plain, "replayed", number, is_kept=True)
        assert entries_read(plain, "totp_metrics()") <= 11
        assert plain.execute("SELECT value FROM totp_metrics() WHERE metric = 'totp_health_replays'").fetchall() == [(value,)]


ANOTHER = "DROP INDEX totp.audit_log_event_at; CREATE INDEX ON totp.audit_log "
WAYS = {
    "by the index": "SELECT 1",
    "without it": "DROP INDEX totp.audit_log_event_at",
    "by one in the other order": f"{ANOTHER} (event, at DESC)",
    "by one of a part": f"{ANOTHER} (event, at) WHERE user_id IS NULL",
    "by one of another collation": f'{ANOTHER} (event COLLATE "POSIX", at)',
    "with rows in another table": "CREATE TABLE totp.older () INHERITS (totp.audit_log); WITH moved AS (DELETE FROM ONLY totp.audit_log RETURNING *) INSERT INTO totp.older SELECT * FROM moved",
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_were_rolled_back_do_not_count(plain, way):
    numbers = {"failed": 15, "replayed": 5, "verified": 100}
    for event, number in numbers.items():
        insert(plain, event, number, is_kept=True)
    plain.execute("UPDATE totp.audit_log SET actor = 'x' WHERE event = 'replayed'")  # two versions of a row, one entry
    for event in numbers:
        insert(plain, event, 2_000, is_kept=False)
    plain.execute(INSERT, [NOON - timedelta(minutes=61), "failed", 100])
    plain.execute(WAYS[way])
    [failures, replays] = signs(plain)
    assert failures[1].startswith("15 users had a wrong code in the last hour, and ")
    assert replays[1].startswith("5 used codes were tried again in the last hour, in transactions that committed:")


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("without it", "by one of a part")])
def test_the_newest_are_counted(plain, way):
    """Of users who fail once, beside one who failed often before."""
    plain.execute(INSERT.replace("'u' || n", "'often'"), [NOON - timedelta(minutes=1), "failed", 12_000])
    insert(plain, "failed", 9_000, is_kept=True)
    plain.execute(WAYS[way])
    assert signs(plain)[0][1].startswith("9001 users had a wrong code in the last hour, and ")


def test_a_spray_that_committed_is_told_after_guesses_that_were_rolled_back_and_whose_rows_are_gone(plain):
    """VACUUM leaves the entries of an index where few pages have dead rows."""
    insert(plain, "verified", 300_000, is_kept=True)
    plain.execute(INSERT, [NOON - timedelta(minutes=1), "failed", 30])
    insert(plain, "failed", 11_000, is_kept=False)
    plain.execute("VACUUM (INDEX_CLEANUP off) totp.audit_log")
    [failures, _] = signs(plain)
    assert failures[0] == "warn" and failures[1].startswith("10000 users had a wrong code in the last hour, and ")


def test_the_full_checks_read_everything_and_say_how_far_they_are(conn):
    conn.execute("SET auto_explain.log_min_duration = -1")
    synthetic_users(conn, 300, at="clock_timestamp()")
    told = []
    conn.add_notice_handler(lambda notice: told.append((notice.severity, notice.message_primary)))
    found = {name: (detail, full) for name, _, detail, full in conn.execute("SELECT * FROM totp_health(full => true)")}
    assert found["rows"] == ("6 secrets or recovery sets lack a row in totp.attempts or totp.used_codes: restore the rows, or enroll the users again", True)
    assert [message for _, message in told] == [
        "pg_totp: health check 1 of 5: rows that belong together", "pg_totp: health check 2 of 5: times in the future",
        "pg_totp: health check 3 of 5: recovery codes from before a restore", "pg_totp: health check 4 of 5: users in a lock",
        "pg_totp: health check 5 of 5: users who need help"]
    assert {severity for severity, _ in told} == {"NOTICE"}
    told.clear()
    conn.execute("SET client_min_messages = warning")
    conn.execute("SELECT * FROM totp_health(full => true)")
    conn.execute("RESET client_min_messages")
    conn.execute("SELECT * FROM totp_health()")
    assert told == []


def test_the_full_checks_keep_to_the_memory_that_they_may_use(conn):
    """Joins of more than work_mem go to temporary files: no hash table grows with the users."""
    conn.execute("SET auto_explain.log_min_duration = -1")
    synthetic_users(conn, USERS, at="clock_timestamp()")
    conn.execute("ANALYZE")
    conn.execute("SET work_mem = '64kB'; SET hash_mem_multiplier = 1")

    def hashed(node):
        return [node.get("Peak Memory Usage", 0)] + [kb for child in node.get("Plans", []) for kb in hashed(child)]

    plans = []
    conn.execute("SET auto_explain.log_min_duration = 0")
    conn.add_notice_handler(lambda notice: plans.extend([json.loads(notice.message_primary.partition("plan:")[2])["Plan"]] if "plan:" in notice.message_primary else []))
    conn.execute("SELECT * FROM totp_health(full => true)")
    assert max(kb for plan in plans for kb in hashed(plan)) < 1024
    assert not any("hashed SubPlan" in json.dumps(plan) for plan in plans)
