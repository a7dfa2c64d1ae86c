"""Master keys: moving to a new one, backups, a lost one, and a key file that is broken."""

import secrets
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import pytest
from rotation import NOON, import_users, keys, open_everything, secret_of, session, sign_in_all
from server import wait_until
from totp import code_at, enroll, error_of, verify, wrong_code

AT_ONCE = "SELECT * FROM totp_rotate_key()"
ONLINE = "CALL totp_rotate_key_online(2)"
both_kinds = pytest.mark.parametrize("rotate", [AT_ONCE, ONLINE], ids=["at once", "online"])
RESTORE = "Add that master key again to the file that totp.key_file names, below the current one."
MEND = "Mend the file that totp.key_file names: 64 hexadecimal characters a line, the first is current."
OLD, NEW, OTHER = (secrets.token_hex(32) for _ in range(3))
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def key_cluster(make_module_cluster):
    return make_module_cluster()


@pytest.fixture(scope="module")
def module_db(key_cluster):
    return key_cluster.create_database()


@pytest.fixture
def db(key_cluster, module_db):
    """An empty database on a server whose key file holds OLD. The test writes other key files."""
    replace_key_file(key_cluster, f"{OLD}\n")
    with closing(module_db.connect()) as conn:
        for table in ("data_keys", "secrets", "used_codes", "attempts", "recovery_codes", "audit_log"):
            conn.execute(f"DELETE FROM totp.{table}")
        conn.execute("DELETE FROM totp.floor")
        conn.execute("INSERT INTO totp.floor (floor_at, system_identifier, control_inode, database, timeline, one) VALUES ('-infinity', 0, 0, 0, 0, true)")
    return module_db


@dataclass
class People:
    """Active users whose secrets are those of secret_of(), and the recovery codes of the first."""

    users: list[str]
    recovery_codes: list[str]


@pytest.fixture
def people(db) -> People:
    with session(db) as conn:
        users = import_users(conn, 5)
        return People(users, [code for [code] in conn.execute("SELECT totp_recovery_codes(%s)", [users[0]])])


def master_keys(conn) -> list[tuple[str, str, bool]]:
    """State, fingerprint of the master key and whether that is loaded, of each data key."""
    return conn.execute("SELECT state, master_key, master_key_loaded FROM totp_keys()").fetchall()


def fingerprint_of_current(db) -> str:
    return db.value("SELECT master_key FROM totp.data_keys WHERE state = 'current'")


def all_get_in(db, people, when) -> None:
    with session(db, when) as conn:
        assert sign_in_all(conn, people.users, when) == len(people.users)
        assert conn.execute("SELECT totp_recover(%s, %s)", [people.users[0], people.recovery_codes.pop()]).fetchone() == (True,)
        assert open_everything(conn)[0] >= len(people.users)


def reload_and_wait(cluster, *sessions) -> None:
    """Reload the configuration, until each of these sessions has it."""
    loaded = "SELECT pg_conf_load_time()"
    before = [conn.execute(loaded).fetchone() for conn in sessions]
    cluster.reload()
    for conn, time in zip(sessions, before, strict=True):
        wait_until(lambda: conn.execute(loaded).fetchone() != time, "the session to reload")  # noqa: B023


def tables(db):
    names = ("data_keys", "secrets", "recovery_codes", "used_codes", "attempts", "audit_log")
    with closing(db.connect()) as conn:
        return [conn.execute(f"SELECT t::text FROM totp.{name} t ORDER BY 1").fetchall() for name in names]


def replace_key_file(cluster, text, mode=0o600) -> None:
    """Also one that not even its owner may write; None: leave none there."""
    cluster.run("rm", "-f", cluster.key_file)
    if text is not None:
        cluster.write_key_file(text, mode)


# --- A new master key ------------------------------------------------------------------------------


