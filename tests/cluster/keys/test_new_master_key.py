"""Moving to a new master key, with backups, a lost key and a broken key file."""

from contextlib import closing
from datetime import timedelta

import pytest
from many_users import AT_ONCE, ONLINE, both_kinds, import_users, keys, open_everything, secret_of, sign_in_all
from master_keys import FIX, MINUTE, NEW, OLD, OTHER, RESTORE, People, all_get_in, fingerprint_of_current, master_keys, reload_and_wait, replace_key_file, tables
from master_keys import db, key_cluster, module_db, people  # noqa: F401 - fixtures
from sessions import session
from totp import NOON, code_at, enroll, error_of, verify

# --- A new master key ------------------------------------------------------------------------------


@both_kinds
def test_users_sign_in_after_a_move_to_a_new_master_key(key_cluster, db, people, rotate):
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


def test_a_rotation_needs_the_old_line(key_cluster, db, people):
    """Nothing is lost: the key is named, and with its line back all goes on, with no restart and no reload."""
    old = fingerprint_of_current(db)
    replace_key_file(key_cluster, f"{NEW}\n")
    before = tables(db)
    with session(db) as conn:
        for query in (AT_ONCE, ONLINE, "SELECT totp_enroll('late')"):
            error = error_of(conn, query)
            assert (error.sqlstate, error.diag.message_primary) == ("F0000", f"sealed under master key {old}, which is not loaded")
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
        assert sign_in_all(conn, people.users, NOON + MINUTE) == 5  # the keys in use stay until a reload
        reload_and_wait(key_cluster, conn)
        error = error_of(conn, "SELECT totp_verify(%s, '123456')", [people.users[0]])
        assert (error.sqlstate, error.diag.message_primary) == ("F0000", f"sealed under master key {old}, which is not loaded")
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


def test_keys_in_the_environment_of_the_server_rotate_too(fresh_cluster):
    """The first one seals, the others open, as in the file."""
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
            assert (error.sqlstate, error.diag.message_hint) == ("25006", "Call it on the primary. Only there can a code be used up and a guess be counted.")
        fresh_cluster.stop()
        standby.promote()
        # Codes of the first two minutes after the promotion may have been used on the old primary.
        assert [sign_in_all(conn, users, NOON + n * MINUTE) for n in (1, 3)] == [0, 5]
        assert open_everything(conn) == (5, 0)
        conn.execute(AT_ONCE)
        assert sign_in_all(conn, users, NOON + 4 * MINUTE) == 5


# --- Backups -----------------------------------------------------------------------------------------


@pytest.fixture
def restore(key_cluster):
    """A function that restores a dump into a new database."""
    made = []

    def restore(dump):
        made.append(key_cluster.create_database(extension=False))
        key_cluster.psql(dump, made[-1].name)
        return made[-1]

    yield restore
    for database in made:
        database.drop()


def test_a_dump_from_before_a_routine_rotation_opens(key_cluster, db, people, restore):
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


def test_a_dump_from_before_a_change_of_the_master_key_needs_the_old_line(key_cluster, db, people, restore):
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
            assert (error.sqlstate, error.diag.message_primary) == ("F0000", f"sealed under master key {old}, which is not loaded")
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


def test_a_dump_of_a_rotation_that_is_half_way_opens(key_cluster, db, people, restore):
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


# --- A broken key file -----------------------------------------------------------------------------------

