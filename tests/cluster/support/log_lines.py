"""The lines of pg_totp in a server log, taken apart."""

import re

# The default log_line_prefix, and the whole line after it.
LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ \S+ \[\d+\] LOG:  (totp: event=.*)")

PAIR = re.compile(r'([a-z_]+)=(?:([a-z0-9_]+)|"((?:[^"\\]|\\["\\]|\\u\{[0-9a-f]+\})*)")(?: |$)')


def unquoted(line: str) -> dict[str, str]:
    """The values of a line by name: bare, or quoted with \\" \\\\ and \\u{hex}."""
    values = {}
    at = len("totp: ")
    while at < len(line):
        found = PAIR.match(line, at)
        assert found, line
        name, bare, quoted = found.groups()
        values[name] = bare if quoted is None else re.sub(r'\\(?:(["\\])|u\{([0-9a-f]+)\})', lambda e: e[1] or chr(int(e[2], 16)), quoted)
        at = found.end()
    return values


def is_of_act(line: str) -> bool:
    """Whether the line is of an act, which a ROLLBACK undoes: it ends with the transaction of its row."""
    return re.search(r" xid=\d+$", line) is not None
