"""Signs users in on the shard that has them, through a pgbouncer that has one database for each partition.

Needs psycopg 3. A Shards object keeps a connection for each partition that it has called. Use one in each thread.
"""

import hashlib

import psycopg

PARTITIONS = 16  # as totp_shard.partition_count()


def partition(user_id: str) -> int:
    """Returns the partition of a user, as totp_shard.partition() does: of the id as it is, nothing is normalized."""
    return hashlib.sha256(user_id.encode()).digest()[0] % PARTITIONS


class Shards:
    def __init__(self, conninfo: str) -> None:
        """Takes what leads to pgbouncer, as a role of the shards: "host=127.0.0.1 port=6432 user=totp_router_verify"."""
        self.conninfo = conninfo
        self._connections: dict[int, psycopg.Connection] = {}

    def verify(self, user_id: str, code: str, device: str | None = None, actor: str = "") -> bool:
        """Returns whether the code is good. An exception is no answer: do not sign the user in."""
        return self.call("SELECT totp_shard.totp_verify(%s, %s, %s, %s)", user_id, code, device, actor)[0]

    def check(self, user_id: str, code: str, device: str | None = None, actor: str = "") -> tuple:
        """Returns the columns of totp_check()."""
        return self.call("SELECT * FROM totp_shard.totp_check(%s, %s, %s, %s)", user_id, code, device, actor)

    def call(self, statement: str, user_id: str, *arguments) -> tuple | None:
        """Runs a statement on the shard of its first argument, and returns the first row."""
        return self.connection(partition(user_id)).execute(statement, [user_id, *arguments]).fetchone()

    def connection(self, number: int) -> psycopg.Connection:
        """Returns the connection of a partition."""
        connection = self._connections.get(number)
        if connection is None or connection.closed:
            # Before 1.21 pgbouncer keeps no prepared statements.
            connection = psycopg.connect(self.conninfo, dbname=f"totp_{number}", autocommit=True, prepare_threshold=None)
            self._connections[number] = connection
        return connection

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
