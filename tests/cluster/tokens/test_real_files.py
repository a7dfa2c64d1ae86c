"""totp_read_tokens() on files of vendors and standards, against python-pskc and pskctool, key by key.

The files are those of python-pskc's own tests: of Feitian, multiOTP, ActivIdentity, NagraID, Yubico, of RFC 6030 and its drafts.
Most encrypted ones have HOTP keys: read a second time with TOTP in their place, they show that the secret is the right one.
"""

import secrets
from base64 import b32decode

import psycopg
import pytest
from imported_secrets import oathtool
from pskc import PSKC
from token_files import FILES, Token, as_totp, by_python_pskc, documents, expiry_of, keys_of, read_tokens, secrets_by_pskctool
from totp import NOON, error_of, import_secret, verify

# How a problem begins, by the last part of the name of an algorithm.
KINDS = {
    "hotp": "HOTP is not supported", "ocra": "OCRA is not supported", "pin": "It is a PIN", "yubikey-aes": "Yubico OTP is not supported",
    "": "It does not say that its algorithm is TOTP", "actividentity-3des": "Its algorithm is not TOTP", "c-qn08": "Its algorithm is not TOTP",
    "securid-aes128-counter": "Its algorithm is not TOTP",
}
DRAFT, CAMELLIA, TRIPLE_DES = "It is protected as in a draft", "It is encrypted with Camellia", "It is encrypted with 3DES"
TWICE, SHORT, NO_SECRET = "Another token in the document has the same serial number.", "A secret must be 16 to 128 bytes long, or", "It has no secret."
CIPHER, X509, CHECK_DIGITS = "It is encrypted with a cipher that is not supported", "It is encrypted for an X.509 certificate", "Its codes do not consist"
WRONG_KEY, DERIVATION = "key or password does not open the token document", "key derivation of the token document is not supported"
# What is not read although it is TOTP: the problems of the tokens that have one, by their place, or the error of the document.
NOT_READ = {
    "actividentity/test.pskcxml": {0: DRAFT},
    "draft-hoyer-keyprov-portable-symmetric-key-container-00/non-encrypted.pskcxml": {0: DRAFT},
    "draft-hoyer-keyprov-portable-symmetric-key-container-00/password-encrypted.pskcxml": {0: DRAFT},
    "draft-hoyer-keyprov-portable-symmetric-key-container-01/non-encrypted.pskcxml": {0: DRAFT},
    "draft-hoyer-keyprov-portable-symmetric-key-container-01/password-encrypted.pskcxml": {0: DRAFT},
    "draft-ietf-keyprov-pskc-02/figure4.pskcxml": {0: DRAFT},
    "draft-ietf-keyprov-pskc-02/figure5.pskcxml": {0: "It is encrypted without a MAC"},
    "draft-ietf-keyprov-pskc-02/figure6.pskcxml": {0: X509},
    "draft-ietf-keyprov-pskc-02/figure7.pskcxml": {0: NO_SECRET},
    "draft-ietf-keyprov-pskc-02/figure9.pskcxml": {2: TWICE, 3: TWICE},
    "encryption/aes128-cbc-noiv.pskcxml": WRONG_KEY,  # the initialization vector is elsewhere
    "encryption/mac-over-plaintext.pskcxml": WRONG_KEY,  # a MAC that can be checked only after decryption
    **{f"encryption/{name}.pskcxml": {0: CAMELLIA} for name in ("camellia128-cbc", "camellia192-cbc", "camellia256-cbc", "kw-camellia128", "kw-camellia192", "kw-camellia256")},
    **{f"encryption/{name}.pskcxml": {0: TRIPLE_DES} for name in ("tripledes-cbc", "kw-tripledes")},
    "invalid/incomplete-derivation.pskcxml": DERIVATION,
    "invalid/mac-algorithm.pskcxml": {0: "Its MAC method is not supported"},
    "invalid/mac-value.pskcxml": WRONG_KEY,
    "invalid/missing-encryption-method.pskcxml": {0: CIPHER},
    "invalid/missing-encryption.pskcxml": {0: CIPHER},
    "invalid/no-mac-method.pskcxml": {0: "It has a MAC, but the document names no MAC method"},
    "invalid/not-boolean.pskcxml": {0: CHECK_DIGITS},
    "invalid/not-integer.pskcxml": {0: "Its policy limits the number of uses"},
    "invalid/not-integer2.pskcxml": {0: NO_SECRET},
    "invalid/unknown-encryption.pskcxml": {0: CIPHER},
    "invalid/wrongversion.pskcxml": "token document has another version of PSKC",
    "misc/SampleFullyQualifiedNS.xml": {0: "The period must be 15 to 120 seconds"},
    "misc/checkdigits.pskcxml": {1: CHECK_DIGITS, 2: CHECK_DIGITS, 3: CHECK_DIGITS},
    "misc/integers.pskcxml": dict.fromkeys(range(5), NO_SECRET),
    "misc/odd-namespace.pskcxml": {0: SHORT},
    "misc/partialxml.pskcxml": dict.fromkeys(range(6), NO_SECRET),
    "misc/policy.pskcxml": {0: "Its policy limits the number of uses", 3: "Its policy has unknown parts"},
    "rfc6030/figure10.pskcxml": {2: TWICE, 3: TWICE},
    "rfc6030/figure2.pskcxml": {0: SHORT},
    "rfc6030/figure4.pskcxml": {0: NO_SECRET},
    "rfc6030/figure8.pskcxml": {0: X509},
}


