"""Secrets brought along from elsewhere: what is read, what is refused, what is told and stored, one by one and in bulk."""

import hashlib
import itertools
import random
import secrets
import subprocess
from base64 import b32decode, b32encode
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from totp import code_at, enroll, error_of, fix_clock, verify

NOON = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
HALF_MINUTE = timedelta(seconds=30)
SECRET = "NQ3YXH6DKR5VZ2TMUJEOGWBA7PSFICL4"  # 20 bytes, and no word in it that a message may hold
BYTES = b32decode(SECRET).hex()
TABLES = ["secrets", "used_codes", "attempts", "recovery_codes", "audit_log"]


@pytest.fixture
def conn(quick_db):
    with closing(quick_db.connect()) as conn:
        fix_clock(conn, NOON)
        yield conn


def base32(data: bytes) -> str:
    return b32encode(data).decode().rstrip("=")


def import_(conn, user_id, secret, **parameters) -> str:
    """totp_import with these named parameters; the URI it returns."""
    names = "".join(f", {name} => %({name})s" for name in parameters)
    query = f"SELECT totp_import(%(user_id)s, %(secret)s{names})"
    return conn.execute(query, {"user_id": user_id, "secret": secret, **parameters}).fetchone()[0]


def uri_of(secret, label="alice", **parameters) -> str:
    return f"otpauth://totp/{label}?secret={secret}" + "".join(f"&{name}={value}" for name, value in parameters.items())


def oathtool(secret: bytes, when: datetime, algorithm="SHA1", digits=6, period=30) -> str:
    """The code of a secret at a time, by oathtool: pyotp refuses weak secrets."""
    command = ["oathtool", f"--totp={algorithm}", f"--digits={digits}", f"--time-step-size={period}s", f"--now=@{int(when.timestamp())}", secret.hex()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def status(conn, columns="device, state, version", user_id="alice"):
    return conn.execute(f"SELECT {columns} FROM totp_status(%s)", [user_id]).fetchall()


def stored(conn) -> dict[str, int]:
    return {table: conn.execute(f"SELECT count(*) FROM totp.{table}").fetchone()[0] for table in TABLES}


NOTHING = dict.fromkeys(TABLES, 0)


def told_by(error: psycopg.Error) -> str:
    """Everything that an error says, to its user or to the program."""
    fields = [getattr(error.diag, name) for name in dir(error.diag) if not name.startswith("_")]
    return "\n".join(map(str, [error, *error.args, *fields]))


def assert_not_told(secret: str, text: str) -> None:
    """Nothing of the secret that was given, as base32 or in a URI, is in a text, nor of SECRET: no six characters in a row."""
    given = secret if ":/" not in secret and "?" not in secret else secret.partition("secret=")[2].partition("&")[0]
    for form in ("".join(filter(str.isalnum, given)), SECRET, BYTES):
        assert not [part for part in _parts(form.upper(), 6) if part in text.upper()]


def _parts(text: str, length: int) -> set[str]:
    return {text[start:start + length] for start in range(len(text) - length + 1)}


def refused(conn, db, user_id, secret, **parameters) -> psycopg.Error:
    """22023 with a DETAIL that says what is accepted; the secret is told neither to the client nor to the server log."""
    logged = len(db.cluster.log_text())
    names = "".join(f", {name} => %({name})s" for name in parameters)
    error = error_of(conn, f"SELECT totp_import(%(user_id)s, %(secret)s{names})", {"user_id": user_id, "secret": secret, **parameters})
    assert error.sqlstate == "22023", error
    assert error.diag.message_detail
    log = db.cluster.log_text()[logged:]
    assert error.diag.message_primary in log
    assert_not_told(secret, told_by(error))
    assert_not_told(secret, log)
    return error


# --- Base32 ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    SECRET, SECRET.lower(), SECRET.swapcase(), "".join(random.Random(7).choice([c, c.lower()]) for c in SECRET),
    " ".join(SECRET[i:i + 4] for i in range(0, 32, 4)), "-".join(SECRET[i:i + 8] for i in range(0, 32, 8)),
    " ".join(SECRET), "-" + "--".join(SECRET) + "-", f"  {SECRET}\n", f"\t{SECRET[:16]}\r\n\v\f{SECRET[16:]} ",
    SECRET + "=", SECRET + "======", SECRET + " = = \n", SECRET + "=" * 8,
], ids=repr)
def test_base32_as_people_write_it(conn, text):
    assert import_(conn, "alice", text) == f"otpauth://totp/alice?secret={SECRET}&algorithm=SHA1&digits=6&period=30"
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True


@pytest.mark.parametrize("length", [16, 17, 18, 19, 20, 21, 32, 64, 127, 128])
def test_secrets_of_every_length_with_and_without_padding(conn, length):
    data = bytes(range(length))
    padded = b32encode(data).decode()
    for text in (padded, padded.rstrip("="), padded.lower()):
        assert f"?secret={padded.rstrip('=')}&" in import_(conn, "alice", text)
    assert verify(conn, "alice", code_at(padded, NOON)) is True


