"""Runs the blocks of docs/from-your-language.md as they stand there: each in its frame of tests/clients/page, in its language.

A frame reads calls, one a line, and prints their answers. tests/run-clients starts the server, whose clock stands still.
"""

import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pyotp
import pytest

CLIENTS = Path(os.environ["CLIENTS"])
CHECKOUT = Path(__file__).resolve().parents[3]
FRAMES = CHECKOUT / "tests/clients/page"
BUILT = CLIENTS / "page"
PAGE = (CHECKOUT / "docs/from-your-language.md").read_text()
MARK = "THE BLOCK"

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)  # the server's time
BROKEN = 1  # a user whose secret was tampered with
ENVIRONMENT = os.environ | {"PGUSER": "app", "PGDATABASE": "page"}

GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(CLIENTS / "go"), "CGO_ENABLED": "0"}
NODE = {"NODE_PATH": str(CLIENTS / "node/node_modules")}
JAVA = ["java", "-cp", f"/usr/share/java/postgresql.jar:{CLIENTS}/java"]


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def framed(heading: str, frame: str) -> Path:
    """A program: the frame, with the block of that heading in place of the line that says so."""
    block = section(heading).partition("\n```")[2].partition("\n")[2].partition("\n```")[0]
    lines = (FRAMES / frame).read_text().splitlines()
    [at] = [number for number, line in enumerate(lines) if MARK in line]
    BUILT.mkdir(exist_ok=True)
    program = BUILT / frame
    program.write_text("\n".join([*lines[:at], block, *lines[at + 1:], ""]))
    return program


def run(*command, **environment) -> str:
    """What a command prints. It must succeed."""
    return subprocess.run(command, env=ENVIRONMENT | environment, check=True, text=True, stdout=subprocess.PIPE, cwd=CHECKOUT).stdout


def interpreted(*interpreter, **environment):
    return lambda program: ([*interpreter, program], environment)


def compiled_go(program: Path):
    run("go", "build", "-o", BUILT / "go-pgx", program, **GO)
    return [BUILT / "go-pgx"], {}


def compiled_rust(example: str):
    def command(program: Path):
        run("cargo", "build", "--locked", "--quiet", "--features", "sqlx", "--example", example,
            "--manifest-path", "tests/clients/rust/Cargo.toml", "--target-dir", CLIENTS / "rust", **{example.upper(): str(program)})
        return [CLIENTS / "rust/debug/examples" / example], {}

    return command


# Heading of the page, frame, and how the program is run.
LANGUAGES = {
    "Python, psycopg": ("python-psycopg.py", interpreted(sys.executable)),
    "Python, SQLAlchemy": ("python-sqlalchemy.py", interpreted(sys.executable)),
    "Python, Django": ("python-django.py", interpreted(sys.executable)),
    "Node, pg": ("node-pg.js", interpreted("node", **NODE)),
    "Node, Prisma": ("node-prisma.js", interpreted("node", **NODE)),
    "Go, pgx": ("go-pgx.go", compiled_go),
    "Java, JDBC": ("java-jdbc.java", interpreted(*JAVA)),
    "PHP, PDO": ("php-pdo.php", interpreted("php")),
    "Ruby, pg": ("ruby-pg.rb", interpreted("ruby")),
    "Rust, tokio-postgres": ("rust-tokio-postgres.rs", compiled_rust("page_tokio_postgres")),
    "Rust, sqlx": ("rust-sqlx.rs", compiled_rust("page_sqlx")),
}
NOT_RUN = {"C#, Npgsql"}


