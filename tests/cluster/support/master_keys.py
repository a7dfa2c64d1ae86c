"""Fixtures for a server whose key file the tests rewrite, and users on it."""

import secrets
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import pytest
from many_users import import_users, open_everything, sign_in_all
from server import wait_until
from sessions import session
from totp import recovery_codes

RESTORE = "Add that master key again to the file that totp.key_file names, below the current one."
FIX = "Fix the file that totp.key_file names: one key of 64 hexadecimal characters per line, current key first."
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
    module_db.empty()
    module_db.execute("DELETE FROM totp.data_keys")
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
        return People(users, recovery_codes(conn, users[0]))


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


def nothing_told(error, *secret_texts):
    """The error names no file and no part of a key."""
    told = " ".join(filter(None, [error.diag.message_primary, error.diag.message_detail, error.diag.message_hint, error.diag.context]))
    assert "/" not in told.replace("PL/pgSQL", "") and "master.key" not in told
    for text in secret_texts:
        for i in range(0, max(len(text.strip()) - 8, 0)):
            part = text.strip()[i : i + 8]
            assert not (set(part) <= set("0123456789abcdefABCDEF") and len(set(part)) > 1) or part not in told