def test_bits_after_the_last_byte_do_not_matter(conn):
    """Some services hand out random characters, not encoded bytes. Authenticators ignore what is left over."""
    assert "?secret=" + "A" * 26 + "&" in import_(conn, "alice", "A" * 25 + "B")
    assert verify(conn, "alice", code_at("A" * 26 + "=" * 6, NOON)) is True


LOST_CHARACTER = "a character is missing"
NOT_BASE32 = {
    "empty": "", "white space": " \t\n", "padding": "========", "dashes": "----",
    "zero": "0" + SECRET[1:], "one": SECRET[:31] + "1", "eight": SECRET[:16] + "8" + SECRET[17:], "nine": SECRET[:5] + "9" + SECRET[6:],
    "hexadecimal": BYTES, "base64": "bDeLn8NUe1zqbKJI41iAe+RUFlw=", "plus": SECRET[:8] + "+" + SECRET[9:], "slash": SECRET[:8] + "/" + SECRET[9:],
    "underscore": SECRET[:8] + "_" + SECRET[8:], "point": SECRET + ".", "comma": SECRET[:16] + "," + SECRET[16:],
    "quotes": f'"{SECRET}"', "apostrophes": f"'{SECRET}'", "brackets": f"[{SECRET}]", "colon": SECRET[:16] + ":" + SECRET[16:],
    "padding first": "=" + SECRET, "padding inside": SECRET[:16] + "=" + SECRET[16:], "padding, then more": SECRET + "==AA",
    "umlaut": SECRET[:31] + "Ä", "sharp s": SECRET[:30] + "ß", "dotless i": SECRET[:31] + "ı", "long s": SECRET[:31] + "ſ",
    "full-width letters": "ＮＱ３ＹＸＨ６ＤＫＲ５ＶＺ２ＴＭ" * 2, "cyrillic a": SECRET[:31] + "А", "kelvin sign": SECRET[:31] + "\u212a",
    "no-break space": SECRET[:16] + "\u00a0" + SECRET[16:], "zero-width space": SECRET[:16] + "\u200b" + SECRET[16:],
    "byte order mark": "\ufeff" + SECRET, "en dash": SECRET[:16] + "–" + SECRET[16:], "control character": SECRET[:16] + "\x01" + SECRET[16:],
    "one character too many": SECRET + "A", "three too many": SECRET + "AAA", "six too many": SECRET + "AAAAAA",
    "other scheme": f"https://totp/alice?secret={SECRET}", "migration URI": "otpauth-migration://offline?data=CjEKCkhlbGxvId6tvu8", "steam URI": f"steam://{SECRET}",
    "1024 separators": SECRET + "-" * 1024, "a megabyte": SECRET * 32768, "a megabyte of nothing": " " * 1_000_000,
}


@pytest.mark.parametrize("name", NOT_BASE32)
def test_all_else_is_refused(conn, quick_db, name):
    refused(conn, quick_db, "alice", NOT_BASE32[name], confirmed=True, allow_weak=True)
    assert stored(conn) == NOTHING


# --- Length --------------------------------------------------------------------------------


@pytest.mark.parametrize("length, weak, accepted", [
    (1, True, False), (9, False, False), (9, True, False), (10, False, False), (10, True, True), (15, False, False), (15, True, True),
    (16, False, True), (16, True, True), (128, False, True), (128, True, True), (129, False, False), (129, True, False), (640, True, False),
])
@pytest.mark.parametrize("form", ["base32", "URI"])
def test_16_to_128_bytes_and_from_10_on_where_weak_ones_are_allowed(conn, quick_db, length, weak, accepted, form):
    secret = base32(random.Random(length).randbytes(length))
    given = uri_of(secret) if form == "URI" else secret
    if accepted:
        assert import_(conn, "alice", given, allow_weak=weak, confirmed=True) == uri_of(secret, algorithm="SHA1", digits=6, period=30)
        assert verify(conn, "alice", oathtool(b32decode(secret + "=" * (-len(secret) % 8)), NOON)) is True
    else:
        error = refused(conn, quick_db, "alice", given, allow_weak=weak)
        assert "16 to 128 bytes" in error.diag.message_detail
        assert ("allow_weak" in error.diag.message_detail) is (10 <= length < 16)
        assert stored(conn) == NOTHING


# --- otpauth URIs ----------------------------------------------------------------------------

CANONICAL = f"otpauth://totp/Example:alice?secret={SECRET}&issuer=Example&algorithm=SHA256&digits=8&period=60"


def test_parameters_in_any_order(conn):
    parameters = [f"secret={SECRET}", "issuer=Example", "algorithm=SHA256", "digits=8", "period=60"]
    for order in itertools.permutations(parameters):
        assert import_(conn, "alice", "otpauth://totp/Example:alice?" + "&".join(order)) == CANONICAL


