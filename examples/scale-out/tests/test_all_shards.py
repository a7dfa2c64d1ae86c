"""Calls that run on all shards, one after the other: they give the errors of one server, and are refused if one server refuses."""

import secrets
from contextlib import closing

from many_users import import_users
from router_load import conn, role, router  # noqa: F401
from totp import error_of


def test_what_runs_on_all_shards_says_which(router, conn):
    import_users(conn, 12, prefix="spread")
    names = [shard.name for shard in router.shards]
    for query in ("SELECT shard FROM totp_keys()", "SELECT shard FROM totp_rotate_key()", "SELECT shard FROM totp_prune_audit('1 year')",
                  "SELECT DISTINCT shard FROM totp_stats('100 years') ORDER BY 1", "SELECT DISTINCT shard FROM totp_health() ORDER BY 1", "SELECT DISTINCT shard FROM totp_health(true) AS h WHERE h.full ORDER BY 1",
                  "SELECT shard FROM totp_metrics() WHERE metric = 'totp_codes_accepted_total'",
                  "SELECT shard FROM totp_router.remove_unserved()", "SELECT DISTINCT shard FROM totp.audit_log ORDER BY 1"):
        assert [name for (name,) in conn.execute(query)] == names, query
    before = dict(conn.execute("SELECT shard, key_id FROM totp_keys()").fetchall())
    conn.execute("CALL totp_rotate_key_online(5)")
    assert dict(conn.execute("SELECT shard, key_id FROM totp_keys()").fetchall()) == {name: key + 1 for name, key in before.items()}
    for call in ("totp_export()", "totp_list()", "totp_acknowledge_restore()"):
        assert error_of(conn, f"SELECT * FROM {call}").sqlstate == "0A000"


def test_an_error_of_a_shard_is_what_it_is_on_one_server(router, conn):
    """Its DETAIL and HINT too. What the router adds is which shard it is, and who has done it before."""
    with closing(router.shards[0].database.connect()) as one:
        for call in ("totp_prune_audit(NULL)", "totp_prune_audit('-1 day')", "totp_forget_unreadable('no_such_key')", "totp_stats(NULL)"):
            expected, error = (error_of(c, f"SELECT * FROM {call}") for c in (one, conn))
            assert error.sqlstate == expected.sqlstate
            assert error.diag.message_hint == expected.diag.message_hint
            assert error.diag.message_detail == " ".join(filter(None, [expected.diag.message_detail, "No shard has done it."]))
            assert error.diag.message_primary.startswith('shard "s1": ') and error.diag.message_primary.endswith(expected.diag.message_primary)
    with closing(router.shards[1].database.connect(autocommit=False)) as holder:
        holder.execute("ALTER FUNCTION totp_shard.totp_prune_audit(interval, text) RENAME TO away")
        holder.commit()
        assert error_of(conn, "SELECT * FROM totp_prune_audit('1 year')").diag.message_detail == "Done on s1."
        holder.execute("ALTER FUNCTION totp_shard.away(interval, text) RENAME TO totp_prune_audit")
        holder.commit()


def test_a_rotation_is_refused_where_it_is_on_one_server(router, conn):
    """At another isolation level, and online in a transaction block: no shard has a new key afterwards."""
    import_users(conn, 12, prefix="refused")  # so that each shard has a key
    keys = "SELECT shard, key_id FROM totp_keys() ORDER BY shard, key_id"
    before = conn.execute(keys).fetchall()
    for begin, call in (("BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT * FROM totp_rotate_key()"),
                        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "SELECT * FROM totp_forget_unreadable('x')"),
                        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "CALL totp_rotate_key_online()"),
                        ("BEGIN READ ONLY", "CALL totp_rotate_key_online()"), ("BEGIN", "CALL totp_rotate_key_online()"),
                        ("BEGIN", "DO 'BEGIN CALL totp_rotate_key_online(); END'")):
        told = []
        for session in (conn, router.shards[0].database.connect()):
            session.execute(begin)
            error = error_of(session, call)
            told.append((error.sqlstate, error.diag.message_primary, error.diag.message_hint))
            session.execute("ROLLBACK")
        session.close()
        assert told[0] == told[1] and told[0][0] in ("25001", "25006", "2D000"), (begin, call)
    assert conn.execute(keys).fetchall() == before


def test_who_may_rotate_may_rotate_online(router, role):
    with closing(router.database.connect(role("admin"))) as app:
        app.execute("CALL totp_rotate_key_online(50)")
    with closing(router.database.connect(role("enroll"))) as app:
        for call in ("CALL totp_rotate_key_online()", "SELECT totp.rotate_online(50)"):
            assert error_of(app, call).sqlstate == "42501"


def test_a_lost_master_key_of_one_shard_is_forgotten_there(router, conn):
    users = import_users(conn, 12, prefix="forgotten")
    shard = router.shard_of(users[0])
    [fingerprint] = conn.execute("SELECT master_key FROM totp_keys() WHERE shard = %s", [shard.name]).fetchone()
    key = shard.cluster.key_file.read_text()
    assert error_of(conn, "SELECT * FROM totp_forget_unreadable(%s)", [fingerprint]).sqlstate == "22023"  # it is loaded
    shard.cluster.write_key_file(secrets.token_hex(32) + "\n")
    shard.cluster.restart()
    try:
        with closing(router.database.connect()) as conn:
            forgotten = conn.execute("SELECT user_id, shard FROM totp_forget_unreadable(%s)", [fingerprint]).fetchall()
            mine = {(user, shard.name) for user in users if router.shard_of(user) is shard}
            assert mine <= set(forgotten) and {name for _, name in forgotten} == {shard.name}
            assert {user for user in users if conn.execute("SELECT totp_enabled(%s)", [user]).fetchone()[0]} == set(users) - {user for user, _ in mine}
            assert error_of(conn, "SELECT * FROM totp_forget_unreadable(%s)", [fingerprint]).sqlstate == "22023"
    finally:
        shard.cluster.write_key_file(key)
        shard.cluster.restart()


def test_health_compares_the_map_with_the_shards(router, conn):
    shard = router.shards[-1]
    partitions = router.partitions_of(shard)
    query = "SELECT shard, status FROM totp_health() WHERE check_name = 'map' AND status <> 'ok'"
    assert conn.execute(query).fetchall() == []
    shard.serve(partitions[1:])
    assert conn.execute(query).fetchall() == [(shard.name, "fail")]
    assert error_of(conn, "SELECT * FROM totp_router.remove_unserved()").sqlstate == "55000"  # removes nobody by mistake
    shard.serve(partitions)
