"""What the owner of the tables, without the master key, does to the trail, and how totp_audit_verify() names it."""

import re
from contextlib import closing

import pytest
from sessions import session
from totp import NOON
from trail import check_all, deviations, seal_all, seals, unsealed, verify_trail

SEALS, ROWS = 3, 10  # rows of each seal


@pytest.fixture
def conn(db):
    with session(db) as conn:
        yield conn


def insert(conn, rows=ROWS):
    conn.execute("INSERT INTO totp.audit_log (at, event, user_id, device, actor, db_user, client_addr, application_name, detail)"
                 " SELECT %s, 'failed', 'user ' || n, 'phone', 'web', session_user, '192.0.2.1', 'psql', jsonb_build_object('n', n)"
                 "   FROM generate_series(1, %s) n", [NOON, rows])


@pytest.fixture
def trail(conn, db):
    """Three seals of ten rows each, the ids 1 to 30, and the id 31 a closed hole; the anchor of the last one."""
    begin = db.cluster.log_end()
    for number in range(SEALS):
        if number == 2:
            conn.execute("SELECT nextval('totp.audit_ids')")
        insert(conn)
        seal_all(conn)
    seal_all(conn)  # closes the hole
    assert conn.execute("SELECT first_id, last_id, holes::text FROM totp.audit_seals ORDER BY seal_id").fetchall() == [
        (1, 10, "{}"), (11, 20, "{}"), (21, 31, "{[21,22)}"), (32, 31, "{}")]
    assert deviations(conn) == []
    return anchors(db, begin)


def anchors(db, begin=0) -> list[str]:
    return re.findall(r"totp: event=audit_sealed .*", db.cluster.log_text(begin))


# --- Rows --------------------------------------------------------------------------

CHANGES = ["at = at + interval '1 microsecond'", "event = 'verified'", "event = ''", "user_id = 'mallory'", "user_id = NULL", "user_id = ''",
           "device = 'tablet'", "device = NULL", "actor = 'nobody'", "db_user = 'nobody'", "client_addr = '192.0.2.2'", "client_addr = '192.0.2.1/24'",
           "client_addr = NULL", "application_name = 'x'", "application_name = ''", "detail = '{}'", "detail = NULL", "detail = '{\"n\": \"5\"}'",
           "(user_id, device) = ('user 5phone', '')", "(user_id, device) = (device, user_id)"]


@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_column_is_named(conn, trail, change):
    assert conn.execute(f"UPDATE totp.audit_log SET {change} WHERE id = 15").rowcount == 1
    assert deviations(conn) == [(2, 11, 20, "changed")]


@pytest.mark.parametrize("ids", [(1,), (5,), (10,), (11,), (15,), (20,), (22,), (31,), (13, 14, 17), tuple(range(11, 21))])
def test_a_deleted_row_is_named(conn, trail, ids):
    conn.execute("DELETE FROM totp.audit_log WHERE id = ANY (%s)", [list(ids)])
    seal = 1 if ids[0] <= 10 else 2 if ids[0] <= 20 else 3
    assert deviations(conn) == [(seal, min(ids), max(ids), "missing")]


def test_the_missing_ids_are_listed(conn, trail):
    conn.execute("DELETE FROM totp.audit_log WHERE id IN (13, 14, 17)")
    [finding] = [one for one in verify_trail(conn) if one.status == "missing"]
    assert finding.problem == "3 rows are missing: 13 to 14, 17."


def test_all_rows_deleted(conn, trail):
    conn.execute("DELETE FROM totp.audit_log")
    assert deviations(conn) == [(1, 1, 10, "missing"), (2, 11, 20, "missing"), (3, 22, 31, "missing")]


@pytest.mark.parametrize(("id", "seal"), [(21, 3), (0, None), (-5, None)])
def test_a_row_put_where_none_was(conn, trail, id, seal):
    conn.execute("INSERT INTO totp.audit_log (id, at, event, actor, db_user, application_name) VALUES (%s, %s, 'unlocked', '', '', '')", [id, NOON])
    assert deviations(conn) == [(seal, id, id, "filled")]
    seal_all(conn)  # it is not taken for a late one
    assert deviations(conn) == [(seal, id, id, "filled")]


def test_swapped_ids(conn, trail):
    conn.execute("ALTER TABLE totp.audit_log DROP CONSTRAINT audit_log_pkey")
    conn.execute("UPDATE totp.audit_log SET id = CASE id WHEN 5 THEN 16 ELSE 5 END WHERE id IN (5, 16)")
    assert deviations(conn) == [(1, 1, 10, "changed"), (2, 11, 20, "changed")]


def test_swapped_ids_within_a_seal(conn, trail):
    conn.execute("ALTER TABLE totp.audit_log DROP CONSTRAINT audit_log_pkey")
    conn.execute("UPDATE totp.audit_log SET id = CASE id WHEN 12 THEN 15 ELSE 12 END WHERE id IN (12, 15)")
    assert deviations(conn) == [(2, 11, 20, "changed")]