def kind_of(algorithm: str | None) -> str:
    return (algorithm or "").replace("#", ":").replace("/", ":").split(":")[-1].lower()


def same(token: Token, key) -> None:
    """Everything that is read of a key, by us and by python-pskc."""
    assert token.secret is not None, token.problem
    assert b32decode(token.secret + "=" * (-len(token.secret) % 8)) == key.secret
    assert (token.digits, token.period, token.drift) == (key.response_length or 6, key.time_interval or 30, key.time_drift or 0)
    assert token.algorithm == (key.algorithm_suite or "SHA1").removeprefix("HMAC-")
    assert token.expires_at == expiry_of(key)


def signs_in(conn, token: Token) -> None:
    secret = b32decode(token.secret + "=" * (-len(token.secret) % 8))
    [users] = conn.execute("SELECT count(*) FROM totp.attempts").fetchone()
    user = f"user {users}"  # another one for each: a user who had a secret before gets no code back
    import_secret(conn, user, token.secret, encoding="base32", algorithm=token.algorithm, digits=token.digits, period=token.period)
    assert verify(conn, user, oathtool(secret, NOON, token.algorithm, token.digits, token.period)) is True


# python-pskc does not read these: another version, and values that are no boolean or no number.
NOT_PARSED = {"invalid/wrongversion.pskcxml", "invalid/not-boolean.pskcxml", "invalid/not-integer.pskcxml", "invalid/not-integer2.pskcxml"}


def test_the_files_are_there():
    names = documents()
    assert len(names) > 60 and set(NOT_READ) | NOT_PARSED <= set(names)
    for maker in ("actividentity", "draft-hoyer", "draft-ietf", "encryption", "feitian", "invalid", "misc", "multiotp", "nagraid", "rfc6030", "yubico"):
        assert any(name.startswith(maker) for name in names), maker


@pytest.mark.parametrize("name", [name for name in documents() if name not in NOT_PARSED])
def test_a_file_has_the_tokens_that_python_pskc_reads(conn, name):
    document = (FILES / name).read_text()
    keys = keys_of(name, document)
    known = by_python_pskc(FILES / name, **keys)
    # A package without a key is no key there.
    tokens = [token for token in read_tokens(conn, document, **keys) if token.problem != NO_SECRET]
    for token, key in zip(tokens, known, strict=True):
        assert (token.serial, token.manufacturer, token.model) == (key.serial, key.manufacturer, key.model)
        assert token.user_id == (key.key_userid or key.device_userid)
        if kind_of(key.algorithm) in KINDS:
            assert token.secret is None and token.problem.startswith(KINDS[kind_of(key.algorithm)])
        elif name not in NOT_READ:
            same(token, key)
            signs_in(conn, token)


@pytest.mark.parametrize("name", documents())
def test_a_file_with_totp_for_hotp_has_the_secrets_that_python_pskc_reads(conn, tmp_path, name):
    document = as_totp((FILES / name).read_text())
    keys = keys_of(name, document)
    expected = NOT_READ.get(name, {})
    if isinstance(expected, str):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=expected):
            read_tokens(conn, document, **keys)
        return
    tokens = read_tokens(conn, document, **keys)
    if name in NOT_PARSED or len(expected) == len(tokens):
        known = [None] * len(tokens)
    else:
        (tmp_path / "tokens.xml").write_text(document)
        known = by_python_pskc(tmp_path / "tokens.xml", **keys)
    for place, (token, key) in enumerate(zip(tokens, known, strict=True)):
        if place in expected:
            assert token.problem.startswith(expected[place])
            assert (token.secret is not None) == (token.problem == TWICE)
        elif kind_of(key.algorithm) == "totp":
            assert token.problem is None
            same(token, key)
            signs_in(conn, token)
        else:
            assert token.problem.startswith(KINDS[kind_of(key.algorithm)])