@pytest.mark.parametrize("uri", [
    f"OTPAUTH://TOTP/Example:alice?SECRET={SECRET}&ISSUER=Example&ALGORITHM=SHA256&DIGITS=8&PERIOD=60",
    f"otpAuth://Totp/Example:alice?Secret={SECRET}&Issuer=Example&Algorithm=sha256&Digits=8&pErIoD=60",
    CANONICAL.replace(SECRET, SECRET.lower()), CANONICAL.replace(SECRET, "%20".join([SECRET[:16], SECRET[16:]])),
    CANONICAL.replace(SECRET, SECRET[:16] + "-" + SECRET[16:]), CANONICAL.replace(SECRET, SECRET + "%3D%3D"),
    CANONICAL.replace(SECRET, SECRET + "===="), CANONICAL.replace(SECRET, "".join(f"%{ord(c):02x}" for c in SECRET)),
    CANONICAL.replace("SHA256", "SHA-256"), CANONICAL.replace("SHA256", "HmacSHA256"),
    CANONICAL.replace(":", "%3A", 2).replace("otpauth%3A", "otpauth:"), CANONICAL.replace("Example:", "Example%3a"),
    CANONICAL.replace("Example:", "Example:%20"), CANONICAL.replace("Example:", "Example:%20%20"), CANONICAL.replace("Example:", ""),
    CANONICAL.replace("&issuer=Example", ""), CANONICAL.replace("&issuer=Example", "&issuer="), CANONICAL.replace("Example:", ":"),
    CANONICAL.replace("issuer=Example", "issuer=%45xample"), CANONICAL.replace("Example:alice", "%45xample:%61lice"),
    CANONICAL + "&image=https%3A%2F%2Fexample.com%2Flogo.png", CANONICAL.replace("?", "?lock=true&"), CANONICAL + "&counter=7&counter=8",
    CANONICAL + "&x", CANONICAL + "&=", CANONICAL + "&", CANONICAL.replace("&", "&&"), CANONICAL + "&secrets=AAAA&secret2=BBBB",
    f" \t{CANONICAL}\r\n",
])
def test_uris_of_one_meaning(conn, uri):
    assert import_(conn, "alice", uri) == CANONICAL
    assert status(conn, "account_name, issuer, algorithm, digits, period") == [("alice", "Example", "SHA256", 8, 60)]
    assert verify(conn, "alice", code_at(SECRET, NOON, "SHA256", 8, 60)) is True


def test_what_a_uri_leaves_out(conn):
    assert import_(conn, "alice", uri_of(SECRET, "someone")) == uri_of(SECRET, "someone", algorithm="SHA1", digits=6, period=30)
    conn.execute("SET totp.issuer = 'Ours'")
    assert import_(conn, "alice", uri_of(SECRET, "someone")) == uri_of(SECRET, "Ours:someone", issuer="Ours", algorithm="SHA1", digits=6, period=30)


def test_a_plus_sign_is_a_plus_sign(conn):
    import_(conn, "alice", uri_of(SECRET, "A+B:alice+tag@example.com", issuer="A+B"))
    assert status(conn, "account_name, issuer") == [("alice+tag@example.com", "A+B")]


def test_a_uri_brings_its_own_parameters_and_names_that_are_given_win(conn):
    import_(conn, "alice", CANONICAL, algorithm="SHA512", digits=7, period=15)
    assert status(conn, "account_name, issuer, algorithm, digits, period") == [("alice", "Example", "SHA256", 8, 60)]
    import_(conn, "alice", CANONICAL, account_name="al", issuer="Else")
    assert status(conn, "account_name, issuer, algorithm, digits, period") == [("al", "Else", "SHA256", 8, 60)]
    import_(conn, "alice", CANONICAL, issuer="")
    assert status(conn, "account_name, issuer") == [("alice", None)]


