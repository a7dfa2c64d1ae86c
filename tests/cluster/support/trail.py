"""The sealed trail: an independent implementation of its canonical form, from docs/design/trail.md alone, and calls of the functions."""

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import NamedTuple

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


# --- The canonical form ------------------------------------------------------------


def record(*columns: bytes | None) -> bytes:
    """Version, the columns that are not NULL with tag and length, and a zero."""
    fields = [bytes([tag]) + len(value).to_bytes(8, "big") + value for tag, value in enumerate(columns, 1) if value is not None]
    return b"\x01" + b"".join(fields) + b"\x00"


def number(value: int | None) -> bytes | None:
    return None if value is None else value.to_bytes(8, "big", signed=True)


def time(value: datetime | None) -> bytes | None:
    return None if value is None else number((value - EPOCH) // timedelta(microseconds=1))


def text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def address(value) -> bytes | None:
    """As inet_send(): family, bits of the mask, no cidr, length, bytes."""
    if value is None:
        return None
    interface: IPv4Interface | IPv6Interface = ip_interface(value)
    packed = interface.ip.packed
    return bytes([2 if interface.version == 4 else 3, interface.network.prefixlen, 0, len(packed)]) + packed


def compact(value: str | None) -> bytes | None:
    """JSON without white space between its parts."""
    return None if value is None else json.dumps(json.loads(value), separators=(",", ":"), ensure_ascii=False).encode()


def ranges(value) -> bytes:
    """First and last of each range of ids; PostgreSQL's ranges end before their upper bound."""
    return b"".join(number(one.lower) + number(one.upper - 1) for one in value)


def audit_row(id, at, event, user_id, device, actor, db_user, client_addr, application_name, detail) -> bytes:
    return record(number(id), time(at), text(event), text(user_id), text(device), text(actor), text(db_user),
                  address(client_addr), text(application_name), compact(detail))


def seal(row) -> bytes:
    return record(
        number(row.seal_id), number(row.first_id), number(row.last_id), number(row.row_count), time(row.newest_at), row.rows_mac,
        ranges(row.holes), ranges(row.late), number(row.closed_seal), number(row.pruned_seal), number(row.next_xid),
        number(row.system_identifier), number(row.database), number(row.timeline), number(row.key_id), time(row.sealed_at),
        row.previous_mac)


# --- Keys --------------------------------------------------------------------------


def subkey(key: bytes, purpose: str) -> bytes:
    """HKDF-SHA256 with no salt and one block."""
    extracted = hmac.digest(bytes(32), key, hashlib.sha256)
    return hmac.digest(extracted, f"pg_totp v1 {purpose}".encode() + b"\x01", hashlib.sha256)


def fingerprint(master: bytes) -> bytes:
    return subkey(master, "master key fingerprint")[:8]


def unwrap(master: bytes, key_id: int, wrapped: bytes) -> bytes:
    assert wrapped[0] == 1
    bound = b"\x01" + key_id.to_bytes(4, "big", signed=True) + fingerprint(master)
    return AESGCM(subkey(master, "wrap audit key")).decrypt(wrapped[1:13], wrapped[13:], bound)


def mac_of_rows(key: bytes, rows: list[bytes]) -> bytes:
    return hmac.digest(subkey(key, "audit rows"), b"".join(rows), hashlib.sha256)


def mac_of_seal(key: bytes, sealed: bytes) -> bytes:
    return hmac.digest(subkey(key, "audit seals"), sealed, hashlib.sha256)


# --- The tables --------------------------------------------------------------------

COLUMNS = "id, at, event, user_id, device, actor, db_user::text, client_addr, application_name, detail::text"
COVERED = f"""SELECT {COLUMNS} FROM totp.audit_log a WHERE a.id BETWEEN %(first)s AND %(last)s AND NOT a.id <@ %(holes)s::int8multirange
              UNION ALL
              SELECT {COLUMNS} FROM totp.audit_log a
               WHERE a.id BETWEEN lower(%(late)s::int8multirange) AND upper(%(late)s::int8multirange) AND a.id <@ %(late)s::int8multirange
               ORDER BY id"""


def check_all(conn: psycopg.Connection, master_key: str) -> int:
    """Compute the MACs of all seals and their rows again, by the implementation here; how many rows they cover."""
    master, before, count = bytes.fromhex(master_key), bytes(32), 0
    with conn.cursor(row_factory=psycopg.rows.namedtuple_row) as cursor:
        wrapped = {row.key_id: row.wrapped for row in cursor.execute("SELECT * FROM totp.audit_keys").fetchall()}
        seals = cursor.execute("SELECT * FROM totp.audit_seals ORDER BY seal_id").fetchall()
    for row in seals:
        key = unwrap(master, row.key_id, wrapped[row.key_id])
        rows = conn.execute(COVERED, {"first": row.first_id, "last": row.last_id, "holes": row.holes, "late": row.late}).fetchall()
        assert row.rows_mac == mac_of_rows(key, [audit_row(*one) for one in rows]), row
        assert (row.previous_mac, row.row_count, row.newest_at) == (before, len(rows), max((one[1] for one in rows), default=None))
        assert row.mac == mac_of_seal(key, seal(row)), row
        before, count = row.mac, count + len(rows)
    return count


# --- Calls -------------------------------------------------------------------------


class Finding(NamedTuple):
    seal_id: int | None
    first_id: int | None
    last_id: int | None
    status: str
    problem: str | None


def seal_all(conn: psycopg.Connection) -> None:
    conn.execute("CALL totp_audit_seal()")


def verify_trail(conn: psycopg.Connection, anchor: str | None = None, since_seal: int | None = None) -> list[Finding]:
    """All findings, without the last row."""
    found = conn.execute("SELECT * FROM totp_audit_verify(%s, %s)", [anchor, since_seal]).fetchall()
    *findings, last = [Finding(*row) for row in found]
    assert last.seal_id is None and last.status == "ok"
    return findings


def deviations(conn: psycopg.Connection, anchor: str | None = None) -> list[tuple]:
    """What is not in order: seal, first and last id, status."""
    return [finding[:4] for finding in verify_trail(conn, anchor) if finding.status != "ok"]


def seals(conn: psycopg.Connection) -> int:
    return conn.execute("SELECT count(*) FROM totp.audit_seals").fetchone()[0]


def unsealed(conn: psycopg.Connection) -> str:
    """What the last row says."""
    return conn.execute("SELECT * FROM totp_audit_verify()").fetchall()[-1][4]
