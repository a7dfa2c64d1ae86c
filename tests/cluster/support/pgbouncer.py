"""pgbouncer in transaction mode."""

import os
import re
import shutil
import signal

import psycopg
from server import Cluster, Database, wait_until

PROGRAM = "/usr/sbin/pgbouncer"


class Pooler:
    """A pgbouncer for these roles, with `size` server connections for each database and role.

    Before the databases of a cluster, or before others: {name: Database}. A call that takes longer than `query_timeout`
    seconds is cut off, and so is a connect to a server.
    """

    def __init__(self, cluster: Cluster, users: list[str], databases: dict[str, Database] | None = None, size: int = 2,
                 query_timeout: int = 60) -> None:
        self.cluster, self.users = cluster, users
        self.folder = cluster.folder / f"pooler-{size}-{query_timeout}"
        routes = {"*": f"host={cluster.folder} port=5432"} if databases is None else {
            name: f"host={db.cluster.folder} port=5432 dbname={db.name}" for name, db in databases.items()}
        conf = {"pool_mode": "transaction", "default_pool_size": size, "max_client_conn": 200, "listen_port": 6432, "auth_type": "trust",
                "unix_socket_dir": self.folder, "auth_file": self.folder / "users", "logfile": self.folder / "log",
                "pidfile": self.folder / "pid", "query_timeout": query_timeout, "server_connect_timeout": query_timeout, "server_login_retry": 1}
        [version] = re.findall(r"PgBouncer (\d+)\.(\d+)", cluster.run(PROGRAM, "--version"))
        self.keeps_prepared_statements = tuple(map(int, version)) >= (1, 21)
        if self.keeps_prepared_statements:
            conf["max_prepared_statements"] = 100
        self._make("".join(f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())
                           for section, lines in (("databases", routes), ("pgbouncer", conf))))

    def _make(self, ini: str) -> None:
        self.cluster.run("sh", "-c", 'mkdir "$1" && cd "$1" && cat >ini && printf "$2" >users', "sh", self.folder,
                         "".join(f'"{user}" ""\n' for user in self.users), stdin=ini)

    def __enter__(self) -> "Pooler":
        self.cluster.run(PROGRAM, "--daemon", "--quiet", self.folder / "ini")
        pid = self.folder / "pid"
        wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), "pgbouncer to start")  # it makes the file, then writes
        self.pid = int(pid.read_text())
        return self

    def __exit__(self, *_) -> None:
        os.kill(self.pid, signal.SIGKILL)  # SIGTERM, since 1.23, waits for clients to leave: a router's never do
        os.waitpid(self.pid, 0)  # ours to reap: server.py takes orphans in
        shutil.rmtree(self.folder)  # another one may follow

    def connect(self, name: str, autocommit: bool = True, prepare_threshold: int | None = None, **options) -> psycopg.Connection:
        """A client, of the first role. psycopg prepares no statement without a threshold, as it must not if the pooler keeps none."""
        return psycopg.connect(host=str(self.folder), port=6432, dbname=name, user=self.users[0], autocommit=autocommit,
                               prepare_threshold=prepare_threshold, **options)
