"""pg_upgrade from an older PostgreSQL to the one that PG_CONFIG names.

It needs both with pg_totp, so `make test` leaves it out: tests/run-pg-upgrade runs it. OLD_BIN names the programs of the older.
"""

import os
import re
import subprocess
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from catalog import catalog
from documents import block_with
from population import MADE_FOR, NEXT, NOON, Population, check_everyone, populate, rows
from server import BIN, Cluster, Database
from totp import check, code_at, enroll, error_of, fix_clock, verify
from trail import deviations, seal_all, verify_trail

COUNTERS = "SELECT ctid::text, c::text FROM totp.counters AS c"
OLD_BIN = Path(os.environ["OLD_BIN"])
OLD_MAJOR = int(subprocess.run([OLD_BIN / "pg_config", "--version"], check=True, text=True, capture_output=True).stdout.split()[1].split(".")[0])
RELEASES = [release for release, majors in MADE_FOR.items() if OLD_MAJOR in majors]


@pytest.fixture(scope="module", params=["copy", "link"])
def upgraded(request):
    """The server after the upgrade, and what was in the old one. All that users did there, they did at noon."""
    old, new = Cluster(OLD_BIN), Cluster()
    try:
        old.init().start()
        populated, other = old.create_database("populated"), old.create_database("other")
        known = populate(populated)
        of_releases = {}
        for release in RELEASES:
            database, empty = (old.create_database(f"{release} {which}", extension=False) for which in ("populated", "empty"))
            for each in (database, empty):
                each.execute(f"CREATE EXTENSION pg_totp VERSION '{release}'")
            of_releases[release] = populate(database), rows(database)
        with closing(other.connect()) as conn:
            fix_clock(conn, NOON)
            alice = enroll(conn, "alice")
            assert verify(conn, "alice", code_at(alice, NOON)) is True
            seal_all(conn)
            [anchor] = re.findall(r"event=audit_sealed (.*)", old.log_text())
        before = rows(populated)
        counted = populated.execute(COUNTERS)
        old.stop()
        new.init()
        new.configure(totp__key_file=old.key_file)
        # pg_upgrade writes into the folder that it is started in, its errors to stdout, and their reasons into files.
        new.run("sh", "-c", 'cd "$0" && "$@" >&2 || { tail -n 20 data/pg_upgrade_output.d/*/log/*dump*.log >&2; exit 1; }', new.folder, "pg_upgrade", "--username=postgres", "--socketdir", new.folder,
                "--old-bindir", OLD_BIN, "--new-bindir", BIN, "--old-datadir", old.data, "--new-datadir", new.data,
                *(["--link"] if request.param == "link" else []))
        new.start()
        for name in ("populated", "other"):
            take_the_identity_away(Database(new, name))
        yield {"server": new, "counted": counted, "populated": Database(new, "populated"), "known": known, "before": before,
               "other": Database(new, "other"), "alice": alice, "anchor": anchor, "of_releases": of_releases}
    finally:
        new.remove()
        old.remove()


def take_the_identity_away(db: Database) -> None:
    """From a server before 19 to one of 19 it is kept, and nothing is judged before the statements of the document are run."""
    if int(db.value("SHOW server_version_num")) < 190000:
        return
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        assert error_of(conn, "SELECT totp_verify('alice', '000000')").sqlstate == "55000"
    db.psql(block_with("operations/upgrade.md", "ALTER TABLE totp.counters REPLICA IDENTITY NOTHING"))


def test_the_server_is_the_new_one(upgraded):
    [[version]] = upgraded["populated"].execute("SHOW server_version_num")
    assert int(version) // 10000 > OLD_MAJOR


def test_every_row_and_sequence_is_there(upgraded):
    before = upgraded["before"]
    assert rows(upgraded["populated"], like=before) == before
    assert all(found for _, found in before.values())


def test_the_counters_go_on(upgraded):
    """They are not in a dump, but pg_upgrade takes the files."""
    assert upgraded["populated"].execute(COUNTERS) == upgraded["counted"]
    assert upgraded["populated"].value("SELECT sum(accepted) FROM totp.counters") > 0


def test_the_catalog_is_that_of_a_fresh_install(upgraded):
    fresh = upgraded["server"].create_database("fresh")
    with closing(upgraded["other"].connect()) as ours, closing(fresh.connect()) as theirs:
        ours, theirs = catalog(ours), catalog(theirs)
    for subject, expected in theirs.items():
        assert ours[subject] == expected, subject


def test_a_code_that_may_have_been_used_is_refused_for_a_minute(upgraded):
    """The server cannot know that nothing was accepted after the files were taken: it has another identity."""
    with closing(upgraded["other"].connect()) as conn:
        fix_clock(conn, NOON + timedelta(seconds=1))  # a secret of the very moment would be in no doubt
        for when in (NOON, NEXT):
            assert check(conn, "alice", code_at(upgraded["alice"], when))[:2] == (False, "replayed")
        later = NOON + timedelta(seconds=120)
        fix_clock(conn, later)
        assert verify(conn, "alice", code_at(upgraded["alice"], later)) is True


def test_the_trail_is_sealed_as_before(upgraded):
    with closing(upgraded["other"].connect()) as conn:
        assert deviations(conn, upgraded["anchor"]) == []
        seal_all(conn)
        enroll(conn, "of the new server")
        seal_all(conn)
        assert deviations(conn, upgraded["anchor"]) == []
        of_seals = [finding.problem for finding in verify_trail(conn)[:-1]]
        assert ["cluster" in problem for problem in of_seals if problem] == [True]  # the first one of the new server says so


def test_everyone_signs_in_as_before(upgraded):
    sign_in_as_before(upgraded["populated"], upgraded["known"])


@pytest.mark.parametrize("release", RELEASES)
def test_a_database_with_a_release_is_updated_afterwards(upgraded, release):
    """pg_upgrade keeps the version, also on a PostgreSQL that the release was not made for."""
    populated, empty = (Database(upgraded["server"], f"{release} {which}") for which in ("populated", "empty"))
    for each in (populated, empty):
        assert each.value("SELECT extversion FROM pg_extension WHERE extname = 'pg_totp'") == release
        each.execute("ALTER EXTENSION pg_totp UPDATE")
    known, before = upgraded["of_releases"][release]
    assert rows(populated, like=before) == before
    fresh = upgraded["server"].create_database(f"fresh {release}")
    with closing(empty.connect()) as ours, closing(fresh.connect()) as theirs:
        ours, theirs = catalog(ours), catalog(theirs)
    for subject, expected in theirs.items():
        assert ours[subject] == expected, subject
    sign_in_as_before(populated, known)


def sign_in_as_before(db: Database, known: Population) -> None:
    with closing(db.connect()) as conn:
        # The first judgment comes before the users' secrets: nothing of theirs is in doubt.
        fix_clock(conn, NOON - timedelta(minutes=10))
        assert verify(conn, "alice", "000000") is False
        conn.execute("SELECT totp_unlock('alice')")
    check_everyone(db, known)