BAD_URIS = {
    "hotp": f"otpauth://hotp/alice?secret={SECRET}&counter=0", "HOTP": f"OTPAUTH://HOTP/alice?secret={SECRET}&counter=0",
    "other type": f"otpauth://steam/alice?secret={SECRET}", "no type": f"otpauth:///alice?secret={SECRET}",
    "no slashes": f"otpauth:totp/alice?secret={SECRET}", "one slash": f"otpauth:/totp/alice?secret={SECRET}", "no label": f"otpauth://totp?secret={SECRET}",
    "empty label": f"otpauth://totp/?secret={SECRET}", "issuer only": f"otpauth://totp/Example:?secret={SECRET}",
    "blank account": f"otpauth://totp/Example:%20?secret={SECRET}", "port": f"otpauth://totp:80/alice?secret={SECRET}",
    "type encoded": f"otpauth://%74otp/alice?secret={SECRET}", "space before the scheme's colon": f"otpauth ://totp/alice?secret={SECRET}",
    "no query": "otpauth://totp/Example:alice", "empty query": "otpauth://totp/Example:alice?", "no secret": "otpauth://totp/alice?issuer=Example",
    "empty secret": "otpauth://totp/alice?secret=", "secret without a value": "otpauth://totp/alice?secret", "bad secret": uri_of("0" + SECRET[1:]),
    "secret in hexadecimal": uri_of(BYTES), "incomplete secret": uri_of(SECRET + "A"), "plus in the secret": uri_of(SECRET[:16] + "+" + SECRET[16:]),
    "fragment": uri_of(SECRET) + "#top", "fragment in the label": uri_of(SECRET, "a#b"),
    "two secrets": uri_of(SECRET) + f"&secret={SECRET}", "two secrets, other case": uri_of(SECRET) + f"&SECRET={SECRET}",
    "secret, then an empty one": uri_of(SECRET) + "&secret=", "two issuers": uri_of(SECRET, issuer="A") + "&issuer=A",
    "two algorithms": uri_of(SECRET, algorithm="SHA1") + "&Algorithm=SHA1", "two digits": uri_of(SECRET, digits=6) + "&digits=6",
    "two periods": uri_of(SECRET, period=30) + "&period=30",
    "label: % at the end": uri_of(SECRET, "alice%"), "label: one digit": uri_of(SECRET, "alice%4"), "label: no digits": uri_of(SECRET, "al%zzice"),
    "label: percent sign": uri_of(SECRET, "100% alice"), "label: sign in it": uri_of(SECRET, "al%+1ice"), "label: not UTF-8": uri_of(SECRET, "alice%ff"),
    "label: overlong": uri_of(SECRET, "alice%c0%80"), "label: surrogate": uri_of(SECRET, "alice%ed%a0%80"), "label: cut short": uri_of(SECRET, "alice%e6%97"),
    "label: zero byte": uri_of(SECRET, "alice%00"), "label: line feed": uri_of(SECRET, "al%0Aice"), "label: carriage return": uri_of(SECRET, "alice%0D"),
    "issuer: broken": uri_of(SECRET, issuer="Ex%ample"), "issuer: not UTF-8": uri_of(SECRET, issuer="%80"), "issuer: tab": uri_of(SECRET, issuer="%09"),
    "secret: broken": uri_of(SECRET[:8] + "%" + SECRET[8:]), "secret: cut short": uri_of(SECRET) + "%4", "algorithm: broken": uri_of(SECRET, algorithm="SHA%1"),
    "digits: broken": uri_of(SECRET, digits="6%"), "period: broken": uri_of(SECRET, period="%3"),
    "another issuer": uri_of(SECRET, "Example:alice", issuer="Other"), "issuer in another case": uri_of(SECRET, "Example:alice", issuer="EXAMPLE"),
    "issuer with a space": uri_of(SECRET, "Example:alice", issuer="Example%20"), "two colons": uri_of(SECRET, "Example:team:alice"),
    "two colons, encoded": uri_of(SECRET, "Example:team%3Aalice"), "colon in the issuer": uri_of(SECRET, issuer="a%3Ab"),
    "long account": uri_of(SECRET, "x" * 257), "long account, encoded": uri_of(SECRET, "%C3%A9" * 129), "long issuer": uri_of(SECRET, issuer="x" * 257),
    "long URI": uri_of(SECRET, note="x" * 8192), "a megabyte": uri_of(SECRET, note="x" * 1_000_000), "a megabyte of %": uri_of(SECRET, "%" * 1_000_000),
    **{f"digits={value}": uri_of(SECRET, digits=value) for value in ("5", "9", "", "0", "-6", "+6", "%206", "six", "6.0", "6a", "٦", "10", "4294967302", "9" * 99)},
    **{f"period={value}": uri_of(SECRET, period=value) for value in ("14", "121", "", "0", "-30", "+30", "30s", "30.5", "4294967326", "9" * 99)},
    **{f"algorithm={value}": uri_of(SECRET, algorithm=value) for value in ("", "MD5", "SHA", "SHA384", "SHA1%20", "SHA%201", "SHA3-256")},
}


@pytest.mark.parametrize("name", BAD_URIS)
def test_bad_uris_are_refused(conn, quick_db, name):
    refused(conn, quick_db, "alice", BAD_URIS[name], confirmed=True, allow_weak=True)
    assert stored(conn) == NOTHING


def test_hotp_is_called_by_its_name(conn, quick_db):
    assert "hotp" in refused(conn, quick_db, "alice", BAD_URIS["hotp"]).diag.message_detail