@both_kinds
def test_moving_to_a_new_master_key(key_cluster, db, people, rotate):
    old = fingerprint_of_current(db)
    replace_key_file(key_cluster, f"# new\n{NEW}\n# until the rotation\n{OLD}\n")
    with session(db) as conn:
        enroll(conn, "late")  # still under the data key of the old one
        assert master_keys(conn) == [("current", old, True)]
        conn.execute(rotate)
        [(state, new, loaded)] = master_keys(conn)
        assert (state, loaded) == ("current", True) and new != old
    replace_key_file(key_cluster, f"{NEW}\n")
    key_cluster.restart()
    with session(db) as conn:
        assert master_keys(conn) == [("current", new, True)]
    all_get_in(db, people, NOON + MINUTE)


def test_sessions_that_are_connected_need_no_restart_and_no_reload(key_cluster, db, people):
    with session(db) as first, session(db) as second, session(db) as third:
        for conn in (first, second, third):
            enroll(conn, "late")  # they have read the key file
        replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
        first.execute(AT_ONCE)
        assert sign_in_all(second, people.users, NOON) == 5
        secret = enroll(third, "later")
        assert verify(third, "later", code_at(secret, NOON)) is True
        assert {loaded for _, _, loaded in master_keys(second)} == {True}


def test_the_old_line_taken_out_before_the_rotation(key_cluster, db, people):
    """Nothing is lost: the key is named, and with its line back all goes on, with no restart and no reload."""
    old = fingerprint_of_current(db)
    replace_key_file(key_cluster, f"{NEW}\n")
    before = tables(db)
    with session(db) as conn:
        for query in (AT_ONCE, ONLINE, "SELECT totp_enroll('late')"):
            error = error_of(conn, query)
            assert (error.sqlstate, error.diag.message_primary) == ("55000", f"sealed under master key {old}, which is not loaded")
            assert error.diag.message_hint == RESTORE
        assert tables(db) == before
        replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
        conn.execute(AT_ONCE)
        assert sign_in_all(conn, people.users, NOON) == 5
    replace_key_file(key_cluster, f"{NEW}\n")
    key_cluster.restart()
    all_get_in(db, people, NOON + MINUTE)


def test_a_key_taken_out_of_the_file_is_gone_from_every_session_after_a_reload(key_cluster, db, people):
    old = fingerprint_of_current(db)
    with session(db) as conn:
        assert sign_in_all(conn, people.users, NOON) == 5
        replace_key_file(key_cluster, f"{NEW}\n")
        assert sign_in_all(conn, people.users, NOON + MINUTE) == 5  # what is in use stays so until a reload
        reload_and_wait(key_cluster, conn)
        error = error_of(conn, "SELECT totp_verify(%s, '123456')", [people.users[0]])
        assert (error.sqlstate, error.diag.message_primary) == ("55000", f"sealed under master key {old}, which is not loaded")
        replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
    all_get_in(db, people, NOON + 2 * MINUTE)


def test_an_online_rotation_that_is_half_way_moves_on_to_a_new_master_key(key_cluster, db, people):
    with session(db) as conn:
        conn.execute("SELECT totp.rotation_begin(1000)")
        assert conn.execute("SELECT * FROM totp.rotation_step(NULL, 2)").fetchone() == (2, people.users[1])
        replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
        conn.execute(ONLINE)
        [(state, new, loaded)] = master_keys(conn)
        assert (state, loaded) == ("current", True)
    replace_key_file(key_cluster, f"{NEW}\n")
    key_cluster.restart()
    assert fingerprint_of_current(db) == new
    all_get_in(db, people, NOON)


def test_keys_in_the_environment_of_the_server(fresh_cluster):
    fresh_cluster.configure(totp__key_file="")
    for number, keys_there in enumerate([OLD, f"{NEW},{OLD}", NEW]):
        fresh_cluster.stop()
        fresh_cluster.start(TOTP_ENCRYPTION_KEY=keys_there)
        if number == 0:
            db = fresh_cluster.create_database()
            with session(db) as conn:
                users = import_users(conn, 5)
        when = NOON + number * MINUTE
        with session(db, when) as conn:
            assert sign_in_all(conn, users, when) == 5
            if number == 1:
                conn.execute(AT_ONCE)
                assert len(master_keys(conn)) == 1


