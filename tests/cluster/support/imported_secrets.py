"""What the tests of totp_import() share: a secret of which any part can be recognized, and what no message may say of it."""

import subprocess
from base64 import b32decode, b32encode
from datetime import datetime

import psycopg
from totp import error_of

SECRET = "NQ3YXH6DKR5VZ2TMUJEOGWBA7PSFICL4"  # 20 bytes, and no word in it that a message may hold
BYTES = b32decode(SECRET).hex()
TABLES = ["secrets", "used_codes", "attempts", "recovery_codes", "audit_log"]


def base32(data: bytes) -> str:
    return b32encode(data).decode().rstrip("=")


def import_(conn, user_id, secret, **parameters) -> str:
    """totp_import with these named parameters; the URI it returns."""
    names = "".join(f", {name} => %({name})s" for name in parameters)
    query = f"SELECT totp_import(%(user_id)s, %(secret)s{names})"
    return conn.execute(query, {"user_id": user_id, "secret": secret, **parameters}).fetchone()[0]


def uri_of(secret, label="alice", **parameters) -> str:
    return f"otpauth://totp/{label}?secret={secret}" + "".join(f"&{name}={value}" for name, value in parameters.items())


def oathtool(secret: bytes, when: datetime | int, algorithm="SHA1", digits=6, period=30) -> str:
    """The code of a secret at a time (or unix seconds), by oathtool: an implementation that is not ours and, unlike pyotp, takes weak secrets."""
    unix_time = when if isinstance(when, int) else int(when.timestamp())
    command = ["oathtool", f"--totp={algorithm}", f"--digits={digits}", f"--time-step-size={period}s", f"--now=@{unix_time}", secret.hex()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def status(conn, columns="device, state, version", user_id="alice"):
    return conn.execute(f"SELECT {columns} FROM totp_status(%s)", [user_id]).fetchall()


def stored(conn) -> dict[str, int]:
    return {table: conn.execute(f"SELECT count(*) FROM totp.{table}").fetchone()[0] for table in TABLES}


NOTHING = dict.fromkeys(TABLES, 0)


def told_by(error: psycopg.Error) -> str:
    """Everything that an error says, to its user or to the program."""
    fields = [getattr(error.diag, name) for name in dir(error.diag) if not name.startswith("_")]
    return "\n".join(map(str, [error, *error.args, *fields]))


def assert_not_told(secret: str, text: str) -> None:
    """Nothing of the secret that was given, as base32 or in a URI, is in a text, nor of SECRET: no six characters in a row."""
    given = secret if ":/" not in secret and "?" not in secret else secret.partition("secret=")[2].partition("&")[0]
    for form in ("".join(filter(str.isalnum, given)), SECRET, BYTES):
        assert not [part for part in _parts(form.upper(), 6) if part in text.upper()]


def _parts(text: str, length: int) -> set[str]:
    return {text[start:start + length] for start in range(len(text) - length + 1)}


def refused(conn, db, user_id, secret, **parameters) -> psycopg.Error:
    """22023 with a DETAIL that says what is accepted; the secret is neither in the message nor in the server log."""
    logged = db.cluster.log_end()
    names = "".join(f", {name} => %({name})s" for name in parameters)
    error = error_of(conn, f"SELECT totp_import(%(user_id)s, %(secret)s{names})", {"user_id": user_id, "secret": secret, **parameters})
    assert error.sqlstate == "22023", error
    assert error.diag.message_detail
    log = db.cluster.log_text(logged)
    assert error.diag.message_primary in log
    assert_not_told(secret, told_by(error))
    assert_not_told(secret, log)
    return error
