"""Results that PostgreSQL keeps until a client takes them go to a temporary file if they do not fit into work_mem."""

from contextlib import closing

import pytest
from many_users import import_users, secret_of
from totp import NOON, code_at, fix_clock

USERS = 1000


@pytest.fixture
def conn(quick_db):
    with closing(quick_db.connect()) as conn:
        fix_clock(conn, NOON)
        conn.execute("SET work_mem = '64kB'")  # the least there is
        yield conn


def in_temporary_files(conn, cluster, query: str) -> bytes:
    """What is in temporary files while a client takes a result row by row, after the first of them."""
    with conn.transaction():
        conn.execute(f"DECLARE taking CURSOR FOR {query}")
        assert conn.execute("FETCH 1 FROM taking").rowcount == 1
        return b"".join(path.read_bytes() for path in cluster.data.glob("base/pgsql_tmp/*"))


ONE_USER = {
    "rows of a function": "SELECT * FROM totp_reset_recovery_codes('user-000000', 20)",
    "sorted": "SELECT * FROM totp_reset_recovery_codes('user-000000', 20) AS code ORDER BY code",
    "joined with itself": "WITH codes AS MATERIALIZED (SELECT * FROM totp_reset_recovery_codes('user-000000', 20)) SELECT * FROM codes a, codes b",
    "with a proof": f"SELECT * FROM totp_recovery_codes('user-000000', 20, '{code_at(secret_of('user-000000'), NOON)}')",
    "with a first code": "SELECT c.* FROM totp_import('user-000000', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ'), totp_check_confirm('user-000000',"
                         " totp_code_at('GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', '2030-01-01 12:00:00+00'), recovery_codes => 20) AS c",
    "a new secret": "SELECT * FROM totp_enroll('user-000000') ORDER BY secret",
    "a device of each algorithm": "SELECT e.* FROM (VALUES ('SHA1'), ('SHA256'), ('SHA512')) AS v(a), totp_enroll('user-000000', device => a, algorithm => a) AS e ORDER BY 1",
}


@pytest.mark.parametrize("query", ONE_USER.values(), ids=ONE_USER)
def test_what_is_shown_of_one_user_stays_in_memory(conn, cluster, query):
    import_users(conn, 1)
    assert in_temporary_files(conn, cluster, query) == b""


EXPORT = {"rows of a function": "SELECT * FROM totp_export()", "in the select list": "SELECT (e).* FROM (SELECT totp_export() AS e OFFSET 0) AS exported"}


READ = {"rows of a function": "SELECT * FROM read()", "in the select list": "SELECT (e).* FROM (SELECT read() AS e OFFSET 0) AS tokens"}


@pytest.mark.parametrize("query", READ.values(), ids=READ)
def test_tokens_of_a_file_stay_in_memory(conn, cluster, query):
    secrets = [secret_of(f"token {n}") for n in range(USERS)]
    document = "serial,secret,period\n" + "\n".join(f"{n},{secret},30" for n, secret in enumerate(secrets))
    query = query.replace("read()", f"totp_read_tokens('{document}', 'csv')")
    assert len(conn.execute(query).fetchall()) == USERS
    content = in_temporary_files(conn, cluster, query)
    assert not any(secret.encode() in content for secret in secrets)
    content = in_temporary_files(conn, cluster, f"{query} ORDER BY secret")
    assert sum(secret.encode() in content for secret in secrets) > USERS / 2


@pytest.mark.parametrize("query", EXPORT.values(), ids=EXPORT)
def test_an_export_stays_in_memory(conn, cluster, query):
    users = import_users(conn, USERS)
    secrets = [secret_of(user).encode() for user in users]
    content = in_temporary_files(conn, cluster, query)
    assert not any(secret in content for secret in secrets)
    # What the client sorts is its own. The search does see it on the disk.
    content = in_temporary_files(conn, cluster, f"{query} ORDER BY otpauth_uri")
    assert sum(secret in content for secret in secrets) > USERS / 2
