"""docs/operations/master-key.md: an agent replaces the key file while users sign in, and the units of the page."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from secrets import token_hex

import pytest
from amounts import amount
from documents import block
from health import health
from key_sources import PAGE, HostKey, found_on_disk, places_on_disk
from many_users import AT_ONCE, import_users, secret_of, sign_in_all
from master_keys import fingerprint_of_current, master_keys, reload_and_wait
from server import MEMORY, SERVER_USER, wait_until
from sessions import Background, session
from totp import NOON, code_at, error_of, fix_clock, parallel, recovery_codes, verify

CHANGES = amount("KEY_CHANGES", 15, light=5)
STEP = timedelta(seconds=30)


# --- an agent ------------------------------------------------------------------------------------------


class Agent:
    """Renders keys into a file in memory as the agents of Vault and OpenBao do: a new file, which takes the name of the old one. It
    has the owner of the old one by then. If there is no old one, it is the agent's, and gets its owner afterwards."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg_totp.", dir=MEMORY))
        self.folder.chmod(0o755)
        self.key_file = self.folder / "totp.key"

    def render(self, *keys: str) -> None:
        with self.rendering(*keys):
            pass

    @contextmanager
    def rendering(self, *keys: str):
        """The moment in which the file has its name, and at the first time not yet its owner."""
        new, old = self.folder / "new", self.key_file
        new.write_text("".join(f"{key}\n" for key in keys))
        if old.exists():
            os.chown(new, old.stat().st_uid, old.stat().st_gid)
        new.chmod(0o400)
        new.rename(old)
        yield
        os.chown(old, SERVER_USER.pw_uid, SERVER_USER.pw_gid)

    def lose(self) -> None:
        """What is left after a restart of the machine without the secret store."""
        self.remove()
        self.folder.mkdir()
        self.folder.chmod(0o755)

    def remove(self) -> None:
        shutil.rmtree(self.folder)


class Kubelet(Agent):
    """As the kubelet keeps the files of a volume: a link to a file below a link to a folder, which takes the name of the old one."""

    number = 0

    def render(self, *keys: str) -> None:
        old = self.folder / "..data"
        before = old.resolve() if old.exists() else None
        self.number += 1
        folder = self.folder / f"..{self.number}"
        folder.mkdir(mode=0o755)
        file = folder / "totp.key"
        file.write_text("".join(f"{key}\n" for key in keys))
        file.chmod(0o400)
        os.chown(file, SERVER_USER.pw_uid, SERVER_USER.pw_gid)
        (self.folder / "..data_tmp").symlink_to(folder.name)
        (self.folder / "..data_tmp").rename(old)
        if before:
            shutil.rmtree(before)
        else:
            self.key_file.symlink_to("..data/totp.key")


@pytest.fixture(params=[Agent, Kubelet], ids=["rename of the file", "rename of a link"])
def agent(request):
    one = request.param()
    yield one
    one.remove()


def test_users_sign_in_while_an_agent_replaces_the_file(agent, fresh_cluster, capsys):
    """Sessions that stay and sessions of one sign-in each, through changes of the master key one after the other."""
    key = token_hex(32)
    agent.render(key)
    fresh_cluster.configure(totp__key_file=agent.key_file)
    fresh_cluster.restart()
    db = fresh_cluster.create_database()
    with session(db) as conn:
        users = import_users(conn, 4)
    ended = threading.Event()
    counts = [0] * len(users)
    rounds: set[tuple[int, int]] = set()  # each worker, and the changes after which it began to sign in
    change = 0

    def sign_in(conn, worker) -> None:
        begun = change
        when = NOON + counts[worker] * STEP
        fix_clock(conn, when)
        assert verify(conn, users[worker], code_at(secret_of(users[worker]), when)) is True
        counts[worker] += 1
        rounds.add((worker, begun))

    def stay(worker) -> None:
        with closing(db.connect()) as conn:
            while not ended.is_set():
                sign_in(conn, worker)

    def come_and_go(worker) -> None:
        while not ended.is_set():
            with closing(db.connect()) as conn:
                sign_in(conn, worker)

    def keep_changing() -> None:
        nonlocal key, change
        with session(db) as conn:
            for number in range(1, CHANGES + 1):
                new = token_hex(32)
                agent.render(new, key)
                fresh_cluster.reload()
                conn.execute(AT_ONCE)
                agent.render(new)
                fresh_cluster.reload()
                key, change = new, number
                wait_until(lambda: ended.is_set() or all((worker, change) in rounds for worker in range(len(users))), "each session to sign in")

    def run(i) -> None:
        try:
            (stay, come_and_go, stay, come_and_go)[i](i) if i < len(users) else keep_changing()
        finally:
            ended.set()

    errors = [answer for answer in parallel(len(users) + 1, run) if answer is not None]
    with capsys.disabled():
        print(f"\n  {CHANGES} changes of the master key, {sum(counts):,} sign-ins meanwhile, {len(errors)} errors")
    assert errors == []
    assert rounds >= {(worker, number) for worker in range(len(users)) for number in range(1, CHANGES + 1)}
    assert agent.key_file.read_text() == f"{key}\n"
    with session(db) as conn:
        [(state, _, loaded)] = master_keys(conn)
        assert (state, loaded) == ("current", True)
        assert sign_in_all(conn, users, NOON + 1_000_000 * STEP) == len(users)


