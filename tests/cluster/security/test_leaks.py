"""No secret that the extension makes leaks, even with every log, statistic and stream of the server switched on."""

import base64
import hashlib
import re
import secrets
from contextlib import closing

import psycopg
import pytest
from leak_search import activity, derived, forms, key_forms, open_secret, place, places, recovery_code_forms, secret_bytes, unwrap, wal_segments
from totp import NOON, code_at, error_of, fix_clock, verify

TALKATIVE = {
    "shared_preload_libraries": "pg_stat_statements,auto_explain", "wal_level": "logical", "max_prepared_transactions": "2",
    "log_statement": "all", "log_min_duration_statement": "0", "log_parameter_max_length": "-1", "log_parameter_max_length_on_error": "-1",
    "log_error_verbosity": "verbose", "log_temp_files": "0", "log_lock_waits": "on", "log_replication_commands": "on",
    "auto_explain__log_min_duration": "0", "auto_explain__log_analyze": "on", "auto_explain__log_nested_statements": "on",
    "auto_explain__log_verbose": "on", "auto_explain__log_triggers": "on",
    "pg_stat_statements__track": "all", "logical_decoding_work_mem": "64kB",
}
QUIET = {"log_parameter_max_length": "0", "log_parameter_max_length_on_error": "0", "auto_explain.log_verbose": "off"}
QUIET_SINCE_16 = {"auto_explain.log_parameter_max_length": "0"}
# What the server itself writes of a parameter, as it is configured to: log_statement and log_min_duration_statement, errors, auto_explain with its plans.
PARAMETERS = re.compile(r"DETAIL:  [Pp]arameters: |(CONTEXT:  |^\t)unnamed portal with parameters: |^\t *Query Parameters: |^\t *(Output|Function Call|One-Time Filter): ")
COPIES = 1000  # of a planted row: some will lie across two pages of the WAL


