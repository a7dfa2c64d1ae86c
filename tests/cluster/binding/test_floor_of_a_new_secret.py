"""The floor and a secret that waits for its proof: a code of it may have been used in WAL that was lost."""

from datetime import timedelta

from binding import check_confirm
from totp import NOON, SECRET, code_at, codes_left, enroll, fix_clock, import_secret, recovery_codes


def test_a_code_under_the_floor_binds_nothing_and_burns_no_proof(conn):
    import_secret(conn, "alice", SECRET, device="old")
    proofs = recovery_codes(conn)
    new = enroll(conn, "alice", device="new")
    assert conn.execute("SELECT floor_at FROM totp.floor").fetchone() == (NOON,)
    conn.execute("UPDATE totp.secrets SET created_at = created_at - interval '1 hour' WHERE device = 'new'")
    answer = check_confirm(conn, code_at(new, NOON), "new", proofs[0])
    later = NOON + timedelta(seconds=120)
    assert answer[:3] == (False, "replayed", "new") and answer.retry_at == later
    assert codes_left(conn) == 10
    fix_clock(conn, later)
    assert check_confirm(conn, code_at(new, later), "new", proofs[0]).accepted
