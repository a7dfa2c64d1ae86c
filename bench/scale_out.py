"""A sign-in through the router of examples/scale-out/ against the same on the shard itself, and over 1, 2 and 3 shards.

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
from server import Cluster, wait_until
from shards import PARTITIONS, Router

USERS = fixture.scaled(16_000, 160)  # each signs in once in a run, which is long compared with the start of its sessions
CLIENTS = 8
ROUNDS = 3


class Run(NamedTuple):
    """A sign-in of a run."""

    tps: float
    router: float  # µs of CPU
    shards: float
    flushes: float


def measure(compare, figure):
    clusters = [Cluster() for _ in range(4)]
    try:
        for cluster in clusters:
            cluster.init()
            cluster.configure(fsync="on", synchronous_commit="on", shared_buffers="256MB", autovacuum="off")
            cluster.start()
        router = Router(clusters[0], clusters[1:])
        return fixture.version(clusters[0]), list(_measure(router, figure))
    finally:
        for cluster in clusters:
            cluster.remove()


def _measure(router, figure):
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
        for fsync in ("off", "on"):
            _set_fsync(shards, fsync)
            runs = []
            for _ in range(ROUNDS):
                clock = _tick(router, clock)
                runs.append(_run(router.database, router, shards, CLIENTS, clock))
            where = f"{CLIENTS} clients, fsync = {fsync}, shards on one machine: {number}"
            yield figure(f"accepted sign-ins through a router, {where}", f"{_median(runs, 'tps'):,.0f} tps")
            yield _cost(figure, f"through a router, {where}", runs)


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


def _run(database, router, shards, clients: int, clock: int) -> Run:
    """Signs in users, each once, and checks that each was accepted."""
    per_client = USERS // CLIENTS  # so one client alone has a shorter run
    signed_in = per_client * clients
    script = f"\\set n :client_id * {per_client} + :k\nSELECT totp_verify('on{len(shards)}-' || :n, :code);\n"
    uses, before = _uses(shards), _counters(router, shards)
    tps = fixture.pgbench(database, clients, per_client, script, code=fixture.code(clock))
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
    postmaster, ticks = database.cluster.pid(), 0
    for pid in (postmaster, *Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()):
        try:
            had = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]  # its own and that of its children that ended
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, had))
    return ticks * 1e6 / os.sysconf("SC_CLK_TCK")


def _cost(figure, how: str, runs: list[Run]):
    cpu = f"{_median(runs, 'shards'):,.0f} µs" if how == "direct" else f"{_median(runs, 'router'):,.0f} + {_median(runs, 'shards'):,.0f} µs"
    return figure(f"such a sign-in, {how}: CPU{'' if how == 'direct' else ' of the router + the shards'}, flushes of the WAL",
                  f"{cpu}, {_median(runs, 'flushes'):.2f}")


def _median(runs: list[Run], what: str) -> float:
    return statistics.median(getattr(run, what) for run in runs)


def _latency(runs: list[Run], clients: int) -> str:
    return f"{clients * 1e6 / _median(runs, 'tps'):,.0f} µs"