@pytest.fixture
def rendered(agent, fresh_cluster):
    """A database on a server that reads the file of the agent, with one key, that key, and users."""
    key = token_hex(32)
    agent.render(key)
    fresh_cluster.configure(totp__key_file=agent.key_file)
    fresh_cluster.restart()
    db = fresh_cluster.create_database()
    with session(db) as conn:
        return db, key, import_users(conn, 5)


def refused(conn, user: str) -> tuple[str, str, str | None]:
    error = error_of(conn, "SELECT totp_verify(%s, %s)", [user, code_at(secret_of(user), NOON)])
    return error.sqlstate, error.diag.message_primary, error.diag.message_detail


def test_an_agent_is_away_when_the_server_starts(agent, rendered):
    db, key, users = rendered
    agent.lose()
    db.cluster.restart()
    with session(db) as conn:
        assert refused(conn, users[0]) == ("F0000", "master key file is not valid", "There is no such file.")
        assert health(conn)["master_key"][0] == "fail"
        assert db.value("SELECT sum(failures) FROM totp.attempts") == 0
        agent.render(key)
        assert sign_in_all(conn, users, NOON) == len(users)  # the same session, without a reload
        assert health(conn)["master_key"][0] == "ok"
    leaves_no_key_on_a_disk(db.cluster, {key})


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a file away")
@pytest.mark.parametrize("agent", [Agent], ids=["rename of the file"], indirect=True)
def test_the_first_file_of_an_agent_cannot_be_read_for_a_moment(agent, rendered):
    """A call in that moment costs the user nothing, and the next one reads the file. Later files have no such moment."""
    db, key, users = rendered
    agent.lose()
    db.cluster.restart()
    with session(db) as conn:
        with agent.rendering(key):
            assert refused(conn, users[0]) == (
                "F0000", "master key file is not valid", "The server has no permission to read the file, or to search a directory above it.")
        assert sign_in_all(conn, users, NOON) == len(users)  # the same session, without a reload
        assert db.value("SELECT sum(failures) FROM totp.attempts") == 0
        new = token_hex(32)
        with agent.rendering(new, key), session(db) as other:
            assert sign_in_all(other, users, NOON + STEP) == len(users)


def test_an_agent_renders_a_stale_file(agent, rendered):
    """The old key comes back, as from a cache of the agent."""
    db, old, users = rendered
    new = token_hex(32)
    agent.render(new, old)
    db.execute(AT_ONCE)
    agent.render(new)
    with session(db) as conn:
        assert sign_in_all(conn, users, NOON) == len(users)
        agent.render(old)
        reload_and_wait(db.cluster, conn)
        current = fingerprint_of_current(db)
        assert refused(conn, users[0])[:2] == ("F0000", f"sealed under master key {current}, which is not loaded")
        assert current in health(conn)["lost_master_key"][1]
        assert db.value("SELECT sum(failures) FROM totp.attempts") == 0
        agent.render(new)
        assert sign_in_all(conn, users, NOON + STEP) == len(users)  # without a reload
    leaves_no_key_on_a_disk(db.cluster, {old, new})


def leaves_no_key_on_a_disk(cluster, keys: set[str]) -> None:
    cluster.psql("CHECKPOINT")
    places = {name for name, _ in places_on_disk(cluster.folder)}
    assert {"log", "data/pg_wal", "data/global/pg_control"} <= places
    assert found_on_disk(cluster.folder, keys) == []


