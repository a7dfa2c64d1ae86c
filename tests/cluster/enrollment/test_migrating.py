"""docs/migrating-from.md: each recipe on the tables of the other system. Who is imported signs in with oathtool's code.

The tables and secrets of django-otp, privacyIDEA and better-auth are made by their own code, the others by peers.py.
"""

import itertools
import json
import os
import secrets
import subprocess
import sys
import uuid
from base64 import b32decode, b64encode, urlsafe_b64encode
from typing import NamedTuple

import peers
import pytest
from cryptography.hazmat.primitives import hashes
from documents import block, block_with
from imported_secrets import base32, oathtool
from server import CHECKOUT, PROJECT
from totp import NOON, verify

PAGE = "migrating-from.md"
SHORT = "secret is too short"
SHAPES = list(itertools.product(("SHA1", "SHA256", "SHA512"), (6, 8), (30, 60)))


class User(NamedTuple):
    """Who must be able to sign in: drift is how many steps their clock is ahead."""

    user_id: str
    secret: bytes
    algorithm: str = "SHA1"
    digits: int = 6
    period: int = 30
    drift: int = 0


def sign_in(conn, users: list[User]) -> None:
    """Each user signs in, and nobody else was imported."""
    assert users
    for user in users:
        shown_at = int(NOON.timestamp()) + user.drift * user.period
        assert verify(conn, user.user_id, oathtool(user.secret, shown_at, user.algorithm, user.digits, user.period)) is True, user
    imported = {user_id for user_id, in conn.execute("SELECT user_id FROM totp.secrets")}
    assert imported == {user.user_id for user in users}


def tables(db, text: str) -> None:
    """The tables of the page, without its rows."""
    db.psql(block_with(PAGE, text))
    db.psql("TRUNCATE " + text.removeprefix("CREATE TABLE ").removesuffix(" ("))


def import_by_statement(conn, text: str) -> list[tuple]:
    """What the statement of the page lists."""
    conn.execute(block_with(PAGE, "FUNCTION pg_temp.try_import"))
    return conn.execute(block_with(PAGE, text)).fetchall()


def environment(db) -> dict[str, str]:
    return {"PGHOST": str(db.cluster.folder), "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": db.name}


def import_by_program(db, folder, name: str, **variables: str) -> list[str]:
    """What the program of the page prints. No statement that it sends has a secret in it: the log has them all."""
    for file in ("import_rows.py", name):
        (folder / file).write_text(block(PAGE, file))
    variables.setdefault("PGOPTIONS", "")
    variables["PGOPTIONS"] += " -c log_statement=all -c log_parameter_max_length=0"
    return subprocess.run([sys.executable, name], cwd=folder, env={**os.environ, **environment(db), **variables}, check=True,
                          text=True, stdout=subprocess.PIPE).stdout.splitlines()


def assert_not_logged(db, logged: int, users: list[User]) -> None:
    log = db.cluster.log_text(logged)
    assert "SELECT totp_import(user_id => $1" in log
    for user in users:
        assert not [form for form in (base32(user.secret), user.secret.hex(), user.secret.decode("latin1")) if form in log]


def by_peer(db, command: list[str], given, **variables: str):
    """What a program of the other system prints for this."""
    return json.loads(subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **environment(db), **variables}, input=json.dumps(given),
                                     check=True, text=True, stdout=subprocess.PIPE).stdout)


def test_authelia(quick_db, conn, tmp_path):
    tables(quick_db, "CREATE TABLE totp_configurations (")
    users = [User(f"user {n}", secrets.token_bytes(20), *shape) for n, shape in enumerate(SHAPES)]
    rows = [(user.user_id, user.algorithm, user.digits, user.period, peers.authelia(base32(user.secret), "key")) for user in users]
    rows += [("short", "SHA1", 6, 30, peers.authelia("GEZDGNBV", "key")), ("other key", "SHA1", 6, 30, peers.authelia(base32(bytes(20)), "other"))]
    conn.cursor().executemany("INSERT INTO totp_configurations (username, algorithm, digits, period, secret) VALUES (%s, %s, %s, %s, %s)", rows)
    logged = quick_db.cluster.log_end()
    printed = import_by_program(quick_db, tmp_path, "import_authelia.py", AUTHELIA_STORAGE_ENCRYPTION_KEY="key")
    assert sorted(printed) == ["other key cannot be opened: InvalidTag", f"short {SHORT}"]
    sign_in(conn, users)
    assert_not_logged(quick_db, logged, users)


