"""totp_read_tokens(): what it refuses, what it costs, and that it stores nothing. The formats have their tests in crates/tokens."""

import base64
import threading
from contextlib import closing

import psycopg
import pytest
from imported_secrets import NOTHING, SECRET, assert_not_told, import_, oathtool, stored, told_by
from token_files import FILES, read_tokens
from totp import NOON, error_of, force_parallel, verify

HEX = base64.b32decode(SECRET).hex()
BASE64 = base64.b64encode(base64.b32decode(SECRET)).decode()


def package(serial: str = "1", secret: str = BASE64) -> str:
    return (f"<KeyPackage><DeviceInfo><SerialNo>{serial}</SerialNo></DeviceInfo><Key Algorithm='urn:ietf:params:xml:ns:keyprov:pskc:totp'>"
            f"<Data><Secret><PlainValue>{secret}</PlainValue></Secret></Data></Key></KeyPackage>")


def container(content: str, before: str = "") -> str:
    return f"<?xml version='1.0'?>{before}<KeyContainer Version='1.0'>{content}</KeyContainer>"


ENCRYPTED = (FILES / "multiotp/tokens_totp_aes.pskc").read_text()
DERIVED = (FILES / "multiotp/tokens_totp_pbe.pskc").read_text()
LAUGHS = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 10))
REFUSED = {
    "no format": ((SECRET, "xml"), "invalid format of a token document"),
    "no XML": ((SECRET,), "token document is not valid XML"),
    "nothing": (("",), "token document is not valid XML"),
    "cut off": ((container(package())[:-30],), "token document is not valid XML"),
    "other XML": ((f"<html>{SECRET}</html>",), "token document is not PSKC"),
    "another version": ((container(package()).replace("1.0'>", "2.0'>"),), "token document has another version of PSKC"),
    "a billion laughs": ((container(package(secret="&l9;"), f"<!DOCTYPE x [<!ENTITY l0 '{SECRET}'>{LAUGHS}]>"),), "token document has a DTD or an entity"),
    "a file of the server": ((container(package(secret="&x;"), "<!DOCTYPE x [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"),), "token document has a DTD or an entity"),
    "a hundred thousand elements inside each other": ((container("<a>" * 100_000 + SECRET),), "token document is nested too deeply or has too large a part"),
    "more than 16 MB": ((container(package() + " " * 2**24),), "token document is too large"),
    "more than 200000 tokens": ((f"1,{HEX},totp\n" + "x\n" * 200_000, "csv"), "token document has too many tokens"),
    "other columns": ((f"a;b;c;d;e;f;g;{SECRET}", "csv"), "columns of the token document are not known"),
    "no link": ((f"otpauth://totp/a?secret={SECRET}", "google"), "token document has no otpauth-migration link"),
    "no key": ((ENCRYPTED,), "token document is encrypted with a key"),
    "a short key": ((ENCRYPTED, "pskc", b"123"), "key has the wrong length for the token document"),
    "another key": ((ENCRYPTED, "pskc", bytes(16)), "key or password does not open the token document"),
    "no password": ((DERIVED,), "token document is encrypted with a password"),
    "another password": ((DERIVED, "pskc", None, SECRET), "key or password does not open the token document"),
    "too many iterations": ((DERIVED.replace(">1000<", ">2000001<"), "pskc", None, "qwerty"), "key derivation of the token document has too many iterations"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_a_document_that_is_refused_is_told_without_any_of_it(quick_db, conn, arguments, message):
    logged = quick_db.cluster.log_end()
    error = error_of(conn, f"SELECT * FROM totp_read_tokens({', '.join(['%s'] * len(arguments))})", arguments)
    assert (error.sqlstate, error.diag.message_primary) == ("22023", message)
    assert error.diag.message_detail and not error.diag.context
    log = quick_db.cluster.log_text(logged)
    for text in (told_by(error), log):
        assert_not_told(SECRET, text)
        assert BASE64[:8] not in text and "qwerty" not in text and "l9" not in text
    assert message in log and stored(conn) == NOTHING


@pytest.mark.parametrize("argument", ["document", "format"])
def test_null_is_refused(conn, argument):
    arguments = {"document": container(""), "format": "pskc", argument: None}
    error = error_of(conn, "SELECT * FROM totp_read_tokens(%(document)s, %(format)s)", arguments)
    assert (error.sqlstate, error.diag.message_primary) == ("22023", f'argument "{argument}" must not be null')


def test_nothing_is_stored(conn):
    assert len(read_tokens(conn, container(package()))) == 1
    assert stored(conn) == NOTHING


def test_it_works_in_a_read_only_transaction_and_in_a_parallel_worker(conn, quick_db):
    with closing(quick_db.connect()) as session:
        session.execute("SET default_transaction_read_only = on")
        assert [token.secret for token in read_tokens(session, container(package()))] == [SECRET]
        force_parallel(session)
        assert [token.secret for token in read_tokens(session, container(package()))] == [SECRET]


def test_a_bad_row_stops_no_other(conn):
    rows = [f"good {n},{HEX},totp,6,30\nbad {n},{HEX[:-1]},totp,6,30" for n in range(500)]
    tokens = read_tokens(conn, "\n".join(rows), "csv")
    assert [token.serial for token in tokens] == [f"{kind} {n}" for n in range(500) for kind in ("good", "bad")]
    assert all((token.secret is None) == (token.problem is not None) == token.serial.startswith("bad") for token in tokens)


def test_a_long_document_can_be_canceled(conn, quick_db):
    """Between two tokens: the rest of the document is not read."""
    document = container("".join(package(str(n)) for n in range(60_000)))
    with closing(quick_db.connect()) as session:
        done = threading.Event()

        def cancel() -> None:
            while not done.is_set():
                conn.execute("SELECT pg_cancel_backend(%s) FROM pg_stat_activity WHERE pid = %s AND state = 'active'", [session.info.backend_pid] * 2)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            with pytest.raises(psycopg.errors.QueryCanceled):
                session.execute("SELECT count(*) FROM totp_read_tokens(%s)", [document])
        finally:
            done.set()
            thread.join()
        assert read_tokens(session, container(package()))[0].secret == SECRET


def test_each_format_reads_a_large_document(conn):
    """The largest there may be, or nearly: what is not linear would not end."""
    for document, format in [
        (container("".join(package(str(n)) for n in range(60_000))), "pskc"),
        ("\n".join(f"{n},{HEX},totp,6,30" for n in range(200_000)), "csv"),
        (container(f"<KeyPackage {' '.join(f'a{n}=1' for n in range(1))}/>".replace("=1", "='1'") + "<!--" + "-" * 2**23 + "-->"), "pskc"),
    ]:
        assert 2**23 < len(document) <= 2**24 or format == "csv"
        assert conn.execute("SELECT count(*) > 0 FROM totp_read_tokens(%s, %s)", [document, format]).fetchone() == (True,)


def test_an_export_of_google_signs_in(conn):
    def field(number: int, value: bytes | int) -> bytes:
        return bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value

    account = field(1, base64.b32decode(SECRET)) + field(2, b"Example:alice") + field(3, b"Example") + field(4, 2) + field(5, 2) + field(6, 2)
    payload = field(1, account) + field(3, 1) + field(4, 0) + field(5, 9)
    link = "otpauth-migration://offline?data=" + base64.b64encode(payload).decode().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    [token] = read_tokens(conn, link, "google")
    assert (token.manufacturer, token.user_id, token.secret, token.problem) == ("Example", "alice", SECRET, None)
    import_(conn, "alice", token.secret, algorithm=token.algorithm, digits=token.digits, period=token.period, encoding="base32", confirmed=True)
    assert verify(conn, "alice", oathtool(base64.b32decode(SECRET), NOON, "SHA256", 8, 30)) is True
