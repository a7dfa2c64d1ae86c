"""Hardware tokens whose clocks run fast or slow, and totp_resync."""

from datetime import datetime

import psycopg
from totp import SECRET, code_at

PERIOD = 30


class Token:
    """A token that was right at `start` and gains so many seconds a million seconds."""

    def __init__(self, start: datetime, ppm: float = 0, seconds: float = 0, secret: str = SECRET, period: int = PERIOD) -> None:
        self.start, self.ppm, self.seconds, self.secret, self.period = start, ppm, seconds, secret, period

    def code(self, when: datetime) -> str:
        """What it shows at that time."""
        elapsed = (when - self.start).total_seconds()
        return code_at(self.secret, when.timestamp() + self.seconds + elapsed * self.ppm / 1e6, period=self.period)


def code_of(when: datetime, steps: int, secret: str = SECRET) -> str:
    """The code of a step so many steps from that time."""
    return code_at(secret, when.timestamp() + steps * PERIOD)


def resync(conn: psycopg.Connection, code1: str | None, code2: str | None, device: str | None = "default", user_id: str | None = "alice") -> bool | None:
    """totp_resync."""
    return conn.execute("SELECT totp_resync(%s, %s, %s, %s)", [user_id, code1, code2, device]).fetchone()[0]


def resync_at(conn: psycopg.Connection, when: datetime, steps: int, secret: str = SECRET) -> bool:
    """totp_resync with the two codes that a token shows last that has drifted by so many steps, at that time."""
    return resync(conn, code_of(when, steps - 1, secret), code_of(when, steps, secret))


def drift(conn: psycopg.Connection, device: str = "default", user_id: str = "alice") -> int:
    """The drift of an active device, by totp_status."""
    query = "SELECT drift FROM totp_status(%s) WHERE device = %s AND state = 'active'"
    return conn.execute(query, [user_id, device]).fetchone()[0]