def test_better_auth(quick_db, conn, tmp_path):
    several = {"keys": [[1, "first"], [2, "second"]], "currentVersion": 2}
    imported = secrets.token_bytes(20)
    texts = [{"key": "only"}, {"key": several}, {"key": several, "text": f"base32:{base32(imported)}"}, {"key": "only", "text": "short"},
             {"key": "another"}, {"key": "only"}, {"key": "only"}]
    made = by_peer(quick_db, ["node", "tests/clients/node/better-auth.mjs"], texts, NODE_PATH=f"{PROJECT['CLIENTS']}/node/node_modules")
    states = [(True, True)] * 5 + [(True, False), (False, True)]
    for name, item, (enabled, verified) in zip("abcdefg", made, states, strict=True):
        conn.execute('INSERT INTO "user" (id, name, email, "emailVerified", "twoFactorEnabled") VALUES (%s, %s, %s, true, %s)', [name, name, name, enabled])
        conn.execute('INSERT INTO "twoFactor" (id, secret, "backupCodes", "userId", verified) VALUES (%s, %s, %s, %s, %s)', [name, item["sealed"], "", name, verified])
    logged = quick_db.cluster.log_end()
    printed = import_by_program(quick_db, tmp_path, "import_better_auth.py", BETTER_AUTH_SECRET="only", BETTER_AUTH_SECRETS="1:first,2:second")
    assert sorted(printed) == [f"d {SHORT}", "e cannot be opened: CryptoError"]
    users = [User("a", made[0]["text"].encode()), User("b", made[1]["text"].encode()), User("c", imported)]
    sign_in(conn, users)
    assert_not_logged(quick_db, logged, users)


@pytest.mark.parametrize("digest", [hashes.SHA1(), hashes.SHA256()], ids=lambda digest: digest.name)
def test_devise_two_factor(quick_db, conn, tmp_path, digest):
    conn.execute("DROP TABLE IF EXISTS users")
    tables(quick_db, "CREATE TABLE users (")
    keys = {"PRIMARY_KEY": "primary", "KEY_DERIVATION_SALT": "salt", "OTP_KEY": "otp key of more than thirty-two bytes", "HASH_DIGEST_CLASS": digest.name.upper()}
    users = [User(str(n), secrets.token_bytes(20)) for n in range(1, 9)]
    rows = [(user.user_id, peers.active_record(base32(user.secret), "primary", "salt", digest), None, None, None, True) for user in users[:4]]
    rows += [(user.user_id, None, *peers.attr_encrypted(base32(user.secret), keys["OTP_KEY"]), True) for user in users[4:]]
    rows += [("11", peers.active_record("GEZDGNBV", "primary", "salt", digest), None, None, None, True),
             ("12", None, *peers.attr_encrypted(base32(bytes(20)), "another key of more than thirty-two bytes"), True),
             ("13", peers.active_record(base32(bytes(20)), "another", "salt", digest), None, None, None, True),
             ("14", None, *peers.attr_encrypted(base32(bytes(20)), keys["OTP_KEY"]), False)]
    conn.cursor().executemany("INSERT INTO users (id, otp_secret, encrypted_otp_secret, encrypted_otp_secret_iv, encrypted_otp_secret_salt,"
                              " otp_required_for_login, created_at, updated_at) VALUES (%s, %s, %s, %s, %s, %s, now(), now())", rows)
    logged = quick_db.cluster.log_end()
    printed = import_by_program(quick_db, tmp_path, "import_devise.py", **keys)
    assert sorted(printed) == [f"11 {SHORT}", "12 cannot be opened: InvalidTag", "13 cannot be opened: InvalidTag"]
    sign_in(conn, users)
    assert_not_logged(quick_db, logged, users)