# --- Other arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize("argument, value", [
    ("user_id", None), ("user_id", ""), ("user_id", "x" * 257), ("secret", None), ("account_name", ""), ("account_name", "a:b"), ("account_name", "x" * 257),
    ("account_name", "a\nb"), ("issuer", "a:b"), ("issuer", "x" * 257), ("device", None), ("device", ""), ("device", "x" * 257),
    ("algorithm", None), ("algorithm", "MD5"), ("digits", None), ("digits", 5), ("digits", 9), ("period", None), ("period", 14), ("period", 121),
    ("confirmed", None), ("allow_weak", None),
], ids=lambda value: repr(value)[:24])
@pytest.mark.parametrize("secret", [SECRET, CANONICAL], ids=["base32", "URI"])
def test_bad_arguments_are_refused(conn, secret, argument, value):
    given = {"user_id": "alice", "secret": secret, "account_name": "al", "issuer": "Ours", "device": "phone", "algorithm": "SHA1", "digits": 6,
             "period": 30, "confirmed": False, "allow_weak": False, argument: value}
    error = error_of(conn, "SELECT totp_import(%(user_id)s, %(secret)s, %(account_name)s, %(issuer)s, %(device)s, %(algorithm)s, %(digits)s::int,"
                           " %(period)s::int, %(confirmed)s, %(allow_weak)s)", given)
    assert error.sqlstate == "22023", error
    assert_not_told(SECRET, told_by(error))
    assert stored(conn) == NOTHING


# --- Pending and confirmed -----------------------------------------------------------------------


def enabled(conn, user_id="alice") -> bool:
    return conn.execute("SELECT totp_enabled(%s)", [user_id]).fetchone()[0]


def test_an_imported_secret_is_pending_until_its_first_code(conn):
    import_(conn, "alice", SECRET)
    assert status(conn, "state, version, confirmed_at") == [("pending", 1, None)] and not enabled(conn)
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    assert status(conn, "state, version, confirmed_at") == [("active", 1, NOON)] and enabled(conn)


def test_an_imported_secret_expires_as_an_enrolled_one_does(conn):
    import_(conn, "alice", SECRET)
    fix_clock(conn, NOON + timedelta(hours=1))
    assert verify(conn, "alice", code_at(SECRET, NOON + timedelta(hours=1))) is False
    import_(conn, "bob", SECRET, confirmed=True)
    fix_clock(conn, NOON + timedelta(days=1000))
    assert verify(conn, "bob", code_at(SECRET, NOON + timedelta(days=1000))) is True


def test_a_confirmed_one_is_usable_at_once(conn):
    import_(conn, "alice", SECRET, confirmed=True)
    assert status(conn, "state, version, created_at, confirmed_at, last_used_at, uses") == [("active", 1, NOON, NOON, None, 0)]
    assert enabled(conn)
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    assert verify(conn, "alice", code_at(SECRET, NOON)) is False
    assert conn.execute("SELECT event, user_id, device FROM totp.audit_log ORDER BY id LIMIT 1").fetchone() == ("imported", "alice", "default")


def test_a_pending_import_stages_and_a_confirmed_one_replaces(conn):
    old = enroll(conn, "alice")
    assert verify(conn, "alice", code_at(old, NOON - HALF_MINUTE)) is True
    import_(conn, "alice", SECRET)
    assert status(conn) == [("default", "active", 1), ("default", "pending", 2)]
    assert verify(conn, "alice", code_at(old, NOON)) is True
    other = base32(secrets.token_bytes(20))
    import_(conn, "alice", other, confirmed=True)
    assert status(conn) == [("default", "active", 3)]
    fix_clock(conn, NOON + HALF_MINUTE)
    for dead in (old, SECRET):
        assert verify(conn, "alice", code_at(dead, NOON + HALF_MINUTE)) is False
    assert verify(conn, "alice", code_at(other, NOON + HALF_MINUTE)) is True


def test_a_disabled_device_is_not_imported_to(conn, quick_db):
    import_(conn, "alice", SECRET, confirmed=True)
    conn.execute("SELECT totp_disable('alice')")
    error = error_of(conn, "SELECT totp_import('alice', %s, confirmed => true)", [SECRET])
    assert error.sqlstate == "55000" and error.diag.message_hint
    assert_not_told(SECRET, told_by(error))
    assert status(conn) == [("default", "disabled", 1)]


# --- A secret that is known already ------------------------------------------------------------------


def test_a_secret_that_the_device_has_keeps_its_burnt_step(conn):
    import_(conn, "alice", SECRET, confirmed=True)
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    for confirmed in (False, True):
        import_(conn, "alice", SECRET.lower(), confirmed=confirmed, account_name="al")
        assert [state for _, state, _ in status(conn)] == ["active"]
        assert conn.execute("SELECT accepted, reason FROM totp_check('alice', %s)", [code_at(SECRET, NOON)]).fetchone() == (False, "replayed")
    assert status(conn, "account_name, last_used_at, uses") == [("al", NOON, 1)]
    assert verify(conn, "alice", code_at(SECRET, NOON + HALF_MINUTE)) is True


