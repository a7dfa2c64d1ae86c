"""Logical replication of the tables, which it cannot carry: totp_health() says what to do on both sides, and that works."""

import re
from contextlib import closing
from datetime import timedelta

import pytest
from health import health
from server import wait_until
from totp import NOON, code_at, enroll, fix_clock, verify

KEY = "0123456789abcdef" * 4
IN_PLACE = ("attempts", "floor", "used_codes")
WOULD_NOT_SEE = "publication p would not see its changes: "
REPLACE = "it is FOR ALL TABLES, so replace it by one of your tables or schemas, without totp, as standby-and-failover.md says"
SUBSCRIBED = ("subscription s writes to it, and gets no changes in place: on the publisher, publish without schema totp;"
              " then ALTER SUBSCRIPTION s SET PUBLICATION or REFRESH PUBLICATION")


@pytest.fixture(scope="module")
def servers(make_module_cluster):
    """A publisher and a subscriber with the same master key."""
    return [make_module_cluster(key=KEY, wal_level="logical", wal_retrieve_retry_interval="100ms") for _ in range(2)]


@pytest.fixture
def pair(servers):
    """A database of each, with the extension in a schema of its own and a table; alice is enrolled in the first."""
    publisher, subscriber = databases = [server.create_database(extension=False) for server in servers]
    for db in databases:
        db.psql("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa; CREATE TABLE orders (id int PRIMARY KEY)")
        db.execute(f"ALTER DATABASE {db.name} SET search_path = public, mfa")
    with closing(publisher.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        assert verify(conn, "alice", code_at(secret, NOON)) is True
    yield publisher, subscriber, secret
    subscriber.psql("DROP SUBSCRIPTION s")
    for db in databases:
        db.drop()


def subscribe(publisher, subscriber) -> None:
    subscriber.execute(f"CREATE SUBSCRIPTION s CONNECTION 'host={publisher.cluster.folder} dbname={publisher.name} user=postgres' PUBLICATION p")


def faults(db) -> dict[str, str]:
    """What totp_health() says of the tables that change in place, without the name of the table."""
    with closing(db.connect()) as conn:
        found = {name: detail for name, (status, detail) in health(conn).items() if name.startswith("table_") and status == "fail"}
    return {name.removeprefix("table_"): detail.removeprefix(f"table totp.{name.removeprefix('table_')}: ") for name, detail in found.items()}


def is_replicated(publisher, subscriber, number) -> None:
    publisher.execute("INSERT INTO orders VALUES (%s)", [number])
    wait_until(lambda: subscriber.execute("SELECT id FROM orders WHERE id = %s", [number]) == [(number,)], "the order")


def test_a_publication_for_all_tables_is_replaced_as_the_document_says(pair):
    publisher, subscriber, secret = pair
    publisher.execute("CREATE PUBLICATION p FOR ALL TABLES")
    log = subscriber.cluster.log_text
    subscribe(publisher, subscriber)
    failed = re.compile(r'duplicate key value violates unique constraint "floor_pkey"')
    wait_until(lambda: len(failed.findall(log())) >= 2, "the copy of the floor to fail again")
    assert faults(publisher) == dict.fromkeys(IN_PLACE, WOULD_NOT_SEE + REPLACE)
    assert faults(subscriber) == dict.fromkeys(IN_PLACE, SUBSCRIBED)

    publisher.execute("CREATE PUBLICATION app FOR TABLES IN SCHEMA public")
    subscriber.execute("ALTER SUBSCRIPTION s SET PUBLICATION app")
    publisher.execute("DROP PUBLICATION p")
    assert faults(publisher) == faults(subscriber) == {}
    is_replicated(publisher, subscriber, 1)

    # The subscriber is to take over: the extension and its rows move by a dump.
    subscriber.psql("DROP EXTENSION pg_totp; DROP SCHEMA mfa")
    subscriber.psql(publisher.cluster.client("pg_dump", "-d", publisher.name, "-n", "mfa", "-e", "pg_totp"))
    with closing(subscriber.connect()) as conn:
        later = NOON + timedelta(minutes=10)
        fix_clock(conn, later)
        assert verify(conn, "alice", code_at(secret, later)) is False
        fix_clock(conn, later + timedelta(minutes=10))
        assert verify(conn, "alice", code_at(secret, later + timedelta(minutes=10))) is True
    assert faults(subscriber) == {}


PUBLICATIONS = {  # of what, the tables that have a fault, and how the advice begins
    "a schema": ("TABLES IN SCHEMA totp, public", IN_PLACE, "ALTER PUBLICATION p DROP TABLES IN SCHEMA totp"),
    "tables": ("TABLE totp.floor, totp.used_codes, orders", ("floor", "used_codes"), "ALTER PUBLICATION p DROP TABLE totp.{table}"),
    "a schema and a table": ("TABLES IN SCHEMA totp, TABLE orders, totp.floor", IN_PLACE, "ALTER PUBLICATION p DROP TABLES IN SCHEMA totp"),
}


@pytest.mark.parametrize("what, tables, advice", PUBLICATIONS.values(), ids=PUBLICATIONS)
def test_the_advice_about_a_publication_is_a_statement(pair, what, tables, advice):
    """Each is run on the publisher, until none is left; then REFRESH PUBLICATION on the subscriber."""
    publisher, subscriber, _ = pair
    publisher.execute(f"CREATE PUBLICATION p FOR {what}")
    subscribe(publisher, subscriber)
    assert faults(publisher) == {table: WOULD_NOT_SEE + advice.format(table=table) for table in tables}
    assert faults(subscriber) == dict.fromkeys(tables, SUBSCRIBED)
    while statements := {detail.removeprefix(WOULD_NOT_SEE) for detail in faults(publisher).values()}:
        for statement in statements:
            publisher.execute(statement)
    subscriber.execute("ALTER SUBSCRIPTION s REFRESH PUBLICATION")
    assert faults(subscriber) == {}
    is_replicated(publisher, subscriber, 1)


def test_a_subscription_to_other_tables_is_in_order(pair):
    publisher, subscriber, _ = pair
    publisher.execute("CREATE PUBLICATION p FOR TABLE orders")
    subscribe(publisher, subscriber)
    is_replicated(publisher, subscriber, 1)
    assert faults(publisher) == faults(subscriber) == {}