def test_a_promoted_standby_knows_the_new_keys(fresh_cluster, make_standby):
    """A standby has the key file too, here the very same; what a rotation wrote comes with the WAL."""
    fresh_cluster.write_key_file(f"{OLD}\n")
    db = fresh_cluster.create_database()
    with session(db) as conn:
        users = import_users(conn, 5)
    standby = make_standby(fresh_cluster)
    fresh_cluster.write_key_file(f"{NEW}\n{OLD}\n")
    with session(db) as conn:
        conn.execute(AT_ONCE)
        conn.execute(ONLINE)
        expected = keys(conn), master_keys(conn)
    fresh_cluster.write_key_file(f"{NEW}\n")
    standby.wait_for_replay(fresh_cluster)
    with closing(standby.connect(db.name)) as conn:
        assert (keys(conn), master_keys(conn)) == expected
        for query in (AT_ONCE, "CALL totp_rotate_key_online()"):
            error = error_of(conn, query)
            assert (error.sqlstate, error.diag.message_hint) == ("25006", "Call it on the primary: a code is used up and a guess is counted there.")
        fresh_cluster.stop()
        standby.promote()
        # Codes of the first minute after the promotion may have been used on the old primary.
        assert [sign_in_all(conn, users, NOON + n * MINUTE) for n in (1, 3)] == [0, 5]
        assert open_everything(conn) == (5, 0)
        conn.execute(AT_ONCE)
        assert sign_in_all(conn, users, NOON + 4 * MINUTE) == 5


# --- Backups -----------------------------------------------------------------------------------------


@pytest.fixture
def restore(key_cluster):
    """A function that restores a dump into a database of its own."""
    made = []

    def restore(dump):
        made.append(key_cluster.create_database(extension=False))
        key_cluster.psql(dump, made[-1].name)
        return made[-1]

    yield restore
    for database in made:
        database.drop()


def test_a_dump_from_before_a_routine_rotation(key_cluster, db, people, restore):
    dump = key_cluster.client("pg_dump", db.name)
    with session(db) as conn:
        conn.execute(AT_ONCE)
        conn.execute(ONLINE)
    copy = restore(dump)
    with session(copy) as conn:
        # Codes of the first minute of this database may have been used in the one that was dumped.
        assert [sign_in_all(conn, people.users, NOON + n * MINUTE) for n in (1, 3)] == [0, 5]
        assert conn.execute("SELECT totp_recover(%s, %s)", [people.users[0], people.recovery_codes[0]]).fetchone() == (True,)
        secret = enroll(conn, "late")
        assert verify(conn, "late", code_at(secret, NOON + 3 * MINUTE)) is True
        [(before, _)] = keys(conn)
        conn.execute(AT_ONCE)
        assert keys(conn) == [(before + 1, "current")]  # the sequences came along
        assert open_everything(conn) == (6, 1)
    all_get_in(db, people, NOON + MINUTE)


def test_a_dump_from_before_a_change_of_the_master_key(key_cluster, db, people, restore):
    """Restored after it, it asks for the old line by name; with that it opens, and one rotation later the line can go again."""
    old = fingerprint_of_current(db)
    dump = key_cluster.client("pg_dump", db.name)
    replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
    with session(db) as conn:
        conn.execute(AT_ONCE)
    replace_key_file(key_cluster, f"{NEW}\n")
    new = fingerprint_of_current(db)

    copy = restore(dump)
    with session(copy) as conn:
        assert master_keys(conn) == [("current", old, False)]
        for user in people.users:
            error = error_of(conn, "SELECT totp_verify(%s, %s)", [user, code_at(secret_of(user), NOON)])
            assert (error.sqlstate, error.diag.message_primary) == ("55000", f"sealed under master key {old}, which is not loaded")
            assert error.diag.message_hint == RESTORE
        assert conn.execute("SELECT sum(failures) FROM totp.attempts").fetchone() == (0,)
        replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
        # Codes of the first minute of this database may have been used in the one that was dumped.
        assert [sign_in_all(conn, people.users, NOON + n * MINUTE) for n in (1, 3)] == [0, 5]
        conn.execute(AT_ONCE)
        assert master_keys(conn) == [("current", new, True)]
    replace_key_file(key_cluster, f"{NEW}\n")
    key_cluster.restart()
    for database in (db, copy):
        all_get_in(database, People(people.users, list(people.recovery_codes)), NOON + 4 * MINUTE)


