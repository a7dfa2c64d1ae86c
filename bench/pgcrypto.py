"""The same sign-in in PL/pgSQL with pgcrypto, as it is commonly written: decrypt, hmac, window, a row per used code."""

import base64
from contextlib import closing

import fixture

CALLS = 500
ROUNDS = fixture.scaled(12, 3)
KEY = "correct horse battery staple, thirty-two"
RAW_KEY = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
# The secret's 20 bytes, encrypted: as pgcrypto's manual recommends, or with plain AES, which it advises against (a changed
# secret is not detected).
DECRYPT = {
    "pgp": f"pgp_sym_decrypt_bytea(s.sealed, '{KEY}')",
    "pgp128": f"pgp_sym_decrypt_bytea(s.sealed, '{KEY}')",
    "raw": f"decrypt_iv(substr(s.sealed, 17), '\\x{RAW_KEY}', substr(s.sealed, 1, 16), 'aes-cbc')",
}
ENCRYPT = {
    "pgp": f"pgp_sym_encrypt_bytea(%s, '{KEY}', 'cipher-algo=aes256')",  # the cipher of the other side
    "pgp128": f"pgp_sym_encrypt_bytea(%s, '{KEY}')",  # pgcrypto's default
    "raw": f"i || encrypt_iv(%s, '\\x{RAW_KEY}', i, 'aes-cbc')",
}


def measure(compare, figure):
    users = CALLS * (ROUNDS + 1)
    with fixture.server() as cluster:
        database = cluster.create_database()
        fixture.make_users(database, users)
        with closing(database.connect()) as conn:
            conn.execute("CREATE EXTENSION pgcrypto")
            for kind in DECRYPT:
                fixture.say(f"encrypting with pgcrypto, {kind}")
                _make(conn, kind, users)
            conn.execute("VACUUM (ANALYZE)")
            fixture.say("sign-ins")
            ours, pgp, pgp128, raw = zip(*[_round(conn, round_) for round_ in range(ROUNDS + 1)][1:], strict=True)
            accepted = [conn.execute(f"SELECT count(*) FROM {kind}_used").fetchone()[0] for kind in DECRYPT]
        assert [fixture.uses(database), *accepted] == [users] * 4, "a code was not accepted"
        other = "accepted, in the server; other: {}, hmac(), INSERT"
        lines = [compare(other.format("pgp_sym_decrypt() of AES-256"), ours, pgp, "µs", 20, times_faster=True),
                 compare(other.format("pgp_sym_decrypt() of AES-128"), ours, pgp128, "µs", times_faster=True),
                 compare(other.format("decrypt_iv(), unauthenticated"), ours, raw, "µs", times_faster=True)]
        return fixture.version(cluster), lines


def _make(conn, kind: str, users: int) -> None:
    secret = base64.b32decode(fixture.SECRET)
    conn.execute(f"""
        CREATE TABLE {kind}_secrets (user_id text PRIMARY KEY, sealed bytea NOT NULL);
        CREATE TABLE {kind}_used (user_id text, step bigint, used_at timestamptz NOT NULL, PRIMARY KEY (user_id, step));
        CREATE FUNCTION {kind}_sign_in(who text, code text) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE
          secret bytea;
          mac bytea;
          at int;
          matched bigint;
          now_step bigint := floor(extract(epoch FROM clock_timestamp()) / {fixture.PERIOD});
        BEGIN
          SELECT {DECRYPT[kind]} INTO secret FROM {kind}_secrets s WHERE user_id = who;
          FOR step IN now_step - 1 .. now_step + 1 LOOP
            mac := hmac(int8send(step), secret, 'sha1');
            at := get_byte(mac, 19) & 15;
            IF lpad(((((get_byte(mac, at) & 127) << 24) | (get_byte(mac, at + 1) << 16)
                      | (get_byte(mac, at + 2) << 8) | get_byte(mac, at + 3)) % 1000000)::text, 6, '0') = code THEN
              matched := step;
            END IF;
          END LOOP;
          IF matched IS NULL THEN
            RETURN false;
          END IF;
          INSERT INTO {kind}_used VALUES (who, matched, clock_timestamp()) ON CONFLICT DO NOTHING;
          RETURN FOUND;
        END $$;""")
    conn.execute(f"INSERT INTO {kind}_secrets SELECT 'u' || n, {ENCRYPT[kind]} FROM generate_series(1, %s) n, gen_random_bytes(16) i",
                 [secret, users])


def _round(conn, round_: int) -> tuple[float, ...]:
    """Microseconds per call of all sides, over users that have not signed in before."""
    first = 1 + CALLS * round_
    code = fixture.now().good
    calls = [f"{function}('u' || n, '{code}')" for function in ("totp_verify", *(f"{kind}_sign_in" for kind in DECRYPT))]
    times = [0.0] * len(calls)
    for i in range(len(calls)):
        side = (i + round_) % len(calls)
        times[side] = fixture.loop_microseconds(conn, calls[side], first, first + CALLS - 1)
    return tuple(times)