class Walk:
    """Everything that can be done, in one session, by bind parameters alone."""

    def __init__(self, db, name: str) -> None:
        self.db, self.name, self.server = db, name, db.cluster
        self.made: dict[str, dict[str, bytes]] = {}  # what the extension made: forms by name
        self.sent: dict[str, dict[str, bytes]] = {}  # what the client sent
        self.activity: list[str] = []
        self.begin = self.server.log_end()
        with closing(db.connect()) as self.conn:
            fix_clock(self.conn, NOON)
            self.conn.execute("SET statement_timeout = '60s'")  # against a test that hangs; no measure of speed
            quiet = QUIET | (QUIET_SINCE_16 if self.conn.info.server_version >= 160_000 else {})
            for setting, value in quiet.items() if name == "quiet" else ():
                self.call("SELECT set_config(%s, %s, false)", setting, value)
            self.enroll()
            self.roll_back()
            self.recover()
            self.bring_along()
            self.fail()
            self.change()
            self.rotate()
        self.log = self.server.log_text(self.begin)

    def call(self, query: str, *parameters) -> list[tuple]:
        cursor = self.conn.execute(query, parameters)
        self.activity.append(activity(self.db, self.conn))
        return cursor.fetchall() if cursor.description else []

    def user(self, name: str) -> str:
        return f"{self.name}-{name}"

    def made_secret(self, query: str, *parameters) -> str:
        [[secret, uri, *_]] = self.call(query, *parameters)
        assert secret in uri
        self.made[f"{self.name} secret {len(self.made)}"] = forms(secret_bytes(secret))
        return secret

    def sent_secret(self, what: str) -> str:
        raw = hashlib.sha1(self.user(what).encode()).digest()
        self.sent[self.user(what)] = forms(raw)
        return base64.b32encode(raw).decode()

    def enroll(self) -> None:
        alice = self.user("alice")
        first = self.made_secret("SELECT * FROM totp_enroll(%s, %s, %s)", alice, "alice@example.com", "Example")
        assert self.call("SELECT totp_confirm(%s, %s)", alice, code_at(first, NOON)) == [(True,)]
        for code in (code_at(first, NOON), "000000"):
            verify(self.conn, alice, code)
            self.call("SELECT * FROM totp_check(%s, %s)", alice, code)
        drawn = "SELECT secret, otpauth_uri, totp_qr_svg(otpauth_uri), totp_qr_png(otpauth_uri), totp_qr_text(otpauth_uri) FROM totp_enroll(%s)"
        staged = self.made_secret(drawn, alice)
        later = NOON.timestamp() + 30
        for code in ("000000", code_at(staged, NOON)):
            [row] = self.call("SELECT * FROM totp_check_confirm(%s, %s, proof => %s, recovery_codes => 4)", alice, code, code_at(first, later))
        self.made |= {f"{self.name} recovery code {code}": recovery_code_forms(code) for code in row[-1]}
        self.call("SELECT totp_rename_device(%s, 'default', 'phone', %s)", alice, code_at(staged, later))
        self.made_secret("SELECT * FROM totp_reset(%s, 'phone')", alice)
        for code in row[-1][:2]:  # sent as proofs
            self.sent[self.user(f"proof {code}")] = self.made.pop(f"{self.name} recovery code {code}")
        self.call("SELECT totp_rename_device(%s, 'phone', 'default', %s)", alice, row[-1][0])
        self.made_secret("SELECT * FROM totp_reset(%s)", alice)
        self.call("SELECT totp_import(%s, %s, confirmed => true)", alice, self.sent_secret("again"))
        self.proof = row[-1][1]
        self.made_secret("SELECT * FROM totp_enroll(%s, device => 'tablet', algorithm => %s, digits => 8)", alice, "SHA512")
        # A secret that is active and stays so until the end.
        self.kept = self.made_secret("SELECT * FROM totp_enroll(%s)", self.user("kept"))
        assert verify(self.conn, self.user("kept"), code_at(self.kept, NOON))

    def roll_back(self) -> None:
        """Secrets that never were."""
        with self.conn.transaction(force_rollback=True):
            self.made_secret("SELECT * FROM totp_enroll(%s)", self.user("rolled back"))
            with self.conn.transaction(force_rollback=True):
                self.made_secret("SELECT * FROM totp_reset(%s)", self.user("alice"))

    def recover(self) -> None:
        codes = [code for [code] in self.call("SELECT totp_recovery_codes(%s, 20, %s)", self.user("alice"), self.proof)]
        replaced, spare = codes[:10], codes[10:]
        self.made |= {f"{self.name} recovery code {code}": recovery_code_forms(code) for code in replaced + spare[1:]}
        self.sent[self.user("recovery code")] = recovery_code_forms(spare[0])
        for expected in (True, False):
            assert self.call("SELECT totp_recover(%s, %s)", self.user("alice"), spare[0]) == [(expected,)]
        self.call("SELECT * FROM totp_check_recover(%s, %s)", self.user("alice"), spare[0])
        codes = [code for [code] in self.call("SELECT totp_reset_recovery_codes(%s, 3)", self.user("alice"))]
        self.made |= {f"{self.name} recovery code {code}": recovery_code_forms(code) for code in codes}

    def bring_along(self) -> None:
        bob = self.user("bob")
        self.call("SELECT totp_import(%s, %s, confirmed => true)", bob, self.sent_secret("imported"))
        uri = f"otpauth://totp/Old:bob?secret={self.sent_secret('imported as URI')}&issuer=Old"
        self.call("SELECT totp_import(%s, %s, device => %s)", bob, uri, "tablet")
        if self.name == "loud":  # auto_explain logs the values of conditions whatever the settings of QUIET are
            self.call("SELECT 1 WHERE totp_import(%s, %s) IS NOT NULL", self.user("condition"), self.sent_secret("condition"))
        self.call("SELECT totp_code_at(%s, %s)", self.sent_secret("code"), NOON)
        self.call("SELECT totp_qr_svg(%s)", f"otpauth://totp/bob?secret={self.sent_secret('drawn')}")
        [[secret]] = self.call("SELECT secret FROM totp_read_tokens(%s, 'csv')", f",1,{self.sent_secret('in a file')},30,Maker,Model")
        assert secret == self.sent_secret("in a file")

    def fail(self) -> None:
        """Errors: of an argument, inside of a nested statement with its row in DETAIL, waiting for a lock, parsing."""
        bob = self.user("bob")
        error = error_of(self.conn, "SELECT totp_import(%s, %s, device => %s)", [bob, self.sent_secret("imported"), "other"])
        assert error.sqlstate == "22023"
        for query, *parameters in [("SELECT totp_import(%s, %s, digits => %s)", bob, self.sent_secret("refused"), 5),
                                   ("SELECT totp_import(%s, %s)", bob, self.sent_secret("spoiled") + "!"),
                                   ("SELECT totp_code_at(%s, %s)", self.sent_secret("no time"), "infinity"),
                                   ("SELECT totp_read_tokens(%s)", f"<KeyContainer>{self.sent_secret('no PSKC')}</KeyContainer>"),
                                   ("SELECT totp_read_tokens(%s, 'csv')", f"1;2;3;4;5;6;7;{self.sent_secret('no CSV')}"),
                                   ("SELECT totp_qr_text(%s)", f"otpauth://totp/{'a' * 5000}?secret={self.sent_secret('too long')}")]:
            error_of(self.conn, query, parameters)
        self.call("ALTER TABLE totp.secrets ADD CONSTRAINT odd CHECK (digits <> 7) NOT VALID")
        error = error_of(self.conn, "SELECT totp_import(%s, %s, digits => %s, device => 'odd')", [bob, self.sent_secret("nested"), 7])
        assert error.sqlstate == "23514" and "Failing row contains" in error.diag.message_detail
        self.call("ALTER TABLE totp.secrets DROP CONSTRAINT odd")
        with closing(self.db.connect()) as other, other.transaction():
            other.execute("SELECT totp_disable(%s, 'tablet')", [bob])
            self.call("SET lock_timeout = '10ms'")
            error = error_of(self.conn, "SELECT totp_import(%s, %s, device => 'late')", [bob, self.sent_secret("waiting")])
            assert error.sqlstate == "55P03"
            self.call("RESET lock_timeout")
        with pytest.raises(psycopg.errors.DivisionByZero):
            self.call("SELECT totp_import(%s, %s, device => 'undone'), 1 / (random() * 0)::int", bob, self.sent_secret("undone"))

    def change(self) -> None:
        alice = self.user("alice")
        self.call("SELECT totp_rename_user(%s, %s)", alice, self.user("alicia"))
        self.call("SELECT totp_disable(%s), totp_enable(%s)", self.user("alicia"), self.user("alicia"))
        self.call("SELECT totp_unlock(%s)", self.user("alicia"))
        uris = [uri for [uri] in self.call("SELECT otpauth_uri FROM totp_export()")]
        assert any(self.kept in uri for uri in uris)
        for function in ("totp_keys()", "totp_health()", "totp_health(true)", "totp_list()", "totp_stats()", "totp_metrics()", f"totp_status('{self.user('alicia')}')"):
            self.call(f"SELECT * FROM {function}")
        self.call("SELECT totp_remove(%s)", self.user("bob"))

    def rotate(self) -> None:
        """Both rotations, the second under a new master key. Every data key is unwrapped while it is there."""
        masters = [bytes.fromhex(line) for line in self.server.key_file.read_text().split()]
        self.note_keys(masters)
        self.call("SELECT totp_rotate_key()")
        self.note_keys(masters)
        masters = [secrets.token_bytes(32), masters[0]]
        self.server.write_key_file("".join(f"{master.hex()}\n" for master in masters))
        self.call("CALL totp_rotate_key_online(2)")
        assert len(self.note_keys(masters)) == 1
        assert len([name for name in self.made if " data key " in name]) == 3 * 3  # with two keys derived from each

    def note_keys(self, masters: list[bytes]) -> list[bytes]:
        """The data keys of now; they and the masters are looked for. The one that seals opens a secret, so it is the true one."""
        by_fingerprint = {derived(master, "master key fingerprint")[:8].hex(): master for master in masters}
        self.made |= {f"master key {fingerprint}": key_forms(master) for fingerprint, master in by_fingerprint.items()}
        keys = {key_id: unwrap(by_fingerprint[master], key_id, wrapped)
                for key_id, master, wrapped in self.call("SELECT key_id, master_key, wrapped FROM totp.data_keys")}
        for key_id, key in keys.items():
            self.made[f"{self.name} data key {key_id}"] = key_forms(key)
            for purpose in ("secret", "recovery codes"):
                self.made[f"{self.name} key of data key {key_id} for {purpose}"] = key_forms(derived(key, purpose))
        [[key_id, *row]] = self.call("SELECT key_id, sealed, user_id, device, secret_id, algorithm, digits, period FROM totp.secrets WHERE user_id = %s", self.user("kept"))
        assert open_secret(keys[key_id], *row) == secret_bytes(self.kept)
        return list(keys.values())


