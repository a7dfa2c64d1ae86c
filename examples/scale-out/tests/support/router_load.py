"""A router with three shards, sessions that sign in through it, and a pooler between."""

import secrets
import threading
from contextlib import closing, contextmanager

import psycopg
import pytest
from many_users import import_users, secret_of
from pgbouncer import Pooler
from server import Cluster, Database, wait_until
from sessions import GUARD
from shards import Router, Shard
from totp import NOON, check, code_at, wrong_code


def servers(number: int) -> list[Cluster]:
    """Started servers. One initdb for all: the others begin as copies of its files."""
    first = Cluster().init()
    clusters = [first]
    for _ in range(number - 1):
        copy = Cluster()
        copy.run("cp", "-a", first.data, copy.data)
        copy.write_key_file(secrets.token_hex(32) + "\n")
        copy.configure(unix_socket_directories=copy.folder, totp__key_file=copy.key_file)
        clusters.append(copy)
    return [one.start() for one in clusters]


_made: list[Router] = []


@pytest.fixture(scope="session")
def router(request) -> Router:
    """A router and three shards, which all tests of this kind share. Import it to use it."""
    if not _made:
        clusters = servers(4)
        request.config.add_cleanup(lambda: [one.remove() for one in clusters])
        _made.append(Router(clusters[0], clusters[1:]))
        _made[0].fix_clock(NOON)
    return _made[0]


@pytest.fixture
def conn(router):
    with closing(router.database.connect()) as conn:
        yield conn


@pytest.fixture
def role(router):
    """A function that makes a login role of the router, with capabilities, and with rights through a group as DBAs give them."""
    made = []

    def make(*capabilities: str) -> str:
        name = f"scale_out_{secrets.token_hex(4)}"
        with closing(router.database.connect()) as conn:
            conn.execute(f"CREATE ROLE {name}_group; CREATE ROLE {name} LOGIN IN ROLE {name}_group")
            made.append(name)
            for capability in capabilities:
                conn.execute("SELECT totp_grant(%s, %s)", [f"{name}_group", capability])
        return name

    yield make
    for name in made:
        router.database.psql(f"DROP OWNED BY {name}_group; DROP ROLE {name}, {name}_group")


def code_of(user_id: str, step: int = 0) -> str:
    """The code of a user of secret_of() at noon, or this many steps later."""
    return code_at(secret_of(user_id), NOON.timestamp() + 30 * step)


class Load:
    """Sign-ins of these users in several sessions of the router, until the block ends, and their answers.

    A round signs a user in with the right code, with the same again and with a wrong one, over and over; each user is
    in one session only, so what is right is known. `answers` has (user, kind of code, answer or error, what was known).
    """

    def __init__(self, database: Database, users: list[str], sessions: int = 4) -> None:
        self.database, self.users, self.sessions = database, users, sessions
        self.answers: list[tuple] = []
        self.accepted: set[str] = set()  # who has been told yes
        self.when = NOON
        self._stop = threading.Event()

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(self.sessions)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        mine = self.users[number::self.sessions]
        with self.session() as ask:
            while not self._stop.is_set():
                for user in mine:
                    if self._stop.is_set():
                        return
                    right = code_at(secret_of(user), self.when)
                    for kind, code in (("right", right), ("wrong", wrong_code(right))):
                        self._ask(ask, user, kind, code)

    @contextmanager
    def session(self):
        """A function of a user and a code that answers as totp_check()."""
        with closing(self.database.connect()) as conn:
            conn.execute(GUARD)
            yield lambda user, code: check(conn, user, code)

    def _ask(self, ask, user: str, kind: str, code: str) -> None:
        known = user in self.accepted
        try:
            answer = ask(user, code)
        except psycopg.Error as error:
            answer = error
        else:
            if answer.accepted:
                self.accepted.add(user)
        self.answers.append((user, kind, answer, known))

    def errors(self) -> list[tuple[str, psycopg.Error]]:
        return [(user, answer) for user, _, answer, _ in self.answers if isinstance(answer, psycopg.Error)]

    def false_yes(self) -> list[tuple]:
        """Answers that let in a wrong code, or the same code twice."""
        return [given for given in self.answers if not isinstance(given[2], psycopg.Error) and given[2].accepted
                and (given[1] == "wrong" or given[3])]

    def false_no(self) -> list[tuple]:
        """Answers that refuse a right code, whose user had no answer of yes, no error, and no lock, before."""
        troubled, found = set(), []
        for user, kind, answer, known in self.answers:
            if isinstance(answer, psycopg.Error) or answer.reason == "locked":
                troubled.add(user)
            elif kind == "right" and not answer.accepted and not known and user not in troubled:
                found.append((user, kind, answer, known))
        return found


def new_users(router, size: int, prefix: str) -> list[str]:
    with closing(router.database.connect()) as conn:
        return import_users(conn, size, prefix=prefix)


def wait_for_more(load: Load, users: set[str], answers: int = 30) -> None:
    """Waits until these users have had this many more answers, errors not counted."""
    def count() -> int:
        return sum(user in users and not isinstance(answer, psycopg.Error) for user, _, answer, _ in list(load.answers))

    target = count() + answers
    wait_until(lambda: count() >= target, "sign-ins to go on")


@contextmanager
def pooled(router, shards: list[Shard], **settings):
    """One pgbouncer before the router and, as the router sees them, before these shards."""
    databases = {"router": router.database, **{shard.name: shard.database for shard in shards}}
    capabilities = [f"totp_router_{name}" for name in ("verify", "enroll", "audit", "admin", "owner")]

    def lead(connections: dict[str, str]) -> None:
        with closing(router.database.connect()) as conn:
            for name, connection in connections.items():
                conn.execute("UPDATE totp_router.shards SET connection = %s WHERE name = %s", [connection, name])
        router.apply()

    with Pooler(router.database.cluster, ["postgres", *capabilities], databases, **settings) as pooler:
        lead({shard.name: f"host={pooler.folder} port=6432 dbname={shard.name}" for shard in shards})
        try:
            yield pooler
        finally:
            lead({shard.name: shard.connection for shard in shards})
