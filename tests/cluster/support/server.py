"""Throw-away PostgreSQL servers for the cluster tests.

A Cluster is one server: its data directory, socket, log and master key are in one temporary folder that is removed
with it. It runs as an unprivileged user, listens on a unix socket only, and holds the release build of pg_totp.
A Database is one database on it.
"""

import ctypes
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psycopg
from psycopg import sql

CHECKOUT = Path(__file__).resolve().parents[3]

# How long to wait for what happens in its own time, as a replay does, before giving up.
PATIENCE_SECONDS = 60

# Bytes. The servers of three processes have used up to 3.4 GB of memory for their files.
MEMORY_NEEDED = 8 << 30


def _project() -> dict[str, str]:
    """What tools/env.sh knows: BIN, SERVER_USER and more."""
    shown = subprocess.run(["bash", "tools/env.sh"], cwd=CHECKOUT, check=True, text=True, capture_output=True).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


PROJECT = _project()
BIN = Path(PROJECT["BIN"])
SERVER_USER = pwd.getpwnam(PROJECT["SERVER_USER"])


DISK = Path("/var/tmp")
MEMORY = Path("/dev/shm")


def _place() -> Path:
    """Memory, if there is plenty. Of a disk's file system a third of the tests' time went into the files of databases, made and dropped."""
    [available] = [line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    free = shutil.disk_usage(MEMORY).free if MEMORY.is_mount() else 0
    return MEMORY if min(free, int(available) * 1024) > MEMORY_NEEDED else DISK


PLACE = _place()


def wait_until(done, what: str) -> None:
    """Poll until done() is true; an error after PATIENCE_SECONDS."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"gave up waiting for {what}")
        time.sleep(0.02)


def _adopt_orphans() -> None:
    """Become the parent of servers that pg_ctl started and of processes that a kill orphans, so as to wait for their end.

    Not every init does, and beside a zombie of that process id PostgreSQL takes postmaster.pid for that of a live server.
    """
    set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


_adopt_orphans()


class Cluster:
    """One PostgreSQL server. Make one with the fixtures of conftest.py, which also take it away again."""

    def __init__(self, programs: Path = BIN, template: "Template | None" = None, place: Path = PLACE) -> None:
        self.programs = programs
        self.template = template
        # A short path: a socket's may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="pg_totp.", dir=place))
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.key_file = self.folder / "master.key"
        self.volume = self.folder / "volume"
        if os.getuid() == 0:
            os.chown(self.folder, SERVER_USER.pw_uid, SERVER_USER.pw_gid)

    def mount(self, size: str) -> "Cluster":
        """Give the data directory, before it is made, its own file system: a tmpfs. Needs root."""
        self.volume.mkdir()
        options = f"size={size},mode=700,uid={SERVER_USER.pw_uid},gid={SERVER_USER.pw_gid}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.volume], check=True, capture_output=True)
        self.data = self.volume / "data"
        return self

    # --- life ------------------------------------------------------------------------

    def init(self, key: str | None = None, initdb_options: tuple[str, ...] = (), **settings) -> "Cluster":
        """initdb, with checksums; a master key (64 hex characters, default random) in a key file; settings as configure()."""
        if initdb_options or not (self.template and self.template.lend(self)):
            self.run("initdb", "--pgdata", self.data, "--username=postgres", "--auth=trust",
                     "--data-checksums", "--no-locale", "--encoding=UTF8", "--no-sync", *initdb_options)
        self.write_key_file((key or secrets.token_hex(32)) + "\n")
        self.configure(listen_addresses="", unix_socket_directories=self.folder, fsync="off", log_checkpoints="off",
                       totp__key_file=self.key_file, **settings)
        return self

    def configure(self, **settings) -> None:
        """Add settings to postgresql.conf: the last one of a name counts. `totp__key_file` stands for `totp.key_file`."""
        with open(self.data / "postgresql.conf", "a") as conf:
            for name, value in settings.items():
                quoted = str(value).replace("'", "''")
                conf.write(f"{name.replace('__', '.')} = '{quoted}'\n")

    def start(self, **environment: str) -> "Cluster":
        """Start and wait until it takes connections. The server's environment holds only what is given here."""
        try:
            self.run("pg_ctl", "start", "-w", "-s", "-D", self.data, "-l", self.log, **environment)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"the server did not start:\n{self.log_text()}") from error
        return self

    def stop(self, mode: str = "fast") -> None:
        postmaster = self.pid()
        self.run("pg_ctl", "stop", "-w", "-s", "-D", self.data, "-m", mode)
        os.waitpid(postmaster, 0)

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        self.run("pg_ctl", "reload", "-s", "-D", self.data)

    def promote(self) -> None:
        self.run("pg_ctl", "promote", "-w", "-s", "-D", self.data)

    def kill9(self, children: bool = True) -> None:
        """A crash: every process of the server dies at once, without a word. start() then recovers from the WAL.

        With children=False only the postmaster is killed; the others end by themselves when they notice.
        """
        postmaster = self.pid()
        os.kill(postmaster, signal.SIGSTOP)  # it must not see its children die, nor make new ones
        family = [postmaster, *_children(postmaster)]
        for pid in family if children else [postmaster]:
            os.kill(pid, signal.SIGKILL)
        for pid in family:
            os.waitpid(pid, 0)  # they are ours to reap, see _adopt_orphans

    def remove(self) -> None:
        if self.is_running():
            self.stop("immediate")
        if self.volume.is_mount():
            subprocess.run(["umount", self.volume], check=True)
        shutil.rmtree(self.folder)
        if self.template:
            self.template.take_back(self)

    def pid(self) -> int:
        """The postmaster's process id."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def is_running(self) -> bool:
        return (self.data / "postmaster.pid").exists() and _alive(self.pid())

    # --- standbys --------------------------------------------------------------------

    def base_backup(self, copy: "Cluster | None" = None) -> "Cluster":
        """A copy of this running server by pg_basebackup, configured but not started. The key file is this server's own."""
        copy = copy or Cluster(self.programs)
        copy.run("pg_basebackup", "--pgdata", copy.data, "--checkpoint=fast", "--wal-method=stream",
                 "--host", self.folder, "--username=postgres")
        copy.configure(unix_socket_directories=copy.folder)
        return copy

    def copy_of_files(self) -> "Cluster":
        """A copy of this base backup, which is not running."""
        copy = Cluster(self.programs)
        copy.run("cp", "-a", self.data, copy.data)
        copy.configure(unix_socket_directories=copy.folder)
        return copy

    def standby(self, **settings) -> "Cluster":
        """A started streaming standby of this running server."""
        copy = self.base_backup()
        copy.configure(primary_conninfo=f"host={self.folder} user=postgres application_name=standby", **settings)
        copy.run("touch", copy.data / "standby.signal")
        return copy.start()

    def wait_for_replay(self, primary: "Cluster") -> None:
        """Wait until this standby has replayed all that the primary has written by now."""
        with closing(primary.connect()) as conn:
            conn.execute("SELECT pg_logical_emit_message(true, 'flush', '')")  # its commit flushes all that came before
            target = conn.execute("SELECT pg_current_wal_flush_lsn()").fetchone()[0]
        with closing(self.connect()) as conn:
            query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            wait_until(lambda: conn.execute(query, [target]).fetchone()[0], "the standby to replay")

    def make_synchronous(self) -> None:
        """Let commits of this primary wait for its standby."""
        self.configure(synchronous_standby_names="standby")
        self.reload()
        with closing(self.connect()) as conn:
            wait_until(lambda: conn.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").rowcount == 1,
                       "the standby to be synchronous")

    def cut_off(self) -> None:
        """Let this standby receive nothing more from its primary."""
        self.configure(primary_conninfo="")
        self.reload()
        with closing(self.connect()) as conn:
            wait_until(lambda: conn.execute("SELECT FROM pg_stat_wal_receiver").rowcount == 0, "the WAL receiver to end")

    # --- archives --------------------------------------------------------------------

    def archive_wal(self) -> Path:
        """Let this running server, which has archive_mode on, keep its WAL in a folder."""
        archive = self.folder / "archive"
        self.run("mkdir", archive)
        self.configure(archive_command=f"cp %p {archive}/%f")
        self.reload()
        return archive

    def recover(self, archive: Path, **target) -> "Cluster":
        """Start this base backup by recovery from an archive to a point in time, and wait until it is a primary."""
        self.configure(archive_mode="off", restore_command=f"cp {archive}/%f %p", recovery_target_action="promote", **target)
        self.run("touch", self.data / "recovery.signal")
        self.start()
        with closing(self.connect()) as conn:
            wait_until(lambda: conn.execute("SELECT NOT pg_is_in_recovery()").fetchone()[0], "the recovery to end")
        return self

    # --- talking to it -----------------------------------------------------------------

    def connect(self, dbname: str = "postgres", user: str = "postgres", autocommit: bool = True, **options) -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), port=5432, dbname=dbname, user=user, autocommit=autocommit, **options)

    def psql(self, script: str, dbname: str = "postgres", user: str = "postgres") -> str:
        """What psql prints for a script, unaligned and without headers; an error ends it."""
        return self.client("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", dbname, "-U", user, stdin=script)

    def client(self, program: str, *arguments, stdin: str | None = None) -> str:
        """What a client program (pg_dump, pgbench, ...) prints when it is pointed at this server."""
        return self.run(program, *arguments, stdin=stdin, PGHOST=str(self.folder), PGPORT="5432", PGUSER="postgres")

    def create_database(self, name: str | None = None, extension: bool = True) -> "Database":
        """A new database, with CREATE EXTENSION pg_totp in it."""
        database = Database(self, name or f"test_{next(_numbers)}")
        with closing(self.connect()) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database.name)))
        if extension:
            database.execute("CREATE EXTENSION pg_totp")
        return database

    def log_end(self) -> int:
        """Where the server log ends now, in bytes."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_text(self, begin: int = 0, end: int | None = None) -> str:
        """The server log between two ends. It may be long: some tests log every debugging message."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(begin)
            return log.read(-1 if end is None else end - begin).decode(errors="replace")

    def write_key_file(self, text: str, mode: int = 0o600) -> None:
        """Replace the master key file, as the server's user."""
        self.run("sh", "-c", 'umask 077 && cat >"$1" && chmod "$2" "$1"', "sh", self.key_file, f"{mode:o}", stdin=text)

    def run(self, program: str, *arguments, stdin: str | None = None, **environment: str) -> str:
        """Run a program as the server's user, the server's own programs first, in an environment with nothing else in it."""
        path = f"{self.programs}:/usr/local/bin:/usr/bin:/bin"
        # Not by subprocess's own user=, for which it copies this whole process.
        identity = ["setpriv", f"--reuid={SERVER_USER.pw_uid}", f"--regid={SERVER_USER.pw_gid}", "--clear-groups"] if os.getuid() == 0 else []
        # Not a pipe for stderr: the server inherits it from pg_ctl, and would hold it open.
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                [*identity, program, *map(str, arguments)], cwd="/", umask=0o077, text=True, input=stdin if stdin is not None else "",
                stdout=subprocess.PIPE, stderr=errors, env={"PATH": path, "LC_ALL": "C", "HOME": "/", **environment})
            if done.returncode != 0:
                errors.seek(0)
                raise CommandFailed(done.returncode, [program, *map(str, arguments)], done.stdout, errors.read().decode(errors="replace"))
        return done.stdout


