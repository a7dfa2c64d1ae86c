"""Fixtures: a shared server, databases on it, and servers of a test's own.

Rules for the tests here: no assertion on elapsed time, no sleep; time is an argument (totp.fix_clock).
"""

import signal
from contextlib import closing

import pytest
from server import Cluster, Database

_clusters: list[Cluster] = []  # those that are up, whose logs a failing test shows


@pytest.fixture(scope="session")
def cluster():
    """The shared server, with a key file. Not for tests that stop, kill or reconfigure it."""
    yield from _running_cluster()


@pytest.fixture
def fresh_cluster():
    """A server of the test's own, started, with a key file: to stop, kill, restart, configure."""
    yield from _running_cluster()


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
    with closing(_module_database.connect()) as conn:
        for table in ("secrets", "used_codes", "attempts", "recovery_codes", "audit_log", "floor"):
            conn.execute(f"DELETE FROM totp.{table}")
        # As CREATE EXTENSION leaves it, so that a test may fix its clock to a time before that of the test before it.
        conn.execute("INSERT INTO totp.floor (floor_at, system_identifier, control_inode, database, timeline, one)"
                     " VALUES ('-infinity', 0, 0, 0, 0, true)")
    return _module_database


@pytest.fixture
def make_cluster():
    """A function that makes further servers: make_cluster(key=..., setting=value, ...). Started, and removed afterwards."""
    yield from _cluster_maker()


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


def _cluster_maker():
    made = []

    def make(key: str | None = None, **settings) -> Cluster:
        made.append(_new_cluster())
        return made[-1].init(key, **settings).start()

    try:
        yield make
    finally:
        for one in made:
            _remove(one)


def _running_cluster():
    one = _new_cluster()
    try:
        yield one.init().start()
    finally:
        _remove(one)


def _new_cluster() -> Cluster:
    one = Cluster()
    _clusters.append(one)
    return one


def _remove(one: Cluster) -> None:
    _clusters.remove(one)
    one.remove()


def pytest_configure():
    """End as Ctrl-C does, with the servers stopped, when someone else ends the run."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)


_log_sizes = pytest.StashKey[dict[Cluster, int]]()


def pytest_runtest_setup(item):
    item.stash[_log_sizes] = {one: len(one.log_text()) for one in _clusters}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failing test shows what the servers logged during it."""
    report = yield
    if report.failed:
        for one in _clusters:
            lines = one.log_text()[item.stash[_log_sizes].get(one, 0):].splitlines()
            if lines:
                report.sections.append((f"server log {one.log}", "\n".join(lines[-40:])))
    return report
