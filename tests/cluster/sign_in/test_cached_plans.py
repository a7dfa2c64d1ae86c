"""Plans that a session makes while the tables are empty, and keeps while one statement brings many users."""

from totp import SECRET

USERS = 500


def test_rows_of_a_user_are_read_by_their_key(conn):
    """After VACUUM PostgreSQL knows that a table is empty, and would scan it from then on."""
    tables = "totp.secrets, totp.used_codes, totp.attempts, totp.recovery_codes"
    conn.execute(f"VACUUM {tables}")
    conn.execute("SELECT count(totp_import('user ' || n, %s, confirmed => true)) FROM generate_series(1, %s) AS n", [SECRET, USERS])
    conn.execute("SELECT count(c) FROM generate_series(1, %s) AS n, totp_reset_recovery_codes('user ' || n) AS c", [USERS])
    conn.execute("DO $$ BEGIN FOR n IN 1..%s LOOP PERFORM totp_remove('user ' || n); END LOOP; END $$" % USERS)
    conn.execute(f"VACUUM {tables}")  # sessions plan again after it
    conn.execute("SELECT count(totp_import('user ' || n, %s, confirmed => true)) FROM generate_series(1, %s) AS n", [SECRET, USERS])
    conn.execute("SELECT pg_stat_force_next_flush()")
    scanned = "SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'totp' AND relname <> 'floor' AND seq_tup_read > %s"
    assert conn.execute(scanned, [10 * USERS]).fetchall() == []
