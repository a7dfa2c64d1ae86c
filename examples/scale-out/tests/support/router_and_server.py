"""The same call to a server and to a router of examples/scale-out/, and what the two may answer differently.

What a router does otherwise is named here:

- WRAPPED: a message, DETAIL or HINT has a prefix that says where it comes from;
- ON_ALL: what runs on all shards has the column shard behind its own, and its errors say on which shards it was done;
- ROUTER_CHECKS: totp_health() has rows about the map;
- REFUSED: a router does not do it at all.

Besides, a ROLLBACK undoes nothing on a shard, and a query that wrongly says that it may run in a parallel worker is not
refused: test_differences.py tests these separately.
"""

import re
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
from hostile_arguments import functions
from server import Cluster, Database
from shards import Router
from totp import NOON, SECRET

WRAPPED = re.compile(r"^(?:\S+\(\d+\): \[\w+\] REMOTE ERROR: |Remote \w+: |shard \"\w+\": )+")
ON_ALL = {"totp_forget_unreadable", "totp_health", "totp_keys", "totp_metrics", "totp_prune_audit", "totp_rotate_key", "totp_stats"}
DONE = re.compile(r"(?:^| )(?:No shard has done it\.|Done on [\w, ]+\.)$")
ROUTER_CHECKS = {"map"}
REFUSED = {"totp_export": "0A000", "totp_list": "0A000", "totp_acknowledge_restore": "0A000", "totp_audit_seal": "0A000", "totp_audit_verify": "0A000"}

OTHER = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U"
KNOWN = (SECRET, OTHER)  # the other secrets in an answer are made by chance


class Sides:
    """A session of a server and one of a router: what they are asked is the same, and what they answer is compared."""

    def __init__(self, one: psycopg.Connection, router: psycopg.Connection) -> None:
        self.one, self.router = one, router
        self.states: set[str] = set()  # the SQLSTATEs of errors
        self.done: set[str] = set()  # the functions that had an answer with a row
        self.different: list[str] = []

    def ask(self, statement, parameters=None) -> str | None:
        """The SQLSTATE of the error, or None if there is an answer."""
        text = statement if isinstance(statement, str) else statement.as_string()
        called = set(re.findall(r"totp_[a-z_]+(?=\"?\()", text))
        router = answer(self.router, statement, parameters)
        if called & REFUSED.keys():
            if _state(router) not in (*REFUSED.values(), "42501", "25006"):
                self.different.append(f"{text}: a router refuses it\n  router: {router!r:.600}")
            return _state(router)
        if called & ON_ALL and isinstance(router, Rows):
            router = router.without_shard()
        one = answer(self.one, statement, parameters)
        if called == {"totp_stats"} and isinstance(one, Rows):
            one = one.without_grants()
        if isinstance(one, Failure):
            self.states.add(one.sqlstate)
        elif one.rows or not one.columns:
            self.done |= called
        if one != router:
            shown = [repr(given)[:60] for given in parameters or ()]
            self.different.append(f"{text[:300]} {shown}\n  one:    {one!r:.600}\n  router: {router!r:.600}")
        return _state(one)

    def same(self) -> None:
        if self.different:
            raise AssertionError(f"{len(self.different)} differences:\n" + "\n".join(self.different[:20]))


class Rows:
    """What a statement answers. What is made by chance, or by the real time, is replaced by its form."""

    def __init__(self, columns: list[tuple], rows: list[tuple]) -> None:
        self.columns, self.rows = columns, [tuple(map(_form, row)) for row in rows]

    def without_grants(self) -> "Rows":
        """A router has its own grants, and no event for them."""
        return Rows(self.columns, [row for row in self.rows if row[0] not in ("granted", "revoked")])

    def without_shard(self) -> "Rows":
        names = [name for name, _ in self.columns]
        assert names[-1] == "shard" and {row[-1] for row in self.rows} <= {"s1"}, self
        kept = [row[:-1] for row in self.rows if not (names[0] == "check_name" and row[0] in ROUTER_CHECKS)]
        return Rows(self.columns[:-1], kept)

    def __eq__(self, other) -> bool:
        return isinstance(other, Rows) and (self.columns, self.rows) == (other.columns, other.rows)

    def __repr__(self) -> str:
        return f"{self.columns} {self.rows}"


class Failure:
    """An error that a statement ends in, without what says where it comes from."""

    def __init__(self, error: psycopg.Error) -> None:
        self.sqlstate = error.sqlstate
        texts = error.diag.message_primary, error.diag.message_detail, error.diag.message_hint
        self.message, detail, self.hint = (WRAPPED.sub("", text or "") for text in texts)
        self.detail = DONE.sub("", detail)

    def __eq__(self, other) -> bool:
        return isinstance(other, Failure) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"{self.sqlstate} {self.message!r}, DETAIL {self.detail!r}, HINT {self.hint!r}"


def _form(value):
    if isinstance(value, list):
        return [_form(item) for item in value]
    if isinstance(value, datetime) and abs(value - datetime.now(UTC)) < timedelta(hours=1):
        return "the real time"
    if isinstance(value, str):
        value = re.sub(r"\b[A-Z2-7]{32,}\b", lambda it: it[0] if it[0] in KNOWN else f"a secret of {len(it[0])}", value)
        value = re.sub(r"^[0-9A-Z]{6}(-[0-9A-Z]{6}){3}$", "a recovery code", value)
    return value


def answer(conn: psycopg.Connection, statement, parameters=None) -> Rows | Failure:
    try:
        cursor = conn.execute(statement, parameters)
        return Rows([(column.name, column.type_code) for column in cursor.description or ()], cursor.fetchall() if cursor.description else [])
    except psycopg.Error as error:
        return Failure(error)


def _state(given: Rows | Failure) -> str | None:
    return given.sqlstate if isinstance(given, Failure) else None


class Both:
    """A database with the extension, and a router before another one, of the same server and the same master key."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.one = cluster.create_database("one")
        self.router = Router(cluster, [cluster])
        self.behind: list[Database] = [self.one, self.router.shards[0].database]
        for database in self.behind:
            database.execute(f"ALTER DATABASE {database.name} SET totp.clock = '{NOON.isoformat()}'")
        with closing(self.one.connect()) as conn:
            # Which roles totp_grant and totp_revoke refuse depends on who owns the functions: the calls of test_differences.py have them.
            self.functions = [function for function in functions(conn) if function.schema == "public" and function.name not in ("totp_grant", "totp_revoke")]

    def on_servers(self, statement: str) -> None:
        """What is done where the tables are."""
        for database in self.behind:
            database.execute(statement)

    def empty(self) -> None:
        for database in self.behind:
            database.empty()
        self.on_servers("DELETE FROM totp.data_keys")
        self.on_servers("ALTER SEQUENCE totp.key_ids RESTART")

    @contextmanager
    def sides(self, user: str = "postgres"):
        with closing(self.one.connect(user)) as one, closing(self.router.database.connect(user)) as router:
            yield (sides := Sides(one, router))
            sides.same()
