"""Two shards and a pgbouncer with one database for each partition, as pgbouncer.ini of the example has it; no router."""

import json
import os
import re
import subprocess
from contextlib import closing, contextmanager

import psycopg
import pytest
from pgbouncer import Pooler
from router_load import Load, servers
from server import CHECKOUT, PROJECT, Cluster
from shards import EXAMPLE, PARTITIONS, Shard, partition, script
from totp import NOON, Answer
from totp_client import Shards

LOGINS = [f"totp_router_{name}" for name in ("verify", "enroll", "audit", "admin", "owner")]
HALVES = [list(range(8)), list(range(8, 16))]  # of shard1 and shard2 in pgbouncer.ini


class MapPooler(Pooler):
    """pgbouncer with the example's file. What differs: unix sockets, no passwords, time for a slow machine, one connection to
    a shard for each partition and role, so that none is being opened when a partition is paused."""

    def __init__(self, cluster: Cluster, places: list[str]) -> None:
        self.cluster, self.users = cluster, ["postgres", *LOGINS]
        self.folder = cluster.folder / "pooler-map"
        self._make(self.ini(places))

    def ini(self, places: list[str]) -> str:
        """The file, with a place for each partition."""
        text = script("pgbouncer.ini")
        settings = {"listen_addr": "", "unix_socket_dir": self.folder, "auth_type": "trust", "auth_file": self.folder / "users", "query_timeout": 60,
                    "query_wait_timeout": 60, "server_connect_timeout": 60, "default_pool_size": 1}
        for name in settings:
            text = re.sub(rf"^{name} = .*\n", "", text, flags=re.M)
        for number, place in enumerate(places):
            text, found = re.subn(rf"^totp_{number} = .*$", f"totp_{number} = {place}", text, flags=re.M)
            assert found == 1
        return text + "".join(f"{name} = {value}\n" for name, value in {**settings, "logfile": self.folder / "log", "pidfile": self.folder / "pid"}.items())

    def conninfo(self, role: str = "totp_router_verify") -> str:
        return f"host={self.folder} port=6432 user={role}"

    def command(self, *commands: str) -> None:
        """Run commands on the console, one after the other."""
        with closing(psycopg.connect(self.conninfo("postgres"), dbname="pgbouncer", autocommit=True)) as console:
            for command in commands:
                console.execute(command)

    def load(self, places: list[str]) -> None:
        """Change the file, and let pgbouncer read it."""
        self.cluster.run("sh", "-c", 'cat >"$1"', "sh", self.folder / "ini", stdin=self.ini(places))
        self.command("RELOAD")


class Mapped:
    """The shards, and the pgbouncer before them."""

    def __init__(self, clusters: list[Cluster]) -> None:
        self.shards = [Shard(f"shard{n}", cluster.create_database("totp")) for n, cluster in enumerate(clusters, 1)]
        for shard, partitions in zip(self.shards, HALVES, strict=True):
            shard.database.psql(script("shard.sql"))
            shard.serve(partitions)
            shard.database.execute(f"ALTER DATABASE totp SET totp.clock = '{NOON.isoformat()}'")
        self.pooler = MapPooler(clusters[0], self.places())

    def places(self, moved: dict[int, Shard] | None = None) -> list[str]:
        """Where each partition is, but for those that moved."""
        return [((moved or {}).get(p) or self.shards[p // 8]).connection for p in range(PARTITIONS)]

    def shard_of(self, user: str) -> Shard:
        return self.shards[partition(user) // 8]

    @contextmanager
    def client(self, role: str = "totp_router_verify"):
        with closing(Shards(self.pooler.conninfo(role))) as client:
            yield client


@pytest.fixture(scope="module")
def mapped():
    clusters = servers(2)
    try:
        mapped = Mapped(clusters)
        with mapped.pooler:
            yield mapped
    finally:
        for cluster in clusters:
            cluster.remove()


class MappedLoad(Load):
    """Sign-ins of a client in several sessions."""

    def __init__(self, mapped: Mapped, users: list[str]) -> None:
        super().__init__(None, users)
        self.mapped = mapped

    @contextmanager
    def session(self):
        with self.mapped.client() as client:
            yield lambda user, code: Answer(*client.check(user, code))


def node(source: str, *arguments) -> object:
    """What a program in JavaScript returns. It has the client as `client` and the arguments as `args`."""
    program = f"""const client = require({json.dumps(str(EXAMPLE / "totp_client.js"))}), args = JSON.parse(require("fs").readFileSync(0));
        (async () => {{ {source} }})().then((result) => process.stdout.write(JSON.stringify(result)), (error) => {{ console.error(error); process.exit(1); }});"""
    done = subprocess.run(["node", "-e", program], input=json.dumps(arguments), check=True, text=True, stdout=subprocess.PIPE, cwd=CHECKOUT,
                          env={**os.environ, "NODE_PATH": f"{PROJECT['CLIENTS']}/node/node_modules"})
    return json.loads(done.stdout)