def test_a_pending_secret_that_the_device_has_stays_pending_or_becomes_active(conn):
    import_(conn, "alice", SECRET)
    import_(conn, "alice", SECRET)
    assert status(conn) == [("default", "pending", 2)]
    import_(conn, "alice", SECRET, confirmed=True)
    assert status(conn) == [("default", "active", 3)]
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True
    import_(conn, "alice", SECRET)
    assert status(conn) == [("default", "active", 4)]
    assert verify(conn, "alice", code_at(SECRET, NOON)) is False


def test_a_staged_secret_that_is_imported_again_leaves_the_active_one(conn):
    old = enroll(conn, "alice")
    assert verify(conn, "alice", code_at(old, NOON)) is True
    staged = enroll(conn, "alice")
    import_(conn, "alice", staged)
    assert status(conn) == [("default", "active", 1), ("default", "pending", 3)]
    assert verify(conn, "alice", code_at(old, NOON)) is False
    assert verify(conn, "alice", code_at(old, NOON + HALF_MINUTE)) is True
    import_(conn, "alice", old)  # the active one: what is staged goes
    assert status(conn) == [("default", "active", 4)]
    assert verify(conn, "alice", code_at(old, NOON + HALF_MINUTE)) is False


@pytest.mark.parametrize("first, second", [(30, 60), (60, 30), (30, 45), (45, 30), (15, 120), (120, 15), (30, 31)])
def test_the_burnt_step_is_kept_in_steps_of_another_length(conn, first, second):
    """No code of a time that is used up is accepted, whatever the length of the step; the next one is."""
    import_(conn, "alice", SECRET, confirmed=True, period=first)
    assert verify(conn, "alice", code_at(SECRET, NOON, period=first)) is True
    used_until = (NOON.timestamp() // first + 1) * first
    import_(conn, "alice", SECRET, period=second)
    assert [state for _, state, _ in status(conn)] == ["active"]
    refused_steps = range(int(NOON.timestamp()) // second - 1, int(used_until - 1) // second + 1)
    for step in refused_steps:
        fix_clock(conn, datetime.fromtimestamp(step * second, UTC))
        answer = conn.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(SECRET, step * second, period=second)]).fetchone()
        assert answer == ("replayed",), step
    following = refused_steps.stop * second
    fix_clock(conn, datetime.fromtimestamp(following, UTC))
    assert verify(conn, "alice", code_at(SECRET, following, period=second)) is True
    # And back: what is used up never becomes less.
    import_(conn, "alice", SECRET, period=first)
    assert verify(conn, "alice", code_at(SECRET, following, period=first)) is False
    fix_clock(conn, NOON)
    assert verify(conn, "alice", code_at(SECRET, NOON, period=first)) is False


def test_the_burnt_step_is_kept_with_other_digits_and_another_algorithm(conn):
    import_(conn, "alice", SECRET, confirmed=True, digits=8)
    assert verify(conn, "alice", code_at(SECRET, NOON, digits=8)) is True
    import_(conn, "alice", SECRET, digits=6)
    assert verify(conn, "alice", code_at(SECRET, NOON)) is False
    import_(conn, "alice", SECRET, algorithm="SHA512", digits=6)
    assert verify(conn, "alice", code_at(SECRET, NOON, "SHA512")) is False
    assert verify(conn, "alice", code_at(SECRET, NOON + HALF_MINUTE, "SHA512")) is True


def test_failures_and_locks_are_kept(conn):
    import_(conn, "alice", SECRET, confirmed=True)
    for _ in range(5):
        assert verify(conn, "alice", "000000") is False
    import_(conn, "alice", SECRET, confirmed=True)
    assert status(conn, "failures, locked_until") == [(5, NOON + HALF_MINUTE)]
    assert verify(conn, "alice", code_at(SECRET, NOON)) is False


def test_what_may_have_been_used_before_lost_wal_stays_used(conn, quick_db):
    """The floor: on another identity of the cluster, codes of older secrets are refused once. An import of the same secret is no way round it."""
    import_(conn, "alice", SECRET, confirmed=True)
    conn.execute("UPDATE totp.floor SET system_identifier = system_identifier + 1")  # as a restored copy finds it
    later = NOON + timedelta(hours=1)
    with closing(quick_db.connect()) as restored:
        fix_clock(restored, later)
        check = "SELECT reason FROM totp_check('alice', %s)"
        assert restored.execute(check, [code_at(SECRET, later)]).fetchone() == ("replayed",)
        import_(restored, "alice", SECRET, confirmed=True)
        assert restored.execute(check, [code_at(SECRET, later)]).fetchone() == ("replayed",)
        fix_clock(restored, later + 4 * HALF_MINUTE)
        assert restored.execute(check, [code_at(SECRET, later + 4 * HALF_MINUTE)]).fetchone() == ("accepted",)


