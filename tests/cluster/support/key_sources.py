"""The recipes of docs/operations/master-key.md, run from its own text: /etc/totp, /media/totp and the like are folders on the
disk, below that of a server, and /run/totp is a folder in memory."""

import base64
import shutil
import subprocess
import tempfile
from pathlib import Path

from documents import block
from leak_search import wal_stream
from server import MEMORY, SERVER_USER, Cluster, CommandFailed, wait_until

PAGE = "operations/master-key.md"
PROGRAMS = "/usr/local/bin:/usr/bin:/bin"


class Source:
    """A recipe, with its programs `seal` and `open`. Its first key is filled, and the server reads it."""

    blocks = {"seal": "", "open": ""}  # the name of each file in /etc/totp: that of its block
    programs: set[str] = set()  # what seals and opens

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.disk = cluster.folder / "disk"
        self.etc, self.media, self.bin = (self.disk / name for name in ("etc", "media", "bin"))
        self.temporary = self.disk / "tmp"
        self.memory = Path(tempfile.mkdtemp(prefix="pg_totp.", dir=MEMORY))
        self.memory.chmod(0o755)  # as the RuntimeDirectory of a unit
        self.key_file = self.memory / "totp.key"
        self.made: set[str] = set()  # every key that there was
        self.environment: dict[str, str] = {}

    def __enter__(self) -> "Source":
        for folder in (self.disk, self.etc, self.media, self.bin, self.temporary):
            folder.mkdir(mode=0o700)
        self.write(self.bin / "totp-key", "totp-key", 0o755)
        self.write(self.bin / "systemctl", None, 0o755)
        for name, shown in self.blocks.items():
            self.write(self.etc / name, shown, 0o700)
        self.prepare()
        self.run("first")
        self.cluster.configure(totp__key_file=self.key_file)
        self.cluster.key_file.unlink()  # the one that each server of the tests has
        self.cluster.restart()
        return self

    def __exit__(self, *_) -> None:
        self.release()
        shutil.rmtree(self.memory)

    def prepare(self) -> None:
        """What comes before the first key."""

    def release(self) -> None:
        """End what prepare() started."""

    def away(self) -> None:
        """Take away what opens the sealed keys."""
        raise NotImplementedError

    def back(self) -> None:
        raise NotImplementedError

    # --- the page ------------------------------------------------------------------------------------

    def here(self, text: str) -> str:
        """A text of the page, with the folders of this test."""
        owner = f"{SERVER_USER.pw_name}:{SERVER_USER.pw_gid}"
        for shown, place in {"/etc/totp": self.etc, "/run/totp": self.memory, "/media/totp": self.media, "postgres:postgres": owner,
                             "/usr/local/sbin": self.bin, "/etc/postgresql": self.disk}.items():
            text = text.replace(shown, str(place))
        return text

    def write(self, path: Path, name: str | None, mode: int) -> None:
        """The block of that name as a file; without one, a program that does nothing."""
        path.write_text(self.here(block(PAGE, name)) if name else "#!/bin/sh\n")
        path.chmod(mode)

    def run(self, name: str) -> str:
        """Run the commands of a block."""
        return self.shell(self.here(block(PAGE, name)))

    def shell(self, command: str, stdin: str = "") -> str:
        """Run a command as the administrator does. systemctl does nothing here, and `systemctl restart totp-key` what its unit does."""
        environment = {"PATH": f"{self.bin}:{PROGRAMS}", "HOME": str(self.disk), "TMPDIR": str(self.temporary), "LC_ALL": "C", **self.environment}
        command = command.replace("systemctl restart totp-key", "totp-key fill")
        done = subprocess.run(["sh", "-euc", command], env=environment, input=stdin, cwd="/", text=True, capture_output=True)
        if self.key_file.exists():
            self.made |= set(self.keys())
        if done.returncode != 0:
            raise CommandFailed(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    # --- its state -----------------------------------------------------------------------------------

    def keys(self) -> list[str]:
        """What the server reads."""
        return self.key_file.read_text().split()

    def fill(self) -> None:
        """What the unit runs."""
        self.shell("totp-key fill")

    def restart_machine(self) -> None:
        """Nothing is left in memory, and the server starts although the unit may have failed."""
        self.cluster.stop()
        self.key_file.unlink(missing_ok=True)
        try:
            self.fill()
        except CommandFailed:
            pass
        self.cluster.start()


class HostKey(Source):
    blocks = {"seal": "host-seal", "open": "creds-open"}
    programs = {"systemd-creds"}

    def prepare(self) -> None:
        self.secret = self.disk / "credential.secret"  # in place of the host key of this machine
        self.environment["SYSTEMD_CREDENTIAL_SECRET"] = str(self.secret)

    def away(self) -> None:
        self.secret.rename(self.secret.with_suffix(".away"))

    def back(self) -> None:
        self.secret.unlink(missing_ok=True)
        self.secret.with_suffix(".away").rename(self.secret)


class Tpm(HostKey):
    """With swtpm, a TPM as a program, in place of /dev/tpmrm0."""

    blocks = {"seal": "tpm-seal", "open": "creds-open"}

    def prepare(self) -> None:
        super().prepare()
        self.state = self.disk / "tpm"
        self.state.mkdir()
        self.socket = self.disk / "tpm.socket"
        # /dev/tpmrm0 is the kernel's: it takes back what a program leaves loaded in the TPM. Here that is done after each call.
        creds = self.bin / "systemd-creds"
        creds.write_text('#!/bin/sh\n/usr/bin/systemd-creds "$@"\nstatus=$?\ntpm2_flushcontext -t && tpm2_flushcontext -l\nexit $status\n')
        creds.chmod(0o755)
        self.environment["SYSTEMD_TPM2_DEVICE"] = self.environment["TPM2TOOLS_TCTI"] = f"swtpm:path={self.socket}"
        self.back()

    def away(self) -> None:
        """End it as a machine does. It counts each end without a word as an attack, and soon opens nothing."""
        self.shell("tpm2_shutdown --clear")
        self.process.kill()
        self.process.wait()
        self.socket.unlink()

    def back(self) -> None:
        """Start it as a machine does: the firmware measures Secure Boot into PCR 7."""
        self.process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}", "--flags", "startup-clear",
             "--server", f"type=unixio,path={self.socket}", "--ctrl", f"type=unixio,path={self.socket}.ctrl"], stderr=subprocess.DEVNULL)
        wait_until(self.socket.exists, "the TPM to start")
        self.measure("5ec0")

    def measure(self, event: str) -> None:
        self.shell(f"tpm2_pcrextend 7:sha256={event:0>64}")

    def release(self) -> None:
        self.away()


