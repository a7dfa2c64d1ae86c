"""totp_rotate_key() against a bare UPDATE that rewrites the same column of the same rows, and against a client's loop."""

import os
from contextlib import closing

import fixture
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import application

ROWS = fixture.scaled(1_000_000, 1_000)
CLIENT_ROWS = fixture.scaled(20_000, 200)
ROUNDS = 3


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        client = cluster.create_database()
        fixture.make_users(database, ROWS)
        fixture.make_users(client, CLIENT_ROWS)
        application.make_application(client)
        with closing(database.connect()) as conn:
            ours, bare, by_client = [], [], []
            for round_ in range(ROUNDS):
                fixture.say(f"round {round_ + 1} of {ROUNDS}")
                # Each side starts with the table as the other side left it, vacuumed.
                bare.append(_time(conn, "UPDATE totp.secrets SET sealed = sealed || ''::bytea, key_id = key_id"))
                ours.append(_time(conn, "SELECT totp_rotate_key()"))
                by_client.append(_by_client(client))
            moved = conn.execute("SELECT sum(secrets) FROM totp_keys()").fetchone()[0]
            assert moved == ROWS, moved
            fixture.say("online")
            online = _time(conn, "CALL totp_rotate_key_online(10000)")
        per_secret = [seconds / ROWS * 1e6 for seconds in ours]
        return fixture.version(cluster), [
            compare(f"totp_rotate_key(), {ROWS:,} secrets; other: a bare UPDATE", ours, bare, "s", 1.5, decimals=2),
            compare("the same, per secret; other: a Python client, row by row", per_secret, by_client, "µs"),
            figure(f"totp_rotate_key_online(10000), {ROWS:,} secrets", f"{online:,.1f} s"),
        ]


def _by_client(database) -> float:
    """Microseconds per secret of a client that fetches, decrypts, encrypts and updates each row, in one transaction."""
    old, new = AESGCM(application.KEY), AESGCM(application.KEY)
    key, sealed = "(user_id, device, slot) = (%s, %s, %s)", "user_id, device, slot, sealed"
    with closing(database.connect()) as conn:
        conn.execute("VACUUM app_secrets")
        conn.execute("CHECKPOINT")
        before = conn.execute("SELECT clock_timestamp()").fetchone()[0]
        with conn.transaction():
            for *row, box in conn.execute(f"SELECT {sealed} FROM app_secrets FOR UPDATE").fetchall():
                aad, nonce = row[0].encode(), os.urandom(12)
                secret = old.decrypt(box[:12], box[12:], aad)
                conn.execute(f"UPDATE app_secrets SET sealed = %s, key_id = key_id + 1 WHERE {key}",
                             [nonce + new.encrypt(nonce, secret, aad), *row])
        after = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    return (after - before).total_seconds() * 1e6 / CLIENT_ROWS


def _time(conn, statement: str) -> float:
    conn.execute("VACUUM totp.secrets")
    conn.execute("CHECKPOINT")
    return fixture.seconds(conn, statement)
