"""A sign-in through the router of examples/scale-out/ against the same on the shard itself, and through a pgbouncer with one
database for each partition; and over 1, 2 and 3 shards.

All of them are on this machine and share its cores and its disk, so it cannot show what more shards achieve together.
It shows the cost of a sign-in: the CPU time of all processes of the router and of the shards, and the flushes of the WAL.
"""

import os
import statistics
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import fixture
from capacity import flushes
from pgbouncer import Pooler
from server import DISK, Cluster, Database, wait_until
from shards import PARTITIONS, Router

USERS = fixture.scaled(16_000, 160)  # each signs in once in a run, which is long compared with the start of its sessions
CLIENTS = 8
ROUNDS = 3
LOGIN = "totp_router_verify"  # of a client without a router
OF_THE_SHARD = "totp_shard.totp_verify({user}, :code, NULL, 'bench')"


class Run(NamedTuple):
    """A sign-in of a run."""

    tps: float
    router: float  # µs of CPU
    shards: float
    flushes: float


def measure(compare, figure):
    clusters = [Cluster(place=DISK) for _ in range(4)]
    try:
        for cluster in clusters:
            cluster.init()
            cluster.configure(fsync="on", synchronous_commit="on", shared_buffers="256MB", autovacuum="off")
            cluster.start()
        router = Router(clusters[0], clusters[1:])
        return fixture.version(clusters[0]), list(_measure(router, compare, figure))
    finally:
        for cluster in clusters:
            cluster.remove()


def _measure(router, compare, figure):
    clock = fixture.START
    for number in (1, 2, 3):
        shards = router.shards[:number]
        for n, shard in enumerate(shards):
            shard.serve(range(n, PARTITIONS, number))
            router.move(range(n, PARTITIONS, number), shard)
        clock = _tick(router, clock)
        with closing(router.database.connect()) as conn:
            conn.execute("SELECT count(totp_import('on' || %s || '-' || n, %s, confirmed => true)) FROM generate_series(1, %s) n",
                         [number, fixture.SECRET, USERS])
        if number == 1:  # everyone is there: the same calls with and without the router
            for clients in (1, CLIENTS):
                ours, direct = [], []
                for _ in range(ROUNDS):
                    clock = _tick(router, clock)
                    ours.append(_run(router.database, router, shards, clients, clock))
                    clock = _tick(router, clock)
                    direct.append(_run(shards[0].database, router, shards, clients, clock))
                yield figure(f"accepted sign-in, {clients} client{'s' * (clients > 1)}, through a router (in the next column: direct)",
                             _latency(ours, clients), _latency(direct, clients))
            yield _cost(figure, "direct", direct)
            clock = yield from _without_a_router(router, figure, clock)
            yield _wrapper(shards[0].database, compare)
        for fsync in ("off", "on"):
            _set_fsync(shards, fsync)
            runs = []
            for _ in range(ROUNDS):
                clock = _tick(router, clock)
                runs.append(_run(router.database, router, shards, CLIENTS, clock))
            where = f"{CLIENTS} clients, fsync = {fsync}, shards on one machine: {number}"
            yield figure(f"accepted sign-ins through a router, {where}", f"{_median(runs, 'tps'):,.0f} tps")
            yield _cost(figure, f"through a router, {where}", runs)


def _without_a_router(router, figure, clock: int):
    """Measures the same sign-ins through pgbouncer, in turns with the router; returns the time. One shard has all partitions, so
    one database of pgbouncer stands for all. The hash of the client is not measured."""
    shard = router.shards[0]
    pooled, routed = [], []
    for _ in range(ROUNDS):
        clock = _tick(router, clock)
        with Pooler(shard.cluster, [LOGIN], {"totp_0": shard.database}, size=CLIENTS) as pooler:
            through = "-h", pooler.folder, "-p", "6432", "-U", LOGIN
            run = _run(Database(shard.cluster, "totp_0"), router, [shard], CLIENTS, clock, *through, call=OF_THE_SHARD, mode="extended")
            pooled.append(run._replace(router=_cpu_of(pooler.pid) / USERS))
        clock = _tick(router, clock)
        routed.append(_run(router.database, router, [shard], CLIENTS, clock))
    for how, runs in (("pgbouncer, without a router", pooled), ("a router, in turns with that", routed)):
        yield figure(f"accepted sign-ins through {how}, {CLIENTS} clients", f"{_median(runs, 'tps'):,.0f} tps")
        yield _cost(figure, f"through {how}, {CLIENTS} clients", runs)
    return clock


