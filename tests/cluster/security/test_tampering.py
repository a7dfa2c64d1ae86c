"""Rows that someone changed, swapped or moved by hand open nothing."""

from contextlib import closing

import pytest
from totp import NOON, code_at, enroll, error_of, fix_clock, verify


def does_not_open(conn, secret, user_id="alice", device=None, **parameters):
    """XX001 for a right code and for a wrong one; nothing charged, and no word on which part it was."""
    before = conn.execute("SELECT failures FROM totp.attempts ORDER BY user_id").fetchall()
    for code in (code_at(secret, NOON, **parameters), "0" * parameters.get("digits", 6)):
        error = error_of(conn, "SELECT totp_verify(%s, %s, %s)", [user_id, code, device])
        assert error.sqlstate == "XX001", error
        assert error.diag.message_detail is None
    assert conn.execute("SELECT failures FROM totp.attempts ORDER BY user_id").fetchall() == before


@pytest.mark.parametrize("position", ["first", "nonce", "ciphertext", "last"])
def test_a_changed_byte_opens_nothing(conn, position):
    secret = enroll(conn, "alice")
    length = conn.execute("SELECT octet_length(sealed) FROM totp.secrets").fetchone()[0]
    at = {"first": 0, "nonce": 8, "ciphertext": length - 24, "last": length - 1}[position]
    conn.execute("UPDATE totp.secrets SET sealed = set_byte(sealed, %(at)s, get_byte(sealed, %(at)s) # 1)", {"at": at})
    does_not_open(conn, secret)


def test_every_byte_counts(conn):
    """Changed one by one, each ends in an error; never in an answer."""
    secret = enroll(conn, "alice")
    sealed = conn.execute("SELECT sealed FROM totp.secrets").fetchone()[0]
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 0x80
        conn.execute("UPDATE totp.secrets SET sealed = %s", [bytes(changed)])
        error = error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)])
        assert error.sqlstate == "XX001", at
    conn.execute("UPDATE totp.secrets SET sealed = %s", [sealed])
    assert verify(conn, "alice", code_at(secret, NOON)) is True


@pytest.mark.parametrize("change", ["substr(sealed, 1, octet_length(sealed) - 1)", "sealed || '\\x00'", "''", "'\\x01'", "substr(sealed, 1, 20)", "decode(repeat('00', 64), 'hex')"])
def test_a_value_of_another_length_opens_nothing(conn, change):
    secret = enroll(conn, "alice")
    conn.execute(f"UPDATE totp.secrets SET sealed = {change}")
    error = error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)])
    assert error.sqlstate == "XX001"
    assert conn.execute("SELECT failures FROM totp.attempts").fetchone() == (0,)


SWAP = "UPDATE totp.secrets SET sealed = (SELECT sealed FROM totp.secrets WHERE {where})"


def test_secrets_swapped_between_users_do_not_open(conn):
    alice, mallory = enroll(conn, "alice"), enroll(conn, "mallory")
    conn.execute(SWAP.format(where="user_id = 'mallory'") + " WHERE user_id = 'alice'")
    does_not_open(conn, mallory)
    does_not_open(conn, alice)
    assert verify(conn, "mallory", code_at(mallory, NOON)) is True


def test_secrets_swapped_between_devices_do_not_open(conn):
    phone, tablet = enroll(conn, "alice", device="phone"), enroll(conn, "alice", device="tablet")
    conn.execute(SWAP.format(where="device = 'tablet'") + " WHERE device = 'phone'")
    does_not_open(conn, tablet, device="phone")
    assert verify(conn, "alice", code_at(tablet, NOON), "tablet") is True
    assert phone


def test_an_old_secret_put_back_does_not_open(conn):
    old = enroll(conn, "alice")
    conn.execute("CREATE TEMP TABLE stolen AS SELECT * FROM totp.secrets")
    enroll(conn, "alice")
    conn.execute("UPDATE totp.secrets SET sealed = (SELECT sealed FROM stolen)")
    does_not_open(conn, old)
    conn.execute("DROP TABLE stolen")