@pytest.mark.parametrize("there", ["active", "pending", "disabled"])
@pytest.mark.parametrize("given", [{}, {"confirmed": True}, {"period": 60, "digits": 8}])
def test_a_secret_that_another_device_has_is_refused(conn, quick_db, there, given):
    """Else one code would count twice."""
    import_(conn, "alice", SECRET, device="phone", confirmed=there != "pending")
    if there == "disabled":
        conn.execute("SELECT totp_disable('alice', 'phone')")
    before = stored(conn)
    refused(conn, quick_db, "alice", uri_of(SECRET) if not given else SECRET, device="tablet", **given)
    assert stored(conn) == before and [device for device, _, _ in status(conn)] == ["phone"]
    import_(conn, "bob", SECRET, device="tablet", **given)  # another user's own affair
    conn.execute("SELECT totp_remove('alice', 'phone')")
    import_(conn, "alice", SECRET, device="tablet", **given)


RAW, LONG = bytes.fromhex(BYTES), bytes(range(100))


@pytest.mark.parametrize("known, equivalent", [
    (RAW, RAW + b"\0"), (RAW + b"\0\0", RAW), (LONG, hashlib.sha1(LONG).digest()), (hashlib.sha1(LONG).digest(), LONG),
], ids=["with a zero byte", "without its zero bytes", "hashed", "not hashed"])
def test_a_secret_of_the_same_codes_is_the_same_secret(conn, quick_db, known, equivalent):
    """HMAC (RFC 2104 section 2) fills a key up with zero bytes, and hashes one that is longer than a block: the codes are the same."""
    import_(conn, "alice", base32(known), device="phone", confirmed=True)
    code = code_at(base32(equivalent) + "=" * (-len(base32(equivalent)) % 8), NOON)
    assert verify(conn, "alice", code) is True
    refused(conn, quick_db, "alice", base32(equivalent), device="tablet", confirmed=True)
    import_(conn, "alice", base32(equivalent), device="phone", confirmed=True)
    assert verify(conn, "alice", code) is False


# --- Codes, against oathtool ---------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
@pytest.mark.parametrize("digits, period", [(6, 30), (7, 15), (8, 60), (6, 120)])
def test_codes_of_imported_secrets_agree_with_oathtool(conn, algorithm, digits, period):
    chance = random.Random(f"{algorithm} {digits} {period}")
    lengths = [10, 16, 20, 32, 63, 64, 65, 127, 128]  # around the block sizes of the hashes
    times = sorted(chance.randrange(1_900_000_000, 4_000_000_000) for _ in lengths)  # the clock does not go back
    for length, when in zip(lengths, times):
        data, when = chance.randbytes(length), datetime.fromtimestamp(when, UTC)
        code = oathtool(data, when, algorithm, digits, period)
        fix_clock(conn, when)
        user_id = f"user of {length} bytes"
        import_(conn, user_id, base32(data), algorithm=algorithm, digits=digits, period=period, confirmed=True, allow_weak=True)
        assert conn.execute("SELECT totp_code_at(%s, %s, %s, %s, %s)", [base32(data), when, algorithm, digits, period]).fetchone() == (code,)
        assert verify(conn, user_id, code) is True
        assert verify(conn, user_id, code) is False


# --- In bulk ---------------------------------------------------------------------------------------------


