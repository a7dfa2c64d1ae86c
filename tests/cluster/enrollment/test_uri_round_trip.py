"""otpauth URIs: other programs read ours, we read theirs, and all users can move to another database."""

import json
import os
import random
import re
import secrets
import string
import subprocess
from base64 import b32encode
from contextlib import closing
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import psycopg
import pyotp
import pytest
from server import CHECKOUT, PROJECT
from totp import DIGESTS, NOON, active_user, code_at, enroll, error_of, fix_clock, stage, verify

HALF_MINUTE = timedelta(seconds=30)

AWKWARD = [
    "Example", "Big Bank", "Bank ", "a  b", "A+B", "C++", "alice@example.com", "alice+tag@example.com", "R&D", "a=b", "a&b=c&secret=AAAA",
    "No. #1", "#", "Who?", "?secret=AAAA", "100%", "%", "%20", "%3A", "50%25", "%zz", "a/b", "../..", "..a", "//host/path", "\\", "a\\b", "it's", "'", 'say "hi"', '"', "`", "a;b",
    "a,b", "(c)", "[x]", "{x}", "<b>", "a|b", "^", "~", "-._~", "*", "!", "$", "$1", "...", "é", "e\u0301", "Söhne", "Ελλάδα", "Пётр", "日本語", "שלום", "مرحبا", "हिन्दी",
    "🔐", "👩🏽‍🚀", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "\u00a0", "\u200b", "\ufeffx", "\U0010ffff", "ß", "İ", "ﬁ", "\u2028", "undefined", "null", "0", "-1", "__proto__", "x" * 256, "é" * 128, "日" * 85 + "x",
    "🔐" * 64, "%" * 256, "&" * 256, "x" + " " * 255,
]


class Fields(NamedTuple):
    """All that a URI says. No issuer is the empty one."""

    issuer: str
    account: str
    secret: str
    algorithm: str
    digits: int
    period: int


def shapes() -> list[tuple[str, int, int]]:
    return [(algorithm, digits, period) for algorithm in DIGESTS for digits in (6, 7, 8) for period in (15, 30, 60, 120)]