def test_django_otp(quick_db, conn):
    shapes = [dict(step=step, digits=digits, drift=drift) for step in (30, 60) for digits in (6, 8) for drift in (-60, -3, 0, 7, 60)]
    given = [dict(username=f"user {n}", name="default", **shape) for n, shape in enumerate(shapes)]
    bad = [dict(name="default", t0=1), dict(name="default", key="6361726f6c"), dict(name="default", drift=61), dict(name="default", confirmed=False)]
    given += [dict(username=f"bad {n}", **fields) for n, fields in enumerate(bad)]
    made = by_peer(quick_db, [sys.executable, "tests/cluster/support/django_otp_devices.py"], given)
    listed = import_by_statement(conn, "FROM otp_totp_totpdevice\n         WHERE confirmed")
    bad = [(int(item["user_id"]), item["id"]) for item in made[-4:-1]]
    assert [row[:2] for row in sorted(listed)] == bad
    assert [row[2] for row in sorted(listed)] == ["t0 is not 0", SHORT, "invalid drift"]
    sign_in(conn, [User(item["user_id"], bytes.fromhex(item["key"]), "SHA1", shape["digits"], shape["step"], shape["drift"])
                   for item, shape in zip(made, shapes)])


def test_keycloak(quick_db, conn):
    tables(quick_db, "CREATE TABLE credential (")
    users, rows = [], []
    for n, ((algorithm, digits, period), encoding) in enumerate(itertools.product(SHAPES, (None, "BASE32"))):
        text = secrets.token_hex(10) if encoding is None else base32(secrets.token_bytes(20))
        users.append(User(str(uuid.uuid4()), text.encode() if encoding is None else b32decode(text), algorithm, digits, period))
        data = {"subType": "totp", "digits": digits, "counter": 0, "period": period, "algorithm": f"Hmac{algorithm}"}
        rows.append((users[-1].user_id, "otp", {"value": text}, data | ({"secretEncoding": encoding} if encoding or n % 4 else {})))
    good = {"subType": "totp", "digits": 6, "counter": 0, "period": 30, "algorithm": "HmacSHA1"}
    rows += [("short", "otp", {"value": "short"}, good), ("hotp", "otp", {"value": "x" * 20}, good | {"subType": "hotp"}), ("none", "otp", {}, good),
             ("md5", "otp", {"value": "x" * 20}, good | {"algorithm": "HmacMD5"}), ("codes", "recovery-authn-codes", {"codes": []}, {})]
    conn.cursor().executemany("INSERT INTO credential (id, user_id, type, secret_data, credential_data, user_label) VALUES (gen_random_uuid(), %s, %s, %s, %s, 'phone')",
                              [(user_id, type, json.dumps(secret), json.dumps(data)) for user_id, type, secret, data in rows])
    listed = import_by_statement(conn, "data->>'subType' = 'totp'")
    assert {user_id: problem for user_id, _, problem in listed} == {
        "short": SHORT, "hotp": "not TOTP", "none": 'argument "secret" must not be null', "md5": "invalid algorithm"}
    sign_in(conn, users)


