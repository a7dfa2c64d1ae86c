"""rsyslog on a database server and on the machine that collects, with the configuration of docs/operations/logging.md."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from documents import block
from server import SERVER_USER, Cluster, wait_until

PAGE = "operations/logging.md"
NAMES = ("logs.example.com", "db1.example.com")


class Shipping:
    """Both ends, for the logs of one cluster, as its user. `filtered` is the filter of the document; else all is sent."""

    def __init__(self, cluster: Cluster, filtered: bool = True) -> None:
        self.cluster = cluster
        self.folder = cluster.folder / "rsyslog"
        self.logs = self.folder / "logs"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cluster.run("mkdir", "-p", *(self.folder / name for name in ("tls", "logs", "central", "server", "collector")))
        make_certificates(cluster, self.folder / "tls")
        places = {"/etc/rsyslog.tls": self.folder / "tls", "/var/log/postgresql": self.logs, "/var/log/totp": self.folder / "central",
                  'port="2514"': f'port="{port}"', 'target="logs.example.com"': 'target="127.0.0.1"', 'type="imrelp"': 'type="imrelp" address="127.0.0.1"'}
        self.server = Rsyslog(cluster, self.folder / "server", block(PAGE, "server.conf"), places, filtered)
        self.collector = Rsyslog(cluster, self.folder / "collector", block(PAGE, "collector.conf"), places)
        with open(cluster.data / "postgresql.conf", "a") as conf:
            conf.write(block(PAGE, "postgresql.conf").replace("/var/log/postgresql", str(self.logs)))

    def arrived(self) -> list[str]:
        """The lines that the other machine has."""
        file = self.folder / "central" / "events.log"
        return file.read_text().splitlines() if file.exists() else []

    def __enter__(self) -> "Shipping":
        self.collector.start()
        self.server.start()
        return self

    def __exit__(self, *_) -> None:
        for one in (self.server, self.collector):
            if one.process:
                one.stop(signal.SIGKILL)


class Rsyslog:
    """One rsyslogd."""

    def __init__(self, cluster: Cluster, folder: Path, conf: str, places: dict, filtered: bool = True) -> None:
        self.folder = folder
        self.process: subprocess.Popen | None = None
        for shown, here in places.items():
            conf = conf.replace(shown, str(here))
        if not filtered:
            begin = conf.index("  if $msg")
            conf = conf.replace(conf[begin:conf.index("then {", begin) + len("then {")], "").replace("  }\n}", "}")
        conf = f'global(workDirectory="{folder}" maxMessageSize="64k")\n{conf}'
        cluster.run("sh", "-c", 'cat >"$1"', "sh", folder / "conf", stdin=conf)
        cluster.run("/usr/sbin/rsyslogd", "-N1", "-f", folder / "conf")

    def start(self) -> None:
        identity = {"user": SERVER_USER.pw_uid, "group": SERVER_USER.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        pid = self.folder / "pid"
        pid.unlink(missing_ok=True)
        with open(self.folder.parent / f"{self.folder.name}.log", "a") as log:
            self.process = subprocess.Popen(["/usr/sbin/rsyslogd", "-n", "-f", self.folder / "conf", "-i", pid], cwd="/", stdout=log, stderr=log, **identity)
        wait_until(pid.exists, "rsyslogd to start")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()
        self.process = None

    def queued(self) -> int:
        """How many bytes wait in the queue on the disk."""
        return sum(file.stat().st_size for file in self.folder.glob("totp.0*"))


def make_certificates(cluster: Cluster, folder: Path) -> None:
    """A certificate authority, and a certificate for each machine."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    cluster.run("openssl", "req", "-x509", *key, "-subj", "/CN=test", "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    for name in NAMES:
        cluster.run("openssl", "req", "-x509", *key, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-addext", "basicConstraints=CA:FALSE",
                    "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
