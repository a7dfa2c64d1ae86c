"""Clients that find the shard themselves: Python and JavaScript, through a pgbouncer with one database for each partition."""

import re
from contextlib import closing

import psycopg
import pytest
import totp_client
import totp_map
from mapped_shards import HALVES, mapped, node  # noqa: F401
from many_users import secret_of
from router_load import code_of
from shards import EXAMPLE, PARTITIONS, partition, script, users_of
from totp import error_of, parallel, wrong_code

IDS = ["alice", "Alice", " alice", "alice ", "", "0", "\u00c4", "A\u0308", "\u65e5\u672c", "\U0001f600", "\U0010ffff", "\u200b", "\ufeffbom", "\u202eabc",
       "\ud7ff", "\ue000", "\ufffd", "\x01", "\x7f", "\t\n", "a'b\"c\\d", "\\x41", "\\000", "%s$1", "x" * 256, "x" * 257, "\u00e9" * 128, "x" * 100_000]
NOT_TEXT = ["\ud800", "a\udfff", "\udc00\ud800"]
CHECK = "SELECT totp_shard.totp_check(%s, '000000', NULL, 'x')"


def new_user(mapped, prefix: str, half: list[int] | None = None) -> str:
    """An enrolled user, of partitions of one shard."""
    [user] = users_of(half or range(PARTITIONS), 1, prefix)
    with mapped.client("totp_router_admin") as desk:
        desk.call("SELECT totp_shard.totp_import(%s, %s, NULL, NULL, 'default', 'SHA1', 6, 30, true, false, NULL, 0, 'desk')", user, secret_of(user))
    return user


# --- Where a user is -------------------------------------------------------------------------------------------------


def test_every_language_finds_the_partition_that_sql_finds(mapped):
    """Whatever the id is: the clients hash its UTF-8 bytes, and normalize nothing."""
    expected = [partition(user) for user in IDS]
    assert len(set(expected)) > 8 and expected[6] != expected[7]
    with closing(mapped.shards[0].database.connect()) as conn:
        assert [conn.execute("SELECT totp_shard.partition(%s)", [user]).fetchone()[0] for user in IDS] == expected
    assert [totp_client.partition(user) for user in IDS] == expected
    assert node("return args[0].map(client.partition)", IDS) == expected


def test_what_is_no_text_is_no_user(mapped):
    for user in (*NOT_TEXT, None, 7, b"alice"):
        with pytest.raises((UnicodeEncodeError, AttributeError)):
            totp_client.partition(user)
    errors = node("return args[0].map((id) => { try { return client.partition(id); } catch (error) { return error.name; } })", [*NOT_TEXT, None, 7, ["alice"]])
    assert errors == ["TypeError"] * 6


def test_the_number_of_partitions_is_the_same_everywhere():
    assert totp_client.PARTITIONS == PARTITIONS == node("return client.PARTITIONS")
    assert re.findall(r"^totp_(\d+) =", script("pgbouncer.ini"), flags=re.M) == [str(n) for n in range(PARTITIONS)]
    for name in ("shard.sql", "router.sql"):
        assert f"AS 'SELECT {PARTITIONS}'" in script(name)


def test_postgresql_puts_the_partition_in_line(mapped):
    """Else each call would begin a function, or read a search_path."""
    [plan] = mapped.shards[0].database.execute("EXPLAIN (VERBOSE, FORMAT JSON) SELECT totp_shard.partition(user_id) FROM totp.attempts")
    assert "sha256" in str(plan) and "totp_shard.partition" not in str(plan)


# --- Signing in ------------------------------------------------------------------------------------------------------


def test_a_user_signs_in_on_either_shard(mapped):
    for half in HALVES:
        user = new_user(mapped, "python", half)
        with mapped.client() as client:
            assert client.check(user, wrong_code(code_of(user)))[:2] == (False, "wrong")
            assert [client.verify(user, code_of(user), actor="web") for _ in range(2)] == [True, False]
            assert client.verify("nobody", "000000") is False
        assert mapped.shard_of(user).database.execute("SELECT actor, db_user FROM totp.audit_log WHERE user_id = %s AND event = 'replayed'", [user]) == [
            ("web", "totp_router_verify")]
        user = new_user(mapped, "node", half)
        assert node("""const shards = new client.Shards(args[0]), [, user, good, bad] = args;
            const said = [await shards.check(user, bad), await shards.verify(user, good, { actor: "web" }), await shards.verify(user, good)];
            await shards.close();
            return said.map((answer) => answer.reason ?? answer);""", config(mapped), user, code_of(user), wrong_code(code_of(user))) == ["wrong", True, False]


