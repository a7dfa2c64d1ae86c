"""Import of existing secrets: what is accepted, what is refused, what is stored, and what messages say."""

import itertools
import random
import secrets
from base64 import b32decode, b32encode, b64encode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta

import pytest
from imported_secrets import BYTES, NOTHING, SECRET, assert_not_told, base32, import_, oathtool, refused, status, stored, told_by, uri_of
from totp import NOON, code_at, enabled, enroll, error_of, fix_clock, verify

HALF_MINUTE = timedelta(seconds=30)

# --- Base32 ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    SECRET, SECRET.lower(),
    " ".join(SECRET[i:i + 4] for i in range(0, 32, 4)), "-".join(SECRET[i:i + 8] for i in range(0, 32, 8)),
    " ".join(SECRET), "-" + "--".join(SECRET) + "-", f"  {SECRET}\n", f"\t{SECRET[:16]}\r\n\v\f{SECRET[16:]} ",
    SECRET[:16] + "\u00a0" + SECRET[16:], SECRET[:16] + "\u200b" + SECRET[16:], "\ufeff" + SECRET, SECRET[:16] + "–" + SECRET[16:],
    SECRET + "=", SECRET + "======", SECRET + " = = \n", SECRET + "=" * 8,
], ids=repr)
def test_base32_is_read_as_people_write_it(conn, text):
    assert import_(conn, "alice", text) == f"otpauth://totp/alice?secret={SECRET}&algorithm=SHA1&digits=6&period=30"
    assert verify(conn, "alice", code_at(SECRET, NOON)) is True


@pytest.mark.parametrize("length", [16, 17, 18, 19, 20, 21, 32, 64, 127, 128])
def test_secrets_of_every_length_are_read_with_and_without_padding(conn, length):
    data = bytes(range(length))
    padded = b32encode(data).decode()
    for text in (padded, padded.rstrip("="), padded.lower()):
        assert f"?secret={padded.rstrip('=')}&" in import_(conn, "alice", text)
    assert verify(conn, "alice", code_at(padded, NOON)) is True


def test_bits_after_the_last_byte_do_not_matter(conn):
    """Some services hand out random characters, not encoded bytes. Authenticators ignore what is left over."""
    assert "?secret=" + "A" * 26 + "&" in import_(conn, "alice", "A" * 25 + "B")
    assert verify(conn, "alice", code_at("A" * 26 + "=" * 6, NOON)) is True


NOT_BASE32 = {
    "empty": "", "white space": " \t\n", "padding": "========", "dashes": "----",
    "zero": "0" + SECRET[1:], "one": SECRET[:31] + "1", "eight": SECRET[:16] + "8" + SECRET[17:], "nine": SECRET[:5] + "9" + SECRET[6:],
    "hexadecimal": BYTES, "base64": "bDeLn8NUe1zqbKJI41iAe+RUFlw=", "plus": SECRET[:8] + "+" + SECRET[9:], "slash": SECRET[:8] + "/" + SECRET[9:],
    "underscore": SECRET[:8] + "_" + SECRET[8:], "point": SECRET + ".", "comma": SECRET[:16] + "," + SECRET[16:],
    "quotes": f'"{SECRET}"', "apostrophes": f"'{SECRET}'", "brackets": f"[{SECRET}]", "colon": SECRET[:16] + ":" + SECRET[16:],
    "padding first": "=" + SECRET, "padding inside": SECRET[:16] + "=" + SECRET[16:], "padding, then more": SECRET + "==AA",
    "umlaut": SECRET[:31] + "Ä", "sharp s": SECRET[:30] + "ß", "dotless i": SECRET[:31] + "ı", "long s": SECRET[:31] + "ſ",
    "full-width letters": "ＮＱ３ＹＸＨ６ＤＫＲ５ＶＺ２ＴＭ" * 2, "cyrillic a": SECRET[:31] + "А", "kelvin sign": SECRET[:31] + "\u212a",
    "hangul filler": SECRET[:16] + "\u3164" + SECRET[16:], "control character": SECRET[:16] + "\x01" + SECRET[16:],
    "one character too many": SECRET + "A", "three too many": SECRET + "AAA", "six too many": SECRET + "AAAAAA",
    "1024 separators": SECRET + "-" * 1024, "a megabyte": SECRET * 32768, "a megabyte of nothing": " " * 1_000_000,
}


