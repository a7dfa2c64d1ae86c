"""The application of examples/sign-in as a process, on a throw-away server, with people who use it."""

import os
import re
import secrets
import shutil
import subprocess
from contextlib import closing
from datetime import datetime, timedelta
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlencode

import pyotp
from server import CHECKOUT, PROJECT, SERVER_USER, Cluster
from totp import NOON

EXAMPLE = CHECKOUT / "examples" / "sign-in"
BUILT = Path(PROJECT["SIGN_IN"]) / "debug" / "sign-in"
PASSWORD = "correct horse"


class Site:
    """Its clock stands still until later(). So no code runs out during a test, and none needs to be waited for."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.program = cluster.folder / "sign-in"
        shutil.copy(BUILT, self.program)  # the server's user may not get to the checkout
        self.hash = self.hash_of(PASSWORD)
        self.database = cluster.create_database("app", extension=False)
        self.database.psql("CREATE SCHEMA mfa; CREATE EXTENSION pg_totp SCHEMA mfa;")
        self.database.psql((EXAMPLE / "schema.sql").read_text())
        self.now = NOON
        self._set_clock()
        self._listen = "127.0.0.1:0"

    def __enter__(self) -> "Site":
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self, **environment: str | None) -> "Site":
        """As the server's user, with the roles that schema.sql has made. None: without that variable."""
        roles = {f"{role.upper()}_DATABASE": f"host={self.cluster.folder} user={role} dbname=app" for role in ("web", "desk")}
        given = {"PATH": "/usr/bin:/bin", "LISTEN": self._listen, "POSTS_PER_MINUTE": "10000", **roles, **environment}
        identity = {"user": SERVER_USER.pw_uid, "group": SERVER_USER.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        with (self.cluster.folder / "sign-in.log").open("a") as log:
            self._process = subprocess.Popen(
                [self.program], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, **identity,
                env={name: value for name, value in given.items() if value is not None})
        line = self._process.stdout.readline()
        assert line.startswith("listening on "), self.log_text()
        if self._listen.endswith(":0"):  # from now on the same one
            self.address = line.split()[2]
            self._listen = self.address.removeprefix("http://")
        return self

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def hash_of(self, password: str) -> str:
        return self.cluster.run(self.program, "hash", stdin=f"{password}\n").strip()

    def log_text(self) -> str:
        return (self.cluster.folder / "sign-in.log").read_text()

    def page_faults(self) -> int:
        """Pages of memory that the application has taken since its start, those that it gave back too."""
        return int(Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[7])

    def later(self, seconds: int) -> None:
        """Sessions of the database take a new clock when they begin: so the application begins again, with its sessions."""
        self.stop()
        self.now += timedelta(seconds=seconds)
        self._set_clock()
        self.start()

    def _set_clock(self) -> None:
        self.database.execute(f"ALTER DATABASE app SET totp.clock = '{self.now.isoformat()}'")

    # --- people ----------------------------------------------------------------------

    def add(self, name: str, *devices: str, desk: bool = False) -> "Person":
        """A new user with these devices."""
        self.database.execute("INSERT INTO app.member VALUES (%s, %s, %s)", [name, self.hash, desk])
        person = Person(self, name)
        for device in devices:
            person.secrets[device] = pyotp.random_base32()
            self.database.execute("SELECT mfa.totp_import(%s, %s, issuer => 'Example', device => %s, confirmed => true)",
                                  [name, person.secrets[device], device])
        return person

    # --- without a browser -------------------------------------------------------------

    def ask(self, method: str, path: str, fields: dict[str, str] | None = None, token: str = "", source: str = "127.0.0.1", **headers: str) -> "Answer":
        """One request, as a browser sends it that is on a page of this site."""
        given = {"Origin": self.address, "Cookie": f"session={token}", "Content-Type": "application/x-www-form-urlencoded", **headers}
        with closing(HTTPConnection(self._listen, timeout=60, source_address=(source, 0))) as connection:
            connection.request(method, path, urlencode(fields, doseq=True) if fields is not None else None, {k: v for k, v in given.items() if v})
            return Answer(connection.getresponse())


class Answer:
    def __init__(self, response: HTTPResponse) -> None:
        self.status, self.headers, self.text = response.status, response.headers, response.read().decode()
        self.goes_to = response.headers.get("Location")
        found = re.match(r"(?:__Host-)?session=(\w+);", response.headers.get("Set-Cookie", ""))
        self.token = found[1] if found else None


class Person:
    """A user, with what they know and have."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.secrets: dict[str, str] = {}
        self._used: dict[str, int] = {}

    def code(self, device: str = "phone") -> str:
        """A code that is good now and was not typed before, by oathtool: up to three, from the step before this one on."""
        now = int(self.site.now.timestamp()) // 30
        step = max(self._used.get(self.secrets[device], 0) + 1, now - 1)
        assert step <= now + 1, "all codes of this time are used"
        self._used[self.secrets[device]] = step
        return code_at(self.secrets[device], datetime.fromtimestamp(step * 30, self.site.now.tzinfo))

    def code_at(self, device: str, seconds: int) -> str:
        """What it shows that many seconds from now."""
        return code_at(self.secrets[device], self.site.now + timedelta(seconds=seconds))

    def wrong_code(self) -> str:
        right = {code_at(secret, self.site.now + timedelta(seconds=30 * n)) for secret in self.secrets.values() for n in range(-3, 4)}
        return next(code for code in iter(lambda: f"{secrets.randbelow(10**6):06}", None) if code not in right)

    def recovery_codes(self) -> list[str]:
        return [code for [code] in self.site.database.execute("SELECT mfa.totp_reset_recovery_codes(%s, 4)", [self.name])]

    def value(self, column: str):
        """A column of totp_status, of any of the devices."""
        return self.site.database.execute(f"SELECT {column} FROM mfa.totp_status(%s)", [self.name])[0][0]

    def half(self) -> str:
        """Give the password, without a browser: the token."""
        answer = self.site.ask("POST", "/sign-in", {"user": self.name, "password": PASSWORD})
        assert answer.status == 303
        return answer.token

    def full(self) -> str:
        """Sign in, without a browser: the token."""
        answer = self.site.ask("POST", "/code", {"code": self.code()}, self.half())
        assert (answer.status, answer.goes_to) == (303, "/")
        return answer.token


def code_at(secret: str, when: datetime) -> str:
    done = subprocess.run(["oathtool", "--totp", "--base32", f"--now={when:%Y-%m-%d %H:%M:%S} UTC", secret], text=True, capture_output=True, check=True)
    return done.stdout.strip()


def end(process: subprocess.Popen, with_signal: int) -> None:
    """Send a signal to all processes of this one's group, and wait until each has ended: orphans are ours, see server.py."""
    os.killpg(process.pid, with_signal)
    process.wait()
    try:
        while True:
            os.waitpid(-process.pid, 0)
    except ChildProcessError:
        return