BROKEN = {  # text, mode, what is said about it
    "empty": ("", 0o600, "There must be at least one key."),
    "only comments": ("# a\n\n#b\n", 0o600, "There must be at least one key."),
    "truncated": (OLD[:63] + "\n", 0o600, "Line 1: A key must be exactly 64 hexadecimal characters."),
    "truncated second line": (f"{NEW}\n{OLD[:10]}", 0o600, "Line 2: A key must be exactly 64 hexadecimal characters."),
    "too long": (OLD + "0\n", 0o600, "Line 1: A key must be exactly 64 hexadecimal characters."),
    "not hexadecimal": ("# key\n" + OLD[:63] + "g\n", 0o600, "Line 2: A key must be exactly 64 hexadecimal characters."),
    "all zero": ("0" * 64, 0o600, "Line 1: A key must not be one digit repeated."),
    "all f": ("fF" * 32, 0o600, "Line 1: A key must not be one digit repeated."),
    "twice": (f"{OLD}\n{OLD.upper()}\n", 0o600, "Line 2: A key must not appear twice."),
    "binary": ("ÿ" * 32, 0o600, "Line 1: A key must be ASCII text."),
    "readable by all": (f"{OLD}\n", 0o644, "Group or others have access. The file must have mode 0600 or less."),
    "readable by the group": (f"{OLD}\n", 0o640, "Group or others have access. The file must have mode 0600 or less."),
    "writable by all": (f"{OLD}\n", 0o602, "Group or others have access. The file must have mode 0600 or less."),
    "unreadable": (f"{OLD}\n", 0o000, "The server has no permission to read the file, or to search a directory above it."),
    "missing": (None, None, "There is no such file."),
}
broken_files = pytest.mark.parametrize("text, mode, rule", BROKEN.values(), ids=BROKEN)


def says_what_is_wrong(error, rule) -> None:
    assert (error.sqlstate, error.diag.message_primary) == ("F0000", "master key file is not valid")
    assert (error.diag.message_detail, error.diag.message_hint) == (rule, FIX)


@broken_files
def test_a_broken_file_stops_a_rotation(key_cluster, db, people, text, mode, rule):
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
def test_a_broken_file_stops_a_new_session(key_cluster, db, people, text, mode, rule):
    """As after a restart: no key is read before a session needs one."""
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
        replace_key_file(key_cluster, f"{OLD}\n")  # right again: neither restart nor reload
        assert sign_in_all(conn, people.users, NOON) == 5


def test_a_broken_file_at_a_reload_stops_new_sessions_only(key_cluster, db, people):
    """Sessions keep the keys in use and a line in the server log says why; new sessions have none."""
    with session(db) as conn:
        assert sign_in_all(conn, people.users, NOON) == 5
        for number, (text, mode, rule) in enumerate(BROKEN.values(), start=1):
            logged = key_cluster.log_end()
            replace_key_file(key_cluster, text, mode)
            reload_and_wait(key_cluster, conn)
            when = NOON + number * MINUTE
            assert sign_in_all(conn, people.users, when) == 5
            enroll(conn, "late")
            [line] = [line for line in key_cluster.log_text(logged).splitlines() if "key_file_ignored" in line]
            assert "event=key_file_ignored" in line and rule.split(": ")[-1] in line
            with session(db) as other:
                says_what_is_wrong(error_of(other, "SELECT totp_verify(%s, '123456')", [people.users[0]]), rule)
        replace_key_file(key_cluster, f"{OLD}\n")
    all_get_in(db, people, NOON + timedelta(hours=1))


@pytest.mark.parametrize("broken", ["empty", "truncated", "readable by all", "missing"])
def test_a_broken_file_at_a_restart_stops_every_session(key_cluster, db, people, broken):
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
def test_another_valid_key_in_the_file_opens_and_seals_nothing(key_cluster, db, people, how):
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
            assert (error.sqlstate, error.diag.message_primary) == ("F0000", f"sealed under master key {old}, which is not loaded")
        assert tables(db) == before
    replace_key_file(key_cluster, f"{OLD}\n")
    all_get_in(db, people, NOON + MINUTE)


def test_what_a_refused_key_file_holds_is_in_no_setting_log_or_message(key_cluster, db, people):
    """The text that earlier tests wrote into the file is not there either."""
    shown = []
    for text, message in [(f"{OLD}0\n", "master key file is not valid"), (f"{NEW}\n{NEW}\n", "master key file is not valid"),
                          (f"{OTHER}\n", "which is not loaded")]:
        logged = key_cluster.log_end()
        replace_key_file(key_cluster, text)
        with session(db) as conn:
            error = error_of(conn, AT_ONCE)
            settings = dict(conn.execute("SELECT name, setting FROM pg_settings WHERE name LIKE 'totp.%'").fetchall())
        assert message in error.diag.message_primary and "totp.max_attempts" in settings
        assert message in key_cluster.log_text(logged)
        shown += [str(error), *settings.values()]
    shown.append(key_cluster.log_text())
    for key in (OLD, NEW, OTHER):
        assert all(key[:32] not in text.lower() for text in shown)
