"""Import of many secrets in one statement: all or nothing, and an error names the user of the bad row."""

import random
import secrets
from contextlib import closing

import pytest
from imported_secrets import NOTHING, SECRET, assert_not_told, base32, import_, stored, told_by, uri_of
from totp import NOON, code_at, enabled, error_of, verify


def legacy_table(conn, rows) -> None:
    """What the system before had: a table of users and secrets."""
    conn.execute("DROP TABLE IF EXISTS legacy")
    conn.execute("CREATE TABLE legacy (user_id text PRIMARY KEY, secret text)")
    with conn.cursor().copy("COPY legacy FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def random_users(count: int) -> dict[str, str]:
    return {f"user {number:05}": base32(secrets.token_bytes(20)) for number in range(count)}


@pytest.fixture
def role(quick_db):
    """A role that may import, and read the table."""
    role = quick_db.create_role("admin")
    quick_db.execute(f"GRANT pg_read_all_data TO {role}; DELETE FROM totp.audit_log")
    return role


def test_20000_users_are_imported_at_once(quick_db, conn, role):
    users = random_users(20_000)
    legacy_table(conn, users.items())
    with closing(quick_db.connect(role)) as admin:
        imported = admin.execute("SELECT totp_import(user_id, secret, confirmed => true) FROM legacy").fetchall()
    assert len(imported) == 20_000
    assert stored(conn) == {**NOTHING, "secrets": 20_000, "used_codes": 20_000, "attempts": 20_000, "audit_log": 20_000}
    assert conn.execute("SELECT count(*) FROM legacy JOIN totp.secrets s USING (user_id)"
                        " WHERE slot = 'active' AND enforced_since IS NOT NULL AND expires_at IS NULL").fetchone() == (20_000,)
    assert conn.execute("SELECT count(*), count(DISTINCT user_id) FROM totp.audit_log WHERE event = 'imported'").fetchone() == (20_000, 20_000)
    for user_id in random.Random(1).sample(sorted(users), 50):
        assert enabled(conn, user_id)
        assert verify(conn, user_id, code_at(users[user_id], NOON)) is True
        assert verify(conn, user_id, code_at(users[user_id], NOON)) is False


BAD_ROWS = {
    "no base32": ("bob", "NOT-VALID-8910" + SECRET, "22023"),
    "a lost character": ("bob", SECRET + "A", "22023"),
    "too weak": ("bob", SECRET[:16], "22023"),
    "too short": ("bob", SECRET[:8], "22023"),
    "no secret": ("bob", None, "22023"),
    "a broken URI": ("bob", uri_of(SECRET, "bob", digits="6%"), "22023"),
    "a counter's URI": ("bob", f"otpauth://hotp/bob?secret={SECRET}&counter=1", "22023"),
    "a colon in the user id": ("tenant:bob", SECRET, "22023"),
    "a user id with quotes": ('b"o\\b', SECRET + "A", "22023"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named_by_its_user_and_nothing_is_stored(quick_db, conn, bad):
    user_id, secret, sqlstate = BAD_ROWS[bad]
    users = random_users(200)
    legacy_table(conn, [*list(users.items())[:150], (user_id, secret), *list(users.items())[150:]])
    logged = quick_db.cluster.log_end()
    error = error_of(conn, "SELECT totp_import(user_id, secret, confirmed => true) FROM legacy")
    assert error.sqlstate == sqlstate
    quoted = user_id.replace("\\", "\\\\").replace('"', '\\"')
    assert f'user "{quoted}"' in error.diag.message_detail
    told = told_by(error) + quick_db.cluster.log_text(logged)
    for some in (secret or "", *users.values()):
        assert_not_told(some, told)
    assert stored(conn) == NOTHING


@pytest.mark.parametrize("trouble, sqlstate", [("another device has it", "22023"), ("too many devices", "54000"), ("disabled", "55000")])
def test_a_row_that_cannot_be_stored_is_named_too(quick_db, conn, trouble, sqlstate):
    import_(conn, "bob", SECRET if trouble == "another device has it" else base32(secrets.token_bytes(20)), device="old", confirmed=True)
    device = "old" if trouble == "disabled" else "new"
    if trouble == "disabled":
        conn.execute("SELECT totp_disable('bob')")
    elif trouble == "too many devices":
        conn.execute("SET totp.max_devices = 1")
    before = stored(conn)
    legacy_table(conn, [*random_users(20).items(), ("bob", SECRET)])
    error = error_of(conn, "SELECT totp_import(user_id, secret, device => %s, confirmed => true) FROM legacy", [device])
    assert error.sqlstate == sqlstate and 'user "bob"' in error.diag.message_detail
    assert_not_told(SECRET, told_by(error))
    assert stored(conn) == before


def test_good_rows_are_imported_and_bad_ones_listed(quick_db, conn, role):
    """The pattern for a table that is not all in order: one block for each row."""
    users = random_users(1000)
    bad = {f"bad {name}": row[1] for name, row in BAD_ROWS.items() if ":" not in row[0] and row[1]}
    bad["bad: a colon"] = SECRET
    rows = [*users.items(), *bad.items(), ("bad nothing", None)]
    random.Random(3).shuffle(rows)
    legacy_table(conn, rows)
    conn.execute("CREATE TABLE IF NOT EXISTS rejected (user_id text, sqlstate text, reason text, detail text, context text)")
    conn.execute("TRUNCATE rejected")
    conn.execute(f"GRANT INSERT ON rejected TO {role}")
    with closing(quick_db.connect(role)) as admin:
        admin.execute("""
            DO $$
            DECLARE
              old       legacy;
              rejection rejected;
            BEGIN
              FOR old IN SELECT * FROM legacy LOOP
                BEGIN
                  PERFORM totp_import(old.user_id, old.secret, confirmed => true);
                EXCEPTION WHEN invalid_parameter_value THEN
                  GET STACKED DIAGNOSTICS rejection.reason = MESSAGE_TEXT, rejection.sqlstate = RETURNED_SQLSTATE,
                    rejection.detail = PG_EXCEPTION_DETAIL, rejection.context = PG_EXCEPTION_CONTEXT;
                  rejection.user_id := old.user_id;
                  INSERT INTO rejected SELECT rejection.*;
                END;
              END LOOP;
            END
            $$""")
    rejected = conn.execute("SELECT * FROM rejected").fetchall()
    assert {row[0] for row in rejected} == {*bad, "bad nothing"} and len(rejected) == len(bad) + 1
    assert {row[1] for row in rejected} == {"22023"}
    for secret in bad.values():
        assert_not_told(secret, "\n".join(map(str, rejected)))
    assert stored(conn) == {**NOTHING, "secrets": 1000, "used_codes": 1000, "attempts": 1000, "audit_log": 1000}
    assert not [user_id for user_id in (*bad, "bad nothing") if enabled(conn, user_id)]
    for user_id in random.Random(4).sample(sorted(users), 20):
        assert verify(conn, user_id, code_at(users[user_id], NOON)) is True