@pytest.mark.parametrize("id", [1, 15, 31])
def test_a_second_row_with_an_id(conn, trail, id):
    conn.execute("ALTER TABLE totp.audit_log DROP CONSTRAINT audit_log_pkey")
    conn.execute("INSERT INTO totp.audit_log SELECT * FROM totp.audit_log WHERE id = %s", [id])
    assert deviations(conn) == [(1 if id == 1 else 2 if id == 15 else 3, id, id, "filled")]


def test_rows_of_which_row_security_hides_some(conn, trail):
    conn.execute("ALTER TABLE totp.audit_log ENABLE ROW LEVEL SECURITY")
    conn.execute("CREATE POLICY hide ON totp.audit_log USING (id <> 15)")
    assert deviations(conn) == []  # the superuser who owns the function sees all


def test_an_edit_that_is_undone_is_none(conn, trail):
    conn.execute("UPDATE totp.audit_log SET actor = 'x' WHERE id = 15")
    conn.execute("UPDATE totp.audit_log SET actor = 'web' WHERE id = 15")
    conn.execute("VACUUM FULL totp.audit_log")
    assert deviations(conn) == []


def test_an_edit_where_a_row_is_missing_too(conn, trail):
    conn.execute("DELETE FROM totp.audit_log WHERE id = 12")
    conn.execute("UPDATE totp.audit_log SET actor = 'x' WHERE id IN (5, 15)")
    assert deviations(conn) == [(1, 1, 10, "changed"), (2, 12, 12, "missing")]


# --- Seals -------------------------------------------------------------------------

SEAL_CHANGES = ["first_id = first_id + 1", "last_id = last_id - 1", "row_count = 9", "newest_at = newest_at + interval '1 microsecond'", "newest_at = NULL",
                "rows_mac = sha256('x')", "rows_mac = ''", "holes = '{[13,14)}'", "late = '{[1,2)}'", "closed_seal = closed_seal + 1", "next_xid = next_xid + 1",
                "next_xid = NULL", "system_identifier = 1", "database = 1", "timeline = 2", "sealed_at = sealed_at - interval '1 day'",
                "previous_mac = sha256('x')", "mac = sha256('x')", "mac = substr(mac, 1, 31)", "mac = ''"]


@pytest.mark.parametrize("change", SEAL_CHANGES)
def test_an_edited_column_of_a_seal_is_named(conn, trail, change):
    assert conn.execute(f"UPDATE totp.audit_seals SET {change} WHERE seal_id = 2").rowcount == 1
    assert 2 in [seal for seal, *_, status in deviations(conn) if status == "changed"]


def test_a_claim_that_rows_were_pruned_is_named(conn, trail):
    conn.execute("UPDATE totp.audit_seals SET pruned_seal = 2 WHERE seal_id = 4")
    conn.execute("DELETE FROM totp.audit_log WHERE id <= 20")
    conn.execute("DELETE FROM totp.audit_seals WHERE seal_id < 2")
    assert (4, None, None, "changed") in deviations(conn)


@pytest.mark.parametrize(("ids", "expected"), [
    ((1,), [(1, 1, 10, "missing")]), ((2,), [(2, 11, 20, "missing")]), ((1, 2), [(1, 1, 20, "missing")]), ((2, 3), [(2, 11, 31, "missing")])])
def test_a_deleted_seal_is_named(conn, trail, ids, expected):
    conn.execute("DELETE FROM totp.audit_seals WHERE seal_id = ANY (%s)", [list(ids)])
    assert deviations(conn) == expected


def test_an_older_seal_put_in_place_of_a_newer_one(conn, trail):
    conn.execute("UPDATE totp.audit_seals s SET mac = o.mac, rows_mac = o.rows_mac FROM totp.audit_seals o WHERE s.seal_id = 3 AND o.seal_id = 2")
    assert (3, 21, 31, "changed") in deviations(conn)


def test_a_seal_made_with_a_key_of_the_owner(conn, trail):
    """Without the master key, a key in the table does not open, so what it sealed cannot be verified."""
    conn.execute("INSERT INTO totp.audit_keys SELECT 1000, master_key, wrapped, created_at FROM totp.audit_keys")
    conn.execute("UPDATE totp.audit_seals SET key_id = 1000 WHERE seal_id = 2")
    assert deviations(conn) == [(2, 11, 20, "unverifiable")]


def test_no_seal_but_a_key(conn, trail):
    conn.execute("TRUNCATE totp.audit_log, totp.audit_seals")
    assert deviations(conn) == [(None, None, None, "missing")]


# --- What only the anchor shows ------------------------------------------------------


def test_every_line_and_every_part_of_one_is_an_anchor(conn, trail):
    assert len(trail) == 4
    for line in trail:
        assert deviations(conn, line) == []
        assert deviations(conn, "2030-01-01 12:00:00 UTC [1] LOG:  " + line) == []
        assert deviations(conn, line[line.index("seal="):]) == []


