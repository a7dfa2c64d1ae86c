"""docs/operations/master-key.md: each recipe that can run here, by the page's own scripts and commands, beside a server."""

import base64
import os
import shutil
import stat
from pathlib import Path

import pytest
from health import health
from key_files import SPOILED, WRITTEN
from key_sources import PROGRAMS, Age, HostKey, Token, Tpm, found_on_disk, places_on_disk, written_forms
from many_users import AT_ONCE, import_users, secret_of, sign_in_all
from master_keys import FIX, MINUTE, OLD, RESTORE, fingerprint_of_current, reload_and_wait
from server import DISK, SERVER_USER, CommandFailed
from sessions import session
from totp import NOON, code_at, error_of

RECIPES = {"host key": HostKey, "TPM": Tpm, "token": Token, "age": Age}
only_host_key = pytest.mark.parametrize("source", [HostKey], ids=["host key"], indirect=True)


NO_KEYS = "these are no keys"

# Stands for every program of the system: notes its name, arguments and environment, and becomes it.
WATCH = """#!/bin/sh
name=${{0##*/}}
{{ echo "called $name"; /usr/bin/tr '\\0' '\\n' </proc/$$/cmdline; /usr/bin/tr '\\0' '\\n' </proc/$$/environ; }} >>{noted}
[ ! -x {first}/$name ] || exec {first}/$name "$@"
exec /usr/bin/$name "$@"
"""


@pytest.fixture(scope="module", params=RECIPES.values(), ids=RECIPES)
def source(request, make_module_cluster):
    """A recipe whose keys a server reads. The tests leave one key, filled and sealed."""
    with request.param(make_module_cluster(place=DISK)) as source:
        yield source


@pytest.fixture(scope="module")
def db(source):
    return source.cluster.create_database()


@pytest.fixture(scope="module")
def users(db):
    with session(db) as conn:
        return import_users(conn, 5)


@pytest.fixture
def when(_minutes=iter(range(1, 10_000))):
    """Another time for each sign-in, so that no code is used twice."""
    return lambda: NOON + next(_minutes) * MINUTE


def all_sign_in(db, users, when) -> None:
    at = when()
    with session(db, at) as conn:
        assert sign_in_all(conn, users, at) == len(users)


def failures(db) -> int:
    return db.value("SELECT sum(failures) FROM totp.attempts")


def change_master_key(source, db, *sessions) -> None:
    """The steps of the page, and one reload, which these sessions have seen."""
    source.run("new-key")
    db.execute(AT_ONCE)
    source.run("old-key-goes")
    reload_and_wait(source.cluster, *sessions)


def test_users_sign_in_after_a_change_of_the_master_key(source, db, users, when):
    [old] = source.keys()
    fingerprint = fingerprint_of_current(db)
    with session(db, when()) as conn:
        assert sign_in_all(conn, users, when()) == 5
        source.run("new-key")
        [new, below] = source.keys()
        assert below == old
        assert sign_in_all(conn, users, when()) == 5
        db.execute(AT_ONCE)
        assert health(conn)["master_key"] == ("ok", "2 loaded; nothing to do")
        assert sign_in_all(conn, users, when()) == 5
        source.run("old-key-goes")
        assert source.keys() == [new]
        reload_and_wait(source.cluster, conn)
        assert sign_in_all(conn, users, when()) == 5
        assert health(conn)["master_key"] == ("ok", "1 loaded; nothing to do")
        assert health(conn)["lost_master_key"][0] == "ok"
    assert fingerprint_of_current(db) != fingerprint
    source.restart_machine()
    assert source.keys() == [new]
    all_sign_in(db, users, when)


def test_the_file_is_the_servers_alone(source):
    found = source.key_file.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, SERVER_USER.pw_uid)
    assert sorted(os.listdir(source.memory)) == ["totp.key"]


def test_it_is_away_while_the_server_runs(source, db, users, when):
    """The file stays as it was, also when the unit is started again, and when PostgreSQL is."""
    before = source.key_file.read_bytes()
    source.away()
    with pytest.raises(CommandFailed):
        source.fill()
    source.cluster.restart()
    source.back()
    assert source.key_file.read_bytes() == before
    all_sign_in(db, users, when)


