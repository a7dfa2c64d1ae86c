"""The key file: which files are accepted, and what the error says of others. Changes of the file: test_new_master_key.py."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest
from key_files import K1, SPOILED, WRITTEN
from master_keys import FIX, nothing_told
from server import PATIENCE_SECONDS, SERVER_USER, wait_until
from totp import NOON, code_at, enroll, error_of, fix_clock, verify

AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root gives a file away")


@pytest.fixture(scope="module")
def server(make_module_cluster):
    """A server whose key file the tests of this module spoil, and put right again."""
    return make_module_cluster()


@pytest.fixture(scope="module")
def db(server):
    return server.create_database()


@pytest.fixture(scope="module")
def good_key(server):
    return server.key_file.read_text()


@pytest.fixture
def key_file(server, good_key):
    """The path of the key file, put right again afterwards."""
    yield server.key_file
    if server.key_file.is_dir() and not server.key_file.is_symlink():
        server.key_file.rmdir()
    elif os.path.lexists(server.key_file):
        server.key_file.unlink()
    server.write_key_file(good_key)


@pytest.fixture(scope="module")
def alice(db, good_key):
    """An enrolled user; its secret. Every test takes a later time, so that no code is given twice."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        assert verify(conn, "alice", code_at(secret, NOON)) is True
    return secret


@pytest.fixture
def later(_times=iter(range(1, 10_000))):
    return NOON + timedelta(minutes=5 * next(_times))


def refused(db, later, secret, *secret_texts):
    """Every function that needs the key ends in F0000 with a HINT; nothing is charged, nothing is used up."""
    with closing(db.connect()) as conn:
        fix_clock(conn, later)
        counters = "SELECT a::text, u::text FROM totp.attempts a JOIN totp.used_codes u USING (user_id)"
        before = conn.execute(counters).fetchall()
        for query in ("SELECT totp_verify('alice', %(right)s)", "SELECT totp_verify('alice', '000000')", "SELECT * FROM totp_check('alice', %(right)s)",
                      "SELECT * FROM totp_enroll('bob')"):
            error = error_of(conn, query, {"right": code_at(secret, later)})
            assert error.sqlstate == "F0000" and error.diag.message_hint, query
            nothing_told(error, *secret_texts)
        assert conn.execute(counters).fetchall() == before
        assert conn.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
        assert conn.execute("SELECT state FROM totp_status('alice')").fetchone() == ("active",)
        assert conn.execute("SELECT master_key_loaded FROM totp_keys()").fetchone() == (False,)
        return error


def taken(db, later, secret):
    with closing(db.connect()) as conn:
        fix_clock(conn, later)
        assert verify(conn, "alice", code_at(secret, later)) is True
        assert conn.execute("SELECT master_key_loaded FROM totp_keys()").fetchone() == (True,)


# --- The content of the file --------------------------------------------------------------------


@pytest.mark.parametrize("content", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_file_is_refused(server, db, alice, key_file, later, content):
    server.write_key_file(content)
    refused(db, later, alice, content)


def test_a_file_that_is_not_utf8_is_refused(server, db, alice, key_file, later):
    server.write_key_file("x")
    key_file.write_bytes(K1.encode() + b"\n# \xff\xfe\n")
    refused(db, later, alice, K1)


@pytest.mark.parametrize("template", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_good_file_is_taken(server, db, alice, good_key, key_file, later, template):
    key = good_key.strip()
    server.write_key_file(template.replace("{key}", key).replace("{KEY}", key.upper()))
    taken(db, later, alice)


# --- The kind and the rights of the file ------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o500], ids=oct)
def test_a_file_with_these_rights_is_taken(server, db, alice, good_key, key_file, later, mode):
    server.write_key_file(good_key, mode)
    taken(db, later, alice)


@pytest.mark.parametrize("mode", [0o640, 0o440, 0o604, 0o644, 0o660, 0o606, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777, 0o4644], ids=oct)
def test_a_file_with_these_rights_is_refused(server, db, alice, good_key, key_file, later, mode):
    server.write_key_file(good_key, mode)
    refused(db, later, alice, good_key)


@AS_ROOT
@pytest.mark.parametrize("mode, ok", [(0o640, True), (0o440, True), (0o600, False), (0o644, False), (0o444, False), (0o604, False), (0o660, False), (0o650, False), (0o641, False)],
                         ids=lambda value: str(value) if isinstance(value, bool) else oct(value))
def test_a_file_of_root_is_taken_if_at_most_the_group_reads_it(db, alice, key_file, later, good_key, mode, ok):
    os.chown(key_file, 0, SERVER_USER.pw_gid)
    os.chmod(key_file, mode)
    if ok:
        taken(db, later, alice)
    else:
        refused(db, later, alice, good_key)


@AS_ROOT
def test_a_file_of_root_whose_group_is_another_one_cannot_be_read(db, alice, key_file, later):
    """As in Kubernetes without fsGroup."""
    os.chown(key_file, 0, 0)
    os.chmod(key_file, 0o440)
    assert refused(db, later, alice).diag.message_detail == DENIED


@AS_ROOT
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666], ids=oct)
def test_a_file_of_another_user_is_refused(db, alice, key_file, later, good_key, mode):
    os.chown(key_file, 65533, SERVER_USER.pw_gid)
    os.chmod(key_file, mode)
    refused(db, later, alice, good_key)