class Told:
    """A talkative server after two walks, and every place where it may have written something."""

    def __init__(self, server) -> None:
        self.db = db = server.create_database("told")
        with closing(db.connect()) as conn:
            conn.execute("CREATE EXTENSION pg_stat_statements")
            conn.execute("SELECT pg_create_logical_replication_slot('told', 'test_decoding')")  # keeps the WAL, too
        begin = server.log_end()
        self.loud, self.quiet = Walk(db, "loud"), Walk(db, "quiet")
        self.prepare()
        self.planted = forms(secrets.token_bytes(20))
        self.plant()
        log = server.log_text(begin)
        self.places = places(server, db, "told", log, [*self.loud.activity, *self.quiet.activity, self.planted_activity])

    def prepare(self) -> None:
        """An enrollment in a prepared transaction, whose state file is one of the places. It holds its data key: no rotation after it."""
        with closing(self.db.connect()) as conn:
            conn.execute("BEGIN")
            [[secret]] = conn.execute("SELECT secret FROM totp_enroll('prepared')").fetchall()
            conn.execute("PREPARE TRANSACTION 'left open'")
        self.loud.made["prepared"] = forms(secret_bytes(secret))

    def plant(self) -> None:
        """A secret as a careless client would store it, in every form: what the search must find."""
        text = {name: form.decode() for name, form in self.planted.items() if name != "raw"}
        columns = ", ".join(f"'{value}'::text AS {name}" for name, value in text.items())
        with closing(self.db.connect()) as conn:
            conn.execute(f"CREATE TABLE planted AS SELECT {columns}, '\\x{text['hex']}'::bytea AS raw, '' AS filler FROM generate_series(1, {COPIES})")
            # Since PostgreSQL 16, pg_stat_statements keeps no constant of a CREATE TABLE AS.
            conn.execute("SELECT " + ", ".join(f'1 AS "{value}"' for value in text.values()))
            self.planted_activity = activity(self.db, conn)