@pytest.mark.parametrize("change, parameters", [
    ("algorithm = 'SHA256'", {"algorithm": "SHA256"}), ("digits = 7", {"digits": 7}), ("digits = 8", {"digits": 8}), ("period = 60", {"period": 60}),
    ("period = 120", {"period": 120})])
def test_changed_parameters_open_nothing(conn, change, parameters):
    """Weakened parameters do not open the secret either."""
    secret = enroll(conn, "alice")
    conn.execute(f"UPDATE totp.secrets SET {change}")
    does_not_open(conn, secret, **parameters)


@pytest.mark.parametrize("change", ["device = 'other'", "secret_id = secret_id + 1000"])
def test_a_user_renamed_by_hand_does_not_open(conn, change):
    secret = enroll(conn, "alice")
    conn.execute(f"UPDATE totp.secrets SET {change}")
    if "secret_id" in change:
        conn.execute("UPDATE totp.used_codes SET secret_id = secret_id + 1000")
    does_not_open(conn, secret)


def test_a_secret_moved_to_another_user_with_all_its_rows_does_not_open(conn):
    secret = enroll(conn, "mallory")
    for table in ("secrets", "used_codes", "attempts"):
        conn.execute(f"UPDATE totp.{table} SET user_id = 'alice'")
    does_not_open(conn, secret, "alice")


def test_a_changed_data_key_opens_nothing(make_cluster):
    server = make_cluster()
    db = server.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        conn.execute("UPDATE totp.data_keys SET wrapped = set_byte(wrapped, 20, get_byte(wrapped, 20) # 1)")
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        assert error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)]).sqlstate == "XX001"


def test_a_secret_under_the_number_of_another_data_key_does_not_open(make_cluster):
    """Two databases of one master key: a row carried over with its data key's number does not open under the key of that number here."""
    server = make_cluster()
    one, two = server.create_database(), server.create_database()
    with closing(one.connect()) as here, closing(two.connect()) as there:
        for conn in (here, there):
            fix_clock(conn, NOON)
        secret, _ = enroll(here, "alice"), enroll(there, "alice")
        sealed = here.execute("SELECT sealed FROM totp.secrets").fetchone()[0]
        there.execute("UPDATE totp.secrets SET sealed = %s", [sealed])
        assert error_of(there, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)]).sqlstate == "XX001"


def test_wrong_is_an_answer_and_broken_is_an_error(conn):
    """One broken device of two: a sign-in that does not name the other one ends in the error, never in false."""
    enroll(conn, "alice", device="phone")
    tablet = enroll(conn, "alice", device="tablet")
    conn.execute("UPDATE totp.secrets SET sealed = set_byte(sealed, 30, get_byte(sealed, 30) # 1) WHERE device = 'phone'")
    assert error_of(conn, "SELECT totp_verify('alice', '000000')").sqlstate == "XX001"
    assert verify(conn, "alice", code_at(tablet, NOON), "tablet") is True


def test_old_rows_with_their_data_key_open_until_the_master_key_changes(fresh_cluster):
    """docs/security-model.md says so. A rotation destroys the old data key, unless its row is put back too."""
    tables = ("data_keys", "secrets", "used_codes", "recovery_codes")
    db = fresh_cluster.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        conn.execute("".join(f"CREATE TABLE old_{table} AS SELECT * FROM totp.{table};" for table in tables))
        put_back = "".join(f"DELETE FROM totp.{table}; INSERT INTO totp.{table} SELECT * FROM old_{table};" for table in tables)
        for _ in range(2):
            assert verify(conn, "alice", code_at(secret, NOON)) is True
            conn.execute("SELECT totp_rotate_key()")
            conn.execute(put_back)

        old = fresh_cluster.key_file.read_text().strip()
        fresh_cluster.write_key_file(f"{'ab' * 31}cd\n{old}\n")
        fresh_cluster.reload()
        with closing(db.connect()) as rotating:
            rotating.execute("SELECT totp_rotate_key()")
        fresh_cluster.write_key_file(f"{'ab' * 31}cd\n")
        fresh_cluster.reload()
        conn.execute(put_back)
    with closing(db.connect()) as later:
        fix_clock(later, NOON)
        assert error_of(later, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)]).sqlstate == "F0000"