MISSING, DENIED = "There is no such file.", "The server has no permission to read the file, or to search a directory above it."
UNREADABLE = {  # what is done to the file, as the server's user, and the DETAIL
    "missing": ("rm {file}", MISSING),
    "in a folder that is missing": ("rm {file} && ln -s {folder}/missing/master.key {file}", MISSING),
    "in a file": ("ln -sf {folder}/real.key/master.key {file} && touch {folder}/real.key", MISSING),
    "a link to nothing": ("ln -sf missing.key {file}", MISSING),
    "not readable": ("chmod 200 {file}", DENIED),
    "in a folder that may not be searched": ("mkdir -p {folder}/closed && ln -sf {folder}/closed/master.key {file} && chmod 600 {folder}/closed", DENIED),
    "a link to itself": ("ln -sf master.key {file}", "The server cannot read the file."),
}


@pytest.mark.parametrize("change, detail", UNREADABLE.values(), ids=UNREADABLE)
def test_a_missing_file_is_told_from_one_that_cannot_be_read(server, db, alice, key_file, later, change, detail):
    server.run("sh", "-c", change.format(file=key_file, folder=server.folder))
    refused(db, later, alice)
    with closing(db.connect()) as conn:
        error = error_of(conn, "SELECT totp_enroll('bob')")
        assert (error.diag.message_primary, error.diag.message_detail) == ("master key file is not valid", detail)
        nothing_told(error)
        told = conn.execute("SELECT status, detail FROM totp_health() WHERE check_name = 'master_key'").fetchone()
        assert told == ("fail", f"master key file is not valid: {detail} {FIX}")


def test_a_directory_is_refused(server, db, alice, key_file, later):
    key_file.unlink()
    server.run("mkdir", "-m", "700", key_file)
    refused(db, later, alice)


def test_a_fifo_is_refused_without_waiting_for_it(server, db, alice, key_file, later):
    key_file.unlink()
    server.run("mkfifo", "-m", "600", key_file)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(refused, db, later, alice)
        try:
            call.result(timeout=PATIENCE_SECONDS)
        finally:
            if not call.done():  # it waits for a writer: be one, or the test never ends
                os.close(os.open(key_file, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.parametrize("target", ["/dev/null", "/dev/zero", "/dev/urandom", "/nowhere/at/all", "/", "master.key"])
def test_a_link_to_something_that_is_not_a_file_is_refused(server, db, alice, key_file, later, target):
    key_file.unlink()
    server.run("ln", "-s", target, key_file)
    refused(db, later, alice)


def test_a_link_to_a_good_file_is_taken(server, db, alice, good_key, key_file, later):
    server.run("mv", key_file, server.folder / "real.key")
    server.run("ln", "-s", "real.key", key_file)
    taken(db, later, alice)
    server.run("chmod", "644", server.folder / "real.key")
    refused(db, later + timedelta(minutes=1), alice, good_key)
    server.run("rm", server.folder / "real.key")


def test_a_link_into_the_data_directory_is_refused(server, db, alice, good_key, key_file, later):
    server.run("mv", key_file, server.data / "hidden.key")
    server.run("ln", "-s", server.data / "hidden.key", key_file)
    refused(db, later, alice, good_key)
    server.run("rm", server.data / "hidden.key")


@pytest.fixture(scope="module")
def server_with_file_inside(make_module_cluster):
    server = make_module_cluster()
    server.run("ln", "-s", server.data, server.folder / "link")
    return server


@pytest.mark.parametrize("where", ["{data}/master.key", "{data}/base/master.key", "{folder}/link/master.key", "{folder}/../{name}/data/master.key", "master.key", "base/master.key"])
def test_a_file_inside_the_data_directory_is_refused(server_with_file_inside, where):
    """Under whatever name; a relative one is relative to the data directory."""
    server = server_with_file_inside
    path = where.format(data=server.data, folder=server.folder, name=server.folder.name)
    inside = (server.data / path) if not path.startswith("/") else path
    server.run("cp", server.key_file, inside)
    db = server.create_database()
    server.configure(totp__key_file=path)
    server.reload()
    with closing(db.connect()) as conn:
        wait_until(lambda: conn.execute("SHOW totp.key_file").fetchone() == (path,), "the new configuration")
    with closing(db.connect()) as conn:
        error = error_of(conn, "SELECT totp_enroll('alice')")
        assert error.sqlstate == "F0000" and error.diag.message_hint and "data directory" in error.diag.message_detail


# --- The key itself ------------------------------------------------------------------------------------------


def test_a_fingerprint_is_not_part_of_the_key(db, good_key, alice):
    fingerprint = db.value("SELECT master_key FROM totp.data_keys")
    assert len(fingerprint) == 16 and fingerprint not in good_key


def test_a_missing_data_key_is_an_error(make_cluster):
    server = make_cluster()
    db = server.create_database()
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        conn.execute("CREATE TABLE kept AS SELECT * FROM totp.data_keys")
        conn.execute("DELETE FROM totp.data_keys")
    with closing(db.connect()) as conn:  # a session that does not remember the key
        fix_clock(conn, NOON)
        for code in (code_at(secret, NOON), "000000"):
            error = error_of(conn, "SELECT totp_verify('alice', %s)", [code])
            assert error.sqlstate == "XX001" and error.diag.message_hint
        assert conn.execute("SELECT failures FROM totp_status('alice')").fetchone() == (0,)
        conn.execute("INSERT INTO totp.data_keys SELECT * FROM kept")
        assert verify(conn, "alice", code_at(secret, NOON)) is True