@pytest.mark.parametrize("name", NOT_BASE32)
def test_all_else_is_refused(conn, quick_db, name):
    refused(conn, quick_db, "alice", NOT_BASE32[name], confirmed=True, allow_weak=True)
    assert stored(conn) == NOTHING


# --- Encodings ---------------------------------------------------------------------------

DATA = b32decode(SECRET)


@pytest.mark.parametrize("encoding, text, data", [
    ("base32", SECRET, DATA), ("base32", SECRET[:20] + SECRET[20:].lower(), DATA), ("BASE32", " " + SECRET, DATA), ("hex", BYTES, DATA),
    ("hex", BYTES.upper(), DATA), ("hex", BYTES[:8] + " " + BYTES[8:] + "\u200b", DATA), ("hex", "23456723AB" * 4, bytes.fromhex("23456723AB" * 4)),
    ("base32", "23456723AB" * 4, b32decode("23456723AB" * 4)), ("base64", b64encode(DATA).decode(), DATA), ("base64", b64encode(DATA).decode().rstrip("="), DATA),
    ("base64", urlsafe_b64encode(DATA).decode() + "\n", DATA), ("raw", "aIcnGqTjf2bAAxQzPqAL", b"aIcnGqTjf2bAAxQzPqAL"),
    ("raw", " sp ace-and=more! ", b" sp ace-and=more! "), ("raw", "日本語日本語", "日本語日本語".encode()), ("raw", SECRET, SECRET.encode()),
])
def test_a_secret_in_each_encoding(conn, encoding, text, data):
    assert import_(conn, "alice", text, encoding=encoding, confirmed=True) == uri_of(base32(data), algorithm="SHA1", digits=6, period=30)
    assert verify(conn, "alice", oathtool(data, NOON)) is True


NOT_SURELY_BASE32 = {
    "raw text": "aIcnGqTjf2bAAxQzPqAL", "base32 of both cases": SECRET[:20] + SECRET[20:].lower(), "hexadecimal": BYTES, "base64": b64encode(DATA).decode(),
    "32 digits": "23456723" * 4, "40 digits": "23456723AB" * 4, "64 digits": "abcdef23" * 8, "128 digits": "ABCDEF23" * 16, "40 digits in groups": "2345-6723AB " * 4,
    "not base32": "0" + SECRET[1:], "one character too many": SECRET + "A",
}


@pytest.mark.parametrize("name", NOT_SURELY_BASE32)
def test_what_is_not_surely_base32_is_refused_with_the_argument_that_helps(conn, quick_db, name):
    for given in ({}, {"encoding": None}):
        error = refused(conn, quick_db, "alice", NOT_SURELY_BASE32[name], allow_weak=True, **given)
        assert "encoding" in error.diag.message_hint
    assert stored(conn) == NOTHING


@pytest.mark.parametrize("encoding, text", [
    ("", SECRET), ("base16", BYTES), ("text", SECRET), ("base32", SECRET + "A"), ("base32", BYTES), ("hex", SECRET), ("hex", BYTES + "a"), ("hex", "0x" + BYTES),
    ("base64", BYTES + "A"), ("base64", b64encode(DATA).decode()[:-2] + "x="), ("base64", SECRET + "*"), ("raw", ""), ("raw", "x" * 9), ("raw", "x" * 129),
    ("raw", "x" * 1_000_000), ("hex", "ab" * 1_000_000), ("hex", "ab" * 9), *((name, uri_of(SECRET)) for name in ("base32", "hex", "base64", "raw")),
])
def test_what_is_not_in_its_encoding_is_refused(conn, quick_db, encoding, text):
    refused(conn, quick_db, "alice", text, allow_weak=True, encoding=encoding)
    assert stored(conn) == NOTHING


# --- Length --------------------------------------------------------------------------------


