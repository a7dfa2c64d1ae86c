"""sqlsmith, a generator of random SQL, against the extension: as a role with every capability and as a superuser.

By itself it would hardly call our functions: it knows thousands, calls none that returns rows, and makes no texts. So it gets
- a view for each of our functions, which calls it with arguments that are mostly good ones, and what it joins and sorts are views;
- a view `pg_type` that has real types in place of anyrange and the like, of which it makes NULLs that nothing takes;
- a view `pg_proc` before PostgreSQL's in its search_path, with our functions and a few that make texts: so it calls nothing that
  reads files or ends sessions either.
"""

import re
from contextlib import closing

from hostile_arguments import GOOD, PLANT, TEXTS, Function, functions
from psycopg import sql
from server import wait_until
from totp import NOON, active_user, code_at, enroll, fix_clock, recovery_codes, verify

SEED = 1
QUERIES = 600

# Where values of a type come from: a column of smith.words.
COLUMNS = {"text": "word", "name": "short", "integer": "number", "smallint": "small", "bigint": "big", "boolean": "flag",
           "timestamp with time zone": "at", "interval": "span", "bytea": "data"}

SCHEMA = """
CREATE SCHEMA smith;
CREATE TABLE smith.words (number int PRIMARY KEY, word text, short name, small smallint, big bigint, flag boolean, at timestamptz, span interval, data bytea);
CREATE SEQUENCE smith.picks;
CREATE VIEW smith.pg_proc AS
  SELECT p.* FROM pg_catalog.pg_proc p
   WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ('{left,right,reverse,chr,to_hex,convert_to,make_interval}')
      OR pronamespace IN ('public'::regnamespace, 'totp'::regnamespace);
CREATE VIEW smith.pg_type AS
  SELECT oid, coalesce(concrete, typname) AS typname, typnamespace, typdelim, typrelid, typelem, typarray, typtype
    FROM pg_catalog.pg_type
    LEFT JOIN (VALUES ('anyrange', 'int4range'), ('anymultirange', 'int4multirange'), ('anyelement', 'text'), ('anynonarray', 'text'),
                      ('anycompatiblerange', 'int4range'), ('anycompatiblemultirange', 'int4multirange'), ('anycompatiblearray', '_text'),
                      ('anycompatible', 'text'), ('anycompatiblenonarray', 'text')) AS polymorphic(name, concrete) ON typname = name;
"""

PICK = """
CREATE FUNCTION smith.pick(good {type}) RETURNS {type} LANGUAGE sql VOLATILE AS $$
  SELECT CASE n % 4 WHEN 0 THEN (SELECT {column} FROM smith.words WHERE number = n / 4 % (SELECT count(*) FROM smith.words)) ELSE good END
    FROM nextval('smith.picks') AS n $$"""


class Target:
    """A server that logs each statement and the SQLSTATE of each error, and counts the calls of each function; on it what sqlsmith is given."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster
        cluster.stop()
        cluster.start(RUST_BACKTRACE="1")
        self.database = cluster.create_database()
        with closing(self.database.connect()) as conn:
            fix_clock(conn, NOON)
            self.secret = active_user(conn)
            enroll(conn, "bob", account_name="bob", digits=8)
            texts = ["alice", "bob", "default", self.secret, *recovery_codes(conn, count=3), *(text.replace("{}", PLANT) for text in TEXTS.values())]
            conn.execute(SCHEMA)
            for n, text in enumerate(texts):
                conn.execute("INSERT INTO smith.words VALUES (%s, %s, %s, %s, %s, %s, now(), %s, %s)",
                             [n, text, text[:20], -n, n << 40, n % 2 == 0, f"{n} days", text.encode()[:100]])
            for kind, column in COLUMNS.items():
                conn.execute(PICK.format(type=kind, column=column))
            self.functions = {function.name: function for function in functions(conn) if function.kind == "f"}
            for function in self.functions.values():
                conn.execute(view_of(conn, function))

    def role(self, *capabilities: str, superuser: bool = False) -> str:
        role = self.database.create_role(*capabilities)
        self.database.execute(f"ALTER ROLE {role} {'SUPERUSER' if superuser else 'NOSUPERUSER'}")
        self.database.execute(f"ALTER ROLE {role} SET search_path = smith, public, pg_catalog")
        self.database.execute(f"GRANT USAGE ON SCHEMA smith TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA smith TO {role}; GRANT USAGE ON SEQUENCE smith.picks TO {role}")
        return role

    def attack(self, role: str) -> None:
        """Let sqlsmith run, and read what the server logged."""
        before = self.cluster.log_end()
        target = f"host={self.cluster.folder} dbname={self.database.name} user={role}"
        self.cluster.run("sqlsmith", f"--target={target}", f"--seed={SEED}", f"--max-queries={QUERIES}", "--exclude-catalog")
        log = re.sub(r"(?m)^25P01 WARNING: .*\n", "", self.cluster.log_text(before))  # its own ROLLBACK when it has begun nothing
        assert set(self.functions) <= set(re.findall(r"\bsmith\.(\w+)", log))  # it left out none
        errors = re.findall(r"^(\w{5}) ERROR: .*", log, re.MULTILINE)
        assert 0 < len(errors) < QUERIES  # it worked, and not all of it was refused
        assert {state for state in errors if state.startswith("XX")} <= {"XX001"}  # a sealed value that does not open
        assert not re.findall(r"^\w{5} (?:FATAL|PANIC|WARNING): .*|^\w{5} (?!LOG:  statement).*(?:panicked|server process|\.rs\b).*", log, re.MULTILINE)

    def called(self) -> set[str]:
        """The functions that were called, as PostgreSQL counts, once the sessions that called them have reported."""
        return {name for [name] in self.database.execute("SELECT funcname::text FROM pg_stat_user_functions WHERE calls > 0")} & set(self.functions)


def view_of(conn, function: Function) -> str:
    """A view of two calls of a function, its result as text if it has none."""
    arguments = [f"smith.pick({sql.Literal(GOOD[name]).as_string(conn)}::{kind})" for name, kind in zip(function.arguments, function.types, strict=True)]
    [returns_nothing] = conn.execute("SELECT prorettype = 'void'::regtype FROM pg_catalog.pg_proc WHERE oid = %s::regprocedure", [function.signature]).fetchone()
    result = "r::text" if returns_nothing else "r.*"
    return (f"CREATE VIEW smith.{function.name} AS SELECT {result} FROM pg_catalog.generate_series(1, 2) AS calls,"
            f" LATERAL {function.schema}.{function.name}({', '.join(arguments)}) AS r")


def test_random_statements_do_no_harm(make_cluster):
    target = Target(make_cluster(log_line_prefix="%e ", log_min_error_statement="panic", track_functions="all",
                                 log_statement="all"))
    postmaster = target.cluster.pid()
    target.attack(target.role("verify", "enroll", "admin", "audit"))
    target.attack(target.role(superuser=True))
    # PostgreSQL counts a call that returns: of some functions, by the luck of the seed and of names, none does.
    wait_until(lambda: len(target.called()) > len(target.functions) / 2, "calls of most functions to be counted")
    with closing(target.database.connect()) as conn:  # nothing of it was committed, and all of it still works
        fix_clock(conn, NOON)
        assert conn.execute("SELECT count(*) FROM totp.secrets").fetchone() == (2,)
        conn.execute("SELECT totp_unlock('alice')")
        assert verify(conn, "alice", code_at(target.secret, NOON.timestamp() + 30)) is True
    assert target.cluster.pid() == postmaster
