"""Shards and a router, made by the scripts of examples/scale-out/, on unix sockets."""

import hashlib
from contextlib import closing

from libraries import skip_without
from server import CHECKOUT, Cluster, Database

EXAMPLE = CHECKOUT / "examples" / "scale-out"
PARTITIONS = 16


def script(name: str) -> str:
    return (EXAMPLE / name).read_text()


def partition(user_id: str) -> int:
    """The partition of a user, worked out here: as the example promises it."""
    return hashlib.sha256(user_id.encode()).digest()[0] % PARTITIONS


def users_of(partitions, size: int, prefix: str = "user") -> list[str]:
    """User ids of these partitions."""
    found, number = [], 0
    while len(found) < size:
        if partition(name := f"{prefix}-{number}") in partitions:
            found.append(name)
        number += 1
    return found


class Shard:
    """A server with the extension and shard.sql. `connection` is where the router looks for it."""

    def __init__(self, name: str, database: Database) -> None:
        self.name, self.database = name, database

    @property
    def cluster(self) -> Cluster:
        return self.database.cluster

    @property
    def connection(self) -> str:
        return f"host={self.cluster.folder} port=5432 dbname={self.database.name}"

    def serve(self, partitions, empty: bool = True) -> None:
        """totp_shard.serve(). With empty=True as on a server that has no users yet: none has been served here before."""
        with closing(self.database.connect(autocommit=False)) as conn:
            if empty:
                conn.execute("DELETE FROM totp_shard.served")
            conn.execute("SELECT totp_shard.serve(%s)", [list(partitions)])
            conn.commit()


class Router:
    """A router database before shards: the first serves partitions 0, n, 2n ..., the second 1, n + 1 ..."""

    def __init__(self, cluster: Cluster, shards: list[Cluster]) -> None:
        skip_without("plproxy")
        self.shards = [Shard(f"s{n}", one.create_database("totp")) for n, one in enumerate(shards, 1)]
        for n, shard in enumerate(self.shards):
            shard.database.psql(script("shard.sql"))
            shard.serve(range(n, PARTITIONS, len(shards)))
        self.database = cluster.create_database("router", extension=False)
        self.database.psql(script("router.sql"))
        with closing(self.database.connect()) as conn:
            for n, shard in enumerate(self.shards):
                conn.execute("INSERT INTO totp_router.shards VALUES (%s, %s)", [shard.name, shard.connection])
                conn.execute("INSERT INTO totp_router.partitions SELECT p, %s FROM unnest(%s::int[]) p",
                             [shard.name, list(range(n, PARTITIONS, len(shards)))])
        self.make_functions()
        self.apply()

    def make_functions(self) -> None:
        self.database.psql(self.shards[0].database.psql(script("routes.sql")))

    def apply(self) -> None:
        """Tells PL/Proxy the map. These servers trust their unix sockets: no connection has a password."""
        with closing(self.database.connect()) as conn:
            conn.execute("SELECT totp_router.apply()")
            for (server,) in conn.execute("SELECT srvname FROM pg_foreign_server s WHERE srvname LIKE 'totp_audit_log_%%'"
                                          " AND NOT EXISTS (SELECT FROM pg_user_mappings u WHERE u.srvid = s.oid"
                                          " AND 'password_required=false' = ANY (u.umoptions))").fetchall():
                conn.execute(f"ALTER USER MAPPING FOR totp_router SERVER {server} OPTIONS (ADD password_required 'false')")

    def move(self, partitions, shard: Shard) -> None:
        """Changes the map: these partitions are that shard's."""
        with closing(self.database.connect()) as conn:
            conn.execute("INSERT INTO totp_router.shards VALUES (%s, %s) ON CONFLICT DO NOTHING", [shard.name, shard.connection])
            conn.execute("UPDATE totp_router.partitions SET shard = %s WHERE partition = ANY (%s)", [shard.name, list(partitions)])
        self.apply()

    def partitions_of(self, shard: Shard) -> list[int]:
        return [p for (p,) in self.database.execute("SELECT partition FROM totp_router.partitions WHERE shard = %s ORDER BY 1", [shard.name])]

    def shard_of(self, user_id: str) -> Shard:
        name = self.database.value("SELECT shard FROM totp_router.partitions WHERE partition = %s", [partition(user_id)])
        return next(shard for shard in self.shards if shard.name == name)

    def fix_clock(self, when) -> None:
        """Let every new session of every shard take this time for now."""
        for shard in self.shards:
            shard.database.execute(f"ALTER DATABASE {shard.database.name} SET totp.clock = '{when.isoformat()}'")
