"""Runs every SQL example of README.md and docs/ and compares what psql prints with what the document says.

usage: tools/with-server.sh python tests/docs/check.py [NAME]    NAME: only documents whose path contains it

Each document has its own database and one psql session, which gets its ```sql blocks in their order.
- A ```text block that follows, with no other block between, is the output that psql must print; compare.py has the rules.
  Without one, the block must succeed.
- <!-- sql ... --> is a block that the reader does not see: set-up, a fixed clock, a known secret.
- A block with file=NAME is written to the session's working folder, hidden or not, where \\copy and programs find it.
- <!-- needs NAME --> leaves a document out, counted as skipped, where the server cannot create that extension.
- The extension is created before the first block where no block of the document does so.
- /etc/postgresql/totp.key stands for the key file of the throw-away server.
- Blocks in other languages are not run; the SQL in them is prepared, so each call must be one that the extension has.
- Links, and tests that are named, must lead somewhere; references.py has the rules.
"""

import os
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import blocks
import calls
import compare
import references

ROOT = Path(__file__).resolve().parents[2]
SHOWN_KEY_FILE = "/etc/postgresql/totp.key"
# That of the throw-away server of tools/with-server.sh. On any other this ends here: what follows drops its roles.
KEY_FILE = f"{os.environ['SERVER_DIR']}/master.key"
TIMEOUT_SECONDS = 300
END = -1  # the place after the last block


class Result:
    """What became of one document."""

    def __init__(self) -> None:
        self.examples = 0  # visible blocks of SQL
        self.passed = 0  # those of them that did what the document says
        self.failures: list[str] = []
        self.lacks: str | None = None  # an extension that the document needs and the server has not


def check(document: Path, root: Path = ROOT) -> Result:
    """Runs one document on the server that the environment names."""
    result = Result()
    name = str(document.relative_to(root))
    source = document.read_text()
    try:
        parts = blocks.read(source, name)
    except blocks.DocumentError as error:
        result.failures.append(str(error))
        return result

    result.failures += [f"{name}: {fault}" for fault in references.faults(root, document, source)]
    examples = [i for i, part in enumerate(parts) if part.language == "sql" and part.file is None]
    result.examples = sum(not parts[i].hidden for i in examples)
    statements = [(part, part.text) for part in parts if part.language in calls.LANGUAGES and part.file is None]
    if not examples and not statements:
        return result
    result.lacks = next((needed for needed in re.findall(r"^<!-- needs (\w+) -->$", source, re.MULTILINE) if not _has(needed)), None)
    if result.lacks:
        return result

    with tempfile.TemporaryDirectory(prefix="pg_totp.") as folder, Database() as database:
        for part in parts:
            if part.file is not None:
                (Path(folder) / part.file).write_text(part.text)
        _run(name, parts, examples, database, folder, result)
        for part, text in statements:
            _check_calls(name, part, text, database, result)
    return result


def _run(name, parts, examples, database, folder, result) -> None:
    """All SQL of a document in one psql session."""
    for i in examples:
        if not _is_ended(parts[i].text):
            result.failures.append(f"{name}:{parts[i].line}: the last statement has no end")
            return
    printed = printed_by(parts, examples, database, folder)
    for i, after in zip(examples, [*examples[1:], END]):
        part, expected, actual = parts[i], _expected(parts, i), printed.get(i)
        place = f"{name}:{part.line}"
        if actual is None:
            result.failures.append(f"{place}: was not reached")
            return
        if after not in printed and expected is None:
            result.failures.append(f"{place}: failed\n{part.text}{actual}")
            return
        if expected is not None and not compare.matches(expected, actual):
            result.failures.append(f"{place}: other output\n{part.text}{compare.difference(expected, actual)}")
        else:
            result.passed += not part.hidden


def printed_by(parts, examples, database, folder) -> dict[int, str]:
    """What psql printed for each block of SQL, by its place; with END as the last place where the session got there."""
    mark = uuid.uuid4().hex
    script = [] if any("CREATE EXTENSION pg_totp" in parts[i].text for i in examples) else ["CREATE EXTENSION pg_totp;"]
    for i in examples:
        # A block whose output is compared may show errors; any other must not have one, and ends the session.
        stop = "off" if _expected(parts, i) is not None else "on"
        script += [f"\\set ON_ERROR_STOP {stop}", f"\\echo {mark} {i}", _to_server(parts[i].text)]
    script += [f"\\echo {mark} {END}", ""]
    said = database.psql("\n".join(script), folder)
    found = re.findall(rf"^{mark} (-?\d+)\n(.*?)(?=^{mark} |\Z)", said, re.MULTILINE | re.DOTALL)
    return {int(place): _to_reader(text) for place, text in found}