def test_a_dump_of_a_rotation_that_is_half_way(key_cluster, db, people, restore):
    with session(db) as conn:
        conn.execute("SELECT totp.rotation_begin(1000)")
        conn.execute("SELECT totp.rotation_step(NULL, 2)")
    copy = restore(key_cluster.client("pg_dump", db.name))
    with session(copy) as conn:
        assert [state for _, state in keys(conn)] == ["retiring", "current"]
        assert open_everything(conn) == (5, 1)
        conn.execute(ONLINE)
        assert [state for _, state in keys(conn)] == ["current"]
        assert open_everything(conn) == (5, 1)


# --- A lost master key --------------------------------------------------------------------------------


@pytest.fixture
def lost(key_cluster, db):
    """A session after the loss of OLD: "alice" is active, with recovery codes, "bob" is pending. What they had, and the fingerprint."""
    with session(db) as conn:
        had = {"alice": enroll(conn, "alice"), "bob": enroll(conn, "bob")}
        assert verify(conn, "alice", code_at(had["alice"], NOON - MINUTE / 2)) is True
        [had["recovery code"], *_] = [code for [code] in conn.execute("SELECT totp_recovery_codes('alice')")]
        assert verify(conn, "alice", wrong_code(code_at(had["alice"], NOON))) is False
    fingerprint = fingerprint_of_current(db)
    replace_key_file(key_cluster, f"{NEW}\n")
    with session(db) as conn:
        yield conn, had, fingerprint


NEED_THE_KEY = [
    "SELECT totp_verify('alice', %(alice)s)",
    "SELECT totp_verify('alice', %(alice)s, 'default')",
    "SELECT totp_verify('alice', %(wrong)s)",
    "SELECT * FROM totp_check('alice', %(alice)s)",
    "SELECT * FROM totp_check('alice', %(wrong)s)",
    "SELECT totp_verify('bob', %(bob)s)",
    "SELECT totp_confirm('bob', %(bob)s)",
    "SELECT totp_recover('alice', %(recovery code)s)",
    "SELECT totp_recover('alice', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')",
    "SELECT totp_enroll('alice')",
    "SELECT totp_enroll('carol')",
    "SELECT totp_import('alice', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')",
    "SELECT totp_import('carol', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')",
    "SELECT totp_reset('alice')",
    "SELECT totp_recovery_codes('alice')",
    "SELECT totp_rename_user('alice', 'carol')",
    "SELECT totp_export()",
    AT_ONCE,
    ONLINE,
    "SELECT totp.rotation_begin(1000)",
    "SELECT totp.rotation_step(NULL, 10)",
]


@pytest.mark.parametrize("query", NEED_THE_KEY)
def test_whatever_needs_the_lost_key_names_it_and_changes_nothing(db, lost, query):
    conn, had, fingerprint = lost
    arguments = {"alice": code_at(had["alice"], NOON), "bob": code_at(had["bob"], NOON), "wrong": wrong_code(code_at(had["alice"], NOON))}
    before = tables(db)
    error = error_of(conn, query, {**had, **arguments})
    assert error.sqlstate == "55000"
    assert error.diag.message_primary == f"sealed under master key {fingerprint}, which is not loaded"
    assert error.diag.message_hint == RESTORE
    assert tables(db) == before


