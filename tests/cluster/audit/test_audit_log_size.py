"""Ten million audit rows: the queries of auditors, totp_stats() and pruning read by index, and only the rows they need.

The plans are those that ran, also inside the extension's functions: auto_explain sends them as notices.
"""

import json
import re
from contextlib import closing
from datetime import UTC, datetime

import pytest
from amounts import amount
from server import CHECKOUT

ROWS, DAYS = amount("AUDIT_ROWS", 10_000_000, light=1_000_000), 100
USERS = ROWS // 20 - 21  # odd, so that no event keeps to some users
A_DAY = ROWS // DAYS
NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
NAMES = ["alice", "bob", "carol", "dave", "erin"]  # the users of the documents are among them

FILL = """
INSERT INTO totp.audit_log (id, at, event, user_id, actor, db_user, application_name)
SELECT n, %(now)s::timestamptz - (%(rows)s - n + 1) * interval '1 day' / %(a_day)s,
       CASE WHEN n %% 1000000 = 1 THEN 'key_rotated'
            ELSE (ARRAY['failed', 'verified', 'replayed', 'failed', 'confirmed', 'enrolled', 'locked', 'recovery_code_used'])[n %% 8 + 1] END,
       coalesce((%(names)s::text[])[n %% %(users)s], 'user-' || n %% %(users)s), 'app', 'app', 'web'
  FROM (SELECT generate_series(1, %(rows)s) AS n) AS numbers"""


@pytest.fixture(scope="module")
def conn(make_module_cluster):
    """A session on ten million rows over a hundred days, the last of them now. Its clock is fixed to then."""
    # Rows of a table made in the same transaction are not logged, and an index is sorted in memory.
    cluster = make_module_cluster(wal_level="minimal", max_wal_senders=0, maintenance_work_mem="512MB", shared_buffers="256MB", autovacuum="off")
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        with conn.transaction():
            conn.execute("TRUNCATE totp.audit_log")
            # The indexes stay those of the extension: they sleep while the rows come, and REINDEX fills and wakes them.
            conn.execute("UPDATE pg_index SET indisready = false, indisvalid = false WHERE indrelid = 'totp.audit_log'::regclass")
            filling = conn.execute(FILL, {"now": NOW, "a_day": A_DAY, "names": NAMES, "users": USERS, "rows": ROWS})
            assert filling.rowcount == ROWS
            conn.execute("REINDEX TABLE totp.audit_log")
        conn.execute("ANALYZE totp.audit_log")
        conn.execute("SELECT set_config('totp.clock', %s, false)", [NOW.isoformat()])
        conn.execute("LOAD 'auto_explain'")
        for name, value in {"log_min_duration": 0, "log_analyze": "on", "log_timing": "off", "log_nested_statements": "on", "log_format": "json", "log_level": "notice"}.items():
            conn.execute(f"SET auto_explain.{name} = {value}")
        yield conn


@pytest.fixture
def scans(conn):
    """A function that runs a query and returns its rows, and each scan of the audit log that it led to: (node type, index, rows read)."""
    plans = []
    conn.add_notice_handler(lambda notice: plans.append(json.loads(notice.message_primary.partition("plan:")[2])["Plan"]))

    def run(query):
        plans.clear()
        with conn.transaction(force_rollback=True):
            rows = conn.execute(query).fetchall()
        assert plans
        return rows, [scan for plan in plans for scan in _scans(plan)]

    yield run
    conn._notice_handlers.clear()


def _scans(node: dict) -> list[tuple[str, str, int]]:
    found = [scan for child in node.get("Plans", []) for scan in _scans(child)]
    if node.get("Relation Name") == "audit_log" and node["Node Type"] != "ModifyTable":
        # Of a bitmap, the index stands in the node below.
        index = node.get("Index Name") or next((child["Index Name"] for child in node.get("Plans", [])), None)
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        found.append((node["Node Type"], index, (node["Actual Rows"] + removed) * node["Actual Loops"]))
    return found


def _in_documents() -> dict[str, str]:
    """Every query of the audit log by user or time that a document shows, under its document and number; its now() is the test's."""
    found = {}
    for document in sorted(CHECKOUT.glob("docs/**/*.md")):
        blocks = re.findall(r"^```sql\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        queries = [query for block in blocks for query in re.findall(r"^SELECT [^;]*?\bFROM totp\.audit_log\b[^;]*WHERE[^;]*", block, re.MULTILINE)]
        for number, query in enumerate(queries, start=1):
            query = re.sub(r"\\gx?$|:payload\b", lambda psql: "1" if psql[0] == ":payload" else "", query.strip())
            found[f"{document.relative_to(CHECKOUT)} {number}"] = query.replace("now()", f"timestamptz '{NOW}'")
    return found


def test_every_index_of_the_extension_is_awake(conn):
    indexes = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'totp.audit_log'::regclass AND indisready AND indisvalid ORDER BY 1"
    assert [name for [name] in conn.execute(indexes)] == ["totp.audit_log_at", "totp.audit_log_event_at", "totp.audit_log_pkey", "totp.audit_log_user_at"]


@pytest.mark.parametrize("query", _in_documents().values(), ids=_in_documents())
def test_the_queries_of_the_documents_use_an_index(scans, query):
    _, read = scans(query)
    assert read
    for node, index, rows in read:
        assert "Seq Scan" not in node and index is not None
        assert rows <= A_DAY


@pytest.mark.parametrize("what, rows", [
    ("user_id = 'alice'", ROWS // USERS + 1),
    ("user_id = 'alice' ORDER BY at DESC", ROWS // USERS + 1),
    ("at > timestamptz '2030-01-01 12:00Z' - interval '1 day' ORDER BY at", A_DAY - 1),
    ("at >= timestamptz '2030-01-01 00:00Z' ORDER BY at DESC LIMIT 50", 50),
    ("event = 'key_rotated'", ROWS // 1_000_000),
])
def test_the_history_of_a_user_of_a_day_and_of_an_event(scans, what, rows):
    answer, read = scans(f"SELECT id, at, detail FROM totp.audit_log WHERE {what}")
    assert len(answer) == rows
    [(node, _, rows_read)] = read
    assert "Seq Scan" not in node and rows_read == rows


def test_stats_read_the_rows_that_they_count(scans):
    for since, rows in {"1 day": A_DAY - 1, "1 hour": A_DAY // 24}.items():
        answer, read = scans(f"SELECT sum(count) FROM totp_stats('{since}')")
        assert answer == [(rows,)]
        assert [(index, rows_read) for _, index, rows_read in read] == [("audit_log_at", rows)]


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
def test_stats_keep_to_the_index_in_every_plan(conn, scans, mode):
    """Also in the one that knows no value, for which a session may settle after some calls."""
    conn.execute(f"SET plan_cache_mode = {mode}")
    _, [(_, index, rows)] = scans("SELECT * FROM totp_stats('1 minute')")
    conn.execute("RESET plan_cache_mode")
    assert (index, rows) == ("audit_log_at", A_DAY // 24 // 60)


def test_health_reads_the_log_without_a_plan(scans):
    """What it reads, test_cost.py counts."""
    _, read = scans("SELECT * FROM totp_health()")
    assert read == []


def test_pruning_reads_what_it_deletes(scans):
    answer, read = scans(f"SELECT totp_prune_audit('{DAYS - 1} days')")
    assert answer == [(A_DAY,)]
    assert [(index, rows) for _, index, rows in read] == [("audit_log_at", A_DAY)]