def _is_ended(text: str) -> bool:
    """Whether the last statement is complete or a command of psql: else the next block would be glued to it."""
    lines = [re.sub(r"(^|\s)--.*", "", line).rstrip() for line in text.splitlines()]
    last = next((line for line in reversed(lines) if line), ";")
    return last.endswith(";") or "\\" in last


def _expected(parts: list[blocks.Block], i: int) -> str | None:
    """The output that the document gives for block i."""
    following = parts[i + 1] if i + 1 < len(parts) else None
    return following.text if following and following.language == "text" and following.file is None else None


def _check_calls(name, part, text, database, result) -> None:
    statements = calls.statements(text)
    if calls.mentions(text) and not statements:
        result.failures.append(f"{name}:{part.line}: no SQL found in this block, though it names a function of the extension")
    for number, statement in enumerate(statements):
        said = database.psql(f"PREPARE call_{number} AS {statement};\n", "/tmp")
        if said.strip() != "PREPARE":
            result.failures.append(f"{name}:{part.line}: not a call of the extension\n{statement}\n{said}")


def _to_server(text: str) -> str:
    return text.replace(SHOWN_KEY_FILE, KEY_FILE)


def _to_reader(text: str) -> str:
    return text.replace(KEY_FILE, SHOWN_KEY_FILE)


class Database:
    """A new database. It goes at the end, and with it every role and setting that the document made."""

    def __init__(self) -> None:
        self.name = "docs"

    def __enter__(self):
        _as_owner("CREATE DATABASE docs;")
        return self

    def __exit__(self, *_):
        _as_owner("DROP DATABASE docs WITH (FORCE);\nALTER SYSTEM RESET ALL;\nSELECT pg_reload_conf();\n"
                  "SELECT format('DROP ROLE %I', rolname) FROM pg_roles"
                  " WHERE rolname <> current_user AND rolname NOT LIKE 'pg\\_%' \\gexec\n")

    def psql(self, script: str, folder: str) -> str:
        return _psql(script, self.name, folder)


def _has(extension: str) -> bool:
    return "(1 row)" in _psql(f"SELECT name FROM pg_available_extensions WHERE name = '{extension}';", "postgres", "/tmp")


def _as_owner(script: str) -> None:
    said = _psql("\\set ON_ERROR_STOP on\n" + script, "postgres", "/tmp")
    if "ERROR" in said:
        raise RuntimeError(said)


def _psql(script: str, database: str, folder: str) -> str:
    """What psql prints, errors and notices in their place."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PGDATABASE": database, "PGTZ": "UTC", "PGCLIENTENCODING": "UTF8",
                   "LC_ALL": "C.UTF-8", "PSQL_PAGER": "", "PAGER": "", "COLUMNS": "200"}
    return subprocess.run(["psql", "-X"], cwd=folder, env=environment, input=script, text=True, timeout=TIMEOUT_SECONDS,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def documents(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob("*.md")) + sorted((root / "docs").rglob("*.md"))
    return [path for path in found if pattern in str(path.relative_to(root))]


def main(root: Path, pattern: str = "") -> int:
    """Checks the documents of a folder. 0 if all of them passed; there must be examples unless a pattern leaves them out."""
    total, passed, failed, skipped = 0, 0, 0, 0
    for document in documents(root, pattern):
        result = check(document, root)
        total += result.examples
        passed += result.passed
        failed += len(result.failures)
        skipped += result.examples if result.lacks else 0
        print(f"{document.relative_to(root)}: {result.passed} of {result.examples} examples passed"
              + (f"; skipped, since this server has no {result.lacks}" if result.lacks else ""), flush=True)
        for failure in result.failures:
            print(failure.rstrip() + "\n", flush=True)
    if total == 0 and not pattern:
        print("no example was run")
        failed += 1
    print(f"examples: {passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed + skipped == total and failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main(ROOT, *sys.argv[1:2]))
