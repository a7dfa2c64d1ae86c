"""Search for secrets outside their rows: their forms, the wrapped keys of the tables, every place that keeps bytes.

The cryptography is written here a second time, with another library: tests open a sealed secret with it.
"""

import base64
import re
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from server import Cluster, Database

PAGE, SHORT_HEADER, LONG_HEADER, HAS_LONG_HEADER = 8192, 24, 40, 0x02


# --- what is looked for -------------------------------------------------------------------------------


def secret_bytes(base32: str) -> bytes:
    return base64.b32decode(base32 + "=" * (-len(base32) % 8))


def forms(raw: bytes) -> dict[str, bytes]:
    """The ways to write these bytes. Hexadecimal and base32 in lower case: Place.holds() looks for them in any case."""
    return {
        "raw": raw,
        "hex": raw.hex().encode(),
        "base32": base64.b32encode(raw).rstrip(b"=").lower(),
        "base64": base64.b64encode(raw).rstrip(b"="),
        "percent": "".join(f"%{byte:02x}" for byte in raw).encode(),
    }


def recovery_code_forms(code: str) -> dict[str, bytes]:
    """Besides the forms of its bytes: as it is shown, and the hash that is stored sealed."""
    raw = base64.b32decode(code.replace("-", ""))
    digest = Hash(SHA256())
    digest.update(b"pg_totp recovery code v1\0" + raw)
    return {"shown": code.lower().encode(), "raw": raw, "base32": code.replace("-", "").lower().encode(), "hash": digest.finalize()}


def key_forms(key: bytes) -> dict[str, bytes]:
    return {"raw": key, "hex": key.hex().encode(), "base64": base64.b64encode(key).rstrip(b"=")}


# --- the keys --------------------------------------------------------------------------------------------


def derived(key: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), 32, None, f"pg_totp v1 {purpose}".encode()).derive(key)


def unwrap(master: bytes, key_id: int, wrapped: bytes) -> bytes:
    """A data key from totp.data_keys."""
    assert wrapped[0] == 1
    fingerprint = derived(master, "master key fingerprint")[:8]
    return AESGCM(derived(master, "wrap data key")).decrypt(wrapped[1:13], wrapped[13:], b"\x01" + key_id.to_bytes(4, "big") + fingerprint)


def open_secret(data_key: bytes, sealed: bytes, user_id: str, device: str, secret_id: int, algorithm: str, digits: int, period: int) -> bytes:
    """A secret from totp.secrets."""
    assert sealed[0] == 1
    fields = [user_id.encode(), device.encode(), secret_id.to_bytes(8, "big"), algorithm.encode(), bytes([digits]), period.to_bytes(2, "big"), sealed[1:5]]
    context = b"\x01\x01" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return AESGCM(derived(data_key, "secret")).decrypt(sealed[5:17], sealed[17:], context)


# --- where it is looked for --------------------------------------------------------------------------------


class Place(NamedTuple):
    """Something that keeps bytes: as they are, and with capital letters made small."""

    name: str
    content: bytes
    lower: bytes

    def holds(self, form: str, needle: bytes) -> bool:
        return needle in (self.content if form in ("raw", "hash", "base64") else self.lower)


def place(name: str, content: bytes | str) -> Place:
    content = content.encode() if isinstance(content, str) else content
    return Place(name, content, content.lower())


def wal_segments(folder: Path) -> list[bytes]:
    return [path.read_bytes().rstrip(b"\0") for path in sorted(folder.iterdir()) if re.fullmatch("[0-9A-F]{24}", path.name)]


def wal_stream(folder: Path) -> bytes:
    """The WAL without the headers of its pages, which may stand in the middle of a value."""
    parts = []
    for content in wal_segments(folder):
        for start in range(0, len(content), PAGE):
            page = content[start:start + PAGE]
            parts.append(page[LONG_HEADER if page[2] & HAS_LONG_HEADER else SHORT_HEADER:] if len(page) > 2 else page)
    return b"".join(parts)


def activity(db: Database, conn: psycopg.Connection) -> str:
    """What pg_stat_activity shows of a session, which must be open for that."""
    return db.value("SELECT a::text FROM pg_stat_activity a WHERE pid = %s", [conn.info.backend_pid])


def places(server: Cluster, db: Database, slot: str, log: str, shown: list[str]) -> list[Place]:
    """Every file of the data directory and what leaves the server: dumps, decoded changes, statistics, a stretch of the log.

    And what pg_stat_activity showed of the sessions.
    """
    with closing(db.connect()) as conn:
        conn.execute("CHECKPOINT")
        decoded = conn.execute("SELECT data FROM pg_logical_slot_peek_changes(%s, NULL, NULL)", [slot]).fetchall()
        statements = conn.execute("SELECT s::text FROM pg_stat_statements s").fetchall()
    custom = server.folder / "dump"
    server.client("pg_dump", "-d", db.name, "-Fc", "-Z0", "-f", custom)
    found = [
        place("log", log), place("dump", server.client("pg_dump", "-d", db.name)), place("custom dump", custom.read_bytes()),
        place("dump of all", server.client("pg_dumpall")), place("decoded", "\n".join(row for [row] in decoded)),
        place("pg_stat_statements", "\n".join(row for [row] in statements)), place("pg_stat_activity", "\n".join(shown)),
        place("pg_wal", wal_stream(server.data / "pg_wal")),
    ]
    seen: set[bytes] = set()
    for path in sorted(path for path in server.data.rglob("*") if path.is_file() and path.parent.name != "pg_wal"):
        name, content = str(path.relative_to(server.data)), path.read_bytes()
        found.append(place(name, new_pages(content, seen) if name.startswith("base/") else content))
    return found


def new_pages(content: bytes, seen: set[bytes]) -> bytes:
    """The pages of a table that no file before had: databases have most of theirs from the template, but for LSN and checksum."""
    bodies = {content[start + 10:start + PAGE]: None for start in range(0, len(content), PAGE)}
    new = [body for body in bodies if body not in seen]
    seen.update(new)
    return b"".join(new)
