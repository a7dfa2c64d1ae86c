"""docs/operations/logging.md: the lines of pg_totp reach another machine, by rsyslog with the configuration of the document."""

import json
import re
import signal
from contextlib import closing

import pytest
from rsyslog import Shipping
from server import wait_until
from totp import MAX_ATTEMPTS, NOON, SECRET, error_of, fix_clock, import_secret, verify, wrong


@pytest.fixture
def ship(fresh_cluster):
    """A function that starts both rsyslog, and a session at noon. alice has a device."""
    opened = []

    def start(**options):
        shipping = Shipping(fresh_cluster, **options)
        fresh_cluster.restart()
        opened.append(shipping.__enter__())
        conn = fresh_cluster.create_database().connect()
        opened.append(closing(conn))
        fix_clock(conn, NOON)
        import_secret(conn, "alice", SECRET)
        return shipping, conn

    yield start
    for one in reversed(opened):
        one.__exit__(None, None, None)


def messages(shipping) -> list[str]:
    """The messages that have arrived, without their JSON."""
    return [json.loads(line[line.index("{"):])["message"] for line in shipping.arrived()]


def failed(shipping, user: str = "alice") -> set[int]:
    """The failures of a user that have arrived. A line may come twice."""
    return {int(found[1]) for message in messages(shipping) if (found := re.fullmatch(rf'totp: event=failed .*user="{user}" failures=(\d+)', message))}


def guess(conn, user: str = "alice") -> None:
    assert verify(conn, user, wrong()) is False


def test_lines_arrive_and_nothing_else_does(ship):
    """No statement, and no line that a user has written. A name that looks like a message does not matter."""
    shipping, conn = ship()
    conn.execute("DO $$ BEGIN RAISE LOG 'totp: event=unlocked user=\"alice\"'; END $$")
    name = '"message":"totp: event=unlocked","context":"'
    error_of(conn, f"""SELECT 1 / 0 AS "{name.replace('"', '""')}" """)
    import_secret(conn, name, SECRET, account_name="someone")
    guess(conn, name)
    guess(conn)
    wait_until(lambda: failed(shipping) == {1}, "the line")
    assert {message.split()[0] for message in messages(shipping)} == {"totp:"}
    assert not any(message.startswith("totp: event=unlocked") for message in messages(shipping))
    assert len({message for message in messages(shipping) if message.startswith("totp: event=failed") and "context" in message}) == 1  # of that name


def test_without_the_filter_a_message_of_many_lines_is_one_line(ship):
    shipping, conn = ship(filtered=False)
    error_of(conn, "SELECT 'first\nsecond\nthird', 1/0")
    guess(conn)
    wait_until(lambda: failed(shipping) == {1}, "the line")
    [line] = [line for line in shipping.arrived() if "division by zero" in line]
    assert json.loads(line[line.index("{"):])["statement"] == "SELECT 'first\nsecond\nthird', 1/0"


def test_lines_wait_for_the_other_machine(ship):
    """On the disk, over a crash of rsyslog too. No sign-in waits."""
    shipping, conn = ship()
    guess(conn)
    wait_until(lambda: failed(shipping) == {1}, "the first line")
    shipping.collector.stop()
    before = shipping.server.queued()
    for _ in range(MAX_ATTEMPTS - 1):
        guess(conn)
    wait_until(lambda: shipping.server.queued() > before, "the queue on the disk")
    shipping.server.stop(signal.SIGKILL)
    shipping.server.start()
    assert failed(shipping) == {1}
    shipping.collector.start()
    wait_until(lambda: failed(shipping) == set(range(1, MAX_ATTEMPTS + 1)), "the other lines")


def test_a_stop_meanwhile_loses_two_lines_at_most(ship):
    shipping, conn = ship()
    users = [f"user {number}" for number in range(20)]
    for user in ("late", *users):
        import_secret(conn, user, SECRET)
    guess(conn)
    wait_until(lambda: failed(shipping) == {1}, "the first line")
    shipping.collector.stop()
    for user in users:
        guess(conn, user)
    wait_until(lambda: shipping.server.queued() > 0, "the queue on the disk")
    shipping.server.stop()
    shipping.server.start()
    guess(conn, "late")
    shipping.collector.start()
    wait_until(lambda: failed(shipping, "late") == {1}, "a later line")
    assert [failed(shipping, user) for user in users].count({1}) >= len(users) - 2
