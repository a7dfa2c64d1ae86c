"""Every function with every kind of wrong argument in every place, under every setting that makes PostgreSQL call it otherwise:
only the errors of the contract, the same backend afterwards, and nothing secret in any message or log line."""

import re
from contextlib import closing

import psycopg
import pytest
from hostile_arguments import GOOD, PLANT, UNSEEN, Function, Judge, fields, functions
from totp import NOON, active_user, enroll, fix_clock, force_parallel, recovery_codes

# What PostgreSQL itself raises of such values before or after a function of ours: a text that the client cannot be shown.
UNTRANSLATABLE = "22P05"


class Target:
    """A server whose processes have RUST_BACKTRACE, and on it a database where alice and bob are enrolled."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster
        cluster.stop()
        cluster.start(RUST_BACKTRACE="1")
        self.database = cluster.create_database()
        with closing(self.database.connect()) as conn:
            fix_clock(conn, NOON)
            self.secrets = [active_user(conn), enroll(conn, "bob", account_name="bob", digits=8)]
            self.secrets += recovery_codes(conn)
        self.secrets += [cluster.key_file.read_text().strip(), str(cluster.key_file)]

    def session(self, **settings) -> psycopg.Connection:
        conn = self.database.connect()
        fix_clock(conn, NOON)
        for name, value in settings.items():
            conn.execute("SELECT set_config(%s, %s, false)", [name, value])
        return conn


@pytest.fixture(scope="module")
def target(make_module_cluster):
    return Target(make_module_cluster(log_line_prefix=""))  # a number in it might be the good code


def attack(target: Target, conn: psycopg.Connection, called: list[Function], own_states=(), prepare=None) -> set[tuple[str, str]]:
    """Calls functions with every list of arguments, each in a transaction that is rolled back, and judges what comes.

    Which function raised which SQLSTATE.
    """
    judge, seen = Judge(target.secrets, set(own_states)), set()
    notices: list[dict[str, str]] = []
    conn.add_notice_handler(lambda notice: notices.append(fields(notice)))
    log_before = target.cluster.log_end()
    backend, codec, calls = conn.info.backend_pid, conn.info.encoding, 0
    for function in called:
        for arguments in function.hostile():
            if calls % 20 == 0:  # what they charge outlives the ROLLBACK, and a lock would hide the rest
                conn.execute("SELECT totp_unlock('alice')")
            calls += 1
            statement, sent = function.call(arguments, codec)
            where = (function.signature, [repr(value)[:60] for value in arguments])
            if function.kind != "p":  # a procedure commits, so it has no transaction around it
                conn.execute("BEGIN")
            try:
                conn.execute(statement, sent, prepare=prepare)
            except psycopg.Error as error:
                judge.error(error, where)
                seen.add((function.name, error.sqlstate))
            if function.kind != "p":
                conn.execute("ROLLBACK")
            while notices:
                judge.message(notices.pop(), where)
    assert conn.execute("SELECT pg_backend_pid(), count(*) FROM totp.secrets").fetchone() == (backend, 2)
    judge.text(target.cluster.log_text(log_before), "the log")
    return seen


def attack_all(target: Target, conn: psycopg.Connection, **options) -> set[str]:
    """Every function. Which SQLSTATEs were raised."""
    called = functions(conn)
    assert sum(len([*function.hostile()]) for function in called) > 800
    return {state for _, state in attack(target, conn, called, **options)}


def test_plain_calls_tell_no_secret(target):
    with closing(target.session()) as conn:
        assert attack_all(target, conn) >= {"22023", "42501", "42704"}


def test_a_client_of_another_encoding_is_told_no_secret(target):
    with closing(target.session(client_encoding="SJIS")) as conn:
        assert conn.info.encoding == "shift_jis"
        attack_all(target, conn, own_states={UNTRANSLATABLE})


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_prepared_statements_tell_no_secret(target, mode):
    with closing(target.session(plan_cache_mode=mode)) as conn:
        attack_all(target, conn, prepare=True)


def test_compiled_expressions_tell_no_secret(target):
    with closing(target.session(jit="on", jit_above_cost="0")) as conn:
        assert conn.execute("SELECT pg_jit_available()").fetchone() == (True,)
        attack_all(target, conn)


def test_forced_parallel_queries_tell_no_secret(target):
    with closing(target.session()) as conn:
        force_parallel(conn)
        attack_all(target, conn)


def test_a_parallel_worker_refuses_what_may_not_run_there(target):
    """If a caller's own function is marked PARALLEL SAFE and is not: what may not run in a worker says so, and nothing happens."""
    with closing(target.session()) as conn:
        ours = [function for function in functions(conn) if function.kind != "p"]
        conn.execute("CREATE SCHEMA lying")
        for function in ours:
            places = ", ".join(f"${n}" for n in range(1, len(function.types) + 1))
            parameters = ", ".join(f"{name} {kind}" for name, kind in zip(function.arguments, function.types, strict=True))
            conn.execute(f"CREATE FUNCTION lying.{function.name}({parameters}) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS "
                         f"$$ BEGIN RETURN (SELECT answer::text FROM {function.schema}.{function.name}({places}) answer LIMIT 1); END $$")
        force_parallel(conn)
        seen = attack(target, conn, [function._replace(schema="lying") for function in ours])
        refused = {name for name, state in seen if state == "25000"}
        unsafe = conn.execute("SELECT array_agg(oid::regprocedure::text) FROM pg_proc WHERE proparallel = 'u'").fetchone()[0]
        assert refused == {function.name for function in ours if function.signature in unsafe}
        force_parallel(conn, on=False)
        conn.execute("DROP SCHEMA lying CASCADE")