def test_it_is_away_when_the_machine_starts(source, db, users, when):
    source.away()
    source.restart_machine()
    with session(db, when()) as conn:
        assert conn.execute("SELECT totp_enabled(%s)", [users[0]]).fetchone() == (True,)
        code = code_at(secret_of(users[0]), when())
        for query in ("SELECT totp_verify(%s, %s)", "SELECT accepted FROM totp_check(%s, %s)"):
            error = error_of(conn, query, [users[0], code])
            assert (error.sqlstate, error.diag.message_primary, error.diag.message_detail, error.diag.message_hint) == (
                "F0000", "master key file is not valid", "There is no such file.", FIX)
        said = health(conn)
        assert said["master_key"] == ("fail", f"master key file is not valid: There is no such file. {FIX}")
        assert said["lost_master_key"][0] == "fail"
        assert failures(db) == 0
        source.back()
        source.fill()
        assert sign_in_all(conn, users, when()) == 5  # the same session, without a reload
        assert health(conn)["master_key"][0] == "ok"


def test_a_stale_file(source, db, users, when):
    """The sealed keys of before a change come back, as from a backup of /etc."""
    sealed = source.etc / "sealed"
    stale = sealed.read_bytes()
    with session(db, when()) as older:
        change_master_key(source, db, older)
        assert sign_in_all(older, users, when()) == 5
        fresh = sealed.read_bytes()
        sealed.write_bytes(stale)
        source.fill()
        assert sign_in_all(older, users, when()) == 5  # it has the new key, until a reload
        current = fingerprint_of_current(db)
        reload_and_wait(source.cluster, older)
        with session(db, when()) as newer:
            for conn in (older, newer):
                error = error_of(conn, "SELECT totp_verify(%s, %s)", [users[0], code_at(secret_of(users[0]), when())])
                assert (error.sqlstate, error.diag.message_primary) == ("F0000", f"sealed under master key {current}, which is not loaded")
                assert error.diag.message_hint == RESTORE
                assert health(conn)["master_key"] == ("ok", "1 loaded; nothing to do")
                status, detail = health(conn)["lost_master_key"]
                assert status == "fail" and current in detail
        assert failures(db) == 0
        sealed.write_bytes(fresh)
        source.fill()
        assert sign_in_all(older, users, when()) == 5  # without a reload
    all_sign_in(db, users, when)


@pytest.mark.parametrize("printed", ["", "<no value>", OLD[:63], f"{OLD}\n\n{OLD}", "<html>502</html>"], ids=["nothing", "no value", "half a key", "a blank line", "a page"])
def test_what_is_no_key_is_not_filled(source, printed):
    program = source.etc / "open"
    text, before = program.read_text(), source.key_file.read_bytes()
    program.write_text(f"#!/bin/sh\ncat >/dev/null\nprintf '{printed}'\n")
    for verb in ("fill", "new", "keep"):
        sealed = (source.etc / "sealed").read_bytes()
        with pytest.raises(CommandFailed, match=NO_KEYS):
            source.shell(f"totp-key {verb}")
        assert source.key_file.read_bytes() == before
        assert (source.etc / "sealed").read_bytes() == sealed
    program.write_text(text)
    source.fill()


def test_what_is_no_key_leaves_no_file_at_a_start_of_the_machine(source, db, users, when):
    """While the server runs, it costs nothing. At a start there is no file to fall back on."""
    program = source.etc / "open"
    text = program.read_text()
    program.write_text("#!/bin/sh\ncat >/dev/null\necho '<no value>'\n")
    with pytest.raises(CommandFailed, match=NO_KEYS):
        source.fill()
    all_sign_in(db, users, when)
    source.restart_machine()
    with session(db, when()) as conn:
        error = error_of(conn, "SELECT totp_verify(%s, %s)", [users[0], code_at(secret_of(users[0]), when())])
        assert (error.sqlstate, error.diag.message_detail) == ("F0000", "There is no such file.")
        assert health(conn)["master_key"][0] == "fail"
        program.write_text(text)
        source.fill()
        assert sign_in_all(conn, users, when()) == 5


