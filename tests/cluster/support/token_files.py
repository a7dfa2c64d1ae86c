"""Files of hardware tokens: those of the source of python-pskc, and what it, pskctool and totp_read_tokens() read of them."""

import re
import subprocess
import sys
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psycopg
from pskc import PSKC
from pskc.exceptions import KeyDerivationError
from pskc.key import Key

FILES = Path(sys.prefix) / "python-pskc/tests"  # tools/test-packages.sh unpacks it there
# What the tests of python-pskc open them with. The key of RFC 6030 where no other is named.
RFC_KEY = "12345678901234567890123456789012"
UP_TO_31 = bytes(range(32)).hex()
KEYS = {
    "actividentity/test.pskcxml": "fe0de6b806c09b762c4b49a666a27b72",
    "encryption/aes192-cbc.pskcxml": "123456789012345678901234567890123456789012345678",
    "encryption/aes256-cbc.pskcxml": "1234567890123456789012345678901234567890123456789012345678901234",
    "encryption/kw-aes128.pskcxml": UP_TO_31[:32], "encryption/kw-aes192.pskcxml": UP_TO_31[:48], "encryption/kw-aes256.pskcxml": UP_TO_31,
    "nagraid/file1.pskcxml": "4A057F6AB6FCB57AB5408E46A9835E68",
}
PASSWORDS = {"misc/SampleFullyQualifiedNS.xml": "3FCA3158035072D6"}


class Token(NamedTuple):
    """A row of totp_read_tokens()."""

    serial: str | None
    manufacturer: str | None
    model: str | None
    user_id: str | None
    secret: str | None
    algorithm: str | None
    digits: int | None
    period: int | None
    drift: int | None
    expires_at: datetime | None
    problem: str | None


def read_tokens(conn: psycopg.Connection, document: str, format: str = "pskc", **keys) -> list[Token]:
    """totp_read_tokens()."""
    names = "".join(f", {name} => %({name})s" for name in keys)
    query = f"SELECT * FROM totp_read_tokens(%(document)s, %(format)s{names})"
    return [Token(*row) for row in conn.execute(query, {"document": document, "format": format, **keys}).fetchall()]


def documents() -> list[str]:
    """The names of the files with a PSKC document."""
    files = (path for path in FILES.rglob("*") if path.is_file() and path.suffix != ".doctest")
    return sorted(str(path.relative_to(FILES)) for path in files if re.search(r"<\S*Container[\s>]", path.read_text(errors="replace")))


def keys_of(name: str, document: str) -> dict:
    """The argument that opens a document."""
    if "#pbkdf2" in document or "PBESalt" in document:
        return {"password": PASSWORDS.get(name, "qwerty")}
    return {"key": bytes.fromhex(KEYS.get(name, RFC_KEY))}


def as_totp(document: str) -> str:
    """The document with TOTP for HOTP, and for no algorithm. Most files that are encrypted have these; all else in them stays."""
    document = re.sub(r"(keyprov:pskc[:#]|keyprov/pskc#)hotp", r"\1totp", document).replace('Algorithm="HOTP"', 'Algorithm="TOTP"')
    return re.sub(r"<((?:\w+:)?Key)(?=[\s>])(?![^>]*Algorithm)", r'<\1 Algorithm="urn:ietf:params:xml:ns:keyprov:pskc:totp"', document)


def by_python_pskc(path: Path, key: bytes | None = None, password: str | None = None) -> list[Key]:
    """What python-pskc reads. It decrypts a value when it is asked for."""
    pskc = PSKC(str(path))
    if password is not None:
        with suppress(KeyDerivationError):
            pskc.encryption.derive_key(password)
    elif key is not None:
        pskc.encryption.key = key
    return pskc.keys


def expiry_of(key: Key) -> datetime | None:
    """The earlier date, as totp_read_tokens() has it."""
    dates = [date if date.tzinfo else date.replace(tzinfo=UTC) for date in (key.policy.expiry_date, key.expiry_date) if date]
    return min(dates, default=None)


def secrets_by_pskctool(path: Path) -> list[bytes | None]:
    """The secret of each key in clear, by pskctool, which is of another make."""
    shown = subprocess.run(["pskctool", "--info", str(path)], check=True, capture_output=True, text=True).stdout
    keys = re.split(r"\n\s*Key:\n", shown)[1:]
    found = [re.search(r"Key Secret \(base64\): (\S+)", key) for key in keys]
    return [b64decode(match[1]) if match else None for match in found]
