"""Sealing and verifying the audit trail: rows a second, and the memory of the server process."""

import re
from contextlib import closing
from pathlib import Path

import fixture

ROWS = fixture.scaled(10_000_000, 20_000)
# As the library writes them, in the order of time, with every thousandth id given up.
FILL = """
INSERT INTO totp.audit_log (id, at, event, user_id, device, actor, db_user, client_addr, application_name, detail)
SELECT n + n / 1000, now() - interval '1 year' + n * interval '1 second', CASE n %% 20 WHEN 0 THEN 'failed' ELSE 'verified' END,
       'user ' || n %% 1000000, 'default', 'app', 'app', '192.0.2.1', 'app', CASE n %% 20 WHEN 0 THEN '{"of": "recovery_codes"}'::jsonb END
  FROM generate_series(1, %s) n"""
TARGET = 100_000


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        fixture.say(f"{ROWS:,} audit rows")
        database.execute(FILL, [ROWS])
        database.execute("VACUUM ANALYZE totp.audit_log")
        with closing(database.connect()) as conn:
            fixture.say("sealing")
            sealing = fixture.seconds(conn, "CALL totp_audit_seal()")
            sealing_memory = _peak(conn)
            assert conn.execute("SELECT sum(row_count) FROM totp.audit_seals").fetchone() == (ROWS,)
        with closing(database.connect()) as conn:
            fixture.say("verification")
            verification = fixture.seconds(conn, "SELECT count(*) FROM totp_audit_verify()")
            memory = _peak(conn)
            assert conn.execute("SELECT count(*) FROM totp_audit_verify() WHERE status <> 'ok'").fetchone() == (0,)
        per_second = ROWS / sealing
        return fixture.version(cluster), [
            figure(f"totp_audit_seal(), {ROWS:,} rows", f"{per_second:,.0f} rows/s", target=f"≥ {TARGET:,}", met=per_second >= TARGET),
            figure("the same, memory of its process at most", sealing_memory),
            figure(f"totp_audit_verify(), {ROWS:,} rows", f"{ROWS / verification:,.0f} rows/s"),
            figure("the same, memory of its process at most", memory),
        ]


def _peak(conn) -> str:
    """What the server process of a session had in memory at most, without the shared buffers that it touched."""
    status = Path(f"/proc/{conn.info.backend_pid}/status").read_text()
    kilobytes = {name: int(re.search(rf"^{name}:\s+(\d+) kB", status, re.M).group(1)) for name in ("VmHWM", "RssShmem")}
    return f"{(kilobytes['VmHWM'] - kilobytes['RssShmem']) / 1024:,.0f} MB"