@pytest.mark.parametrize("length, weak, accepted", [
    (1, True, False), (9, False, False), (9, True, False), (10, False, False), (10, True, True), (15, False, False), (15, True, True),
    (16, False, True), (16, True, True), (128, False, True), (128, True, True), (129, False, False), (129, True, False), (640, True, False),
])
@pytest.mark.parametrize("form", ["base32", "URI"])
def test_a_secret_has_16_to_128_bytes_or_from_10_if_weak_ones_are_allowed(conn, quick_db, length, weak, accepted, form):
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

OTHER_URIS = [f"https://totp/alice?secret={SECRET}", "otpauth-migration://offline?data=CjEKCkhlbGxvId6tvu8", f"steam://{SECRET}", f"apple-otpauth://totp/a?secret={SECRET}",
              f'"{uri_of(SECRET)}"', "://"]


@pytest.mark.parametrize("uri", OTHER_URIS)
def test_another_uri_is_refused_as_one_and_not_as_another_encoding(conn, quick_db, uri):
    """Told to name an encoding, somebody would import the text of the URI as raw bytes, and no code would ever be right."""
    for given in ({}, {"encoding": None}):
        error = refused(conn, quick_db, "alice", uri, allow_weak=True, **given)
        assert (error.diag.message_primary, error.diag.message_hint) == ("invalid otpauth URI", None)
    assert stored(conn) == NOTHING


def test_raw_bytes_may_look_like_a_uri(conn):
    assert import_(conn, "alice", "a://0123456789abcd", encoding="raw") == uri_of(base32(b"a://0123456789abcd"), algorithm="SHA1", digits=6, period=30)


CANONICAL = f"otpauth://totp/Example:alice?secret={SECRET}&issuer=Example&algorithm=SHA256&digits=8&period=60"


def test_parameters_may_come_in_any_order(conn):
    parameters = [f"secret={SECRET}", "issuer=Example", "algorithm=SHA256", "digits=8", "period=60"]
    for order in itertools.permutations(parameters):
        assert import_(conn, "alice", "otpauth://totp/Example:alice?" + "&".join(order)) == CANONICAL


@pytest.mark.parametrize("uri", [
    f"OTPAUTH://TOTP/Example:alice?SECRET={SECRET}&ISSUER=Example&ALGORITHM=SHA256&DIGITS=8&PERIOD=60",
    f"otpAuth://Totp/Example:alice?Secret={SECRET}&Issuer=Example&Algorithm=sha256&Digits=8&pErIoD=60",
    CANONICAL.replace(SECRET, SECRET.lower()), CANONICAL.replace(SECRET, "%20".join([SECRET[:16], SECRET[16:]])),
    CANONICAL.replace(SECRET, SECRET[:16] + "-" + SECRET[16:]), CANONICAL.replace(SECRET, SECRET[:16] + " " + SECRET[16:]), CANONICAL.replace(SECRET, SECRET + "%3D%3D"),
    CANONICAL.replace(SECRET, SECRET + "===="), CANONICAL.replace(SECRET, "".join(f"%{ord(c):02x}" for c in SECRET)),
    CANONICAL.replace("SHA256", "SHA-256"), CANONICAL.replace("SHA256", "HmacSHA256"),
    CANONICAL.replace(":", "%3A", 2).replace("otpauth%3A", "otpauth:"), CANONICAL.replace("Example:", "Example%3a"),
    CANONICAL.replace("Example:", "Example:%20"), CANONICAL.replace("Example:", "Example:%20%20"), CANONICAL.replace("Example:", ""),
    CANONICAL.replace("&issuer=Example", ""), CANONICAL.replace("&issuer=Example", "&issuer="), CANONICAL.replace("Example:", ":"),
    CANONICAL.replace("issuer=Example", "issuer=%45xample"), CANONICAL.replace("Example:alice", "%45xample:%61lice"),
    CANONICAL + "&image=https%3A%2F%2Fexample.com%2Flogo.png", CANONICAL.replace("?", "?lock=true&"), CANONICAL + "&counter=7&counter=8",
    CANONICAL + "&x", CANONICAL + "&=", CANONICAL + "&", CANONICAL.replace("&", "&&"), CANONICAL + "&secrets=AAAA&secret2=BBBB",
    f" \t{CANONICAL}\r\n", CANONICAL + "#", CANONICAL + "&image=100%", CANONICAL.replace("Example:", "Other:"), CANONICAL.replace("Example:", "EXAMPLE:"),
    CANONICAL.replace("Example:alice", "Example:%E2%80%AEal%00ice%FF%"), CANONICAL + "&issuer=",
    CANONICAL.replace(SECRET, SECRET[:20] + SECRET[20:].lower()),
])
def test_uris_of_one_meaning_are_read_alike(conn, uri):
    assert import_(conn, "alice", uri) == CANONICAL
    assert status(conn, "account_name, issuer, algorithm, digits, period") == [("alice", "Example", "SHA256", 8, 60)]
    assert verify(conn, "alice", code_at(SECRET, NOON, "SHA256", 8, 60)) is True