def test_what_works_without_the_lost_key(lost):
    conn, _, fingerprint = lost
    assert conn.execute("SELECT totp_enabled('alice'), totp_enabled('bob')").fetchone() == (True, False)
    assert conn.execute("SELECT state, failures, recovery_codes_left FROM totp_status('alice')").fetchone() == ("active", 1, 10)
    assert master_keys(conn) == [("current", fingerprint, False)]
    health = dict(conn.execute("SELECT check_name, status || ': ' || detail FROM totp_health()").fetchall())
    assert health["lost_master_key"].startswith("fail: 2 secrets are sealed under master key " + fingerprint)
    assert conn.execute("SELECT totp_unlock('alice')").fetchone() == (True,)
    assert conn.execute("SELECT totp_disable('alice')").fetchone() == (1,)
    assert conn.execute("SELECT totp_enable('alice')").fetchone() == (1,)
    assert conn.execute("SELECT reason FROM totp_check('nobody', '123456')").fetchone() == ("not_enrolled",)
    assert conn.execute("SELECT totp_remove('bob')").fetchone() == (1,)


def test_the_lost_key_is_found_again(key_cluster, lost):
    conn, had, _ = lost
    assert error_of(conn, "SELECT totp_verify('alice', %s)", [code_at(had["alice"], NOON)]).sqlstate == "55000"
    replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
    assert verify(conn, "alice", code_at(had["alice"], NOON)) is True
    assert conn.execute("SELECT totp_recover('alice', %(recovery code)s)", had).fetchone() == (True,)
    assert conn.execute("SELECT totp_confirm('bob', %s)", [code_at(had["bob"], NOON)]).fetchone() == (True,)


# --- totp_forget_unreadable ----------------------------------------------------------------------------

FORGET = "SELECT user_id, device FROM totp_forget_unreadable(%s)"


def test_forget_removes_what_cannot_be_opened_and_nothing_else(key_cluster, db):
    """The master key was changed by an online rotation that never ended, and the old one is gone."""
    names = ("active", "both", "devices", "moved", "pending", "staged")
    with session(db) as conn:
        had = {}
        for name in names:
            had[name] = enroll(conn, name)
            if name != "pending":
                assert verify(conn, name, code_at(had[name], NOON - MINUTE / 2)) is True
            conn.execute("SELECT totp_recovery_codes(%s)", [name])
        staged_before = enroll(conn, "staged")
        replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
        conn.execute("SELECT totp.rotation_begin(1000)")
        [(old_key, _), (new_key, _)] = keys(conn)
        old = conn.execute("SELECT master_key FROM totp_keys() WHERE state = 'retiring'").fetchone()[0]
        # "moved" went over with all that it has.
        with session(db) as others:
            others.execute("BEGIN")
            others.execute("SELECT FROM totp.attempts WHERE user_id <> 'moved' FOR UPDATE")
            assert conn.execute("SELECT moved FROM totp.rotation_step(NULL, 100)").fetchone() == (1,)
            others.execute("ROLLBACK")
        # "both": the active secret is under the old key, the staged one under the new. "devices": one device each, and new recovery codes.
        staged_after = enroll(conn, "both")
        tablet = enroll(conn, "devices", device="tablet")
        assert verify(conn, "devices", code_at(tablet, NOON - MINUTE / 2), "tablet") is True
        [recovery_code, *_] = [code for [code] in conn.execute("SELECT totp_recovery_codes('devices')")]
        # "staged": the active secret went over and the staged one did not.
        conn.execute("""UPDATE totp.secrets SET key_id = %s, sealed = totp.reseal(user_id, device, secret_id, algorithm, digits, period, sealed, %s)
                         WHERE user_id = 'staged' AND slot = 'active'""", [new_key, new_key])
    replace_key_file(key_cluster, f"{NEW}\n")
    with session(db) as conn:
        conn.execute("SET totp.actor = 'ops:7'")
        forgotten = conn.execute(FORGET, [old]).fetchall()
        assert forgotten == [("active", "default"), ("active", None), ("both", "default"), ("both", None), ("devices", "default"),
                             ("pending", "default"), ("pending", None), ("staged", "default"), ("staged", None)]
        audited = conn.execute("SELECT user_id, device, actor, at, detail FROM totp.audit_log WHERE event = 'unreadable_forgotten' ORDER BY id").fetchall()
        assert audited == [(user, device, "ops:7", NOON, {"master_key": old}) for user, device in forgotten]
        assert keys(conn) == [(new_key, "current")]

        left = conn.execute("SELECT user_id, device, slot FROM totp.secrets ORDER BY 1, 2, 3").fetchall()
        assert left == [("both", "default", "pending"), ("devices", "tablet", "active"), ("moved", "default", "active"), ("staged", "default", "active")]
        assert conn.execute("SELECT user_id FROM totp.recovery_codes ORDER BY 1").fetchall() == [("devices",), ("moved",)]
        orphans = """SELECT count(*) FROM totp.used_codes u WHERE NOT EXISTS (SELECT FROM totp.secrets s WHERE s.secret_id = u.secret_id)
                       AND NOT EXISTS (SELECT FROM totp.recovery_codes r WHERE r.set_id = u.secret_id)"""
        assert conn.execute(orphans).fetchone() == (0,)
        assert open_everything(conn) == (4, 2)
        for name, secret, device in [("both", staged_after, None), ("devices", tablet, "tablet"), ("moved", had["moved"], None), ("staged", had["staged"], None)]:
            assert verify(conn, name, code_at(secret, NOON), device) is True
        assert conn.execute("SELECT totp_recover('devices', %s)", [recovery_code]).fetchone() == (True,)
        for name, secret in [("active", had["active"]), ("pending", had["pending"]), ("staged", staged_before)]:
            assert verify(conn, name, code_at(secret, NOON + MINUTE / 2)) is False
        for name in ("active", "pending"):
            secret = enroll(conn, name)
            assert verify(conn, name, code_at(secret, NOON)) is True
        conn.execute(ONLINE)
        assert open_everything(conn) == (6, 2)
        assert conn.execute("SELECT count(*) FROM totp_health() WHERE check_name IN ('rows', 'data_keys', 'lost_master_key') AND status = 'ok'").fetchone() == (3,)


