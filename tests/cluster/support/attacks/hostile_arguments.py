"""Hostile arguments for every function of the extension, and the judge of what they lead to.

The functions come from the catalog: one that is new is called as well, and one whose arguments are of a type or a name
that this file does not know fails the tests until it does.
"""

import re
from typing import NamedTuple

import psycopg
from psycopg import sql
from totp import SECRET

PLANT = "PLANTED7SECRET4TEXT"  # in every text that is not a name: no message may repeat it

FUNCTIONS = """
SELECT p.oid::regprocedure::text, n.nspname::text, p.proname::text, p.prokind, coalesce(p.proargnames[1:p.pronargs], '{}'),
       array(SELECT t.type::regtype::text FROM unnest(p.proargtypes) WITH ORDINALITY AS t(type, place) ORDER BY t.place)
  FROM pg_catalog.pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid AND e.extname = 'pg_totp'
 ORDER BY 1"""

# Arguments with which a call does something, for alice, who is enrolled. NULL: the default of a type.
OWN_SECRET = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U"  # of nobody else, and in none of TEXTS
# RFC 6030 figure 6, with a TOTP key: it opens with the key below, which is no secret.
DOCUMENT = (
    '<KeyContainer><MACMethod Algorithm="#hmac-sha1"><MACKey><EncryptionMethod Algorithm="#aes128-cbc"/><CipherData><Cipher'
    'Value>ESIzRFVmd4iZABEiM0RVZgKn6WjLaTC1sbeBMSvIhRejN9vJa2BOlSaMrR7I5wSX</CipherValue></CipherData></MACKey></MACMethod>'
    '<KeyPackage><Key Algorithm=":totp"><Data><Secret><EncryptedValue><EncryptionMethod Algorithm="#aes128-cbc"/><CipherDat'
    'a><CipherValue>AAECAwQFBgcICQoLDA0OD+cIHItlB3Wra1DUpxVvOx2lef1VmNPCMl8jwZqIUqGv</CipherValue></CipherData></EncryptedV'
    'alue><ValueMAC>Su+NvtQfmvfJzF6bmQiJqoLRExc=</ValueMAC></Secret></Data></Key></KeyPackage></KeyContainer>'
)
GOOD = {
    "user_id": "alice", "device": "default", "code": "918273", "recovery_code": "ABCDEF-GHIJKL-MNOPQR-STUVWX", "new_user_id": "carol",
    "new_device": "tablet", "proof": "827364", "recovery_codes": 3,
    "account_name": "alice@example.com", "issuer": "Example", "algorithm": "SHA1", "digits": 6, "period": 30, "keep_current": True,
    "secret": OWN_SECRET, "confirmed": True, "allow_weak": True, "encoding": None, "at": "2030-01-01 12:00:00+00", "uri": f"otpauth://totp/a?secret={OWN_SECRET}",
    "seal_id": 1, "since_seal": 1, "anchor": "seal=1 last=1 rows=1 mac=" + "0" * 64,
    "code1": "918274", "code2": "918275", "drift": 0,
    "scale": 2, "count": 3, "recovery_codes": 2, "since": "1 day", "older_than": "1 day", "batch_size": 10, "role": "postgres", "capability": "verify", "granted": True,
    "full": True, "after": None, "max": 3, "prefix": "a",
    "master_key": "0123456789abcdef", "after_user": "", "secret_id": 1, "set_id": 1, "key_id": 1, "sealed": b"\x01\0\0\0\x01" + bytes(56),
    "document": DOCUMENT, "format": "pskc", "key": bytes.fromhex("12345678901234567890123456789012"), "password": "PASSWORD918273",
}
UNSEEN = ("uri", "secret", "code", "code1", "code2", "recovery_code", "proof", "document", "password")  # of these: no message may repeat them if another argument is the wrong one
NAMES = {"user_id", "new_user_id", "after_user", "device", "new_device", "account_name", "issuer", "role"}  # a message may name these

