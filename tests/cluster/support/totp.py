"""TOTP for the tests: an independent implementation, a fixed clock, calls of the functions, sessions in parallel."""

import hashlib
import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg
import pyotp

NOON = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)  # when most tests happen; a time step begins
EARLIER, LATER = NOON - timedelta(seconds=30), NOON + timedelta(seconds=30)  # the steps whose codes are good at noon too
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
MAX_ATTEMPTS = 5  # the default of totp.max_attempts
SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # the one of the examples of RFC 4226
OTHER_SECRET = "KRSXG5CTMVRXEZLUKN2XAZLSKRSXG5CT"

NO_CODE = "AAAAAA-AAAAAA-AAAAAA-AAAAAA"  # a recovery code, well formed, of nobody's set

# What must never be seen in any snapshot: a secret and a set of recovery codes never stand without their row of used codes and
# their user's row of attempts, nor a row of used codes without them.
ORPHANS = """
SELECT 'secret without attempts', user_id FROM totp.secrets s WHERE NOT EXISTS (SELECT FROM totp.attempts a WHERE a.user_id = s.user_id)
UNION ALL
SELECT 'recovery codes without attempts', user_id FROM totp.recovery_codes r
 WHERE NOT EXISTS (SELECT FROM totp.attempts a WHERE a.user_id = r.user_id)
UNION ALL
SELECT 'secret without used codes', user_id FROM totp.secrets s
 WHERE NOT EXISTS (SELECT FROM totp.used_codes u WHERE (u.user_id, u.secret_id) = (s.user_id, s.secret_id))
UNION ALL
SELECT 'recovery codes without used codes', user_id FROM totp.recovery_codes r
 WHERE NOT EXISTS (SELECT FROM totp.used_codes u WHERE (u.user_id, u.secret_id) = (r.user_id, r.set_id))
UNION ALL
SELECT 'used codes of nothing', user_id FROM totp.used_codes u
 WHERE NOT EXISTS (SELECT FROM totp.secrets s WHERE (u.user_id, u.secret_id) = (s.user_id, s.secret_id))
   AND NOT EXISTS (SELECT FROM totp.recovery_codes r WHERE (u.user_id, u.secret_id) = (r.user_id, r.set_id))
UNION ALL
SELECT 'two rows of one slot', user_id FROM totp.secrets GROUP BY user_id, device, slot HAVING count(*) > 1"""

DIGESTS = {"SHA1": hashlib.sha1, "SHA256": hashlib.sha256, "SHA512": hashlib.sha512}


