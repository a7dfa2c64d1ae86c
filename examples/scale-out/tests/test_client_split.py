"""A split where clients find the shard themselves: pgbouncer's map is changed by a reload while users sign in."""

from contextlib import closing, suppress
from datetime import timedelta

import psycopg
import pytest
import totp_map
from many_users import secret_of
from mapped_shards import HALVES, MappedLoad, mapped  # noqa: F401
from router_load import wait_for_more
from server import Database
from shards import Shard, partition, users_of
from totp import NOON, code_at, error_of

CALL = "SELECT totp_shard.totp_verify(%s, %s, NULL, 'x')"


@pytest.fixture
def users(mapped):
    """Of each shard, and those who move: of partitions 4 to 7."""
    users = [user for half in HALVES for user in users_of(half, 40, "split")]
    for shard, half in zip(mapped.shards, HALVES, strict=True):
        with closing(shard.database.connect()) as conn:
            mine = [user for user in users if partition(user) in half]
            conn.execute("SELECT count(totp_import(u, s, confirmed => true)) FROM unnest(%s::text[], %s::text[]) AS given(u, s)",
                         [mine, [secret_of(user) for user in mine]])
    return users


def test_a_shard_is_split_by_a_reload_while_users_sign_in(mapped, users, capsys):
    """docs/operations/scale-out-client.md, step by step. No code is good twice, nobody gets an error, and in no moment do two servers serve a user."""
    old, stay, move = mapped.shards[0], HALVES[0][:4], HALVES[0][4:]
    moving = {user for user in users if partition(user) in move}
    one = next(user for user in users if user in moving)
    other = next(user for user in users if partition(user) in stay)
    each = [f"totp_{number}" for number in move]
    owner = mapped.pooler.conninfo("totp_router_owner")
    standby = old.cluster.standby()
    new = Shard("shard3", Database(standby, old.database.name))
    try:
        with MappedLoad(mapped, users) as load:
            wait_for_more(load, moving, len(moving))
            mapped.pooler.command(*(f"PAUSE {database}" for database in each))
            assert refused_by(old, standby, one) == [None, "25006"]
            old.serve(stay, empty=False)  # from here on nobody serves those who move
            assert None not in refused_by(old, standby, one)
            standby.wait_for_replay(old.cluster)
            standby.promote()
            assert refused_by(old, standby, one) == ["55000", "55000"]
            assert refused_by(old, standby, other) == [None, "55000"]  # though the copy has the row that says who stays
            # A second has passed: with a clock that stands still no secret would be older than the promotion.
            new.database.execute(f"ALTER DATABASE totp SET totp.clock = '{(NOON + timedelta(seconds=1)).isoformat()}'")
            new.serve(move, empty=False)
            assert refused_by(old, standby, one) == ["55000", None]
            assert refused_by(old, standby, other) == [None, "55000"]
            mapped.pooler.load(mapped.places(dict.fromkeys(move, new)))
            mapped.pooler.command(*(f"RESUME {database}" for database in each))
            wait_for_more(load, moving)
            wait_for_more(load, set(users) - moving)
        print(f"\n{len(load.answers)} answers, {len(load.errors())} errors, {len(load.false_yes())} wrong yes, {len(load.false_no())} wrong no")
        assert load.errors() == [] and load.false_yes() == []
        assert {(user in moving, answer.reason) for user, _, answer, _ in load.false_no()} <= {(True, "replayed")}  # the floor of the promotion

        totp_map.check(owner)
        before = [users_on(shard) for shard in (old, new)]
        assert before[0] == before[1]
        assert totp_map.remove(owner) == 0
        assert not users_on(old) & users_on(new) and users_on(old) | users_on(new) == before[0]
        assert {partition(user) for user in users_on(new)} == set(move) and users_on(new) >= moving
        assert f"{stay}: removed {len(users_on(new))}, kept 0" in capsys.readouterr().out
        assert [shard.database.value("SELECT only_on FROM totp_shard.served") for shard in (old, new)] == [None, None]

        later = NOON + timedelta(minutes=5)
        for shard in (*mapped.shards, new):
            shard.database.execute(f"ALTER DATABASE totp SET totp.clock = '{later.isoformat()}'")
        mapped.pooler.command("RECONNECT")
        with mapped.client() as client:
            for user in users:
                code = code_at(secret_of(user), later)
                assert (client.verify(user, code), client.verify(user, code)) == (True, False)
    finally:
        for database in each:
            with suppress(psycopg.Error):  # it is not paused
                mapped.pooler.command(f"RESUME {database}")
        old.serve(HALVES[0])
        mapped.pooler.load(mapped.places())
        for shard in mapped.shards:
            shard.database.execute(f"ALTER DATABASE totp SET totp.clock = '{NOON.isoformat()}'")
        mapped.pooler.command("RECONNECT")
        standby.remove()


