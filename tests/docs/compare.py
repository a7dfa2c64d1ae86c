"""Compares what psql printed with what a document says.

White space at the end of lines, and blank lines at the end, do not count. `…` stands for any text within a line, and
spaces beside it do not count, so that columns may stay aligned; a line that is `…` alone stands for any number of lines.
"""

import difflib
import re

ANY = "…"


def matches(expected: str, actual: str) -> bool:
    lines = _lines(expected)
    return re.fullmatch("".join(map(_pattern, lines)), "".join(line + "\n" for line in _lines(actual))) is not None


def difference(expected: str, actual: str) -> str:
    """A readable diff. Lines that match by `…` are shown as equal."""
    want, have = _lines(expected), _lines(actual)
    shown = [_same(want, line) for line in have]
    return "\n".join(difflib.unified_diff(want, shown, "the document", "psql", lineterm="", n=100))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _pattern(line: str) -> str:
    if line == ANY:
        return r"(?:[^\n]*\n)*?"
    return r"[^\n]*".join(re.escape(part) for part in re.split(f" *{ANY} *", line)) + "\n"


def _same(expected: list[str], line: str) -> str:
    """The expected line that this one matches, or itself."""
    return next((e for e in expected if e != ANY and re.fullmatch(_pattern(e), line + "\n")), line)
