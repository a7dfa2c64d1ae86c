"""URIs in the forms that authenticators export and services show, with made-up values: what we read in each, and what pyotp, otpauth and
otplib of npm read."""

import json
from typing import NamedTuple

import pyotp
import pytest
from test_uri_round_trip import DIGESTS, Fields, of_row, read_back, run
from totp import error_of

SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
LONG = SECRET * 2
WEAK = "GEZDGNBVGY3TQOJQ"
REFUSED = None


class Form(NamedTuple):
    """A URI, the issuer and account in it (without one, the user id), and what another reader has instead: its names, or REFUSED."""

    uri: str
    issuer: str
    account: str
    others: dict[str, tuple[str, str] | None] = {}
    secret: str = SECRET
    digits: int = 6


def form(uri, issuer, account, secret=SECRET, digits=6, **others) -> Form:
    return Form(uri.replace("SECRET", secret), issuer, account, others, secret, digits)


FORMS = {
    "Google Authenticator": form("otpauth://totp/Google%3Aa%40example.com?secret=SECRET&issuer=Google", "Google", "a@example.com",
                                 pyotp=("Google", "Google:a@example.com")),
    "Google account, lower case": form("otpauth://totp/Google%3Aa%40example.com?secret=SECRET&issuer=Google", "Google", "a@example.com",
                                       secret=SECRET.lower(), pyotp=("Google", "Google:a@example.com")),
    "Microsoft Authenticator": form("otpauth://totp/Some+Company%3aa%40example.net?secret=SECRET&issuer=Microsoft", "Microsoft", "a@example.net",
                                    pyotp=("Microsoft", "Some+Company:a@example.net")),
    "Office 365": form("otpauth://totp/Contoso%3Aa%40contoso.example?secret=SECRET&issuer=Microsoft", "Microsoft", "a@contoso.example",
                       pyotp=("Microsoft", "Contoso:a@contoso.example")),
    "FreeOTP+": form("otpauth://totp/Example%20Co%3Aa%40example.com?secret=SECRET&issuer=Example%20Co&algorithm=SHA1&digits=6&period=30&lock=false",
                     "Example Co", "a@example.com", pyotp=("Example Co", "Example Co:a@example.com")),
    "FreeOTP+ without an issuer": form("otpauth://totp/%3Aa%40example.com?secret=SECRET&algorithm=SHA1&digits=6&period=30", "", "a@example.com",
                                       pyotp=("", ":a@example.com")),
    "Aegis": form("otpauth://totp/Example%3Aa%40example.com?period=30&digits=6&algorithm=SHA1&secret=SECRET&issuer=Example", "Example", "a@example.com",
                  pyotp=("Example", "Example:a@example.com")),
    "Aegis without a name": form("otpauth://totp/Example%3A?period=30&digits=6&algorithm=SHA1&secret=SECRET&issuer=Example", "Example", "",
                                 pyotp=("Example", "Example:"), otpauth=("Example", "Example:")),
    "2FAS": form("otpauth://totp/Example%3Aa%40example.com?secret=SECRET&issuer=Example&algorithm=SHA1&digits=6&period=30&counter=0", "Example",
                 "a@example.com", pyotp=REFUSED),
    "2FAS without parameters": form("otpauth://totp/Example:a?secret=SECRET&algorithm=&digits=&period=", "Example", "a", otpauth=REFUSED, otplib=REFUSED),
    "Bitwarden": form("otpauth://totp/Example:a@example.com?secret=SECRET&issuer=Example", "Example", "a@example.com"),
    "1Password": form("otpauth://totp/Example%20Co:a@example.com?secret=SECRET&issuer=Example%20Co", "Example Co", "a@example.com"),
    "1Password with an empty fragment": form("otpauth://totp/Example:a?secret=SECRET&issuer=Example#", "Example", "a", otpauth=("Example#", "a"),
                                             otplib=("Example#", "a")),
    "KeePassXC": form("otpauth://totp/Example:a%40example.com?secret=SECRET&period=30&digits=6&issuer=Example", "Example", "a@example.com"),
    "KeePassXC without names": form("otpauth://totp/:?secret=SECRET&period=30&digits=6", "", "", pyotp=("", "Secret"), otpauth=("", ":")),
    "Authy": form("otpauth://totp/Example:%20a@example.com?secret=SECRET&digits=7", "Example", "a@example.com", digits=7,
                  pyotp=("Example", " a@example.com"), otpauth=("Example", " a@example.com")),
    "Okta": form("otpauth://totp/example.okta.com:a%40example.com?secret=SECRET&issuer=example.okta.com", "example.okta.com", "a@example.com", secret=WEAK,
                 pyotp=REFUSED),
    "Duo": form("otpauth://totp/Duo%20Security:a@example.com?secret=SECRET&issuer=Duo+Security", "Duo Security", "a@example.com",
                otpauth=("Duo+Security", "a@example.com"), otplib=("Duo+Security", "a@example.com")),
    "GitLab": form("otpauth://totp/gitlab.example.com:gitlab.example.com_a@example.com?secret=SECRET&issuer=gitlab.example.com", "gitlab.example.com",
                   "gitlab.example.com_a@example.com"),
    "AWS": form("otpauth://totp/Amazon%20Web%20Services:a@123456789012?secret=SECRET&issuer=Amazon%20Web%20Services", "Amazon Web Services",
                "a@123456789012", secret=LONG),
    "Slack": form("otpauth://totp/Slack%20%28Example%29:a%40example.com?secret=SECRET&issuer=Slack", "Slack", "a@example.com", pyotp=REFUSED),
    "Heroku": form("otpauth://totp/Heroku:?issuer=Heroku&secret=SECRET", "Heroku", "", pyotp=("Heroku", "Secret"), otpauth=("Heroku", "Heroku:")),
    "Teleport": form("otpauth://totp/Teleport:a@proxy.example.com:3080?algorithm=SHA1&digits=6&issuer=Teleport&period=30&secret=SECRET", "Teleport",
                     "a@proxy.example.com 3080", pyotp=("Teleport", "a@proxy.example.com:3080"), otpauth=("Teleport", "a@proxy.example.com:3080"),
                     otplib=("Teleport", "a@proxy.example.com:3080")),
    "Cloudflare": form("otpauth://totp/Cloudflare:a@example.com?secret=SECRET&issuer=Cloudflare&image=https%3A%2F%2Fexample.com%2F100%", "Cloudflare",
                       "a@example.com", otpauth=REFUSED, otplib=REFUSED),
    "a form encoder": form("otpauth://totp/Test%20Issuer:a@example.com?issuer=Test+Issuer&secret=SECRET", "Test Issuer", "a@example.com",
                           otpauth=("Test+Issuer", "a@example.com"), otplib=("Test+Issuer", "a@example.com")),
    "Ente": form("otpauth://totp/Example:a?algorithm=sha1&digits=6&issuer=Example&period=30&secret=SECRET&codeDisplay=%7B%22pinned%22%3Afalse%7D", "Example", "a",
                 pyotp=REFUSED),
    "FreeIPA": form("otpauth://totp/admin@EXAMPLE.TEST:6f1a0c2e?digits=6&secret=SECRET&period=30&algorithm=sha1&issuer=admin%40EXAMPLE.TEST",
                    "admin@EXAMPLE.TEST", "6f1a0c2e", pyotp=REFUSED),
    "SHA-1, as the Web Crypto API has it": form("otpauth://totp/Example:a?secret=SECRET&algorithm=SHA-1&digits=6&period=30&charSet=0123456789", "Example", "a",
                                                pyotp=REFUSED, otpauth=REFUSED),
    "Twitch, padding too long": form("otpauth://totp/Twitch:a?secret=SECRET%3D%3D%3D%3D&issuer=Twitch", "Twitch", "a", pyotp=REFUSED),
    "Blizzard, a colon after the name": form("otpauth://totp/Blizzard:US-1234:?secret=SECRET&issuer=Blizzard&digits=8", "Blizzard", "US-1234", digits=8,
                                            pyotp=("Blizzard", "US-1234:"), otpauth=("Blizzard", "US-1234:"), otplib=("Blizzard", "US-1234:")),
    "OPNsense, escaped for HTML": form("otpauth://totp/Example:a?secret=SECRET&amp;issuer=Example", "Example", "a", otpauth=REFUSED),
    "no label": form("otpauth://totp/?secret=SECRET", "", "", pyotp=("", "Secret"), otpauth=REFUSED),
    "a percent sign": form("otpauth://totp/50%:a?secret=SECRET", "50", "a", pyotp=("50%", "a"), otpauth=REFUSED, otplib=REFUSED),
    "another direction": form("otpauth://totp/%E2%80%AEExample:a?secret=SECRET", "Example", "a", pyotp=("\u202eExample", "a"),
                              otpauth=("\u202eExample", "a"), otplib=("\u202eExample", "a")),
}