def test_laravel_fortify(quick_db, conn, tmp_path):
    quick_db.psql(block_with(PAGE, "CREATE TABLE laravel.users (") + "TRUNCATE laravel.users")
    key, other = ("base64:" + b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    users = [User(str(n), secrets.token_bytes(10 if n % 2 else 20)) for n in range(8)]
    rows = [(user.user_id, peers.laravel(base32(user.secret), key, gcm=int(user.user_id) >= 4)) for user in users]
    rows += [("11", peers.laravel("GEZDGNBV", key)), ("12", peers.laravel(base32(bytes(20)), other)), ("13", peers.laravel(base32(bytes(20)), other, gcm=True)),
             ("15", peers.laravel(base32(bytes(20)), key, mac_key=other))]
    conn.cursor().executemany("INSERT INTO laravel.users (id, name, email, password, two_factor_secret, two_factor_confirmed_at)"
                              " VALUES (%s, '', gen_random_uuid(), '', %s, now())", rows)
    conn.execute("INSERT INTO laravel.users (id, name, email, password, two_factor_secret) VALUES (14, '', 'unconfirmed', '', 'x')")
    logged = quick_db.cluster.log_end()
    printed = import_by_program(quick_db, tmp_path, "import_fortify.py", APP_KEY=key, PGOPTIONS="-c search_path=laravel,public")
    assert sorted(printed) == [f"11 {SHORT}", "12 cannot be opened: ValueError", "13 cannot be opened: InvalidTag", "15 cannot be opened: ValueError"]
    sign_in(conn, users)
    assert_not_logged(quick_db, logged, users)


def test_ory_kratos(quick_db, conn):
    tables(quick_db, "CREATE TABLE identity_credentials (")
    users = [User(str(uuid.uuid4()), secrets.token_bytes(20)) for _ in range(8)]
    # As the library of Kratos writes them: the parameters in alphabetical order.
    urls = {user.user_id: f"otpauth://totp/Example:a%40example.com?algorithm=SHA1&digits=6&issuer=Example&period=30&secret={base32(user.secret)}" for user in users}
    bad = {str(uuid.uuid4()): problem for problem in (SHORT, "otpauth URI is not of type totp", 'argument "secret" must not be null')}
    configs = [*urls.items(), *zip(bad, ("otpauth://totp/a?secret=GEZDGNBV", "otpauth://hotp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", None))]
    insert = ("INSERT INTO identity_credentials (id, config, identity_credential_type_id, identity_id, created_at, updated_at)"
              " SELECT gen_random_uuid(), %s, id, %s, now(), now() FROM identity_credential_types WHERE name = %s")
    for identity, url in configs:
        conn.execute(insert, [json.dumps({"totp_url": url}), identity, "totp"])
    conn.execute(insert, [json.dumps({"recovery_codes": []}), users[0].user_id, "lookup_secret"])
    listed = import_by_statement(conn, "config->>'totp_url'")
    assert {str(identity): problem for identity, problem in listed} == bad
    sign_in(conn, users)


def test_privacyidea(quick_db, conn, tmp_path):
    (tmp_path / "enckey").write_bytes(secrets.token_bytes(96))
    users = [User(f"uid {n}", secrets.token_bytes(20), *shape, drift) for n, (shape, drift) in enumerate(itertools.product(SHAPES, (-5, 0, 12)))]
    made = by_peer(quick_db, [f"{PROJECT['CLIENTS']}/privacyidea/bin/python", "tests/clients/privacyidea/tokens.py", str(tmp_path / "enckey")],
                   [user.secret.hex() for user in users] + ["6361726f6c"])
    for table in made["tables"]:
        conn.execute(table)
    (short, short_iv), (sealed, iv) = made["tokens"][-1], made["tokens"][0]
    rows = [(user.user_id, "totp", key, key_iv, user.digits, user.algorithm.lower(), user.period, user.drift * user.period + 0.4)
            for user, (key, key_iv) in zip(users, made["tokens"])]
    rows += [("short", "TOTP", short, short_iv, 6, "sha1", 30, 0.0), ("cut", "totp", sealed[:30], iv, 6, "sha1", 30, 0.0), ("far", "totp", sealed, iv, 6, "sha1", 30, 1900.0),
             ("hotp", "hotp", sealed, iv, 6, "sha1", 30, 0.0), ("disabled", "totp", sealed, iv, 6, "sha1", 30, 0.0)]
    for number, (user_id, kind, key, key_iv, digits, algorithm, period, shift) in enumerate(rows):
        conn.execute("INSERT INTO token (id, serial, tokentype, otplen, key_enc, key_iv, active, revoked, locked, rollout_state)"
                     " VALUES (%s, %s, %s, %s, %s, %s, %s, false, false, '')", [number, f"T{number}", kind, digits, key, key_iv, user_id != "disabled"])
        conn.execute("INSERT INTO tokenowner (id, token_id, resolver, user_id) VALUES (%s, %s, 'ldap', %s)", [number, number, user_id])
        for place, (name, value) in enumerate((("hashlib", algorithm), ("timeStep", period), ("timeShift", shift))):
            conn.execute('INSERT INTO tokeninfo (id, token_id, "Key", "Value") VALUES (%s, %s, %s, %s)', [number * 3 + place, number, name, str(value)])
    logged = quick_db.cluster.log_end()
    printed = import_by_program(quick_db, tmp_path, "import_privacyidea.py", PI_ENCFILE="enckey")
    assert sorted(printed) == ["cut cannot be opened: ValueError", "far invalid drift", f"short {SHORT}"]
    sign_in(conn, users)
    assert_not_logged(quick_db, logged, users)


FACTOR = ("INSERT INTO auth.mfa_factors (id, user_id, friendly_name, factor_type, status, created_at, updated_at, secret)"
          " VALUES (%s, %s, 'phone', %s, %s, now(), now(), %s)")


@pytest.fixture
def factors(quick_db):
    quick_db.psql("DROP SCHEMA IF EXISTS auth CASCADE;" + block_with(PAGE, "CREATE TABLE auth.mfa_factors (") + "TRUNCATE auth.mfa_factors")


def test_supabase_auth(conn, factors):
    users = [User(str(uuid.uuid4()), secrets.token_bytes(20)) for _ in range(4)]
    for user in users:
        conn.execute(FACTOR, [uuid.uuid4(), user.user_id, "totp", "verified", base32(user.secret)])
    short = uuid.uuid4()
    conn.execute(FACTOR, [uuid.uuid4(), short, "totp", "verified", "GEZDGNBV"])
    conn.execute(FACTOR, [uuid.uuid4(), uuid.uuid4(), "totp", "unverified", base32(bytes(20))])
    conn.execute(FACTOR, [uuid.uuid4(), uuid.uuid4(), "phone", "verified", None])
    listed = import_by_statement(conn, "FROM auth.mfa_factors\n         WHERE")
    assert [(user_id, problem) for user_id, _, problem in listed] == [(short, SHORT)]
    sign_in(conn, users)


def test_supabase_auth_with_encryption(quick_db, conn, factors, tmp_path):
    keys = {name: urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=") for name in ("first", "second", "gone")}
    users = [User(str(uuid.uuid4()), secrets.token_bytes(20)) for _ in range(6)]
    for user, key in zip(users, ("first", "second", None) * 2):
        factor = str(uuid.uuid4())
        secret = base32(user.secret)
        conn.execute(FACTOR, [factor, user.user_id, "totp", "verified", peers.gotrue(secret, factor, key, keys[key]) if key else secret])
    short, lost, moved, factor = (str(uuid.uuid4()) for _ in range(4))
    conn.execute(FACTOR, [factor, short, "totp", "verified", peers.gotrue("GEZDGNBV", factor, "first", keys["first"])])
    conn.execute(FACTOR, [uuid.uuid4(), moved, "totp", "verified", peers.gotrue(base32(bytes(20)), factor, "first", keys["first"])])
    conn.execute(FACTOR, [uuid.uuid4(), lost, "totp", "verified", peers.gotrue(base32(bytes(20)), factor, "gone", keys["gone"])])
    logged = quick_db.cluster.log_end()
    printed = import_by_program(quick_db, tmp_path, "import_gotrue.py",
                                GOTRUE_SECURITY_DB_ENCRYPTION_DECRYPTION_KEYS=",".join(f"{name}:{keys[name]}" for name in ("first", "second")))
    assert sorted(printed) == sorted([f"{short} {SHORT}", f"{lost} cannot be opened: KeyError", f"{moved} cannot be opened: InvalidTag"])
    sign_in(conn, users)
    assert_not_logged(quick_db, logged, users)