class Template:
    """What initdb makes, to be copied, which is quicker. For one server at a time: copies have the same system identifier."""

    def __init__(self) -> None:
        self.origin = Cluster().init()
        self.borrower: Cluster | None = None

    def lend(self, cluster: Cluster) -> bool:
        """Copy it, unless there is a copy already."""
        if self.borrower:
            return False
        self.borrower = cluster
        cluster.run("cp", "-a", self.origin.data, cluster.data)
        return True

    def take_back(self, cluster: Cluster) -> None:
        if self.borrower is cluster:
            self.borrower = None


class CommandFailed(subprocess.CalledProcessError):
    """A program that ended with an error; says what it printed."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stderr}"


class Database:
    """One database of a cluster."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.roles: list[str] = []

    def connect(self, user: str = "postgres", autocommit: bool = True, **options) -> psycopg.Connection:
        return self.cluster.connect(self.name, user, autocommit, **options)

    def execute(self, query: str, parameters=None) -> list[tuple]:
        """Run one statement as the superuser in a new session; its rows."""
        with closing(self.connect()) as conn:
            cursor = conn.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, parameters=None):
        """The single value that a query returns."""
        [[value]] = self.execute(query, parameters)
        return value

    def psql(self, script: str, user: str = "postgres") -> str:
        return self.cluster.psql(script, self.name, user)

    def create_role(self, *capabilities: str) -> str:
        """A new login role with these capabilities of totp_grant; it goes with the database. Its name."""
        role = f"{self.name}_role_{len(self.roles) + 1}"
        with closing(self.connect()) as conn:
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            self.roles.append(role)
            for capability in capabilities:
                conn.execute("SELECT totp_grant(%s, %s)", [role, capability])
        return role

    def empty(self) -> None:
        """As CREATE EXTENSION leaves it, but for the data keys: a test may fix its clock to a time before that of the test before it."""
        with closing(self.connect()) as conn:
            for table in ("secrets", "used_codes", "attempts", "recovery_codes", "audit_log", "audit_seals", "audit_keys", "floor"):
                if conn.execute("SELECT to_regclass(%s) IS NOT NULL", [f"totp.{table}"]).fetchone()[0]:  # 0.1.0 has no seals
                    conn.execute(f"DELETE FROM totp.{table}")
            conn.execute("INSERT INTO totp.floor (floor_at, system_identifier, control_inode, database, timeline, one)"
                         " VALUES ('-infinity', 0, 0, 0, 0, true)")

    def drop(self) -> None:
        with closing(self.cluster.connect()) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.name)))
            for role in self.roles:
                conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


_numbers = itertools.count(1)


def _children(parent: int) -> list[int]:
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _stat(pid)[1] == parent]


def _alive(pid: int) -> bool:
    return _stat(pid)[0] not in ("Z", "X", "")


def _stat(pid: int) -> tuple[str, int]:
    """State and parent of a process, ("", 0) if there is none. A zombie is dead, only not yet fetched."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return fields[0], int(fields[1])