def config(mapped, **more) -> dict:
    return {"host": str(mapped.pooler.folder), "port": 6432, "user": "totp_router_verify", **more}


def test_of_20_sessions_with_one_code_one_gets_in(mapped):
    user = new_user(mapped, "crowd")
    clients = [totp_client.Shards(mapped.pooler.conninfo()) for _ in range(20)]
    answers = parallel(20, lambda n, _: clients[n].verify(user, code_of(user)), lambda n: clients[n].connection(partition(user)))
    for client in clients:
        client.close()
    assert sorted(answers) == [False] * 19 + [True]

    user = new_user(mapped, "node-crowd")
    answers = node("""const shards = new client.Shards(args[0]);
        const answers = await Promise.all(Array.from({ length: 20 }, () => shards.verify(args[1], args[2])));
        await shards.close();
        return answers;""", config(mapped, max=20), user, code_of(user))
    assert sorted(answers) == [False] * 19 + [True]


# --- The wrong place -------------------------------------------------------------------------------------------------


def test_a_client_that_asks_the_wrong_shard_gets_an_error(mapped):
    """No answer, no guess counted, and no code used up."""
    user = new_user(mapped, "astray", HALVES[0])
    with mapped.client() as client:
        wrong = client.connection(HALVES[1][0])
        for code in (code_of(user), wrong_code(code_of(user))):
            assert error_of(wrong, "SELECT totp_shard.totp_verify(%s, %s, NULL, 'x')", [user, code]).sqlstate == "55000"
        assert client.check(user, code_of(user))[:2] == (True, "accepted")
    assert mapped.shard_of(user).database.value("SELECT failures FROM totp.attempts WHERE user_id = %s", [user]) == 0


def test_a_wrong_map_is_an_error_and_no_answer(mapped):
    """Two partitions are exchanged in pgbouncer's file. A client in either language is told so, and so is who looks at the map."""
    users = [new_user(mapped, "mapped", [half[3]]) for half in HALVES]
    other = new_user(mapped, "unmoved", [4])
    exchanged = {HALVES[0][3]: mapped.shards[1], HALVES[1][3]: mapped.shards[0]}
    owner = mapped.pooler.conninfo("totp_router_owner")
    totp_map.check(owner)
    mapped.pooler.load(mapped.places(exchanged))
    try:
        with mapped.client() as client:
            for user in users:
                with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="does not serve the user"):
                    client.verify(user, code_of(user))
            assert client.verify(other, code_of(other)) is True
        told = node("""const shards = new client.Shards(args[0]);
            const told = await Promise.all(args[1].map((user) => shards.verify(user, "000000").catch((error) => error.code)));
            await shards.close();
            return told;""", config(mapped), users)
        assert told == ["55000", "55000"]
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="do not agree"):
            totp_map.check(owner)
    finally:
        mapped.pooler.load(mapped.places())
    totp_map.check(owner)
    with mapped.client() as client:
        assert [client.check(user, code_of(user))[:2] for user in users] == [(True, "accepted")] * 2


def test_a_map_that_is_not_complete_is_refused(mapped):
    text = mapped.pooler.ini(mapped.places())
    mapped.pooler.cluster.run("sh", "-c", 'cat >"$1"', "sh", mapped.pooler.folder / "ini", stdin=re.sub(r"^totp_3 = .*\n", "", text, flags=re.M))
    mapped.pooler.command("RELOAD")
    try:
        with pytest.raises(SystemExit, match="no database totp_3$"):
            totp_map.check(mapped.pooler.conninfo("totp_router_owner"))
    finally:
        mapped.pooler.load(mapped.places())


def test_a_login_can_do_what_its_capability_is_for(mapped):
    with mapped.client() as client:
        for statement in ("SELECT totp_shard.totp_enroll(%s, NULL, NULL, 'd', 'SHA1', 6, 30, true, 'x')", "SELECT public.totp_verify(%s, '1')",
                          "SELECT totp_shard.enter('x', %s)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                client.call(statement, "alice")


def test_the_programs_need_nothing_of_the_checkout():
    """They are in the Debian package."""
    for name in ("totp_client.py", "totp_map.py", "totp_client.js"):
        imported = re.findall(r'^(?:import|from) (\w+)|require\("([\w:]+)"\)', (EXAMPLE / name).read_text(), flags=re.M)
        assert {a or b for a, b in imported} <= {"hashlib", "itertools", "sys", "contextlib", "psycopg", "totp_client", "node:crypto", "pg"}, name