def test_what_a_uri_leaves_out_has_its_default(conn):
    assert import_(conn, "alice", uri_of(SECRET, "someone")) == uri_of(SECRET, "someone", algorithm="SHA1", digits=6, period=30)
    conn.execute("SET totp.issuer = 'Ours'")
    assert import_(conn, "alice", uri_of(SECRET, "someone")) == uri_of(SECRET, "Ours:someone", issuer="Ours", algorithm="SHA1", digits=6, period=30)


def test_a_plus_sign_is_a_plus_sign_unless_the_label_has_a_space(conn):
    import_(conn, "alice", uri_of(SECRET, "A+B:alice+tag@example.com", issuer="A+B"))
    assert status(conn, "account_name, issuer") == [("alice+tag@example.com", "A+B")]
    import_(conn, "alice", uri_of(SECRET, "Test%20Issuer:a@example.com", issuer="Test+Issuer"))
    assert status(conn, "account_name, issuer") == [("a@example.com", "Test Issuer")]


@pytest.mark.parametrize("label, parameters, account, issuer", [
    ("Some+Company%3aa%40example.net", {"issuer": "Microsoft"}, "a@example.net", "Microsoft"),
    ("Teleport:a@proxy.example.com:3080", {"issuer": "Teleport"}, "a@proxy.example.com 3080", "Teleport"),
    ("Heroku:", {"issuer": "Heroku"}, "alice", "Heroku"), ("", {}, "alice", None), ("Example:%20", {}, "alice", "Example"), (":", {"issuer": "%00"}, "alice", None),
    ("Example:team:alice", {}, "team alice", "Example"), ("Example:team%3Aalice", {"issuer": "a%3Ab"}, "team alice", "a b"),
    ("alice%", {"issuer": "Ex%ample"}, "alice", "Example"), ("al%zzice", {"issuer": "%80Ex"}, "alzzice", "Ex"), ("alice%c0%80%ed%a0%80", {"issuer": "%09"}, "alice", None),
    ("al%0Aice%0D", {}, "alice", None), ("a#b", {}, "a#b", None), ("%E2%81%A6alice%E2%81%A9", {"issuer": "%E2%80%AEEx"}, "alice", "Ex"),
    ("x" * 257, {"issuer": "x" * 4000}, "x" * 256, "x" * 256), ("%C3%A9" * 129, {}, "é" * 128, None), ("x" + "%E6%97%A5" * 100, {}, "x" + "日" * 85, None),
])
def test_no_name_stops_an_import(conn, label, parameters, account, issuer):
    returned = import_(conn, "alice", uri_of(SECRET, label, **parameters))
    assert status(conn, "account_name, issuer") == [(account, issuer)]
    assert import_(conn, "alice", returned) == returned


def test_where_the_call_names_them_the_names_of_the_uri_do_not_matter(conn):
    import_(conn, "tenant:1", f"otpauth://totp/?secret={SECRET}", account_name="a")
    assert status(conn, "account_name, issuer", "tenant:1") == [("a", None)]
    import_(conn, "alice", uri_of(SECRET, "%zz:a%FFb:c", issuer="%E2%80%AE"), account_name="a", issuer="Ours")
    assert status(conn, "account_name, issuer") == [("a", "Ours")]


