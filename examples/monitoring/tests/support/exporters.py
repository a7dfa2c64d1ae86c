"""Debian's exporters and Prometheus, as processes beside a throw-away server.

Each gets the files of examples/monitoring/ as they are, but for the addresses and, if the test asks for it, the times.
"""

import json
import os
import re
import subprocess
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode

from server import CHECKOUT, SERVER_USER, Database, wait_until

EXAMPLE = CHECKOUT / "examples" / "monitoring"
ROLE = re.search(r"'CREATE ROLE (\w+) LOGIN'", (EXAMPLE / "role.sql").read_text())[1]

# An address that no other process of this machine has, so that the ports can be the usual ones.
ADDRESS = "127." + ".".join(str(os.getpid() >> shift & 255) for shift in (16, 8, 0))
SQL_EXPORTER, POSTGRES_EXPORTER, PROMETHEUS = f"{ADDRESS}:9237", f"{ADDRESS}:9187", f"{ADDRESS}:9090"


class Program:
    """A program that answers HTTP requests, run as the server's user; `with` ends it."""

    ready = "/metrics"

    def __init__(self, database: Database, address: str, *command, **environment: str) -> None:
        self.cluster, self.address = database.cluster, address
        self.command, self.environment = [*map(str, command)], environment
        self.log = self.cluster.folder / f"{Path(self.command[0]).name}.log"

    def __enter__(self):
        identity = {"user": SERVER_USER.pw_uid, "group": SERVER_USER.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(self.command, cwd=self.cluster.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             env={"PATH": "/usr/bin:/bin", **self.environment}, **identity)
        try:
            self.wait_for(self._is_ready, "to be ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return answer.read().decode()

    def wait_for(self, done, what: str) -> None:
        """Wait until done() is true; fail if the program ends, and show its log."""
        def look():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.command[0]} ended")
            return done()

        try:
            wait_until(look, f"{self.command[0]} {what}")
        except Exception as error:
            error.add_note(self.log.read_text(errors="replace")[-4000:])
            raise

    def _is_ready(self) -> bool:
        try:
            self.get(self.ready)
        except (URLError, ConnectionError):
            return False
        return True


def file_of(database: Database, name: str, *changes: tuple[str, str]) -> Path:
    """A copy of a file of the example, in which each text that is named is there, and is replaced."""
    text = (EXAMPLE / name).read_text()
    for old, new in changes:
        assert re.search(old, text, re.M), f"{name} has no {old}"
        text = re.sub(old, new, text, flags=re.M)
    copy = database.cluster.folder / name
    database.cluster.run("sh", "-c", 'cat >"$1"', "sh", copy, stdin=text)
    return copy


def sql_exporter(database: Database, *others: Database) -> Program:
    """prometheus-sql-exporter; it reads each second, in these databases."""
    urls = [f"- 'postgres://{ROLE}@/{each.name}?host={each.cluster.folder}&sslmode=disable'" for each in (database, *others)]
    config = file_of(database, "sql-exporter.yml", ("- 'postgres://[^']+'", "\n      ".join(urls)), (r"interval: .*", "interval: 1s"))
    return Program(database, SQL_EXPORTER, "prometheus-sql-exporter", "-config.file", config, "-web.listen-address", SQL_EXPORTER)


def postgres_exporter(database: Database) -> Program:
    """prometheus-postgres-exporter; it reads whenever it is scraped."""
    options = re.search(r"^ARGS='(.*)'$", (EXAMPLE / "postgres-exporter.default").read_text(), re.M)[1]
    options = options.replace("127.0.0.1:9187", POSTGRES_EXPORTER)
    options = options.replace("/etc/prometheus/totp-queries.yml", str(file_of(database, "totp-queries.yml")))
    return Program(database, POSTGRES_EXPORTER, "prometheus-postgres-exporter", *options.split(),
                    DATA_SOURCE_NAME=f"user={ROLE} host={database.cluster.folder} dbname={database.name} sslmode=disable")


class Prometheus(Program):
    """A Prometheus that scrapes these addresses and evaluates the rules, more often than in real use.

    Each five seconds and not each one: a scrape that takes longer than that, on a busy machine, is a failed one.
    """

    ready = "/-/ready"

    def __init__(self, database: Database, *targets: str, rules: tuple[tuple[str, str], ...] = ()) -> None:
        config = file_of(database, "prometheus.yml", (r"targets: .*", f"targets: {list(targets)}"), ("scrape_interval: .*", "scrape_interval: 5s"),
                         ("evaluation_interval: .*", "evaluation_interval: 1s"))
        file_of(database, "totp-alerts.yml", *rules)
        super().__init__(database, PROMETHEUS, "prometheus", f"--config.file={config}", f"--storage.tsdb.path={config.parent / 'metrics'}",
                         f"--web.listen-address={PROMETHEUS}", "--log.level=warn")

    def ask(self, path: str, **parameters: str):
        return json.loads(self.get(f"/api/v1/{path}?{urlencode(parameters)}"))["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return [(sample["metric"], float(sample["value"][1])) for sample in self.ask("query", query=expression)["result"]]

    def rules(self) -> list[dict]:
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def wait_for_evaluation(self) -> None:
        """Wait until each rule was evaluated, without an error, on samples that were scraped after this call."""
        begin = datetime.now(UTC)
        self.wait_for(lambda: all(_time(target["lastScrape"]) > begin for target in self.ask("targets")["activeTargets"]), "to scrape")
        scraped = datetime.now(UTC)
        self.wait_for(lambda: all(_time(rule["lastEvaluation"]) > scraped for rule in self.rules()), "to evaluate the rules")
        assert {rule["health"] for rule in self.rules()} == {"ok"}


def _time(text: str) -> datetime:
    """A time as Go writes it, with up to nine digits after the point."""
    return datetime.fromisoformat(re.sub(r"\.(\d{1,6})\d*", lambda digits: f".{digits[1]:0<6}", text))