def test_without_a_check_nothing_is_filled(source):
    """If grep itself fails, nothing is known of the keys."""
    program, before = source.bin / "grep", source.key_file.read_bytes()
    program.write_text("#!/bin/sh\ncat >/dev/null\nexit 2\n")
    program.chmod(0o755)
    with pytest.raises(CommandFailed, match=NO_KEYS):
        source.fill()
    assert source.key_file.read_bytes() == before
    program.unlink()


def test_runs_at_once_wait_for_each_other(source):
    """Each makes a key above those of all before it."""
    [key] = source.keys()
    source.shell("totp-key new & totp-key fill & totp-key new & wait; totp-key fill")
    assert len(source.keys()) == 3 and source.keys()[-1] == key
    assert sorted(os.listdir(source.memory)) == ["totp.key"]
    source.shell("totp-key take; totp-key fill", f"{key}\n")


def test_what_does_not_open_replaces_nothing(source):
    """Whatever seal did: the keys that were sealed before are still there."""
    program = source.etc / "seal"
    text, sealed = program.read_text(), (source.etc / "sealed").read_bytes()
    program.write_text("#!/bin/sh\nexec tr 0-9a-f a-f0-9\n")
    for verb, stdin in (("new", ""), ("keep", ""), ("take", f"{OLD}\n")):
        with pytest.raises(CommandFailed):
            source.shell(f"totp-key {verb}", stdin)
        assert (source.etc / "sealed").read_bytes() == sealed
    program.write_text(text)
    source.fill()


@only_host_key
@pytest.mark.parametrize("template", WRITTEN.values(), ids=WRITTEN)
def test_every_file_that_the_server_reads_is_taken(source, template):
    """What is sealed is the keys alone, in their order."""
    [key] = source.keys()
    text = template.replace("{key}", key).replace("{KEY}", key.upper())
    keys = [line.split("#")[0].strip() for line in text.splitlines()]
    try:
        source.shell("totp-key take; totp-key fill", text)
        assert source.key_file.read_text() == "".join(f"{one}\n" for one in keys if one)
    finally:
        source.shell("totp-key take; totp-key fill", f"{key}\n")


@only_host_key
@pytest.mark.parametrize("name", ["empty", "white space", "comments only", "truncated", "too long", "twice in a line", "two in a line", "spaces inside",
                                  "second line bad", "second line short", "full-width digits", "BOM", "quoted", "comma"])
def test_what_the_server_does_not_read_is_not_taken(source, name):
    sealed = (source.etc / "sealed").read_bytes()
    with pytest.raises(CommandFailed, match=NO_KEYS):
        source.shell("totp-key take", SPOILED[name])
    assert (source.etc / "sealed").read_bytes() == sealed


def test_a_folder_on_a_disk_is_not_filled(source):
    program, folder = source.bin / "totp-key", source.disk / "run"
    text = program.read_text()
    folder.mkdir()
    program.write_text(text.replace(str(source.memory), str(folder)))
    with pytest.raises(CommandFailed, match="is not in memory"):
        source.fill()
    assert list(folder.iterdir()) == []
    program.write_text(text)


def test_a_folder_that_is_not_there_is_not_filled(source):
    away = Path(f"{source.memory}.away")
    source.memory.rename(away)
    try:
        with pytest.raises(CommandFailed, match="there is no folder"):
            source.fill()
    finally:
        away.rename(source.memory)


def test_a_key_from_a_file_is_taken_along(source, db, users, when):
    """And back: what the page does with a key file on the disk, which then goes."""
    [key] = source.keys()
    old_file = source.disk / "totp.key"
    try:
        old_file.write_text(f"{key}\n")
        (source.etc / "sealed").unlink()
        source.key_file.unlink()
        source.run("first-from-a-file")
        assert source.keys() == [key]
        old_file.write_text(f"{OLD}\n")
        source.run("first-from-a-file")  # once more: what is sealed stays
    finally:
        old_file.unlink()
    assert source.keys() == [key]
    all_sign_in(db, users, when)


only_tpm = pytest.mark.parametrize("source", [Tpm], ids=["TPM"], indirect=True)


