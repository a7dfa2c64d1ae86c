"""A sign-in through the router of examples/scale-out/ against the same on the shard itself, and over 1, 2 and 3 shards."""

import re
import statistics
from contextlib import closing
from datetime import datetime, timezone

import fixture
from shards import PARTITIONS, Router
from server import Cluster

USERS = fixture.scaled(3_000, 80)  # signed in once each in a run
ROUNDS = 3


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
            for clients in (1, 8):
                ours, direct = [], []
                for _ in range(ROUNDS):
                    clock = _tick(router, clock)
                    ours.append(_run(router.database, number, clients, clock))
                    clock = _tick(router, clock)
                    direct.append(_run(shards[0].database, number, clients, clock))
                yield figure(f"accepted sign-in, {clients} client{'s' * (clients > 1)}, through a router (in the next column: direct)",
                             _latency(ours, clients), _latency(direct, clients))
        tps = []
        for _ in range(ROUNDS):
            clock = _tick(router, clock)
            tps.append(_run(router.database, number, 8, clock))
        yield figure(f"accepted sign-ins through a router, 8 clients, shards: {number}", f"{statistics.median(tps):,.0f} tps")


def _tick(router, clock: int) -> int:
    clock += 10 * fixture.STEP
    router.fix_clock(datetime.fromtimestamp(clock, timezone.utc))
    return clock


def _run(database, number: int, clients: int, clock: int) -> float:
    """Signs all users in once; sign-ins per second."""
    per_client = USERS // clients
    cluster = database.cluster
    script = cluster.folder / "script.sql"
    text = f"\\set k :k + 1\n\\set n :client_id * {per_client} + :k\nSELECT totp_verify('on{number}-' || :n, :code);\n"
    cluster.run("sh", "-c", 'cat >"$1"', "sh", script, stdin=text)
    out = cluster.client("pgbench", "-n", "-M", "prepared", "-c", clients, "-j", 2, "-t", per_client, "-f", script,
                         "-D", "k=0", "-D", f"code={fixture.code(clock)}", database.name)
    return float(re.search(r"^tps = ([0-9.]+)", out, re.MULTILINE)[1])


def _latency(tps: list[float], clients: int) -> str:
    return f"{clients * 1e6 / statistics.median(tps):,.0f} µs"