def refused_by(old: Shard, copy, user: str) -> list[str | None]:
    """The SQLSTATE with which each of two servers refuses to judge a code of the user; None where it judges."""
    states = []
    for cluster in (old.cluster, copy):
        with closing(cluster.connect("totp", "totp_router_verify")) as conn:
            try:
                # No digits: that is no guess.
                conn.execute("SELECT totp_shard.totp_check(%s, 'malformed', NULL, 'x')", [user])
                states.append(None)
            except psycopg.Error as error:
                states.append(error.sqlstate)
    return states


def users_on(shard: Shard) -> set[str]:
    return {user for (user,) in shard.database.execute("SELECT user_id FROM totp.attempts")}


def test_a_map_that_is_loaded_too_early_or_too_late_is_an_error(mapped):
    """The shards are asked: in no order of the steps does a map make one of them judge a user that it does not serve."""
    old, other = mapped.shards
    [user] = users_of([7], 1, "early")
    with closing(old.database.connect()) as conn:
        conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [user, secret_of(user)])
    code = code_at(secret_of(user), NOON)
    too_early = mapped.places({7: other})
    try:
        mapped.pooler.load(too_early)  # before the shard has given the partition up
        with mapped.client() as client:
            assert error_of(client.connection(7), CALL, [user, code]).sqlstate == "55000"
        mapped.pooler.load(mapped.places())
        old.serve(range(7), empty=False)  # and no reload after that
        with mapped.client() as client:
            assert error_of(client.connection(7), CALL, [user, code]).sqlstate == "55000"
    finally:
        mapped.pooler.load(mapped.places())
        old.serve(HALVES[0], empty=False)
    with mapped.client() as client:
        assert [client.verify(user, code) for _ in range(2)] == [True, False]


def test_who_is_on_one_server_only_is_not_removed_from_it(mapped):
    """A partition was moved without a promotion. totp_map.py keeps its users, and says so."""
    old, other = mapped.shards
    [lost, known] = users_of([7], 2, "kept")
    for shard, users in ((old, [lost, known]), (other, [known])):
        with closing(shard.database.connect()) as conn:
            for user in users:
                conn.execute("SELECT totp_import(%s, %s, confirmed => true)", [user, secret_of(user)])
    owner = mapped.pooler.conninfo("totp_router_owner")
    try:
        old.serve(range(7), empty=False)
        other.serve([7, *HALVES[1]])
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="do not agree"):
            totp_map.remove(owner)
        assert {lost, known} <= users_on(old)
        mapped.pooler.load(mapped.places({7: other}))
        kept = totp_map.remove(owner)
        assert kept == len({user for user in users_on(old) if partition(user) == 7}) and lost in users_on(old) and known not in users_on(old)
        assert old.database.value("SELECT only_on IS NOT NULL FROM totp_shard.served") is True
    finally:
        mapped.pooler.load(mapped.places())
        other.serve(HALVES[1])
        old.serve(HALVES[0])
