"""What totp_health() concludes from a sample of 32 pages: tables of 100,000 users have about a thousand.

The sample sees the guesses whose transaction was rolled back, too: the counters of attempts keep them, the audit log does not.
"""

import re
from contextlib import closing
from datetime import timedelta
from math import sqrt

import pytest
from health import health
from totp import NOON, SECRET, code_at, fix_clock, wrong_code

REAL = 10_000  # users who can sign in, one in ten, so that they are on all pages
FILL = """
DO $$ BEGIN
FOR n IN 0 .. %s LOOP
  PERFORM totp_import('u' || n, '%s', confirmed => true);
  INSERT INTO totp.attempts (locked_until, recovery_locked_until, last_failed_at, failures, recovery_failures, user_id)
  SELECT '-infinity', '-infinity', '-infinity', 0, 0, 'u' || n || '-' || m FROM generate_series(1, 9) AS m;
  INSERT INTO totp.used_codes (time_step, used_at, uses, recovery_mask, secret_id, user_id)
  SELECT 0, '-infinity', 1, 0, 1000000000 + 9 * n + m, 'u' || n || '-' || m FROM generate_series(1, 9) AS m;
END LOOP;
END $$""" % (REAL - 1, SECRET)
# So many of them, evenly spread over the pages.
SIGN_IN = "SELECT count(*) FILTER (WHERE totp_verify('u' || n * %s / %s, %s)) FROM generate_series(0, %s - 1) AS n"


@pytest.fixture(scope="module")
def many_users(cluster):
    database = cluster.create_database()
    with closing(database.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute(FILL)
        assert conn.execute("SELECT least(pg_relation_size('totp.attempts'), pg_relation_size('totp.used_codes')) / 8192 > 20 * 32").fetchone() == (True,)
    yield database
    database.drop()


# How many users had a guess that was committed, how many one that was rolled back, and how many signed in, within an hour.
CASES = {
    "nothing": (0, 0, 0, "ok"),
    "too few users": (19, 0, 0, "ok"),
    "few users, and nobody signs in": (25, 0, 0, "warn"),
    "more than a tenth, but it may be less": (130, 0, 1_000, "ok"),  # so many may have signed in that it is not
    "surely more than a tenth": (300, 0, 1_000, "warn"),
    "rolled back, and nobody signs in": (0, 5_000, 0, "warn"),
    "rolled back, and many sign in": (0, 5_000, 10_000, "warn"),
    "rolled back, a fifth, but it may be less": (0, 1_000, 5_000, "ok"),
    "rolled back, a hundredth": (0, 100, 10_000, "ok"),
}


@pytest.mark.parametrize("case", CASES)
def test_many_users_with_wrong_codes_are_seen_in_a_sample(many_users, case):
    committed, rolled_back, used, status = CASES[case]
    now = NOON + timedelta(hours=2 * (1 + list(CASES).index(case)))
    code = code_at(SECRET, now)
    with closing(many_users.connect()) as conn:
        fix_clock(conn, now)
        for number, given, good in ((used, code, used), (committed, wrong_code(code), 0)):
            assert conn.execute(SIGN_IN, [REAL, max(number, 1), given, number]).fetchone() == (good,)
        with conn.transaction(force_rollback=True):
            conn.execute(SIGN_IN, [REAL, max(rolled_back, 1), wrong_code(code), rolled_back])
        found, detail = health(conn, full=False)["failures_over_many_users"]
    assert found == status, detail
    failing_said, used_said = map(int, re.match(r"at least (\d+) users? had a wrong code in the last hour, and about (\d+) secrets? w", detail).groups())
    # The audit log has the committed ones, if they are more than the sample has for sure.
    doubt = 4 * sqrt(30 * rolled_back)
    assert max(committed, rolled_back - doubt) <= failing_said <= max(committed, rolled_back)
    assert used_said == pytest.approx(used, rel=0.2)