@pytest.mark.parametrize("encoding, text", [("UTF8", b"\xff"), ("UTF8", b"\xc3("), ("UTF8", b"\xed\xa0\x80"), ("UTF8", b"\xf4\x90\x80\x80"),
                                            ("UTF8", b"a\xe2\x82"), ("SJIS", b"\x82"), ("SJIS", b"\x83\x00"), ("SJIS", b"\xa0\xff")])
def test_bytes_that_are_not_text_never_arrive(target, encoding, text):
    """If the client's encoding does not have them, PostgreSQL refuses, in every place that takes a text."""
    with closing(target.session(client_encoding=encoding)) as conn:
        for function in functions(conn):
            for place, kind in enumerate(function.types):
                if kind not in ("text", "name"):
                    continue
                casts = ", ".join(f"${n}::{kind}" for n, kind in enumerate(function.types, 1))
                sent: list = [None] * len(function.types)
                sent[place] = text
                verb = "CALL" if function.kind == "p" else "SELECT"
                result = conn.pgconn.exec_params(f"{verb} {function.schema}.{function.name}({casts})".encode(), sent)
                assert result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) in (b"22021", b"22P05"), (function, text)


def test_a_leak_would_be_seen(target):
    """The same attack on a function that does what ours must not: it repeats a wrong argument, or good ones if another is wrong."""
    refuse = "RAISE EXCEPTION 'no' USING ERRCODE = '22023'"
    wrong = "coalesce(nullif(code, '" + GOOD["code"] + "'), 'x')"
    leaks = {
        "the argument": (f"RAISE EXCEPTION 'invalid code %', {wrong} USING ERRCODE = '22023'", PLANT),
        "a detail": (f"{refuse}, DETAIL = 'it was ' || {wrong}", PLANT),
        "a panic": (f"{refuse}, HINT = 'thread panicked at src/x.rs:1'", "panicked"),
        "a path": (f"{refuse}, HINT = 'see /etc/totp.key'", "a path"),
        "another state": ("RAISE EXCEPTION 'no'", "P0001"),
        "a notice": (f"RAISE NOTICE 'judged %', {wrong}", PLANT),
        "the log": (f"RAISE LOG 'judged %', {wrong}", f"the log holds '{PLANT}"),
        **{f"the good {name}": (f"IF digits <> 6 THEN {refuse}, DETAIL = 'digits of ' || {name}; END IF", re.escape(GOOD[name])) for name in UNSEEN},
    }
    leak = Function("leak", "public", "leak", "f", [*UNSEEN, "digits"], ["text"] * len(UNSEEN) + ["integer"])
    parameters = ", ".join(f"{name} {kind}" for name, kind in zip(leak.arguments, leak.types, strict=True))
    for body, complaint in leaks.values():
        target.database.execute(f"CREATE OR REPLACE FUNCTION public.leak({parameters}) RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body}; END $$")
        with closing(target.session()) as conn, pytest.raises(AssertionError, match=complaint):
            attack(target, conn, [leak])
    target.database.execute("DROP FUNCTION public.leak")
