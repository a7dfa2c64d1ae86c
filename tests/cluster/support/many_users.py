"""Many users at once, and what must be true of every sealed row."""

import base64
import hashlib
from datetime import datetime

import psycopg
import pytest
from totp import code_at, fix_clock

AT_ONCE = "SELECT * FROM totp_rotate_key()"
ONLINE = "CALL totp_rotate_key_online(1)"
both_kinds = pytest.mark.parametrize("rotate", [AT_ONCE, ONLINE], ids=["at once", "online"])

# The four bytes after the version byte of a sealed value name its data key.
NOT_UNDER_ITS_KEY = """
SELECT count(*)
  FROM (SELECT key_id, sealed FROM totp.secrets UNION ALL SELECT key_id, sealed FROM totp.recovery_codes) AS s
 WHERE substr(sealed, 2, 4) <> int4send(key_id) OR NOT EXISTS (SELECT FROM totp.data_keys k WHERE k.key_id = s.key_id)"""


def secret_of(user_id: str) -> str:
    """The base32 secret that a test gives to this user."""
    return base64.b32encode(hashlib.sha1(user_id.encode()).digest()).decode()


def import_users(conn: psycopg.Connection, size: int, first: int = 0, prefix: str = "user") -> list[str]:
    """Active users with the secrets of secret_of(), imported in one statement; their ids."""
    users = [f"{prefix}-{number:06}" for number in range(first, first + size)]
    query = "SELECT count(totp_import(u, s, confirmed => true)) FROM unnest(%s::text[], %s::text[]) AS given(u, s)"
    assert conn.execute(query, [users, [secret_of(user) for user in users]]).fetchone() == (size,)
    return users


def sign_in_all(conn: psycopg.Connection, users: list[str], when: datetime) -> int:
    """Sign in each of these users with the code of that time, in one statement; how many got in."""
    fix_clock(conn, when)
    codes = [code_at(secret_of(user), when) for user in users]
    query = "SELECT count(*) FROM unnest(%s::text[], %s::text[]) AS given(u, c) WHERE totp_verify(u, c)"
    return conn.execute(query, [users, codes]).fetchone()[0]


def keys(conn: psycopg.Connection) -> list[tuple[int, str]]:
    """Number and state of each data key."""
    return conn.execute("SELECT key_id, state FROM totp_keys()").fetchall()


def open_everything(conn: psycopg.Connection) -> tuple[int, int]:
    """Open every secret and every set of recovery codes, each under the one data key that it names; how many there are.

    A row that does not open, or whose data key is not there, is an error.
    """
    assert conn.execute(NOT_UNDER_ITS_KEY).fetchone() == (0,)
    with conn.transaction(force_rollback=True):  # a rotation opens everything, and nothing else does
        [[key, secrets]] = conn.execute(AT_ONCE).fetchall() if keys(conn) else [[0, 0]]
        [[under, elsewhere]] = conn.execute("SELECT count(*) FILTER (WHERE key_id = %s), count(*) FILTER (WHERE key_id <> %s) FROM totp.recovery_codes", [key, key])
    assert elsewhere == 0
    return secrets, under


# Rows as the extension writes them, but for what is sealed, which nobody opens: active users with recovery codes, and two audit
# rows of each. One in a hundred has no row of attempts, so is an orphan.
SYNTHETIC = """
INSERT INTO totp.secrets (user_id, device, slot, secret_id, version, key_id, sealed, algorithm, digits, period, issuer, account_name, created_at, confirmed_at, enforced_since)
SELECT id, 'default', 'active', n, 1, {key}, sha256(int8send(n)), 'SHA1', 6, 30, 'Example', id, {at}, {at}, {at} FROM {numbers};
INSERT INTO totp.recovery_codes (user_id, set_id, count, key_id, sealed, created_at)
SELECT id, 1000000000 + n, 10, {key}, sha256(int8send(-n)), {at} FROM {numbers};
INSERT INTO totp.used_codes (time_step, used_at, uses, recovery_mask, secret_id, user_id)
SELECT 0, {at}, 1, 0, secret, id FROM {numbers}, unnest(ARRAY[n, 1000000000 + n]) AS secret;
INSERT INTO totp.attempts (locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures, user_id)
SELECT '-infinity', '-infinity', '-infinity', 0, 0, id FROM {numbers} WHERE n % 100 > 0;
INSERT INTO totp.audit_log (at, event, user_id, actor, db_user, application_name)
SELECT {at}, event, id, 'app', 'app', 'web' FROM {numbers}, unnest(ARRAY['imported', 'failed']) AS event"""


def synthetic_users(conn: psycopg.Connection, size: int, first: int = 1, at: str = "now()") -> None:
    """So many of them, from a number on, by plain INSERTs. There must be a data key."""
    [[key]] = conn.execute("SELECT max(key_id) FROM totp.data_keys")
    numbers = f"(SELECT n, 'user-' || to_char(n, 'FM00000000') AS id FROM generate_series({first}::bigint, {first + size - 1}) AS n) AS users"
    for statement in SYNTHETIC.split(";\n"):
        conn.execute(statement.format(key=key, at=at, numbers=numbers))