@pytest.mark.parametrize("name", [name for name in documents() if "rfc6030" in name or "feitian" in name or name == "misc/policy.pskcxml"])
def test_secrets_in_clear_are_those_that_pskctool_reads(conn, tmp_path, name):
    document = as_totp((FILES / name).read_text())
    (tmp_path / "tokens.xml").write_text(document)
    tokens = read_tokens(conn, document, **keys_of(name, document))
    found = 0
    for token, secret in zip(tokens, secrets_by_pskctool(tmp_path / "tokens.xml"), strict=True):
        if token.secret is not None and secret is not None:
            assert b32decode(token.secret + "=" * (-len(token.secret) % 8)) == secret
            found += 1
    assert found == sum(token.secret is not None for token in tokens) or "EncryptedValue" in document


def test_pskctool_reads_the_files_of_feitian(conn):
    """That the comparison above compares something."""
    assert sum(secret is not None for secret in secrets_by_pskctool(FILES / "feitian/file1.pskcxml")) == 6


# --- Documents that python-pskc writes -----------------------------------------------------------------

CIPHERS = {"aes128-cbc": 16, "aes192-cbc": 24, "aes256-cbc": 32, "kw-aes128": 16, "kw-aes192": 24, "kw-aes256": 32}
SUITES = [("HMAC-SHA1", 20, 6, 30), ("HMAC-SHA256", 32, 8, 60), ("HMAC-SHA512", 64, 7, 120)]


def written(tmp_path, setup) -> tuple[str, dict[str, bytes]]:
    """A document with a token of each hash, encrypted as `setup` says, by python-pskc; its secrets."""
    pskc, made = PSKC(), {}
    for number, (suite, length, digits, period) in enumerate(SUITES):
        made[str(number)] = secrets.token_bytes(length)
        pskc.add_key(id=str(number), serial=str(number), manufacturer="M", algorithm="urn:ietf:params:xml:ns:keyprov:pskc:totp", algorithm_suite=suite,
                     secret=made[str(number)], time_interval=period, time_offset=0, time_drift=3, response_length=digits, response_encoding="DECIMAL")
    setup(pskc)
    pskc.write(str(tmp_path / "written.xml"))
    return (tmp_path / "written.xml").read_text(), made


def all_open(conn, document: str, made: dict[str, bytes], **keys) -> None:
    tokens = read_tokens(conn, document, **keys)
    assert [token.problem for token in tokens] == [None] * 3
    for token, (suite, _, digits, period) in zip(tokens, SUITES, strict=True):
        assert b32decode(token.secret + "=" * (-len(token.secret) % 8)) == made[token.serial]
        assert (token.algorithm, token.digits, token.period, token.drift) == (suite.removeprefix("HMAC-"), digits, period, 3)
        signs_in(conn, token)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("fields", [["secret"], ["secret", "time_interval", "time_drift"]], ids=["secret", "numbers too"])
def test_every_cipher_that_python_pskc_writes_opens(conn, tmp_path, cipher, fields):
    key = secrets.token_bytes(CIPHERS[cipher])
    document, made = written(tmp_path, lambda pskc: pskc.encryption.setup_preshared_key(key=key, algorithm=cipher, fields=fields))
    assert "PlainValue>" in document and "EncryptedValue" in document
    all_open(conn, document, made, key=key)
    for wrong in (secrets.token_bytes(len(key)), b""):
        error = error_of(conn, "SELECT * FROM totp_read_tokens(%s, key => %s)", [document, wrong])
        assert error.sqlstate == "22023"


@pytest.mark.parametrize("prf", ["hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"])
@pytest.mark.parametrize("cipher", ["aes128-cbc", "kw-aes256"])
def test_every_derivation_that_python_pskc_writes_opens(conn, tmp_path, prf, cipher):
    def setup(pskc):
        pskc.mac.setup(algorithm=prf)
        pskc.encryption.setup_pbkdf2("päss wörd", algorithm=cipher, iterations=1234, prf=prf)

    document, made = written(tmp_path, setup)
    all_open(conn, document, made, password="päss wörd")
    assert error_of(conn, "SELECT * FROM totp_read_tokens(%s, password => 'x')", [document]).sqlstate == "22023"