class Token(Source):
    """With SoftHSM2."""

    blocks = {"seal": "token-seal", "open": "token-open", "token": "token"}
    programs = {"openssl", "pkcs11-tool"}

    def prepare(self) -> None:
        self.tokens = self.disk / "tokens"
        self.tokens.mkdir()
        conf = self.disk / "softhsm2.conf"
        conf.write_text(f"directories.tokendir = {self.tokens}\n")
        self.environment["SOFTHSM2_CONF"] = str(conf)
        self.shell("softhsm2-util --init-token --free --label pg_totp --pin 123456 --so-pin 12345678")
        self.run("token-key")

    def away(self) -> None:
        self.tokens.rename(self.disk / "away")
        self.tokens.mkdir()

    def back(self) -> None:
        self.tokens.rmdir()
        (self.disk / "away").rename(self.tokens)


class Age(Source):
    blocks = {"seal": "age-seal", "open": "age-open"}
    programs = {"age"}

    def prepare(self) -> None:
        self.run("age-key")

    def away(self) -> None:
        self.media.rename(self.disk / "away")

    def back(self) -> None:
        (self.disk / "away").rename(self.media)


# --- where a key was written ---------------------------------------------------------------------------


def written_forms(key: str) -> dict[str, bytes]:
    """The ways in which a file may have a key: its bytes, its text, and each of them in base64 at any place of a longer text."""
    raw = bytes.fromhex(key)
    plain = {"raw": raw, "hex": key.lower().encode(), "HEX": key.upper().encode()}
    found = dict(plain)
    for name, content in plain.items():
        for before in range(3):
            # The first and the last group of four characters have something of what stands beside it.
            found[f"base64 of {name}, {before}"] = base64.b64encode(bytes(before) + content)[4 if before else 0:-4]
    return found


def places_on_disk(folder: Path):
    """Each file below a folder, by name, with its content. The WAL without its page headers."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()
    for wal in folder.rglob("pg_wal"):
        yield str(wal.relative_to(folder)), wal_stream(wal)


def found_on_disk(folder: Path, keys: set[str]) -> list[tuple[str, str]]:
    """File and form of each of the keys that is below a folder. Also in lines, into which base64 is often broken."""
    forms = [form for key in keys for form in written_forms(key).items()]
    return [(place, form) for place, content in places_on_disk(folder) for text in (content, content.replace(b"\n", b""))
            for form, needle in forms if needle in text]