def test_forget_everything_and_start_anew(db, lost):
    conn, had, fingerprint = lost
    assert conn.execute(FORGET, [fingerprint]).fetchall() == [("alice", "default"), ("alice", None), ("bob", "default")]
    assert keys(conn) == []
    assert conn.execute("SELECT reason FROM totp_check('alice', %s)", [code_at(had["alice"], NOON)]).fetchone() == ("not_enrolled",)
    assert conn.execute("SELECT totp_recover('alice', %(recovery code)s)", had).fetchone() == (False,)
    secret = enroll(conn, "alice")
    assert verify(conn, "alice", code_at(secret, NOON)) is True
    [(state, new, loaded)] = master_keys(conn)
    assert (state, loaded) == ("current", True) and new != fingerprint


def test_a_rolled_back_forget_never_was(db, lost, key_cluster):
    conn, had, fingerprint = lost
    before = tables(db)
    conn.execute("BEGIN")
    assert len(conn.execute(FORGET, [fingerprint]).fetchall()) == 3
    conn.execute("ROLLBACK")
    assert tables(db) == before
    replace_key_file(key_cluster, f"{NEW}\n{OLD}\n")
    assert verify(conn, "alice", code_at(had["alice"], NOON)) is True


@pytest.mark.parametrize("name", ["0123456789abcdef", "", "no fingerprint", "0123456789ABCDEF' OR '1'='1", None])
def test_forget_refuses_a_key_that_is_unknown(db, lost, name):
    before = tables(db)
    error = error_of(lost[0], FORGET, [name])
    assert error.sqlstate == "22023"
    if name is not None:
        assert error.diag.message_primary == "master key is loaded, or no data key was ever wrapped by it"
        assert error.diag.message_hint == "Name a fingerprint that totp_keys() shows as not loaded."
    assert tables(db) == before


