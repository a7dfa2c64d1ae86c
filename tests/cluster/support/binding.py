"""Calls of a web application: a role that has the capability `enroll` and nothing else."""

from contextlib import contextmanager, closing
from datetime import datetime
from typing import NamedTuple

import psycopg
from psycopg import sql
from totp import NOON, fix_clock


@contextmanager
def web_session(db, role: str, when: datetime = NOON, level: str = "READ COMMITTED"):
    """A session of this role, in which it is this time."""
    with closing(db.connect()) as session:
        fix_clock(session, when)
        session.execute(f"SET default_transaction_isolation = '{level}'")
        session.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(role)))
        yield session


class Confirmed(NamedTuple):
    """What totp_check_confirm says."""

    accepted: bool
    reason: str
    matched_device: str | None
    attempts_left: int | None
    retry_at: datetime | None
    retry_after: int | None
    recovery_codes: list[str] | None


def check_confirm(conn: psycopg.Connection, code: str | None, device: str | None = "default", proof: str | None = None, user_id: str | None = "alice",
                  recovery_codes: int = 0) -> Confirmed:
    """totp_check_confirm."""
    return Confirmed(*conn.execute("SELECT * FROM totp_check_confirm(%s, %s, %s, proof => %s, recovery_codes => %s)",
                                   [user_id, code, device, proof, recovery_codes]).fetchone())


def confirm(conn: psycopg.Connection, code: str | None, device: str = "default", proof: str | None = None, user_id: str = "alice") -> bool:
    """totp_confirm."""
    return conn.execute("SELECT totp_confirm(%s, %s, %s, %s)", [user_id, code, device, proof]).fetchone()[0]


def unenroll(conn: psycopg.Connection, proof: str | None, device: str | None = None, user_id: str = "alice") -> bool:
    """totp_unenroll."""
    return conn.execute("SELECT totp_unenroll(%s, %s, %s)", [user_id, proof, device]).fetchone()[0]


def rename_device(conn: psycopg.Connection, device: str, new_device: str, proof: str | None = None, user_id: str = "alice") -> bool:
    """totp_rename_device."""
    return conn.execute("SELECT totp_rename_device(%s, %s, %s, %s)", [user_id, device, new_device, proof]).fetchone()[0]


def new_recovery_codes(conn: psycopg.Connection, proof: str | None = None, count: int = 10, user_id: str = "alice") -> list[str]:
    """totp_recovery_codes."""
    return [code for [code] in conn.execute("SELECT totp_recovery_codes(%s, %s, %s)", [user_id, count, proof])]


def slots(conn: psycopg.Connection, user_id: str = "alice") -> list[tuple[str, str]]:
    """Device and slot of each secret."""
    return conn.execute("SELECT device, slot FROM totp.secrets WHERE user_id = %s ORDER BY device, slot", [user_id]).fetchall()