def test_table_and_seals_truncated_together(conn, trail):
    conn.execute("TRUNCATE totp.audit_log, totp.audit_seals, totp.audit_keys")
    assert deviations(conn) == []
    assert deviations(conn, trail[-1]) == [(4, 1, 31, "lost")]
    insert(conn)
    for _ in range(5):
        insert(conn)
        seal_all(conn)
    assert deviations(conn) == [] and deviations(conn, trail[-1]) == [(4, None, 31, "lost")]


def test_the_last_seals_taken_away_with_their_rows(conn, trail):
    conn.execute("DELETE FROM totp.audit_seals WHERE seal_id > 2")
    conn.execute("DELETE FROM totp.audit_log WHERE id > 20")
    assert deviations(conn) == []
    assert deviations(conn, trail[-1]) == [(4, 21, 31, "lost")]
    assert deviations(conn, trail[1]) == []
    insert(conn)
    seal_all(conn)
    seal_all(conn)
    assert deviations(conn) == []
    assert deviations(conn, trail[2]) == [(3, None, 31, "lost")]


def test_an_older_dump_restored(make_cluster):
    cluster = make_cluster()
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        insert(conn)
        seal_all(conn)
        dump = cluster.client("pg_dump", "-d", db.name)
        insert(conn)
        seal_all(conn)
    [first, last] = anchors(db)
    restored = cluster.create_database("restored", extension=False)
    restored.psql(dump)
    with closing(restored.connect()) as conn:
        assert deviations(conn) == [] and deviations(conn, first) == []
        assert deviations(conn, last) == [(2, 11, 20, "lost")]


def test_a_copy_of_the_database_beside_it(make_cluster):
    """Both go on, and each has a seal 2 that the other does not have."""
    cluster = make_cluster()
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        insert(conn)
        seal_all(conn)
    cluster.psql(f"CREATE DATABASE copy TEMPLATE {db.name}")
    for name in (db.name, "copy"):
        with closing(cluster.connect(name)) as conn:
            insert(conn)
            seal_all(conn)
    [_, of_original, of_copy] = anchors(db)
    with closing(db.connect()) as conn:
        assert deviations(conn, of_original) == []
        assert deviations(conn, of_copy) == [(2, None, 20, "lost")]
        assert all(finding.problem is None for finding in verify_trail(conn))
    with closing(cluster.connect("copy")) as conn:
        assert deviations(conn, of_copy) == []
        assert deviations(conn, of_original) == [(2, None, 20, "lost")]
        assert verify_trail(conn)[1].problem == "From here on in another cluster or database: after a restore, an upgrade, or a copy."


def test_a_seal_of_a_copy_put_in_place_of_another(make_cluster):
    """It is good by itself: the copy has the same keys. The seal after it does not follow it."""
    cluster = make_cluster()
    db = cluster.create_database()
    with closing(db.connect()) as conn:
        insert(conn)
        seal_all(conn)
    cluster.psql(f"CREATE DATABASE copy TEMPLATE {db.name}")
    with closing(cluster.connect("copy")) as copy, closing(db.connect()) as conn:
        insert(copy)
        seal_all(copy)
        for _ in range(2):
            insert(conn)
            seal_all(conn)
        conn.execute("DELETE FROM totp.audit_log WHERE id BETWEEN 11 AND 20; DELETE FROM totp.audit_seals WHERE seal_id = 2")
        for table, rows in (("audit_log", "id BETWEEN 11 AND 20"), ("audit_seals", "seal_id = 2")):
            with copy.cursor().copy(f"COPY (SELECT * FROM totp.{table} WHERE {rows}) TO STDOUT") as read, conn.cursor().copy(f"COPY totp.{table} FROM STDIN") as write:
                for data in read:
                    write.write(data)
        assert deviations(conn) == [(3, 21, 30, "changed")]


def test_rows_that_are_not_sealed_can_be_changed(conn, trail):
    """The limit, as docs/standards.md states it."""
    insert(conn)
    conn.execute("DELETE FROM totp.audit_log WHERE id > 35")
    conn.execute("UPDATE totp.audit_log SET actor = 'x' WHERE id > 31")
    assert deviations(conn, trail[-1]) == []
    assert "; 4 rows are not sealed, since 2030-01-01" in unsealed(conn)


def test_who_has_the_master_key_can_make_seals_but_not_the_lines_that_were_shipped(db, conn, trail):
    conn.execute("UPDATE totp.audit_log SET actor = 'x' WHERE id = 15")
    conn.execute("DELETE FROM totp.audit_seals WHERE seal_id >= 2")
    seal_all(conn)
    assert check_all(conn, db.cluster.key_file.read_text().strip()) == SEALS * ROWS
    assert deviations(conn) == []
    assert deviations(conn, trail[1]) == [(2, None, 20, "lost")]
    assert seals(conn) == 2 or seals(conn) == 3