def legacy_table(conn, rows) -> None:
    """What the system before had: a table of users and secrets."""
    conn.execute("DROP TABLE IF EXISTS legacy")
    conn.execute("CREATE TABLE legacy (user_id text PRIMARY KEY, secret text)")
    with conn.cursor().copy("COPY legacy FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def random_users(count: int) -> dict[str, str]:
    return {f"user {number:05}": base32(secrets.token_bytes(20)) for number in range(count)}


@pytest.fixture
def role(quick_db):
    """A role that may import, and read the table."""
    role = quick_db.create_role("admin")
    quick_db.execute(f"GRANT pg_read_all_data TO {role}")
    return role


def test_20000_users_at_once(quick_db, conn, role):
    users = random_users(20_000)
    legacy_table(conn, users.items())
    with closing(quick_db.connect(role)) as admin:
        imported = admin.execute("SELECT totp_import(user_id, secret, confirmed => true) FROM legacy").fetchall()
    assert len(imported) == 20_000
    assert stored(conn) == {**NOTHING, "secrets": 20_000, "used_codes": 20_000, "attempts": 20_000, "audit_log": 20_000}
    assert conn.execute("SELECT count(*) FROM legacy JOIN totp.secrets s USING (user_id)"
                        " WHERE slot = 'active' AND enforced_since IS NOT NULL AND expires_at IS NULL").fetchone() == (20_000,)
    assert conn.execute("SELECT count(*), count(DISTINCT user_id) FROM totp.audit_log WHERE event = 'imported'").fetchone() == (20_000, 20_000)
    for user_id in random.Random(1).sample(sorted(users), 50):
        assert enabled(conn, user_id)
        assert verify(conn, user_id, code_at(users[user_id], NOON)) is True
        assert verify(conn, user_id, code_at(users[user_id], NOON)) is False


BAD_ROWS = {
    "no base32": ("bob", "NOT-VALID-8910" + SECRET, "22023"),
    "a lost character": ("bob", SECRET + "A", "22023"),
    "too weak": ("bob", SECRET[:16], "22023"),
    "too short": ("bob", SECRET[:8], "22023"),
    "no secret": ("bob", None, "22023"),
    "a broken URI": ("bob", uri_of(SECRET, "bob%"), "22023"),
    "a counter's URI": ("bob", f"otpauth://hotp/bob?secret={SECRET}&counter=1", "22023"),
    "a colon in the user id": ("tenant:bob", SECRET, "22023"),
    "a user id with quotes": ('b"o\\b', SECRET + "A", "22023"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named_by_its_user_and_nothing_is_stored(quick_db, conn, bad):
    user_id, secret, sqlstate = BAD_ROWS[bad]
    users = random_users(200)
    legacy_table(conn, [*list(users.items())[:150], (user_id, secret), *list(users.items())[150:]])
    logged = len(quick_db.cluster.log_text())
    error = error_of(conn, "SELECT totp_import(user_id, secret, confirmed => true) FROM legacy")
    assert error.sqlstate == sqlstate
    quoted = user_id.replace("\\", "\\\\").replace('"', '\\"')
    assert f'user "{quoted}"' in error.diag.message_detail
    told = told_by(error) + quick_db.cluster.log_text()[logged:]
    for some in (secret or "", *users.values()):
        assert_not_told(some, told)
    assert stored(conn) == NOTHING


@pytest.mark.parametrize("trouble, sqlstate", [("another device has it", "22023"), ("too many devices", "54000"), ("disabled", "55000")])
def test_a_row_that_cannot_be_stored_is_named_too(quick_db, conn, trouble, sqlstate):
    import_(conn, "bob", SECRET if trouble == "another device has it" else base32(secrets.token_bytes(20)), device="old", confirmed=True)
    device = "old" if trouble == "disabled" else "new"
    if trouble == "disabled":
        conn.execute("SELECT totp_disable('bob')")
    elif trouble == "too many devices":
        conn.execute("SET totp.max_devices = 1")
    before = stored(conn)
    legacy_table(conn, [*random_users(20).items(), ("bob", SECRET)])
    error = error_of(conn, "SELECT totp_import(user_id, secret, device => %s, confirmed => true) FROM legacy", [device])
    assert error.sqlstate == sqlstate and 'user "bob"' in error.diag.message_detail
    assert_not_told(SECRET, told_by(error))
    assert stored(conn) == before


def test_good_rows_are_imported_and_bad_ones_listed(quick_db, conn, role):
    """The pattern for a table that is not all in order: a block of its own for each row."""
    users = random_users(1000)
    bad = {f"bad {name}": row[1] for name, row in BAD_ROWS.items() if ":" not in row[0] and row[1]}
    bad["bad: a colon"] = SECRET
    rows = [*users.items(), *bad.items(), ("bad nothing", None)]
    random.Random(3).shuffle(rows)
    legacy_table(conn, rows)
    conn.execute("CREATE TABLE IF NOT EXISTS rejected (user_id text, sqlstate text, reason text, detail text, context text)")
    conn.execute("TRUNCATE rejected")
    conn.execute(f"GRANT INSERT ON rejected TO {role}")
    with closing(quick_db.connect(role)) as admin:
        admin.execute("""
            DO $$
            DECLARE
              old       legacy;
              rejection rejected;
            BEGIN
              FOR old IN SELECT * FROM legacy LOOP
                BEGIN
                  PERFORM totp_import(old.user_id, old.secret, confirmed => true);
                EXCEPTION WHEN invalid_parameter_value THEN
                  GET STACKED DIAGNOSTICS rejection.reason = MESSAGE_TEXT, rejection.sqlstate = RETURNED_SQLSTATE,
                    rejection.detail = PG_EXCEPTION_DETAIL, rejection.context = PG_EXCEPTION_CONTEXT;
                  rejection.user_id := old.user_id;
                  INSERT INTO rejected SELECT rejection.*;
                END;
              END LOOP;
            END
            $$""")
    rejected = conn.execute("SELECT * FROM rejected").fetchall()
    assert {row[0] for row in rejected} == {*bad, "bad nothing"} and len(rejected) == len(bad) + 1
    assert {row[1] for row in rejected} == {"22023"}
    for secret in bad.values():
        assert_not_told(secret, "\n".join(map(str, rejected)))
    assert stored(conn) == {**NOTHING, "secrets": 1000, "used_codes": 1000, "attempts": 1000, "audit_log": 1000}
    assert not [user_id for user_id in (*bad, "bad nothing") if enabled(conn, user_id)]
    for user_id in random.Random(4).sample(sorted(users), 20):
        assert verify(conn, user_id, code_at(users[user_id], NOON)) is True
