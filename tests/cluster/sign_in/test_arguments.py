"""Every argument of every function at its limits: what is accepted, what is 22023, and what is false."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from totp import NOON, SECRET, active_user, code_at, enroll, error_of, fix_clock, verify, wrong_codes

MEGABYTE = "x" * 1_000_000
MANY_DIGITS = "1" * 1_000_000


def refused(conn, query, parameters=None):
    """22023, and no long argument in any part of the error."""
    error = error_of(conn, query, parameters)
    assert error.sqlstate == "22023", error
    parts = [error.diag.message_primary, error.diag.message_detail or "", error.diag.message_hint or ""]
    assert all(len(part) < 200 for part in parts)
    return error


# --- totp_enroll ---------------------------------------------------------------------

ENROLL = ("SELECT * FROM totp_enroll(%(user_id)s, account_name => %(account_name)s, issuer => %(issuer)s, device => %(device)s,"
          " algorithm => %(algorithm)s, digits => %(digits)s::int, period => %(period)s::int, keep_current => %(keep_current)s)")
GOOD = {"user_id": "alice", "account_name": None, "issuer": None, "device": "default", "algorithm": "SHA1", "digits": 6,
        "period": 30, "keep_current": True}


@pytest.mark.parametrize("argument, value", [
    ("user_id", None), ("user_id", ""), ("user_id", "x" * 257), ("user_id", "é" * 129), ("user_id", MEGABYTE),
    ("user_id", "with:colon"), ("user_id", " "), ("user_id", " alice"),  # it is the account name too, if none is given
    ("device", None), ("device", ""), ("device", "x" * 257), ("device", "é" * 129), ("device", MEGABYTE),
    ("account_name", ""), ("account_name", "x" * 257), ("account_name", "a:b"), ("account_name", ":"), ("account_name", MEGABYTE),
    ("account_name", "line\nbreak"), ("account_name", "bell\x07"), ("account_name", " alice"),
    ("issuer", "x" * 257), ("issuer", "a:b"), ("issuer", MEGABYTE), ("issuer", "line\nbreak"),
    ("algorithm", None), ("algorithm", ""), ("algorithm", "MD5"), ("algorithm", "SHA-384"), ("algorithm", " SHA1"),
    ("algorithm", "ＳＨＡ１"), ("algorithm", MEGABYTE),
    ("digits", None), ("digits", -6), ("digits", 0), ("digits", 5), ("digits", 9), ("digits", 2**31 - 1), ("digits", -2**31),
    ("period", None), ("period", -30), ("period", 0), ("period", 14), ("period", 121), ("period", 2**31 - 1), ("period", -2**31),
    ("keep_current", None),
], ids=lambda value: repr(value)[:24])
def test_enroll_refuses_an_invalid_argument(conn, argument, value):
    error = refused(conn, ENROLL, {**GOOD, argument: value})
    if value is not None:
        assert error.diag.message_detail
    for table in ("secrets", "used_codes", "attempts", "audit_log"):
        assert conn.execute(f"SELECT count(*) FROM totp.{table}").fetchone() == (0,)


@pytest.mark.parametrize("argument, value", [
    ("user_id", "x"), ("user_id", "x" * 256), ("user_id", "é" * 128), ("user_id", "a "), ("user_id", "'; DROP TABLE totp.secrets; --"),
    ("user_id", 'quote"backslash\\percent%'), ("user_id", "日本語"), ("user_id", "00000000-0000-0000-0000-000000000000"),
    ("device", "x"), ("device", "x" * 256), ("device", "é" * 128), ("device", "my phone"), ("device", "a:b"),
    ("account_name", "x" * 256), ("account_name", "alice@example.com"), ("account_name", "é" * 128),
    ("issuer", ""), ("issuer", "x" * 256), ("issuer", "Big & Co + Söhne 100%"),
    ("algorithm", "sha1"), ("algorithm", "SHA-256"), ("algorithm", "HmacSHA512"), ("algorithm", "hmacsha1"), ("algorithm", "Sha512"),
    ("digits", 6), ("digits", 7), ("digits", 8), ("period", 15), ("period", 30), ("period", 60), ("period", 120),
    ("keep_current", False),
], ids=lambda value: repr(value)[:24])
def test_enroll_accepts_arguments_at_their_limits(conn, argument, value):
    given = {**GOOD, argument: value}
    secret, uri = conn.execute(ENROLL, given).fetchone()
    [row] = conn.execute("SELECT device, state, account_name, issuer, algorithm, digits, period, version FROM totp_status(%s)",
                         [given["user_id"]]).fetchall()
    canonical = "SHA" + given["algorithm"].upper().replace("HMAC", "").replace("SHA", "").replace("-", "")
    assert row == (given["device"], "pending", given["account_name"] or given["user_id"], given["issuer"] or None, canonical,
                   given["digits"], given["period"], 1)
    assert len(secret) == {"SHA1": 32, "SHA256": 52, "SHA512": 103}[canonical]
    assert uri.endswith(f"&algorithm={canonical}&digits={given['digits']}&period={given['period']}")
    code = code_at(secret + "=" * (-len(secret) % 8), NOON, canonical, given["digits"], given["period"])
    assert verify(conn, given["user_id"], code) is True


@pytest.mark.parametrize("user_id", ["tenant:42", " ", " alice", "line\nbreak", "bell\x07"])
def test_a_user_id_that_cannot_be_an_account_name_needs_one(conn, user_id):
    refused(conn, "SELECT totp_enroll(%s)", [user_id])
    secret = enroll(conn, user_id, account_name="alice")
    assert verify(conn, user_id, code_at(secret, NOON)) is True


def test_names_are_compared_byte_by_byte(conn):
    names = ["alice", "Alice", "alice ", "ALICE", "é", "e\u0301", "ａlice"]
    secrets = {name: enroll(conn, name) for name in names}
    assert len(set(secrets.values())) == len(names)
    for name in names:
        for other in names:
            if other != name:
                assert verify(conn, name, code_at(secrets[other], NOON)) is False
        assert verify(conn, name, code_at(secrets[name], NOON)) is False  # locked by now: six wrong codes
    fix_clock(conn, NOON + timedelta(minutes=30))
    for name in names:
        assert verify(conn, name, code_at(secrets[name], NOON + timedelta(minutes=30))) is True


def test_device_names_are_compared_byte_by_byte(conn):
    secret = enroll(conn, "alice", device="Phone")
    for other in ("phone", "Phone ", "PHONE", "", "x" * 257, MEGABYTE):
        assert verify(conn, "alice", code_at(secret, NOON), other) is False
    assert verify(conn, "alice", code_at(secret, NOON), "Phone") is True


# --- totp_verify, totp_check, totp_confirm: never an error -----------------------------

NOT_A_CODE = {
    "empty": "", "white space": " \t\n\r\f\v", "five digits": "12345", "five digits and a space": "123 45", "seven digits": "1234567", "eight digits": "12345678", "one megabyte": MANY_DIGITS,
    "full-width digits": "１２３４５６", "another digit": "12345٦", "arabic-indic digits": "١٢٣٤٥٦", "mathematical digits": "𝟏𝟐𝟑𝟒𝟓𝟔", "superscripts": "¹²³⁴⁵⁶",
    "sign": "+12345", "minus": "-12345", "letters": "12345a", "hexadecimal": "0x1234", "exponent": "1e5000", "point": "1234.5",
    "dash and five digits": "123-45", "no-break space and five digits": "123\u00a045", "byte order mark and five digits": "\ufeff12345",
    "underscore": "123_456", "hangul filler": "123\u3164456", "combining": "123456\u0301", "comma": "123,456", "control": "123\x01456", "delete": "123456\x7f",
}


@pytest.mark.parametrize("text", NOT_A_CODE.values(), ids=NOT_A_CODE.keys())
def test_what_cannot_be_a_code_is_malformed_and_not_charged(conn, text):
    enroll(conn, "alice")
    check = "SELECT accepted, reason, matched_device, attempts_left, retry_at FROM totp_check('alice', %s)"
    assert conn.execute(check, [text]).fetchall() == [(False, "malformed", None, 5, None)]
    assert verify(conn, "alice", text) is False
    assert conn.execute("SELECT totp_confirm('alice', %s)", [text]).fetchone() == (False,)
    assert conn.execute("SELECT reason FROM totp_check_confirm('alice', %s)", [text]).fetchone() == ("malformed",)
    assert conn.execute("SELECT failures FROM totp_status('alice')").fetchall() == [(0,)]
    assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE event <> 'enrolled'").fetchone() == (0,)


def test_null_is_false(conn):
    secret = enroll(conn, "alice")
    code = code_at(secret, NOON)
    for query in ("SELECT totp_verify(NULL, %(code)s)", "SELECT totp_verify('alice', NULL)", "SELECT totp_verify(NULL, NULL)",
                  "SELECT totp_verify(NULL, NULL, NULL)", "SELECT totp_verify(NULL, %(code)s, 'default')",
                  "SELECT totp_confirm(NULL, %(code)s)", "SELECT totp_confirm('alice', NULL)", "SELECT totp_confirm('alice', %(code)s, NULL)",
                  "SELECT totp_confirm(NULL, NULL, NULL)", "SELECT accepted FROM totp_check(NULL, %(code)s)",
                  "SELECT accepted FROM totp_check('alice', NULL)", "SELECT accepted FROM totp_check(NULL, NULL, NULL)",
                  "SELECT totp_confirm(NULL, %(code)s, 'default', NULL)", "SELECT accepted FROM totp_check_confirm(NULL, %(code)s)",
                  "SELECT accepted FROM totp_check_confirm('alice', NULL)", "SELECT accepted FROM totp_check_confirm('alice', %(code)s, NULL)",
                  "SELECT accepted FROM totp_check_confirm(NULL, NULL, NULL, NULL)", "SELECT totp_recover(NULL, NULL)", "SELECT totp_recover('alice', NULL)",
                  "SELECT accepted FROM totp_check_recover(NULL, NULL)", "SELECT accepted FROM totp_check_recover('alice', NULL)",
                  "SELECT totp_enabled(NULL)"):
        assert conn.execute(query, {"code": code}).fetchall() == [(False,)], query
    assert conn.execute("SELECT * FROM totp_status(NULL)").fetchall() == []
    assert conn.execute("SELECT failures FROM totp_status('alice')").fetchall() == [(0,)]
    assert verify(conn, "alice", code) is True  # none of these used it up


def test_null_denies_in_plpgsql(conn):
    secret = enroll(conn, "alice")
    for arguments in ("NULL, {code}", "'alice', NULL", "NULL, NULL, NULL"):
        arguments = arguments.format(code=f"'{code_at(secret, NOON)}'")
        conn.execute("CREATE OR REPLACE FUNCTION sign_in() RETURNS text LANGUAGE plpgsql AS $$"
                     f" BEGIN IF NOT totp_verify({arguments}) THEN RETURN 'denied'; END IF; RETURN 'let in'; END $$")
        assert conn.execute("SELECT sign_in()").fetchone() == ("denied",), arguments


def test_a_null_code_does_not_make_an_enrolled_user_not_enrolled(conn):
    enroll(conn, "alice")
    assert conn.execute("SELECT reason FROM totp_check('alice', NULL)").fetchone() == ("malformed",)
    assert conn.execute("SELECT reason FROM totp_check('nobody', NULL)").fetchone() == ("not_enrolled",)
    assert conn.execute("SELECT reason FROM totp_check(NULL, '123456')").fetchone() == ("not_enrolled",)


def test_a_null_device_means_any(conn):
    secret = enroll(conn, "alice", device="phone")
    assert conn.execute("SELECT accepted, matched_device FROM totp_check('alice', %s, NULL)", [code_at(secret, NOON)]).fetchone() == (True, "phone")


@pytest.mark.parametrize("user_id", ["", "nobody", "x" * 257, "é" * 129, MEGABYTE, "a:b", "line\nbreak"], ids=lambda value: repr(value)[:16])
def test_an_impossible_user_id_is_not_enrolled(conn, user_id):
    row = conn.execute("SELECT * FROM totp_check(%s, '123456')", [user_id]).fetchone()
    assert row == (False, "not_enrolled", None, None, None, None)
    row = conn.execute("SELECT * FROM totp_check_confirm(%s, '123456', proof => '123456', recovery_codes => 10)", [user_id]).fetchone()
    assert row == (False, "not_enrolled", None, None, None, None, None)
    assert conn.execute("SELECT * FROM totp_check_recover(%s, 'x')", [user_id]).fetchone() == (False, "not_enrolled", None, None, None)
    assert verify(conn, user_id, "123456") is False
    assert verify(conn, user_id, "123456", "default") is False
    assert conn.execute("SELECT totp_confirm(%s, '123456')", [user_id]).fetchone() == (False,)
    assert conn.execute("SELECT totp_enabled(%s)", [user_id]).fetchone() == (False,)
    assert conn.execute("SELECT * FROM totp_status(%s)", [user_id]).fetchall() == []


@pytest.mark.parametrize("template", [" {}", "{} ", "\t{}\n", "{0[0]} {0[1]} {0[2]} {0[3]} {0[4]} {0[5]}", "{0[0]}{0[1]}{0[2]} {0[3]}{0[4]}{0[5]}",
                                      "\v\f\r{}", "{0[0]}{0[1]}{0[2]}\u00a0{0[3]}{0[4]}{0[5]}", "{0[0]}{0[1]}{0[2]}\u200b{0[3]}{0[4]}{0[5]}", "\ufeff{}",
                                      "\u202a{}\u202c", "{0[0]}{0[1]}{0[2]}-{0[3]}{0[4]}{0[5]}", "{0[0]}{0[1]}{0[2]}\u2013{0[3]}{0[4]}{0[5]}\u3000"], ids=ascii)
def test_separators_in_a_code_are_ignored(conn, template):
    secret = enroll(conn, "alice")
    assert verify(conn, "alice", template.format(code_at(secret, NOON))) is True


@pytest.mark.parametrize("digits", [6, 7, 8])
def test_leading_zeros_count(conn, digits):
    conn.execute("SET totp.enrollment_ttl = '30d'")  # time enough for such a code to come
    secret = enroll(conn, "alice", digits=digits)
    at = NOON.timestamp()
    while not code_at(secret, at, digits=digits).startswith("0"):
        at += 30
    fix_clock(conn, datetime.fromtimestamp(at, UTC))
    code = code_at(secret, at, digits=digits)
    for wrong in (code.lstrip("0"), code[1:], " " + code[1:], "0" + code):
        assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [wrong]).fetchone() == ("malformed",)
    assert verify(conn, "alice", code) is True


def test_a_code_of_another_length_is_malformed(conn):
    for digits in (6, 7, 8):
        user_id = f"user {digits}"
        secret = enroll(conn, user_id, digits=digits)
        for other in {6, 7, 8} - {digits}:
            check = conn.execute("SELECT reason FROM totp_check(%s, %s)", [user_id, code_at(secret, NOON, digits=other)])
            assert check.fetchone() == ("malformed",)
        assert verify(conn, user_id, code_at(secret, NOON, digits=digits)) is True


@pytest.mark.parametrize("query", ["SELECT (totp_check('alice', code)).* FROM codes", "SELECT codes, (totp_check('alice', code)).* FROM codes",
                                   "SELECT * FROM codes, totp_check('alice', code)", "SELECT totp_check('alice', code) FROM codes"])
def test_a_call_is_one_call_however_its_columns_are_selected(conn, query):
    """PostgreSQL writes `(f()).*` out as one call for each column, but makes one of equal calls of a function with RETURNS TABLE."""
    secret = active_user(conn)
    with_codes = f"WITH codes (code) AS (SELECT unnest(%s::text[])) {query}"
    conn.execute(with_codes, [[code_at(secret, NOON), *islice(wrong_codes(secret, NOON), 3)]])
    assert conn.execute("SELECT uses, failures FROM totp_status('alice')").fetchone() == (2, 3)


# --- Times from 0 to the year 9999 ------------------------------------------------------


@pytest.mark.parametrize("at", ["1970-01-01 00:00:00+00", "1970-01-01 00:00:29+00", "1970-01-01 00:00:30+00", "2000-01-01 00:00:00+00",
                                "2038-01-19 03:14:08+00", "2106-02-07 06:28:16+00", "9999-12-31 23:59:59+00"])
@pytest.mark.parametrize("period", [15, 30, 120])
def test_users_sign_in_at_any_time(conn, at, period):
    when = datetime.fromisoformat(at).timestamp()
    fix_clock(conn, datetime.fromisoformat(at))
    secret = enroll(conn, "alice", period=period)
    codes = [code_at(secret, when + period * step, period=period) if when + period * step >= 0 else None for step in (-1, 0, 1)]
    for code in codes:
        if code is not None:
            assert verify(conn, "alice", code) is True
            assert verify(conn, "alice", code) is False
    state = conn.execute("SELECT state, uses, last_used_at::text FROM totp_status('alice')").fetchone()
    assert state[:2] == ("active", sum(code is not None for code in codes))


@pytest.mark.parametrize("value", ["infinity", "-infinity", "garbage", "now or never", "2030-13-45", "\u200b"])
def test_an_invalid_clock_is_an_error_and_charges_nothing(conn, value):
    secret = enroll(conn, "alice")
    set_clock = "SELECT set_config('totp.clock', %s, false)"
    try:
        conn.execute(set_clock, [value])
    except Exception as error:  # refused when it is set: as good
        assert error.sqlstate == "22023", error
        return
    error = error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(secret, NOON)])
    assert error.sqlstate in (["22023"] if "infinity" in value else ["22007", "22008"]), error
    conn.execute(set_clock, [NOON.isoformat()])
    assert verify(conn, "alice", code_at(secret, NOON)) is True


# --- totp_code_at ------------------------------------------------------------------------

CODE_AT = "SELECT totp_code_at(%(secret)s, %(at)s, %(algorithm)s, %(digits)s::int, %(period)s::int)"
GOOD_CODE_AT = {"secret": SECRET, "at": "1970-01-01 00:00:59+00", "algorithm": "SHA1", "digits": 8, "period": 30}


@pytest.mark.parametrize("argument, value", [
    ("secret", ""), ("secret", " "), ("secret", "===="), ("secret", "A"), ("secret", "ABC"), ("secret", "ABCDEF"),
    ("secret", "GEZDGNB1"), ("secret", "GEZDGNB0"), ("secret", "GEZDGNBÜ"), ("secret", "ＡＢＣＤ"), ("secret", "GEZD=GNB"), ("secret", "GEZD/GNB"),
    ("secret", MEGABYTE), ("secret", "A" * 1_000_000),
    ("at", "infinity"), ("at", "-infinity"),
    ("algorithm", ""), ("algorithm", "MD5"), ("algorithm", MEGABYTE),
    ("digits", 5), ("digits", 9), ("digits", 0), ("digits", -1), ("digits", 2**31 - 1),
    ("period", 14), ("period", 121), ("period", 0), ("period", -30), ("period", 2**31 - 1),
], ids=lambda value: repr(value)[:24])
def test_code_at_refuses_an_invalid_argument(conn, argument, value):
    error = refused(conn, CODE_AT, {**GOOD_CODE_AT, argument: value})
    assert error.diag.message_detail
    if argument == "secret" and value and len(value) > 6:
        assert value not in str(error)


@pytest.mark.parametrize("argument", GOOD_CODE_AT)
def test_code_at_of_null_is_null(conn, argument):
    """STRICT: a planner may fold it away."""
    assert conn.execute(CODE_AT, {**GOOD_CODE_AT, argument: None}).fetchone() == (None,)


@pytest.mark.parametrize("secret", [SECRET.lower(), "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ", "gezd-gnbv-gy3t-qojq-gezd-gnbv-gy3t-qojq",
                                    SECRET + "======", f"  {SECRET}\n", f"{SECRET} = = ="], ids=repr)
def test_code_at_takes_a_secret_as_people_type_it(conn, secret):
    assert conn.execute(CODE_AT, {**GOOD_CODE_AT, "secret": secret}).fetchone() == ("94287082",)


@pytest.mark.parametrize("at", ["4713-01-01 00:00:00+00 BC", "1969-12-31 23:59:59+00", "1970-01-01 00:00:00+00", "294276-12-31 23:59:59+00"])
def test_code_at_has_an_answer_for_every_time(conn, at):
    [code] = conn.execute(CODE_AT, {**GOOD_CODE_AT, "at": at}).fetchone()
    assert len(code) == 8 and code.isascii() and code.isdigit()


# --- totp_remove --------------------------------------------------------------------------


@pytest.mark.parametrize("user_id", [None, "", "x" * 257, MEGABYTE], ids=lambda value: repr(value)[:16])
def test_remove_refuses_an_invalid_user_id(conn, user_id):
    enroll(conn, "alice")
    refused(conn, "SELECT totp_remove(%s)", [user_id])
    assert conn.execute("SELECT count(*) FROM totp.secrets").fetchone() == (1,)


@pytest.mark.parametrize("device", ["", "x" * 257, MEGABYTE], ids=lambda value: repr(value)[:16])
def test_remove_refuses_an_invalid_device_name(conn, device):
    enroll(conn, "alice")
    refused(conn, "SELECT totp_remove('alice', %s)", [device])
    assert conn.execute("SELECT count(*) FROM totp.secrets").fetchone() == (1,)


# --- What a support desk calls -----------------------------------------------------------

NO_NAME = [None, "", "x" * 257, "é" * 129, MEGABYTE]


@pytest.mark.parametrize("value", NO_NAME, ids=lambda value: repr(value)[:16])
@pytest.mark.parametrize("query", ["SELECT * FROM totp_reset(%s)", "SELECT totp_disable(%s)", "SELECT totp_enable(%s)", "SELECT totp_unlock(%s)",
                                   "SELECT totp_rename_user(%s, 'bob')", "SELECT totp_rename_user('alice', %s)", "SELECT * FROM totp_recovery_codes(%s)",
                                   "SELECT * FROM totp_reset_recovery_codes(%s)", "SELECT totp_unenroll(%s, '123456')", "SELECT totp_rename_device(%s, 'default', 'x')",
                                   "SELECT totp_move_device(%s, 'default', 'bob', 'x')", "SELECT totp_move_device('alice', 'default', %s, 'x')",
                                   "SELECT totp_import(%s, 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', 'x')"])
def test_an_invalid_user_id_is_refused(conn, query, value):
    enroll(conn, "alice")
    refused(conn, query, [value])
    assert conn.execute("SELECT device, state, version FROM totp_status('alice')").fetchall() == [("default", "pending", 1)]


@pytest.mark.parametrize("value", NO_NAME[1:], ids=lambda value: repr(value)[:16])
def test_unenroll_refuses_an_invalid_device_name(conn, value):
    enroll(conn, "alice")
    refused(conn, "SELECT totp_unenroll('alice', NULL, %s)", [value])
    assert conn.execute("SELECT totp_unenroll('alice', NULL, NULL)").fetchone() == (True,)  # everything


@pytest.mark.parametrize("count", [None, -1, 21, 2**31 - 1, -(2**31)])
def test_check_confirm_refuses_an_invalid_number_of_recovery_codes(conn, count):
    secret = enroll(conn, "alice")
    refused(conn, "SELECT totp_check_confirm('alice', %s, recovery_codes => %s::int)", [code_at(secret, NOON), count])
    assert verify(conn, "alice", code_at(secret, NOON)) is True  # and nothing was used up


@pytest.mark.parametrize("value", NO_NAME, ids=lambda value: repr(value)[:16])
@pytest.mark.parametrize("query", ["SELECT * FROM totp_reset('alice', %s)", "SELECT totp_disable('alice', %s)", "SELECT totp_enable('alice', %s)",
                                   "SELECT totp_rename_device('alice', %s, 'x')", "SELECT totp_rename_device('alice', 'default', %s)",
                                   "SELECT totp_move_device('alice', %s, 'bob', 'x')", "SELECT totp_move_device('alice', 'default', 'bob', %s)",
                                   "SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', device => %s)"])
def test_an_invalid_device_name_is_refused(conn, query, value):
    enroll(conn, "alice")
    if value is None and "able(" in query:
        assert conn.execute(query, [value]).fetchone() == (0 if "enable" in query else 1,)  # NULL: every device
        return
    refused(conn, query, [value])
    assert conn.execute("SELECT device, state, version FROM totp_status('alice')").fetchall() == [("default", "pending", 1)]
