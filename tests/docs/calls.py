"""The SQL in blocks of other languages: it must be calls that the extension has."""

import re

LANGUAGES = {"python", "js", "javascript", "ts", "typescript", "go", "java", "php", "ruby", "rust", "csharp"}

_STATEMENT = re.compile(r"""(["'`])(SELECT\b(?:(?!\1).)*\btotp_(?:(?!\1).)*)\1""", re.DOTALL)
_PLACEHOLDER = re.compile(r"\$\d+|\$\{[^}]*\}|%s|%\(\w+\)s|\?|(?<![:\w]):[a-z_]+")


def statements(block_text: str) -> list[str]:
    """The statements that call the extension, with the placeholders of every driver written as $1, $2, ..."""
    return [_numbered(match[2]) for match in _STATEMENT.finditer(block_text)]


def mentions(block_text: str) -> bool:
    return re.search(r"\btotp_\w+\s*\(", block_text) is not None


def _numbered(statement: str) -> str:
    numbers: dict[str, int] = {}

    def number(match) -> str:
        # A named or numbered placeholder may come twice; %s, ? and ${…} are a new one each time.
        name = match[0] if match[0] not in ("%s", "?") and match[0][:2] != "${" else f"{match[0]}{len(numbers)}"
        return f"${numbers.setdefault(name, len(numbers) + 1)}"

    return _PLACEHOLDER.sub(number, " ".join(statement.split()))