@pytest.fixture(scope="module")
def told(make_module_cluster):
    return Told(make_module_cluster(**TALKATIVE))


def found(told, needles, where=None):
    """Where any of these is: name, form, place."""
    where = told.places if where is None else where
    return [(name, form, one.name) for name, its_forms in needles.items() for form, needle in its_forms.items() for one in where if one.holds(form, needle)]


def test_what_the_extension_makes_is_nowhere(told):
    """Secrets, recovery codes and their hashes, master keys, data keys: not in the data directory, WAL, log, dumps, statistics, decoded changes."""
    needles = told.loud.made | told.quiet.made
    assert len(needles) > 60
    assert found(told, needles) == []


def test_what_a_client_sends_is_only_where_the_server_logs_parameters(told):
    """The server is configured to: log_parameter_max_length and its like. No line of the extension's, and no other place."""
    seen = found(told, told.loud.sent)
    assert {name for name, *_ in seen} == set(told.loud.sent)
    assert {where for *_, where in seen} == {"log"}
    other_lines = place("other lines", "\n".join(line for line in told.loud.log.splitlines() if not PARAMETERS.search(line)))
    assert found(told, told.loud.sent, [other_lines]) == []


def test_without_parameters_in_the_log_it_is_nowhere(told):
    assert len(told.quiet.sent) > 10
    assert found(told, told.quiet.sent) == []


def test_what_is_planted_is_found(told):
    """In every place and form in which it is there; so the searches above do look."""
    seen = found(told, {"planted": told.planted})
    by_form = {form: {where for _, its_form, where in seen if its_form == form} for form in told.planted}
    everywhere = {"log", "dump", "custom dump", "dump of all", "decoded", "pg_stat_statements", "pg_stat_activity", "pg_wal", "pg_stat_tmp/pgss_query_texts.stat"}
    for form, where in by_form.items():
        assert any(name.startswith("base/") for name in where) and "pg_wal" in where, form
        assert form == "raw" or everywhere <= where, form
    # Also if it is spread over two pages of the WAL.
    wal = next(one for one in told.places if one.name == "pg_wal")
    found_whole = {form: wal.content.count(needle) for form, needle in told.planted.items()}
    assert min(found_whole.values()) >= COPIES
    assert sum(found_whole.values()) > sum(segment.count(needle) for needle in told.planted.values() for segment in wal_segments(told.db.cluster.data / "pg_wal"))