@only_tpm
def test_the_tpm_opens_nothing_in_another_state_of_secure_boot(source, db, users, when):
    """Nor does it ever again; the copy of the key does."""
    [key] = source.keys()
    source.measure("0ff")
    with pytest.raises(CommandFailed):
        source.fill()
    source.key_file.unlink()
    source.shell("totp-key take; totp-key fill", f"{key}\n")
    assert source.keys() == [key]
    all_sign_in(db, users, when)
    source.away()  # which starts with the state of before
    source.back()
    with pytest.raises(CommandFailed):
        source.fill()
    source.shell("totp-key take; totp-key fill", f"{key}\n")


@only_tpm
def test_another_tpm_opens_nothing(source):
    before = source.key_file.read_bytes()
    source.away()
    source.state.rename(source.disk / "other")
    source.state.mkdir()
    source.back()
    with pytest.raises(CommandFailed):
        source.fill()
    source.away()
    source.state.rename(source.disk / "second")
    (source.disk / "other").rename(source.state)
    source.back()
    source.fill()
    assert source.key_file.read_bytes() == before


@only_host_key
def test_the_search_sees_each_form(source):
    """Wherever in a file it stands."""
    [key] = source.keys()
    planted = source.disk / "planted"
    planted.mkdir()
    forms = {form: b"before " + content + b" after" for form, content in written_forms(key).items()}
    assert len(forms) == 12
    texts = {f"base64 of hex, {before}": base64.b64encode(b"x" * before + f"{key}\n".encode()) for before in range(3)}
    lines = {name: base64.encodebytes(base64.b64decode(content)) for name, content in texts.items()}
    for written in (forms, texts, lines):
        for name, content in written.items():
            (planted / name).write_bytes(content)
        assert {found for found in found_on_disk(planted, {key})} >= {(name, name) for name in written}
    shutil.rmtree(planted)


def test_no_key_is_in_an_argument_or_in_the_environment(source):
    """Each program that the script and the recipe call by its name notes, in memory, with what it was called."""
    [key] = source.keys()
    watched, noted = source.disk / "watched", source.memory / "noted"
    watched.mkdir()
    (watched / "watch").write_text(WATCH.format(noted=noted, first=source.bin))
    (watched / "watch").chmod(0o755)
    for name in {path.name for folder in ("/usr/bin", "/bin") for path in Path(folder).iterdir()} - {"watch"}:
        (watched / name).symlink_to("watch")
    source.environment["PATH"] = f"{watched}:{source.bin}:{PROGRAMS}"
    try:
        for planted in ('id "$key" || true', "export key; id"):  # this would be seen
            source.shell(f"read -r key; {planted}", f"{key}\n")
            assert key.encode() in noted.read_bytes()
            noted.unlink()
        source.shell("totp-key new; totp-key fill; totp-key keep; totp-key fill")
        source.shell("totp-key take; totp-key fill", f"{key}\n")
        called = {line.removeprefix("called ") for line in noted.read_text().splitlines() if line.startswith("called ")}
        assert called >= {"flock", "grep", "head", "mv", "openssl", "sed", "sync", *source.programs}
        for form, written in ((form, written) for made in source.made for form, written in written_forms(made).items()):
            assert written not in noted.read_bytes(), form
    finally:
        del source.environment["PATH"]
        shutil.rmtree(watched)
        noted.unlink(missing_ok=True)


def test_no_key_is_on_a_disk(source, db, users, when):
    """Neither one of this test nor one of those before it: in no file of the server and of the recipe."""
    change_master_key(source, db)
    all_sign_in(db, users, when)
    source.cluster.psql("CHECKPOINT")
    temporary = Path(source.shell("mktemp").strip())
    places = {name for name, _ in places_on_disk(source.cluster.folder)}
    assert {"log", "data/pg_wal", "data/global/pg_control", "disk/etc/sealed", str(temporary.relative_to(source.cluster.folder))} <= places
    assert len(source.made) >= 2
    assert found_on_disk(source.cluster.folder, source.made) == []
    assert {form for _, form in found_on_disk(source.memory, source.made)} == {"hex"}
