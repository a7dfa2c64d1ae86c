"""totp_code_at() against oathtool, an independent implementation."""

import random
from base64 import b32decode
from concurrent.futures import ThreadPoolExecutor

from imported_secrets import base32, oathtool
from totp import SECRET

LAST_SECOND_OF_9999 = 253402300799
CASES = 1000


def random_cases():
    chance = random.Random("RFC 6238")
    for number in range(CASES):
        secret = chance.randbytes(chance.randint(10, 128))
        period = chance.randint(15, 120)
        step_start = chance.randrange(LAST_SECOND_OF_9999 // period) * period
        at = chance.choice([0, 1, period - 1, period, step_start, step_start + period - 1, chance.randint(0, LAST_SECOND_OF_9999),
                            chance.randint(1_600_000_000, 2_000_000_000), LAST_SECOND_OF_9999])
        yield secret, at, ["SHA1", "SHA256", "SHA512"][number % 3], 6 + number // 3 % 3, period


def test_a_thousand_random_cases_agree_with_oathtool(db):
    cases = list(random_cases())
    with ThreadPoolExecutor(8) as pool:
        expected = list(pool.map(oathtool, *zip(*cases)))
    given = [(base32(secret), *others) for secret, *others in cases]
    rows = db.execute(
        "SELECT totp_code_at(secret, to_timestamp(at), algorithm, digits, period)"
        "  FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::int[], %s::int[]) WITH ORDINALITY"
        "    AS given(secret, at, algorithm, digits, period, number) ORDER BY number", [list(column) for column in zip(*given)])
    different = [(case, code, right) for case, [code], right in zip(cases, rows, expected, strict=True) if code != right]
    assert different == []
    assert {len(code) for [code] in rows} == {6, 7, 8}
    assert any(code.startswith("0") for [code] in rows)


def test_defaults_are_sha1_six_digits_thirty_seconds(db):
    for at in (0, 59, 1111111109, 20000000000):
        assert db.value("SELECT totp_code_at(%s, to_timestamp(%s))", [SECRET, at]) == oathtool(b32decode(SECRET), at)


def test_a_fraction_of_a_second_belongs_to_the_second_that_began(db):
    last = db.value("SELECT totp_code_at(%s, '2030-01-01 12:00:29.999999+00')", [SECRET])
    assert last == db.value("SELECT totp_code_at(%s, '2030-01-01 12:00:00+00')", [SECRET])
    assert last != db.value("SELECT totp_code_at(%s, '2030-01-01 12:00:30+00')", [SECRET])


def test_the_session_time_zone_does_not_matter(db):
    codes = {db.value("SELECT totp_code_at(%s, %s)", [SECRET, at])
             for at in ("2030-01-01 12:00:00+00", "2030-01-01 17:45:00+05:45", "2029-12-31 23:30:00-12:30")}
    assert len(codes) == 1