def _wrapper(database, compare):
    """Measures what the wrapper of a shard adds to a call: the CPU time in the server, of a code that is refused at once."""
    ours, bare = [], []
    with closing(database.connect()) as conn:
        for _ in range(ROUNDS):
            ours.append(fixture.loop_microseconds(conn, "totp_shard.totp_verify('on1-' || n, 'malformed', NULL, 'bench')", 1, USERS))
            bare.append(fixture.loop_microseconds(conn, "totp_verify('on1-' || n, 'malformed')", 1, USERS))
    return compare("a call in the server, malformed code: totp_shard.totp_verify (in the next column: totp_verify)", ours, bare, "µs")


def _tick(router, clock: int) -> int:
    clock += 10 * fixture.STEP
    router.fix_clock(datetime.fromtimestamp(clock, UTC))
    return clock


def _set_fsync(shards, fsync: str) -> None:
    """Sets fsync. Without it the disk, which the shards share, does not matter."""
    for shard in shards:
        shard.cluster.configure(fsync=fsync)
        shard.cluster.reload()
        wait_until(lambda: shard.database.value("SHOW fsync") == fsync, "the setting")


def _run(database, router, shards, clients: int, clock: int, *options, call: str = "totp_verify({user}, :code)", mode: str = "prepared") -> Run:
    """Signs in users, each once, and checks that each was accepted."""
    per_client = USERS // CLIENTS  # so one client alone has a shorter run
    signed_in = per_client * clients
    user = f"'on{len(shards)}-' || :n"
    script = f"\\set n :client_id * {per_client} + :k\nSELECT {call.format(user=user)};\n"
    uses, before = _uses(shards), _counters(router, shards)
    tps = fixture.pgbench(database, clients, per_client, script, *options, mode=mode, code=fixture.code(clock))
    accepted = _uses(shards) - uses
    assert accepted == signed_in, f"{accepted:,} of {signed_in:,} sign-ins were accepted"
    after = _counters(router, shards)
    return Run(tps, *((b - a) / signed_in for a, b in zip(before, after, strict=True)))


def _uses(shards) -> int:
    return sum(fixture.uses(shard.database) for shard in shards)


def _counters(router, shards) -> tuple[float, float, float]:
    """Returns µs of CPU of the router and of the shards, and flushes of the shards."""
    flushed = 0
    for shard in shards:
        with closing(shard.database.connect()) as conn:
            flushed += int(conn.execute(f"SELECT {flushes(conn)} FROM pg_stat_wal").fetchone()[0])
    return _cpu(router.database), sum(_cpu(shard.database) for shard in shards), flushed


def _cpu(database) -> float:
    """Returns the µs of CPU that the server has used, in all of its processes, including those that ended."""
    postmaster, used = database.cluster.pid(), 0.0
    for pid in (postmaster, *Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()):
        try:
            used += _cpu_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return used


def _cpu_of(pid) -> float:
    """Returns the µs of CPU of a process, and of its children that ended."""
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
    return ticks * 1e6 / os.sysconf("SC_CLK_TCK")


def _cost(figure, how: str, runs: list[Run]):
    cpu = f"{_median(runs, 'shards'):,.0f} µs" if how == "direct" else f"{_median(runs, 'router'):,.0f} + {_median(runs, 'shards'):,.0f} µs"
    return figure(f"such a sign-in, {how}: CPU{'' if how == 'direct' else ' of the router + the shards'}, flushes of the WAL",
                  f"{cpu}, {_median(runs, 'flushes'):.2f}")


def _median(runs: list[Run], what: str) -> float:
    return statistics.median(getattr(run, what) for run in runs)


def _latency(runs: list[Run], clients: int) -> str:
    return f"{clients * 1e6 / _median(runs, 'tps'):,.0f} µs"