def code_at(secret: str, when: datetime | int | float, algorithm: str = "SHA1", digits: int = 6, period: int = 30) -> str:
    """The code of a base32 secret at a time (with a zone, or unix seconds), by pyotp."""
    unix_time = when.timestamp() if isinstance(when, datetime) else when
    return pyotp.HOTP(secret, digits=digits, digest=DIGESTS[algorithm]).at(int(unix_time // period))


def wrong_code(right: str) -> str:
    """A code of the same length that is another one."""
    return str((int(right) + 1) % 10 ** len(right)).zfill(len(right))


def wrong_codes(secret: str, when: datetime | int | float, digits: int = 6) -> Iterator[str]:
    """All codes that no step near that time has, in order."""
    unix_time = when.timestamp() if isinstance(when, datetime) else when
    near = {code_at(secret, unix_time + 30 * step, digits=digits) for step in range(-3, 4)}
    return (code for code in (f"{number:0{digits}}" for number in range(10 ** digits)) if code not in near)


def good(step: int = 0, secret: str = SECRET) -> str:
    """The code at noon, or this many steps later."""
    return code_at(secret, NOON.timestamp() + 30 * step)


def wrong(number: int = 0) -> str:
    """A code that SECRET does not have near noon; with each number another one."""
    return next(itertools.islice(wrong_codes(SECRET, NOON), number, None))


def fix_clock(conn: psycopg.Connection, when: datetime) -> None:
    """Let the extension take this time for now, in this superuser's session."""
    conn.execute("SELECT set_config('totp.clock', %s, false)", [when.isoformat()])


def force_parallel(conn: psycopg.Connection, on: bool = True) -> None:
    """Let PostgreSQL run every query of this session that may in a parallel worker."""
    name = "debug_parallel_query" if conn.info.server_version >= 160000 else "force_parallel_mode"
    conn.execute(f"SET {name} = {'on' if on else 'off'}")


def enroll(conn: psycopg.Connection, user_id: str, **parameters) -> str:
    """totp_enroll with these named parameters; the secret in base32."""
    names = "".join(f", {name} => %({name})s" for name in parameters)
    row = conn.execute(f"SELECT secret FROM totp_enroll(%(user_id)s{names})", {"user_id": user_id, **parameters}).fetchone()
    return row[0]


def stage(conn: psycopg.Connection, user_id: str = "alice", **parameters) -> str:
    """A new secret that the support desk stages, by totp_import: it becomes active by its code alone; the secret."""
    secret = pyotp.random_base32()
    import_secret(conn, user_id, secret, confirmed=False, **parameters)
    return secret


def has_mfa(conn: psycopg.Connection, user_id: str) -> bool:
    """Whether a secret of the user was ever confirmed: then another one needs a proof."""
    return conn.execute("SELECT count(enforced_since) > 0 FROM totp.secrets WHERE user_id = %s", [user_id]).fetchone()[0]


def active_user(conn: psycopg.Connection, user_id: str = "alice", **parameters) -> str:
    """Enroll at noon and confirm with the code of the step before; the secret. What would need a proof counts as approved."""
    secret = enroll(conn, user_id, **parameters)
    if has_mfa(conn, user_id):
        conn.execute("UPDATE totp.secrets SET slot = 'pending' WHERE user_id = %s AND device = %s AND slot = 'proposed'",
                     [user_id, parameters.get("device", "default")])
    assert verify(conn, user_id, code_at(secret, NOON.timestamp() - 30)) is True
    return secret


def verify(conn: psycopg.Connection, user_id: str, code: str, device: str | None = None) -> bool:
    """totp_verify."""
    return conn.execute("SELECT totp_verify(%s, %s, %s)", [user_id, code, device]).fetchone()[0]


def works(conn: psycopg.Connection, secret: str, when: datetime = NOON, user_id: str = "alice", device: str | None = None) -> bool:
    """Whether a code of this secret signs in at that time. It is used up by that."""
    fix_clock(conn, when)
    return verify(conn, user_id, code_at(secret, when), device)


class Answer(NamedTuple):
    """What totp_check says."""

    accepted: bool
    reason: str
    matched_device: str | None
    attempts_left: int | None
    retry_at: datetime | None
    retry_after: int | None = None  # not in 0.1.0


def check(conn: psycopg.Connection, user_id: str, code: str, device: str | None = None) -> Answer:
    """totp_check."""
    return Answer(*conn.execute("SELECT * FROM totp_check(%s, %s, %s)", [user_id, code, device]).fetchone())


def import_secret(conn: psycopg.Connection, user_id: str, secret: str, confirmed: bool = True, **parameters) -> None:
    """totp_import of a base32 secret, active at once, with these named parameters."""
    names = "".join(f", {name} => %({name})s" for name in parameters)
    conn.execute(f"SELECT totp_import(%(user_id)s, %(secret)s, confirmed => %(confirmed)s{names})",
                 {"user_id": user_id, "secret": secret, "confirmed": confirmed, **parameters})


def reset(conn: psycopg.Connection, user_id: str = "alice", device: str = "default") -> str:
    """totp_reset; the new secret."""
    return conn.execute("SELECT secret FROM totp_reset(%s, %s)", [user_id, device]).fetchone()[0]


def recovery_codes(conn: psycopg.Connection, user_id: str = "alice", count: int = 10) -> list[str]:
    """totp_reset_recovery_codes, which needs no proof."""
    return [code for [code] in conn.execute("SELECT totp_reset_recovery_codes(%s, %s)", [user_id, count])]


def recover(conn: psycopg.Connection, code: str, user_id: str = "alice") -> bool:
    """totp_recover."""
    return conn.execute("SELECT totp_recover(%s, %s)", [user_id, code]).fetchone()[0]


def enabled(conn: psycopg.Connection, user_id: str = "alice") -> bool:
    """totp_enabled."""
    return conn.execute("SELECT totp_enabled(%s)", [user_id]).fetchone()[0]


def states(conn: psycopg.Connection, user_id: str = "alice") -> list[tuple[str, str, int]]:
    """Device, state and version of each secret, by totp_status."""
    return conn.execute("SELECT device, state, version FROM totp_status(%s)", [user_id]).fetchall()


def parallel(n: int, work, prepare=None) -> list:
    """Run work(i, prepare(i)), or work(i), in n threads that begin together; the results in order, an exception as a result.

    prepare(i), for example a connect, is done by all before any begins; an exception there is raised.
    """
    barrier = threading.Barrier(n)
    results: list = [None] * n
    not_prepared: list[BaseException] = []

    def one(i: int) -> None:
        try:
            arguments = (i,) if prepare is None else (i, prepare(i))
            barrier.wait()
        except threading.BrokenBarrierError:
            return
        except BaseException as error:
            not_prepared.append(error)
            barrier.abort()
            return
        try:
            results[i] = work(*arguments)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not_prepared:
        raise not_prepared[0]
    return results


def error_of(conn: psycopg.Connection, query: str, parameters=None) -> psycopg.Error:
    """The error that a statement must end in. Its message is in PostgreSQL's style, and a DETAIL or HINT names no file."""
    try:
        answer = conn.execute(query, parameters)
        rows = answer.fetchall() if answer.description else []
    except psycopg.Error as error:
        message = error.diag.message_primary
        assert message[0].islower() and not message.endswith((".", "\n")), f"not in the style of the house: {message!r}"
        return error
    raise AssertionError(f"no error, but {rows}")


def is_waiting(watch: psycopg.Connection, conn: psycopg.Connection) -> bool:
    """Whether this session waits for a lock, seen from another one."""
    return watch.execute("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", [conn.info.backend_pid]).fetchone()[0]


def codes_left(conn: psycopg.Connection, user_id: str = "alice") -> int:
    """How many recovery codes totp_status says are left."""
    [value] = {row[0] for row in conn.execute("SELECT recovery_codes_left FROM totp_status(%s)", [user_id])}
    return value


def counters(conn: psycopg.Connection, user_id: str = "alice") -> tuple:
    """Failures with codes and with recovery codes, and whether each is locked at NOON."""
    return conn.execute("SELECT failures, recovery_failures, locked_until > %s, recovery_locked_until > %s FROM totp.attempts WHERE user_id = %s",
                        [NOON, NOON, user_id]).fetchone()


def events(conn: psycopg.Connection, *names: str) -> list[tuple]:
    """Audit rows of these events."""
    return conn.execute("SELECT event, user_id, device, detail FROM totp.audit_log WHERE event = ANY (%s) ORDER BY id", [list(names)]).fetchall()