@pytest.mark.parametrize("text", [f"{OLD}\n", f"{NEW}\n{OLD}\n", f"{OLD}\n{NEW}\n"], ids=["alone", "second", "first"])
def test_forget_refuses_a_key_that_is_in_the_file(key_cluster, db, lost, text):
    conn, had, fingerprint = lost
    assert error_of(conn, "SELECT totp_verify('alice', '000000')").sqlstate == "55000"  # the session has not read it yet
    replace_key_file(key_cluster, text)
    before = tables(db)
    assert error_of(conn, FORGET, [fingerprint]).sqlstate == "22023"
    assert tables(db) == before
    assert verify(conn, "alice", code_at(had["alice"], NOON)) is True


@pytest.mark.parametrize("text", ["", "# nothing\n", OLD[:63], None], ids=["empty", "comment", "truncated", "missing"])
def test_forget_refuses_where_no_key_is_loaded(key_cluster, db, lost, text):
    """Else a broken file would be taken for a lost key, and everything removed."""
    conn, _, fingerprint = lost
    replace_key_file(key_cluster, text)
    before = tables(db)
    assert error_of(conn, FORGET, [fingerprint]).sqlstate == "F0000"
    assert tables(db) == before


def test_forget_is_for_the_owner(db, lost):
    _, _, fingerprint = lost
    with closing(db.connect(user=db.create_role("admin"))) as conn:
        assert error_of(conn, FORGET, [fingerprint]).sqlstate == "42501"


# --- A broken key file -----------------------------------------------------------------------------------

BROKEN = {  # text, mode, what is said about it
    "empty": ("", 0o600, "there must be at least one key"),
    "only comments": ("# a\n\n#b\n", 0o600, "there must be at least one key"),
    "truncated": (OLD[:63] + "\n", 0o600, "line 1: a key must be exactly 64 hexadecimal characters"),
    "truncated second line": (f"{NEW}\n{OLD[:10]}", 0o600, "line 2: a key must be exactly 64 hexadecimal characters"),
    "too long": (OLD + "0\n", 0o600, "line 1: a key must be exactly 64 hexadecimal characters"),
    "not hexadecimal": ("# key\n" + OLD[:63] + "g\n", 0o600, "line 2: a key must be exactly 64 hexadecimal characters"),
    "all zero": ("0" * 64, 0o600, "line 1: a key must not be one digit repeated"),
    "all f": ("fF" * 32, 0o600, "line 1: a key must not be one digit repeated"),
    "twice": (f"{OLD}\n{OLD.upper()}\n", 0o600, "line 2: a key must not be there twice"),
    "binary": ("ÿ" * 32, 0o600, "line 1: a key must be ASCII text"),
    "readable by all": (f"{OLD}\n", 0o644, "group or others have access: it must have mode 0600 or less"),
    "readable by the group": (f"{OLD}\n", 0o640, "group or others have access: it must have mode 0600 or less"),
    "writable by all": (f"{OLD}\n", 0o602, "group or others have access: it must have mode 0600 or less"),
    "unreadable": (f"{OLD}\n", 0o000, "the file cannot be read"),
    "missing": (None, None, "the file cannot be read"),
}
broken_files = pytest.mark.parametrize("text, mode, rule", BROKEN.values(), ids=BROKEN)


def says_what_is_wrong(error, rule) -> None:
    assert (error.sqlstate, error.diag.message_primary) == ("F0000", "master key file is not valid")
    assert (error.diag.message_detail, error.diag.message_hint) == (rule, MEND)


@broken_files
def test_a_broken_file_at_the_start_of_a_rotation(key_cluster, db, people, text, mode, rule):
    with session(db) as conn:
        assert sign_in_all(conn, people.users, NOON) == 5
        before = tables(db)
        replace_key_file(key_cluster, text, mode)
        for rotate in (AT_ONCE, ONLINE):
            says_what_is_wrong(error_of(conn, rotate), rule)
        assert tables(db) == before
        assert sign_in_all(conn, people.users, NOON + MINUTE) == 5  # with the key in use
    replace_key_file(key_cluster, f"{OLD}\n")
    all_get_in(db, people, NOON + 2 * MINUTE)