def samples() -> list[Fields]:
    """Each awkward name as account without and with an issuer, as issuer, and beside another one, in every shape of parameters."""
    chance = random.Random("samples")
    names = [pair for name in AWKWARD for pair in (("", name), ("Example", name), (name, "alice"), (chance.choice(AWKWARD), name))]
    wheel = shapes() * (len(names) // len(shapes()) + 1)
    lengths = {"SHA1": 20, "SHA256": 32, "SHA512": 64}
    return [Fields(issuer, account, b32encode(chance.randbytes(lengths[shape[0]])).decode().rstrip("="), *shape)
            for (issuer, account), shape in zip(names, wheel)]


SAMPLES = samples()


@pytest.fixture(scope="module")
def ours(_module_database) -> list[str]:
    """The URI that totp_import makes of each sample. totp_enroll makes them by the same means, with its own secret."""
    with closing(_module_database.connect()) as conn:
        query = ("SELECT totp_import('u', %(secret)s, %(account)s, %(issuer)s, algorithm => %(algorithm)s,"
                 " digits => %(digits)s, period => %(period)s)")
        return [conn.execute(query, fields._asdict()).fetchone()[0] for fields in SAMPLES]


def run(*command, lines) -> list[str]:
    """What a program prints for these lines, line by line."""
    done = subprocess.run(command, input="".join(line + "\n" for line in lines), capture_output=True, text=True, encoding="utf-8",
                          cwd=CHECKOUT, env={**os.environ, "NODE_PATH": f"{PROJECT['CLIENTS']}/node/node_modules"})
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n").split("\n")


def of_row(issuer, account, secret, algorithm, digits, period) -> Fields:
    return Fields(issuer, account, secret, algorithm, int(digits), int(period))


# --- Ours, read by others --------------------------------------------------------------------


def test_pyotp_reads_our_uris(ours):
    for uri, fields in zip(ours, SAMPLES, strict=True):
        totp = pyotp.parse_uri(uri)
        assert isinstance(totp, pyotp.TOTP)
        algorithm = next(name for name, digest in DIGESTS.items() if digest is totp.digest)
        assert Fields(totp.issuer or "", totp.name, totp.secret, algorithm, totp.digits, totp.interval) == fields, uri


def test_otpauth_of_npm_reads_our_uris(ours):
    rows = run("node", "tests/clients/node/parse-uris.js", lines=ours)
    for uri, row, fields in zip(ours, rows, SAMPLES, strict=True):
        assert of_row(*json.loads(row)) == fields, uri


def test_the_url_crate_reads_our_uris(ours):
    rows = run(f"{PROJECT['CLIENTS']}/rust/debug/pg-totp-client", lines=ours)
    for uri, row, fields in zip(ours, rows, SAMPLES, strict=True):
        label_issuer, account, secret, issuer, algorithm, digits, period = row.split("\t")
        assert label_issuer == issuer
        assert of_row(issuer, account, secret, algorithm, digits, period) == fields, uri


def test_urllib_reads_our_uris(ours):
    for uri, fields in zip(ours, SAMPLES, strict=True):
        parts = urlsplit(uri)
        assert (parts.scheme, parts.netloc, parts.fragment) == ("otpauth", "totp", "")
        issuer, _, account = parts.path.removeprefix("/").rpartition(":")
        parameters = parse_qsl(parts.query, strict_parsing=True, keep_blank_values=True)
        assert [name for name, _ in parameters] == ["secret", *(["issuer"] if fields.issuer else []), "algorithm", "digits", "period"]
        values = dict(parameters)
        assert unquote(issuer, errors="strict") == values.get("issuer", "")
        assert of_row(unquote(issuer), unquote(account), *map(values.get, ("secret", "algorithm", "digits", "period"))) == fields, uri


def test_our_uris_are_encoded_as_rfc_3986_has_it(ours):
    """Section 2: unreserved characters as they are, all others as % and two upper-case digits. So no program can read it in two ways."""
    name = r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+"
    form = re.compile(rf"otpauth://totp/(?:({name}):)?{name}\?secret=[A-Z2-7]+(?:&issuer=({name}))?&algorithm=SHA(?:1|256|512)&digits=[678]&period=[0-9]+")
    unreserved = string.ascii_letters + string.digits + "-._~"
    for uri in ours:
        match = form.fullmatch(uri)
        assert match and match[1] == match[2], uri
        assert not [code for code in re.findall("%(..)", uri) if chr(int(code, 16)) in unreserved], uri


# --- Read by ourselves, and written by others ----------------------------------------------------


def read_back(conn, uris: list[str]) -> list[Fields]:
    """What totp_import reads in each URI: by what totp_status lists, and the secret that it returns."""
    found = []
    for number, uri in enumerate(uris):
        returned = conn.execute("SELECT totp_import(%s, %s, allow_weak => true)", [f"user {number}", uri]).fetchone()[0]
        [(issuer, account, *shape)] = conn.execute("SELECT issuer, account_name, algorithm, digits, period FROM totp_status(%s)", [f"user {number}"]).fetchall()
        found.append(Fields(issuer or "", account, dict(parse_qsl(urlsplit(returned).query))["secret"], *shape))
    return found


def test_we_read_our_own(conn, ours):
    assert read_back(conn, ours) == SAMPLES


def test_we_read_those_of_pyotp(conn):
    uris = [pyotp.TOTP(f.secret, digits=f.digits, digest=DIGESTS[f.algorithm], interval=f.period).provisioning_uri(name=f.account, issuer_name=f.issuer or None)
            for f in SAMPLES]
    assert read_back(conn, uris) == SAMPLES


def test_we_read_those_of_otpauth_of_npm(conn):
    uris = run("node", "tests/clients/node/write-uris.js", lines=[json.dumps(fields) for fields in SAMPLES])
    assert read_back(conn, uris) == SAMPLES


@pytest.mark.parametrize("name", [" alice", "   ", " "])
def test_names_that_begin_with_spaces_come_back_whole_or_are_refused(conn, name):
    """The format allows spaces between the colon and the account. A name that cannot be told from these is refused, or comes back whole."""
    for issuer, account in (("", name), (name, "alice"), ("Example", name)):
        query = "SELECT totp_import('alice', %s, %s, %s)"
        try:
            uri = conn.execute(query, [SAMPLES[0].secret, account, issuer]).fetchone()[0]
        except psycopg.errors.InvalidParameterValue:
            continue
        [read] = read_back(conn, [uri])
        assert (read.issuer, read.account) == (issuer, account), uri


def test_enroll_and_reset_give_the_same_names_and_parameters(conn):
    for number, fields in enumerate(SAMPLES[::7]):
        given = {"account_name": fields.account, "issuer": fields.issuer, "algorithm": fields.algorithm, "digits": fields.digits, "period": fields.period}
        names = ", ".join(f"{name} => %({name})s" for name in given)
        user_id = f"enrolled {number}"
        answers = [conn.execute(f"SELECT * FROM totp_enroll(%(user_id)s, {names})", {"user_id": user_id, **given}).fetchone(),
                   conn.execute("SELECT * FROM totp_reset(%s)", [user_id]).fetchone()]
        assert answers[0] != answers[1]
        for secret, uri in answers:
            assert read_back(conn, [uri]) == [fields._replace(secret=secret)]
            totp = pyotp.parse_uri(uri)
        assert verify(conn, user_id, totp.at(NOON)) is True


# --- The way out --------------------------------------------------------------------------------------

EXPORT = "SELECT user_id, device, state, otpauth_uri FROM totp_export()"


@pytest.fixture
def population(conn) -> dict[tuple[str, str], str]:
    """Users with devices of every kind; the secret of each that is not staged beside another."""
    known = {}
    for number, fields in enumerate(SAMPLES[::5]):
        known[f"user {number}", "default"] = fields.secret
        conn.execute("SELECT totp_import(%s, %s, %s, %s, algorithm => %s, digits => %s, period => %s, confirmed => true)",
                     [f"user {number}", fields.secret, fields.account, fields.issuer, *fields[3:]])
    for user_id, device in [("alice", "phone"), ("alice", "tablet"), ("tenant:1/日本 \"quoted\"", "my device: 🔐")]:
        known[user_id, device] = active_user(conn, user_id, account_name="someone", device=device)
    known["newcomer", "default"] = enroll(conn, "newcomer")
    stage(conn, "alice", device="tablet")
    enroll(conn, "alice", device="tablet")  # nobody has approved it, so it is left out
    return known


def test_export_lists_every_secret(conn, population):
    rows = conn.execute(EXPORT).fetchall()
    assert len(rows) == len(population) + 1
    assert {(user_id, device): state for user_id, device, state, _ in rows if (user_id, device) != ("alice", "tablet")} == {
        key: "pending" if key[0] == "newcomer" else "active" for key in population if key != ("alice", "tablet")}
    assert [(device, state) for user_id, device, state, _ in rows if user_id == "alice"] == [("phone", "active"), ("tablet", "active"), ("tablet", "pending")]
    for user_id, device, state, uri in rows:
        if (user_id, device, state) != ("alice", "tablet", "pending"):
            assert pyotp.parse_uri(uri).secret == population[user_id, device]
    names = ("SELECT device, state, account_name, issuer, algorithm, digits, period FROM totp_status(%s)"
             " WHERE approved OR device <> 'tablet' ORDER BY device, state")
    for user_id in {user_id for user_id, *_ in rows}:
        exported = sorted((device, state, *_names(uri)) for user, device, state, uri in rows if user == user_id)
        assert exported == [(*row[:3], row[3] or "", *row[4:]) for row in conn.execute(names, [user_id])]


def _names(uri) -> tuple:
    totp = pyotp.parse_uri(uri)
    algorithm = next(name for name, digest in DIGESTS.items() if digest is totp.digest)
    return totp.name, totp.issuer or "", algorithm, totp.digits, totp.interval


def test_export_of_nothing_is_empty(conn):
    assert conn.execute(EXPORT).fetchall() == []


def test_a_disabled_device_is_exported_as_such(conn):
    """As in totp_status. Otherwise it would sign in again after an import."""
    conn.execute("SELECT totp_import('alice', %s, device => 'stolen', confirmed => true)", [b32encode(secrets.token_bytes(20)).decode()])
    stage(conn, "alice", device="lost")
    conn.execute("SELECT totp_disable('alice')")
    assert [row[:3] for row in conn.execute(EXPORT)] == [("alice", "lost", "disabled"), ("alice", "stolen", "disabled")]


def test_an_export_is_audited(conn, population):
    before = conn.execute("SELECT count(*) FROM totp.audit_log").fetchone()[0]
    conn.execute("SET totp.actor = 'migration 7'")
    [row, *_] = conn.execute(EXPORT).fetchall()
    assert conn.execute("SELECT count(*) FROM totp.audit_log").fetchone()[0] == before + 1
    logged = conn.execute("SELECT event, user_id, device, actor, db_user, at, detail::text FROM totp.audit_log ORDER BY id DESC LIMIT 1").fetchone()
    assert logged[:6] == ("exported", None, None, "migration 7", "postgres", NOON)
    everything = str(conn.execute("SELECT array_agg(a::text) FROM totp.audit_log a").fetchone()[0])
    assert not [secret for secret in population.values() if secret in everything]


def test_no_export_without_its_audit_row(conn, population):
    """If no row can be written, nothing is shown."""
    conn.execute("BEGIN READ ONLY")
    assert error_of(conn, EXPORT).sqlstate == "25006"
    conn.execute("ROLLBACK")


@pytest.mark.parametrize("capability", ["verify", "enroll", "admin", "audit"])
def test_no_capability_includes_the_right_to_export(quick_db, conn, population, capability):
    with closing(quick_db.connect(quick_db.create_role(capability))) as other:
        _denied(other, EXPORT)
    assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'exported'").fetchone() == (0,)


def test_only_superusers_export(quick_db, conn, population):
    """The right to execute it, given directly or through a superuser's view, makes nobody a superuser."""
    role = quick_db.create_role("admin")
    conn.execute(f"GRANT EXECUTE ON FUNCTION totp_export() TO {role}")
    conn.execute("CREATE OR REPLACE FUNCTION wrapper() RETURNS SETOF text LANGUAGE sql AS 'SELECT otpauth_uri FROM totp_export()'")
    conn.execute("CREATE OR REPLACE FUNCTION wrapper_plpgsql() RETURNS SETOF text LANGUAGE plpgsql AS"
                 " 'BEGIN RETURN QUERY EXECUTE ''SELECT otpauth_uri FROM totp_export()''; END'")
    conn.execute("CREATE OR REPLACE VIEW exported AS SELECT * FROM totp_export()")
    conn.execute(f"GRANT SELECT ON exported TO {role}")
    ways = [EXPORT, "SELECT * FROM wrapper()", "SELECT * FROM wrapper_plpgsql()", "SELECT * FROM exported"]
    with closing(quick_db.connect(role)) as other:
        for query in ways:
            _denied(other, query)
    for become in (f"SET ROLE {role}", f"SET SESSION AUTHORIZATION {role}"):
        conn.execute(become)
        for query in ways:
            _denied(conn, query)
        conn.execute("RESET SESSION AUTHORIZATION")
        conn.execute("RESET ROLE")
    assert conn.execute("SELECT count(*) FROM totp.audit_log WHERE event = 'exported'").fetchone() == (0,)
    for query in ways:
        assert len(conn.execute(query).fetchall()) == len(population) + 1


def test_the_owner_of_the_extension_alone_is_not_enough(cluster):
    """A trusted owner who is not a superuser, as on a managed server, may do everything else."""
    db = cluster.create_database()
    try:
        role = db.create_role()
        with closing(db.connect()) as conn:
            enroll(conn, "alice")
            conn.execute(f"ALTER FUNCTION totp_export() OWNER TO {role}")
            with closing(db.connect(role)) as owner:
                _denied(owner, EXPORT)
            conn.execute("ALTER FUNCTION totp_export() OWNER TO postgres")
    finally:
        db.drop()


def _denied(conn: psycopg.Connection, query: str) -> None:
    assert error_of(conn, query).sqlstate == "42501"


@pytest.mark.parametrize("where", ["a database of the same server", "another server"])
def test_all_users_move_to_another_database(conn, population, cluster, make_cluster, where):
    target = cluster if where == "a database of the same server" else make_cluster()
    db = target.create_database()
    try:
        with closing(db.connect()) as there:
            fix_clock(there, NOON)
            rows = conn.execute(EXPORT).fetchall()
            there.execute("CREATE TABLE brought (user_id text, device text, state text, otpauth_uri text)")
            with there.cursor().copy("COPY brought FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            # Active secrets before those staged beside them.
            returned = there.execute("SELECT totp_import(user_id, otpauth_uri, device => device, confirmed => state = 'active') = otpauth_uri"
                                     " FROM (SELECT * FROM brought ORDER BY user_id, device, state) b").fetchall()
            assert returned == [(True,)] * len(rows)
            columns = ("SELECT device, state, account_name, issuer, algorithm, digits, period FROM totp_status(%s)"
                       " WHERE approved OR device <> 'tablet'")
            for user_id in {user_id for user_id, _ in population}:
                assert there.execute(columns, [user_id]).fetchall() == conn.execute(columns, [user_id]).fetchall()
            assert there.execute(EXPORT).fetchall() == rows
            fix_clock(there, NOON + HALF_MINUTE)
            for user_id, device, _, uri in rows:
                assert verify(there, user_id, pyotp.parse_uri(uri).at(NOON + HALF_MINUTE), device) is True, (user_id, device)
    finally:
        if target is cluster:
            db.drop()