class Program:
    """A running program of a language."""

    def __init__(self, command, environment) -> None:
        self.process = subprocess.Popen(command, env=ENVIRONMENT | environment, text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __call__(self, *words) -> str:
        """The answer to one call; what it wrote to its log, if it ended instead."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        answer = self.process.stdout.readline().rstrip("\n")
        assert answer, self.process.communicate()[1]
        return answer

    def end(self) -> str:
        """Its log."""
        _, log = self.process.communicate()
        assert self.process.returncode == 0, log
        return log


@pytest.fixture
def start():
    """A function that starts the program of a language."""
    started = []

    def start(heading: str) -> Program:
        frame, command = LANGUAGES[heading]
        started.append(Program(*command(framed(heading, frame))))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.communicate()


@pytest.fixture
def others():
    """A session of its own, of a superuser: what others see."""
    with closing(psycopg.connect(dbname="page", user="postgres", autocommit=True)) as conn:
        yield conn


def code_of(uri: str) -> str:
    return pyotp.parse_uri(uri).at(NOW)


def wrong_code(uri: str) -> str:
    accepted = {pyotp.parse_uri(uri).at(NOW + timedelta(seconds=seconds)) for seconds in (-30, 0, 30)}
    return next(code for code in ("000000", "000001", "000002", "000003") if code not in accepted)


def test_every_block_is_run_or_says_that_it_is_not():
    headings = {line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")} - {"In every language"}
    assert headings == set(LANGUAGES) | NOT_RUN
    assert {heading for heading in headings if "not run by the tests" in section(heading).lower()} == NOT_RUN
    assert all(section(heading).count("\n```") == 2 for heading in headings)


@pytest.mark.parametrize("heading", LANGUAGES)
def test_the_block_enrolls_and_signs_in(heading, start, others):
    user = 10 + list(LANGUAGES).index(heading)  # a number, as keys are
    call = start(heading)

    def rows(query: str) -> list[tuple]:
        return others.execute(query, {"user": str(user)}).fetchall()

    assert call("check", user, "123456") == "not_enrolled"
    uri = call("enroll", user)
    assert rows("SELECT state FROM mfa.totp_status(%(user)s)") == [("pending",)], "it is not committed when it is shown"

    assert call("check", user) == "malformed"  # NULL
    assert call("check", user, wrong_code(uri)) == "wrong"
    assert rows("SELECT failures FROM totp.attempts WHERE user_id = %(user)s") == [(1,)]
    assert rows("SELECT event FROM totp.audit_log WHERE user_id = %(user)s ORDER BY id") == [("enrolled",), ("failed",)], "the refusal is not committed"

    assert call("check", user, code_of(uri)) == "accepted"
    assert call("check", user, code_of(uri)) == "replayed"

    assert call("check", BROKEN, "123456") == "unavailable"
    assert call("check", user) == "malformed"  # the connection is of use
    log = call.end()
    assert "XX001" in log and log.count("SQLSTATE") == 1
    assert code_of(uri) not in log


def test_django_raises_within_another_transaction(start, others):
    call = start("Python, Django")
    assert call("atomic", 42) == "RuntimeError"
    assert others.execute("SELECT * FROM mfa.totp_status('42')").fetchall() == []


# --- What the page says of values ---------------------------------------------------------------

FALSE = "SELECT mfa.totp_verify('nobody', '123456')"


def test_false_is_true_in_ruby():
    assert run("ruby", "-rpg", "-e", f'v = PG.connect.exec("{FALSE}").getvalue(0, 0); print v, " ", v ? "true" : "false"') == "f true"


def test_false_is_true_in_php_without_pdo():
    assert run("php", "-r", f'$v = pg_fetch_result(pg_query(pg_connect(""), "{FALSE}"), 0); echo $v, " ", $v ? "true" : "false";') == "f true"


def test_pdo_returns_booleans():
    assert run("php", "-r", f'$p = new PDO("pgsql:host=" . getenv("PGHOST")); var_dump($p->query("{FALSE}")->fetchColumn());') == "bool(false)\n"


def test_ruby_and_php_send_a_number_as_text():
    query = "SELECT mfa.totp_verify($1, '123456')"
    assert run("ruby", "-rpg", "-e", f"print PG.connect.exec_params(\"{query}\", [42]).getvalue(0, 0)") == "f"
    assert run("php", "-r", '$p = new PDO("pgsql:host=" . getenv("PGHOST")); $q = $p->prepare("SELECT mfa.totp_verify(?, \'123456\')");'
                            " $q->execute([42]); var_dump($q->fetchColumn());") == "bool(false)\n"