# Each stands for a way of being wrong. {} is where PLANT is, or "x" if a message may name it.
TEXTS = {
    "empty": "", "plain": "{}", "a megabyte": "{}" * 50_000, "combining": "{}e\u0301\u0323\u20dd", "right to left": "\u05d0\u202e{}\u2066",
    "emoji": "{}\U0001f469\u200d\U0001f4bb", "full width": "\uff11\uff12\uff13\uff14\uff15\uff16{}", "kana": "\u30bd\u8868{}", "control": "{}\x01\x1b[2J\x7f\r\n",
    "quotes": "'\"\\{}%n$1;--", "base32 with a one": SECRET + "1{}", "short base32": "{}2", "URI": "otpauth://totp/a?secret={}1", "URI of another": "OTPAUTH://x\n{}",
    "number": "-2147483649{}", "noncharacter": "{}\ufffe\U0010ffff",
}
INTEGERS = {"int": (-2**31, 2**31 - 1), "small": (-2**15, 2**15 - 1), "big": (-2**63, 2**63 - 1)}
SPAN = ["0", "-1 second", "-178000000 years", "178000000 years", "2147483647 days -2147483648 mons", "2147483640 days -71582788 mons", "-9223372036854775807 us", "1 us"]
VALUES = {
    "integer": [*INTEGERS["int"], -1, 0, 1, 21], "smallint": [*INTEGERS["small"], -1, 0], "bigint": [*INTEGERS["big"], -1, 0],
    "boolean": [True, False], "interval": SPAN,
    "timestamp with time zone": ["infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "1970-01-01 00:00:00+00"],
    "bytea": [b"", b"\x00", b"\x01" * 33, bytes(1_000_000), PLANT.encode() * 4],
    "name": ["", "public", "nobody", "pg_monitor", "\u30bd" * 21, "x'\"; --"],
}

# Section 7 of the contract. PostgreSQL's own, raised before or after a function of ours runs, are for the test to name.
STATES = {"22023", "42704", "54000", "55000", "F0000", "25000", "25001", "25006", "42501", "XX001"}


class Function(NamedTuple):
    signature: str
    schema: str
    name: str
    kind: str
    arguments: list[str]
    types: list[str]

    def call(self, arguments: list, codec: str = "utf-8") -> tuple[sql.Composed, list]:
        """The call and its parameters. A text that the client's encoding cannot say is sent as bytes and made a text by the server."""
        places, sent = [], []
        for name, kind, value in zip(self.arguments, self.types, arguments, strict=True):
            as_bytes = isinstance(value, str) and not can_say(codec, value)
            place = "{} => convert_from({}, 'UTF8')::{}" if as_bytes else "{} => {}::{}"
            places.append(sql.SQL(place).format(sql.Identifier(name), sql.Placeholder(), sql.SQL(kind)))
            sent.append(value.encode() if as_bytes else value)
        verb = "CALL {}({})" if self.kind == "p" else "SELECT * FROM {}({})"
        return sql.SQL(verb).format(sql.Identifier(self.schema, self.name), sql.SQL(", ").join(places)), sent

    def good(self) -> list:
        return [GOOD[name] for name in self.arguments]

    def hostile(self):
        """Lists of arguments: good ones but for one; then all of them NULL."""
        for place, (name, kind) in enumerate(zip(self.arguments, self.types, strict=True)):
            for value in [None, *values(name, kind)]:
                arguments = self.good()
                arguments[place] = value
                yield arguments
        yield [None] * len(self.arguments)


def can_say(codec: str, text: str) -> bool:
    try:
        return text.encode(codec).decode(codec) == text
    except UnicodeError:
        return False


def values(name: str, kind: str) -> list:
    if kind != "text":
        return VALUES[kind]
    return [text.replace("{}", "x" if name in NAMES else PLANT) for text in TEXTS.values()]


def functions(conn: psycopg.Connection) -> list[Function]:
    found = [Function(*row) for row in conn.execute(FUNCTIONS).fetchall()]
    assert len(found) >= 39
    return found


def fields(diag: psycopg.errors.Diagnostic) -> dict[str, str]:
    """What a client is shown of an error or a notice. Of a notice nothing is left after its handler."""
    shown = {"message": diag.message_primary, "detail": diag.message_detail, "hint": diag.message_hint, "context": diag.context,
             "query": diag.internal_query, "source file": diag.source_file}
    return {field: text or "" for field, text in shown.items()}


class Judge:
    """Whether an error or a notice may be told to a client: its SQLSTATE, and that nothing in it is secret or about our insides."""

    def __init__(self, secrets: list[str], own_states: set[str]) -> None:
        self.secrets = [PLANT, *(GOOD[name] for name in UNSEEN), GOOD["recovery_code"].replace("-", ""), *secrets]
        self.states = STATES | own_states

    def error(self, error: psycopg.Error, where) -> None:
        assert error.sqlstate in self.states, f"{where}: {error.sqlstate} {error}"
        self.message(fields(error.diag), where)

    def message(self, shown: dict[str, str], where) -> None:
        source_file = shown.pop("source file")
        assert not source_file.startswith("/"), f"{where}: {source_file}"
        for field, text in shown.items():
            self.text(text, f"{field} of {where}")
            assert not re.search(r"(^|[\s\"'(])/\w", text), f"a path in {field} of {where}: {text[:1000]}"

    def text(self, text: str, where) -> None:
        for secret in self.secrets:
            assert secret.lower() not in text.lower(), f"{where} holds {secret!r}"
        found = re.search(r"panicked|\.rs\b|backtrace|thread '|server process|\bPANIC\b|WARNING", text)
        assert not found, f"{where} holds {found[0]!r}: {text[:1000]}"