@pytest.mark.parametrize("query", ["SELECT totp_verify('user-000000', %s)", "SELECT totp_recover('user-000000', %s)"], ids=["code", "recovery code"])
def test_a_sign_in_that_began_before_a_rotation_outlives_the_old_key(fresh_cluster, query):
    """It found the user's row under the old data key, and reads the file when the old master key has gone from it."""
    old, new = token_hex(32), token_hex(32)
    fresh_cluster.write_key_file(f"{old}\n")
    db = fresh_cluster.create_database()
    with session(db) as conn:
        [user] = import_users(conn, 1)
        right = recovery_codes(conn, user)[0] if "recover" in query else code_at(secret_of(user), NOON)
        fresh_cluster.write_key_file(f"{new}\n{old}\n")
        conn.execute("BEGIN")
        conn.execute(AT_ONCE)
        conn.execute("LOCK totp.data_keys")
        with Background(db, query.replace("%s", f"'{right}'")) as sign_in:
            with closing(db.connect()) as watch:
                sign_in.wait_until_blocked(watch)
            fresh_cluster.write_key_file(f"{new}\n")
            conn.execute("COMMIT")
        assert sign_in.answer == [(True,)]


# --- the units -------------------------------------------------------------------------------------------


@pytest.fixture
def source(fresh_cluster):
    with HostKey(fresh_cluster) as source:
        yield source


@pytest.fixture
def units(source):
    """A folder with Debian's unit of PostgreSQL. A function that adds one of the page there."""
    folder = source.disk / "units"
    folder.mkdir()
    shutil.copy("/lib/systemd/system/postgresql@.service", folder)

    def add(path: str, name: str) -> Path:
        file = folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(source.here(block(PAGE, name)))
        return file

    add.folder = folder
    return add


def faults(folder: Path, unit: str) -> str:
    """What systemd says of a unit and those that it asks for."""
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", unit], text=True, capture_output=True,
                          env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{folder}:"})
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if str(folder) in line or unit in line)


def test_the_unit_fills_the_file_before_the_server_starts(source, units):
    unit = units("totp-key.service", "totp-key.service")
    server = units("postgresql@.service.d/totp.conf", "postgresql-totp.conf").read_text().splitlines()
    assert {f"Wants={unit.name}", f"After={unit.name}"} <= set(server)
    # A oneshot has no limit of its own, and the server waits for it.
    assert re.search(r"^TimeoutStartSec=\d+$", unit.read_text(), re.MULTILINE)
    assert faults(units.folder, "totp-key.service") == ""
    assert faults(units.folder, "postgresql@15-main.service") == ""
    [command] = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    before = source.keys()
    source.key_file.unlink()
    source.shell(command)
    assert source.keys() == before
    # And a mistake in it would be seen.
    unit.write_text(unit.read_text().replace("Type=oneshot", "Type=once").replace("totp-key fill", "no-such-program"))
    assert "is not executable" in faults(units.folder, "totp-key.service")


@pytest.mark.parametrize("name", ["token.conf", "medium.conf"])
def test_a_recipe_adds_to_the_unit(units, name):
    units("totp-key.service", "totp-key.service")
    added = units(f"totp-key.service.d/{name}", name)
    assert faults(units.folder, "totp-key.service") == ""
    added.write_text(f"{added.read_text()}\nNoSuchSetting=1\n")
    assert "NoSuchSetting" in faults(units.folder, "totp-key.service")


def test_a_credential_is_copied_by_the_unit_of_the_server(source, units):
    """What systemd puts into %d is root's alone; the copy is the server's."""
    unit = units("postgresql@.service.d/totp.conf", "postgresql-credential.conf")
    assert faults(units.folder, "postgresql@15-main.service") == ""
    credentials = source.memory / "credentials"
    credentials.mkdir(mode=0o700)
    [name, sealed] = re.findall(r"^LoadCredentialEncrypted=(.*):(.*)$", unit.read_text(), re.MULTILINE)[0]
    source.shell(f"systemd-creds decrypt --name={name} {sealed} {credentials}/{name}; chmod 0400 {credentials}/{name}")
    before = source.keys()
    source.key_file.unlink()
    db = source.cluster.create_database()
    for command in re.findall(r"^ExecStartPre=(.*)$", unit.read_text(), re.MULTILINE):
        source.shell(command.replace("%d", str(credentials)).replace("%i", "15-main").replace("--owner=postgres", f"--owner={SERVER_USER.pw_name}"))
    assert source.keys() == before
    with session(db) as conn:
        assert sign_in_all(conn, import_users(conn, 5), NOON) == 5