def fields(form_: Form, issuer: str, account: str) -> Fields:
    return Fields(issuer, account, form_.secret.upper(), "SHA1", form_.digits, 30)


def test_we_read_all_of_them(conn):
    found = read_back(conn, [form_.uri for form_ in FORMS.values()])
    for number, (name, form_) in enumerate(FORMS.items()):
        assert found[number] == fields(form_, form_.issuer, form_.account or f"user {number}"), name


OTHER_CODES = {
    "KeePassXC, Steam": "otpauth://totp/Steam:a?secret=SECRET&issuer=Steam&encoder=steam",
    "KeePassXC, Steam, with five digits": "otpauth://totp/Steam:a?secret=SECRET&period=30&digits=5&issuer=Steam&encoder=steam",
    "escaped for HTML": "otpauth://totp/Example:a?secret=SECRET&amp;issuer=Example&amp;digits=8&amp;period=60",
}


@pytest.mark.parametrize("uri", OTHER_CODES.values(), ids=OTHER_CODES)
def test_a_uri_is_refused_if_its_codes_may_be_others(conn, uri):
    """Imported, none of its codes would be right, or only those of an app that reads it wrongly."""
    assert error_of(conn, "SELECT totp_import('u', %s, confirmed => true)", [uri.replace("SECRET", SECRET)]).sqlstate == "22023"


def of_pyotp(uri: str) -> Fields | None:
    try:
        totp = pyotp.parse_uri(uri)
    except (ValueError, TypeError):
        return None
    algorithm = next(name for name, digest in DIGESTS.items() if digest is totp.digest)
    return Fields(totp.issuer or "", totp.name, totp.secret.upper(), algorithm, totp.digits, totp.interval)


def of_npm(package: str) -> list[Fields | None]:
    rows = run("node", "tests/clients/node/parse-uris.js", package, lines=[form_.uri for form_ in FORMS.values()])
    return [row and of_row(row[0] or "", row[1], row[2].upper().rstrip("="), *row[3:]) for row in map(json.loads, rows)]


@pytest.mark.parametrize("reader", ["pyotp", "otpauth", "otplib"])
def test_others_read_the_same_or_what_the_table_says(reader):
    found = [of_pyotp(form_.uri) for form_ in FORMS.values()] if reader == "pyotp" else of_npm(reader)
    for (name, form_), theirs in zip(FORMS.items(), found, strict=True):
        names = form_.others.get(reader, (form_.issuer, form_.account))
        assert theirs == (names and fields(form_, *names)), name
