"""Data of every kind in a database, and what must be true of it after a move or an update; the releases to update from."""

from contextlib import closing
from datetime import timedelta
from typing import NamedTuple

import pytest
from binding import confirm
from many_users import open_everything
from server import CHECKOUT, Database
from totp import NOON, check, code_at, enroll, error_of, fix_clock, import_secret, recover, verify, wrong_codes

# The released versions, and the script that installs each.
RELEASES = {path.stem.removeprefix("pg_totp--"): path for path in sorted((CHECKOUT / "sql" / "install").glob("pg_totp--*.sql"))}
# The PostgreSQL versions that each was made for. On a newer server a database has it after pg_upgrade, which keeps the version:
# what a test makes there by CREATE EXTENSION stands for that. pg_upgrade.py makes one on the older server, and upgrades it.
MADE_FOR = {"0.1.0": range(15, 16)}
RELEASE_PARAMETERS = [pytest.param(version, id=f"{version}-of-{majors[0]}-to-{majors[-1]}") for version, majors in MADE_FOR.items()]

# What the update of a release does first on PostgreSQL 19, where nothing is judged before that.
WITHOUT_IDENTITY = "".join(f"ALTER TABLE totp.{table} REPLICA IDENTITY NOTHING;" for table in ("attempts", "used_codes", "floor"))

NEXT = NOON + timedelta(seconds=30)  # the next time step: at noon its code is in the window, and nobody has used it

TABLES = ("data_keys", "secrets", "used_codes", "attempts", "recovery_codes", "floor", "audit_log")  # not the counters: a sign-in changes them
SEQUENCES = ("key_ids", "secret_ids", "audit_ids")
CALLS = {"verify": "SELECT totp_verify('nobody', '123456')", "enroll": "SELECT totp_enroll('someone')", "admin": "SELECT totp_unlock('nobody')",
         "audit": "SELECT FROM totp.audit_log"}
ALLOWED = {"verify": {"verify"}, "enroll": {"verify", "enroll"}, "admin": {"verify", "enroll", "admin"}, "audit": {"audit"}}


class Population(NamedTuple):
    """What the tests know of it."""

    secrets: dict[str, str]
    recovery_codes: list[str]  # alice's; the first is used
    roles: dict[str, str]  # by capability
    is_approved: bool  # whether what is staged counts by its code alone, as all that a release staged


def install(db: Database, release: str) -> None:
    """CREATE EXTENSION of a release, to be used before its update on PostgreSQL 19 too."""
    db.execute(f"CREATE EXTENSION pg_totp VERSION '{release}'")
    if int(db.value("SHOW server_version_num")) >= 190000:
        db.execute(WITHOUT_IDENTITY)


def codes_of_the_desk(conn, user_id: str = "alice", count: int = 10) -> list[str]:
    """Recovery codes without a proof. The SQL of 0.1.0 has one function for the user and for the desk."""
    [is_release] = conn.execute("SELECT to_regproc('totp_reset_recovery_codes') IS NULL").fetchone()
    function = "totp_recovery_codes" if is_release else "totp_reset_recovery_codes"
    return [code for [code] in conn.execute(f"SELECT {function}(%s, %s)", [user_id, count])]


def populate(db: Database) -> Population:
    """Users in every state at noon, a rotation that is half way, and a role for each capability."""
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        names = ("alice", "staged", "two devices", "locked", "disabled", "reset", "maiden name", "removed")
        secrets = {name: enroll(conn, name) for name in names}
        for name, secret in secrets.items():
            assert verify(conn, name, code_at(secret, NOON)) is True, name
        secrets["tablet"] = enroll(conn, "two devices", device="tablet", algorithm="SHA256", digits=8, period=60)
        secrets["pending"] = enroll(conn, "pending", issuer="Example", account_name="p@example.com")
        secrets["staged, new"] = enroll(conn, "staged")
        secrets["imported"] = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
        import_secret(conn, "imported", secrets["imported"])
        wrong = wrong_codes(secrets["locked"], NOON)
        for _ in range(5):
            assert verify(conn, "locked", next(wrong)) is False
        codes = codes_of_the_desk(conn, count=3)
        assert recover(conn, codes[0]) is True
        conn.execute("SELECT totp_disable('disabled')")
        [[secrets["reset"]]] = conn.execute("SELECT secret FROM totp_reset('reset')").fetchall()
        conn.execute("SELECT totp_rename_user('maiden name', 'married name')")
        secrets["married name"] = secrets.pop("maiden name")
        conn.execute("SELECT totp_remove('removed')")
        conn.execute("SELECT totp.rotation_begin(1)")
        conn.execute("SELECT totp.rotation_step(NULL, 2)")
        is_approved = conn.execute("SELECT DISTINCT slot FROM totp.secrets WHERE user_id = 'staged' AND confirmed_at IS NULL").fetchone() == ("pending",)
    return Population(secrets, codes, {capability: db.create_role(capability) for capability in CALLS}, is_approved)