@broken_files
def test_a_broken_file_in_a_new_session(key_cluster, db, people, text, mode, rule):
    """As after a restart, which reads no key before a session needs one."""
    before = tables(db)
    replace_key_file(key_cluster, text, mode)
    user = people.users[0]
    with session(db) as conn:
        for query in ("SELECT totp_verify(%s, '123456')", "SELECT * FROM totp_check(%s, '123456')", "SELECT totp_enroll(%s)",
                      "SELECT totp_recover(%s, 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')", "SELECT totp_reset(%s)", "SELECT totp_recovery_codes(%s)"):
            says_what_is_wrong(error_of(conn, query, [user]), rule)
        for rotate in (AT_ONCE, ONLINE):
            says_what_is_wrong(error_of(conn, rotate), rule)
        assert tables(db) == before
        assert [loaded for _, _, loaded in master_keys(conn)] == [False]
        replace_key_file(key_cluster, f"{OLD}\n")  # mended: neither restart nor reload
        assert sign_in_all(conn, people.users, NOON) == 5


def test_every_broken_file_at_a_reload(key_cluster, db, people):
    """Sessions keep the keys in use and a line in the server log says why; new sessions have none."""
    with session(db) as conn:
        assert sign_in_all(conn, people.users, NOON) == 5
        for number, (text, mode, rule) in enumerate(BROKEN.values(), start=1):
            logged = len(key_cluster.log_text())
            replace_key_file(key_cluster, text, mode)
            reload_and_wait(key_cluster, conn)
            when = NOON + number * MINUTE
            assert sign_in_all(conn, people.users, when) == 5
            [line] = [line for line in key_cluster.log_text()[logged:].splitlines() if "key_file_ignored" in line]
            assert "event=key_file_ignored" in line and rule.split(": ")[-1] in line
            with session(db) as other:
                says_what_is_wrong(error_of(other, "SELECT totp_verify(%s, '123456')", [people.users[0]]), rule)
        replace_key_file(key_cluster, f"{OLD}\n")
    all_get_in(db, people, NOON + timedelta(hours=1))


@pytest.mark.parametrize("broken", ["empty", "truncated", "readable by all", "missing"])
def test_a_broken_file_at_a_restart(key_cluster, db, people, broken):
    text, mode, rule = BROKEN[broken]
    before = tables(db)
    replace_key_file(key_cluster, text, mode)
    key_cluster.restart()
    with session(db) as conn:
        says_what_is_wrong(error_of(conn, "SELECT totp_verify(%s, '123456')", [people.users[0]]), rule)
        says_what_is_wrong(error_of(conn, AT_ONCE), rule)
    assert tables(db) == before
    replace_key_file(key_cluster, f"{OLD}\n")
    all_get_in(db, people, NOON)


@pytest.mark.parametrize("how", ["reload", "restart", "rotation"])
def test_another_valid_key_in_the_file(key_cluster, db, people, how):
    """Valid, but the wrong one: it is named as missing, and nothing is sealed under the other one."""
    old = fingerprint_of_current(db)
    with session(db) as conn:
        assert sign_in_all(conn, people.users, NOON) == 5
        before = tables(db)
        replace_key_file(key_cluster, f"{OTHER}\n")
        if how == "reload":
            reload_and_wait(key_cluster, conn)
        if how == "restart":
            key_cluster.restart()
    with session(db, NOON + MINUTE) as conn:
        queries = [AT_ONCE, ONLINE, "SELECT totp_enroll('late')", "SELECT totp_verify('user-000000', '123456')"]
        for query in queries:
            error = error_of(conn, query)
            assert (error.sqlstate, error.diag.message_primary) == ("55000", f"sealed under master key {old}, which is not loaded")
        assert tables(db) == before
    replace_key_file(key_cluster, f"{OLD}\n")
    all_get_in(db, people, NOON + MINUTE)


def test_no_key_in_any_setting_log_or_message(key_cluster, db, people):
    """Of all that went wrong in this module."""
    shown = db.execute("SELECT name, setting FROM pg_settings WHERE name LIKE 'totp.%'")
    text = key_cluster.log_text().lower()
    for key in (OLD, NEW, OTHER):
        assert all(key not in setting for _, setting in shown)
        assert key not in text and key[:32] not in text
