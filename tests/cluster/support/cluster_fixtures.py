"""Fixtures: a shared server, databases on it, and servers for one test.

Rules for the tests here: no assertion on elapsed time, no sleep; time is an argument (totp.fix_clock).
"""

import re
import signal
from contextlib import closing
from pathlib import Path

import pytest
from log_lines import is_of_act
from server import PLACE, Cluster, Database, Template, wait_until
from totp import NOON, active_user, fix_clock

_clusters: list[Cluster] = []  # those that are up, whose logs a failing test shows


@pytest.fixture(scope="session")
def cluster():
    """The shared server, with a key file. Not for tests that stop, kill or reconfigure it."""
    yield from _running_cluster()


@pytest.fixture(scope="session")
def _template():
    template = Template()
    yield template
    template.origin.remove()


@pytest.fixture
def fresh_cluster(_template):
    """A server of the test's own, started, with a key file: to stop, kill, restart, configure."""
    yield from _running_cluster(_template)


@pytest.fixture
def db(cluster) -> Database:
    """A new database of the shared server, with the extension in it."""
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture(scope="module")
def _module_database(cluster):
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture
def quick_db(_module_database) -> Database:
    """A database that the tests of a module share, emptied before each: for many tests that change rows only."""
    _module_database.empty()
    return _module_database


@pytest.fixture
def conn(quick_db):
    """A superuser's session in quick_db, in which it is noon."""
    with closing(quick_db.connect()) as conn:
        fix_clock(conn, NOON)
        yield conn


@pytest.fixture
def alice(conn) -> str:
    """The secret of an active user who has not used a code of NOON or later."""
    return active_user(conn, "alice")


@pytest.fixture
def proof_is_off(cluster, conn):
    """totp.require_proof is off, so enrollment is that of 0.1.0, in `conn` and in later sessions."""

    def set_to(value):
        cluster.configure(totp__require_proof=value)
        cluster.reload()
        wait_until(lambda: conn.execute("SHOW totp.require_proof").fetchone() == (value,), "the setting to be read")

    conn.execute("LOAD 'pg_totp'")
    set_to("off")
    yield
    set_to("on")


@pytest.fixture
def log(cluster):
    """A function that returns the lines of pg_totp in the server log since the test began, without their prefix.

    Without who did it, the superuser, and without the line of the floor, which is new in each test, and those of acts.
    """
    begin = cluster.log_end()

    def lines():
        return [line for line in _lines(cluster.log_text(begin)) if not is_of_act(line)]

    return lines


@pytest.fixture
def acts(cluster):
    """A function that returns the lines of acts since it was last called, in the same form."""
    position = cluster.log_end()

    def lines():
        nonlocal position
        begin, position = position, cluster.log_end()
        return [line for line in _lines(cluster.log_text(begin, position)) if is_of_act(line)]

    return lines


def _lines(text: str) -> list[str]:
    found = re.findall(r"LOG:  totp: (event=(?!floor).*)", text)
    return [line.replace(' db_user="postgres"', "", 1) for line in found]


@pytest.fixture
def make_cluster(_template):
    """A function that makes further servers: make_cluster(key=..., place=..., setting=value, ...). Started, and removed afterwards."""
    yield from _cluster_maker(_template)


@pytest.fixture(scope="module")
def make_module_cluster():
    """As make_cluster, for a server that the tests of a module share. They leave it running and in order."""
    yield from _cluster_maker()


@pytest.fixture
def make_standby():
    """A function that makes a started standby: make_standby(primary, setting=value, ...). Removed afterwards."""
    made = []

    def make(primary: Cluster, **settings) -> Cluster:
        made.append(primary.standby(**settings))
        _clusters.append(made[-1])
        return made[-1]

    yield make
    for one in made:
        _remove(one)


def _cluster_maker(template: Template | None = None):
    made = []

    def make(key: str | None = None, place: Path = PLACE, **settings) -> Cluster:
        made.append(_new_cluster(template, place))
        return made[-1].init(key, **settings).start()

    try:
        yield make
    finally:
        for one in made:
            _remove(one)


def _running_cluster(template: Template | None = None):
    one = _new_cluster(template)
    try:
        yield one.init().start()
    finally:
        _remove(one)


def _new_cluster(template: Template | None, place: Path = PLACE) -> Cluster:
    one = Cluster(template=template, place=place)
    _clusters.append(one)
    return one


def _remove(one: Cluster) -> None:
    _clusters.remove(one)
    one.remove()


def pytest_configure():
    """End as Ctrl-C does, with the servers stopped, when someone else ends the run; in each process that tests run in."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)


# Files that take longest by themselves: begun first, so that the processes that share the files end at about the same time.
LONG_FILES = ("test_scrape", "test_altered_tables", "test_guess_is_charged", "test_rolled_back_guesses", "test_audit_log_size", "test_hostile_input",
              "test_crash_under_load", "test_rotation_load", "test_devices", "test_desk", "test_rotation_crash", "test_takeover_of_a_router",
              "test_answers_survive_a_crash", "test_dump", "test_moving_rows", "test_rewritten_tables", "test_floor", "test_tables")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


_log_ends = pytest.StashKey[dict[Cluster, int]]()


def pytest_runtest_setup(item):
    item.stash[_log_ends] = {one: one.log_end() for one in _clusters}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failing test shows what the servers logged during it."""
    report = yield
    if report.failed:
        for one in _clusters:
            lines = one.log_text(item.stash[_log_ends].get(one, 0)).splitlines()
            if lines:
                report.sections.append((f"server log {one.log}", "\n".join(lines[-40:])))
    return report