def test_a_user_id_that_is_no_account_name_has_a_hint(conn):
    for call in ("SELECT totp_import('google:123', %s)", f"SELECT totp_import('google:123', 'otpauth://totp/?secret=' || %s)",
                 "SELECT secret FROM totp_enroll('google:123') WHERE %s <> ''"):
        error = error_of(conn, call, [SECRET])
        assert error.sqlstate == "22023" and "account_name" in error.diag.message_hint, call
    error = error_of(conn, "SELECT totp_import('google:123', %s, account_name => 'a:b')", [SECRET])
    assert error.sqlstate == "22023" and error.diag.message_hint is None
    assert stored(conn) == NOTHING
    import_(conn, "google:123", SECRET, account_name="alice")


def test_the_parameters_of_a_uri_count_and_the_names_of_the_call(conn):
    import_(conn, "alice", CANONICAL, algorithm="SHA512", digits=7, period=15)
    assert status(conn, "account_name, issuer, algorithm, digits, period") == [("alice", "Example", "SHA256", 8, 60)]
    import_(conn, "alice", CANONICAL, account_name="al", issuer="Else")
    assert status(conn, "account_name, issuer, algorithm, digits, period") == [("al", "Else", "SHA256", 8, 60)]
    import_(conn, "alice", CANONICAL, issuer="")
    assert status(conn, "account_name, issuer") == [("alice", None)]


BAD_URIS = {
    "hotp": f"otpauth://hotp/alice?secret={SECRET}&counter=0", "HOTP": f"OTPAUTH://HOTP/alice?secret={SECRET}&counter=0",
    "other type": f"otpauth://steam/alice?secret={SECRET}", "no type": f"otpauth:///alice?secret={SECRET}",
    "no slashes": f"otpauth:totp/alice?secret={SECRET}", "one slash": f"otpauth:/totp/alice?secret={SECRET}",
    "port": f"otpauth://totp:80/alice?secret={SECRET}",
    "type encoded": f"otpauth://%74otp/alice?secret={SECRET}", "space before the scheme's colon": f"otpauth ://totp/alice?secret={SECRET}",
    "no query": "otpauth://totp/Example:alice", "empty query": "otpauth://totp/Example:alice?", "no secret": "otpauth://totp/alice?issuer=Example",
    "empty secret": "otpauth://totp/alice?secret=", "secret without a value": "otpauth://totp/alice?secret", "bad secret": uri_of("0" + SECRET[1:]),
    "secret in hexadecimal": uri_of(BYTES), "incomplete secret": uri_of(SECRET + "A"), "plus in the secret": uri_of(SECRET[:16] + "+" + SECRET[16:]),
    "fragment": uri_of(SECRET) + "#top", "fragment with parameters": uri_of(SECRET, issuer="A") + "#1&digits=8",
    "two secrets": uri_of(SECRET) + f"&secret={SECRET}", "two secrets, other case": uri_of(SECRET) + f"&SECRET={SECRET}",
    "secret, then an empty one": uri_of(SECRET) + "&secret=",
    "two algorithms": uri_of(SECRET, algorithm="SHA1") + "&Algorithm=SHA1", "two digits": uri_of(SECRET, digits=6) + "&digits=6",
    "two periods": uri_of(SECRET, period=30) + "&period=30",
    "secret: broken": uri_of(SECRET[:8] + "%" + SECRET[8:]), "secret: cut short": uri_of(SECRET) + "%4", "algorithm: broken": uri_of(SECRET, algorithm="SHA%1"),
    "digits: broken": uri_of(SECRET, digits="6%"), "period: broken": uri_of(SECRET, period="%3"),
    "long URI": uri_of(SECRET, note="x" * 8192), "a megabyte": uri_of(SECRET, note="x" * 1_000_000), "a megabyte of %": uri_of(SECRET, "%" * 1_000_000),
    **{f"digits={value}": uri_of(SECRET, digits=value) for value in ("5", "9", "0", "-6", "+6", "%206", "six", "6.0", "6a", "٦", "10", "4294967302", "9" * 99)},
    **{f"period={value}": uri_of(SECRET, period=value) for value in ("14", "121", "0", "-30", "+30", "30s", "30.5", "4294967326", "9" * 99)},
    **{f"algorithm={value}": uri_of(SECRET, algorithm=value) for value in ("MD5", "SHA", "SHA384", "SHA1%20", "SHA%201", "SHA3-256")},
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