def rows(db: Database, like: dict | None = None) -> dict[str, tuple[list[str], list[tuple]]]:
    """Columns and rows, as text, of every table and sequence; of the columns of an earlier answer, if one is given."""
    found = {}
    with closing(db.connect()) as conn:
        for table in TABLES + SEQUENCES:
            columns = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
            names = like[table][0] if like else [name for (name,) in conn.execute(columns, [f"totp.{table}"])]
            if table in SEQUENCES:
                names = ["last_value", "is_called"]  # not what is cached of it in the WAL
            listed = ", ".join(f"{name}::text" for name in names)
            found[table] = names, sorted(conn.execute(f"SELECT {listed} FROM totp.{table}").fetchall(), key=repr)
    return found


def check_everyone(db: Database, known: Population) -> None:
    """Everyone of populate() signs in, or is refused, as before. It is noon still, and this uses their next codes up."""
    secrets = known.secrets
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        for name in ("alice", "staged", "two devices", "disabled", "married name"):
            reason = "disabled" if name == "disabled" else "replayed"
            assert check(conn, name, code_at(secrets[name], NOON))[:2] == (False, reason), name
        assert check(conn, "locked", code_at(secrets["locked"], NEXT))[1:5:3] == ("locked", NEXT)
        assert check(conn, "maiden name", code_at(secrets["married name"], NEXT)).reason == "not_enrolled"
        assert check(conn, "removed", code_at(secrets["removed"], NEXT)).reason == "not_enrolled"

        conn.execute("SELECT totp_unlock('locked'), totp_enable('disabled')")
        assert conn.execute("SELECT totp_enabled('reset'), totp_enabled('pending')").fetchone() == (True, False)
        assert conn.execute("SELECT totp_confirm('pending', %s)", [code_at(secrets["pending"], NEXT)]).fetchone() == (True,)
        staged = {"two devices": ("tablet", code_at(secrets["tablet"] + "=" * 4, NOON, "SHA256", 8, 60)),
                  "staged": ("default", code_at(secrets["staged, new"], NEXT))}
        for name, (device, code) in staged.items():
            if not known.is_approved:
                assert check(conn, name, code, device)[:2] == (False, "not_enrolled" if device == "tablet" else "wrong"), name
                assert confirm(conn, code, device, code_at(secrets[name], NEXT), name) is True, name
        for name in ("alice", "staged", "two devices", "locked", "disabled", "reset", "married name", "imported"):
            assert verify(conn, name, code_at(secrets[name], NEXT)) is (known.is_approved or name not in staged), name  # a proof is used up
            assert verify(conn, name, code_at(secrets[name], NEXT)) is False, name
        for name, (_, code) in staged.items():
            assert verify(conn, name, code) is known.is_approved, name
        assert conn.execute("SELECT state, version FROM totp_status('staged')").fetchall() == [("active", 2)]
        assert [recover(conn, code) for code in known.recovery_codes[:2]] == [False, True]
        wrong = wrong_codes(secrets["alice"], NOON)
        assert check(conn, "alice", next(wrong))[1:4] == ("wrong", None, 4)

        highest = conn.execute("SELECT max(secret_id) FROM totp.used_codes").fetchone()[0]
        assert verify(conn, "new", code_at(enroll(conn, "new"), NOON)) is True
        assert conn.execute("SELECT secret_id > %s FROM totp.secrets WHERE user_id = 'new'", [highest]).fetchone() == (True,)
        conn.execute("CALL totp_rotate_key_online(3)")
        assert conn.execute("SELECT count(*), min(state) FROM totp_keys()").fetchone() == (1, "current")
        assert open_everything(conn) == (11, 1)
        failing = "SELECT check_name, detail FROM totp_health() WHERE status = 'fail' AND check_name <> 'test_clock'"
        assert conn.execute(failing).fetchall() == []
    check_roles(db, known.roles)


def check_roles(db: Database, roles: dict[str, str]) -> None:
    """Each role may do what its capability says, and no more."""
    for capability, role in roles.items():
        with closing(db.connect(user=role)) as session:
            for other, call in CALLS.items():
                if other in ALLOWED[capability]:
                    session.execute(call)
                else:
                    assert error_of(session, call).sqlstate == "42501", (capability, call)
            assert error_of(session, "SELECT FROM totp.secrets").sqlstate == "42501"
