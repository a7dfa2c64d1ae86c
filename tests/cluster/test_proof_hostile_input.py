"""Every function with every kind of wrong argument in every place, under every setting that makes PostgreSQL call it otherwise:
only the errors of the contract, the same backend afterwards, and nothing secret in any message or log line."""

from contextlib import closing

import psycopg
import pytest
from hostile import PLANT, Function, Judge, functions
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
    return Target(make_module_cluster())


def attack(target: Target, conn: psycopg.Connection, own_states=(), step=1, prepare=None) -> Judge:
    """Calls every function with every list of arguments, each in a transaction that is rolled back, and judges what comes."""
    judge = Judge(target.secrets, set(own_states))
    log_before = len(target.cluster.log_text())
    backend, codec, calls = conn.info.backend_pid, conn.info.encoding, 0
    for function in functions(conn):
        for arguments in function.hostile(step):
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
            if function.kind != "p":
                conn.execute("ROLLBACK")
    assert calls > 800 / step
    assert conn.execute("SELECT pg_backend_pid(), count(*) FROM totp.secrets").fetchone() == (backend, 2)
    judge.text(target.cluster.log_text()[log_before:], "the log")
    return judge


def test_plain(target):
    with closing(target.session()) as conn:
        judge = attack(target, conn)
    assert judge.seen >= {"22023", "42704", "55000"}


def test_a_client_of_another_encoding(target):
    with closing(target.session(client_encoding="SJIS")) as conn:
        assert conn.info.encoding == "shift_jis"
        attack(target, conn, {UNTRANSLATABLE})


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_prepared_statements(target, mode):
    with closing(target.session(plan_cache_mode=mode)) as conn:
        attack(target, conn, step=3, prepare=True)


def test_compiled_expressions(target):
    with closing(target.session(jit="on", jit_above_cost="0")) as conn:
        assert conn.execute("SELECT pg_jit_available()").fetchone() == (True,)
        attack(target, conn, step=10)


def test_forced_parallel_query(target):
    with closing(target.session()) as conn:
        force_parallel(conn)
        attack(target, conn, step=3)


@pytest.mark.parametrize("encoding, text", [("UTF8", b"\xff"), ("UTF8", b"\xc3("), ("UTF8", b"\xed\xa0\x80"), ("UTF8", b"\xf4\x90\x80\x80"),
                                            ("UTF8", b"a\xe2\x82"), ("SJIS", b"\x82"), ("SJIS", b"\x83\x00"), ("SJIS", b"\xa0\xff")])
def test_bytes_that_are_no_text_never_arrive(target, encoding, text):
    """Where the client's encoding does not have them PostgreSQL refuses, in every place that takes a text."""
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
    """The same judgement of functions that do what none of ours may."""
    leaks = {
        "the argument": "RAISE EXCEPTION 'invalid code %', code USING ERRCODE = '22023'",
        "a detail": "RAISE EXCEPTION 'no' USING ERRCODE = '22023', DETAIL = 'it was ' || code",
        "a panic": "RAISE EXCEPTION 'no' USING ERRCODE = '22023', HINT = 'thread panicked at src/x.rs:1'",
        "a path": "RAISE EXCEPTION 'no' USING ERRCODE = '22023', HINT = 'see /etc/totp.key'",
        "another state": "RAISE EXCEPTION 'no'",
        "the log": "RAISE LOG 'judged %', code",
    }
    signature = Function("leak(text)", "public", "leak", "f", ["code"], ["text"])
    with closing(target.session()) as conn:
        for name, body in leaks.items():
            conn.execute(f"CREATE OR REPLACE FUNCTION public.leak(code text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body}; END $$")
            judge, log_before = Judge(target.secrets, set()), len(target.cluster.log_text())
            with pytest.raises(AssertionError):
                try:
                    conn.execute(*signature.call([PLANT]))
                except psycopg.Error as error:
                    judge.error(error, name)
                judge.text(target.cluster.log_text()[log_before:], name)
        conn.execute("DROP FUNCTION public.leak(text)")
