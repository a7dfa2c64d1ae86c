"""What a document points at must be there: relative links with their anchors, and tests that it names.

A test is named `tests/cluster/sign_in/test_replay.py::test_name` or `crates/otp/tests/rfc.rs::name`; `tests/regress/sql/x.sql` and
other paths in back quotes that begin with a folder of the project must exist too.
"""

import re
from pathlib import Path

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PATH = re.compile(r"^(?:(?:tests|crates|src|sql|docs|tools|bench|examples)/[\w./-]+\.\w+|packaging/[\w.-]+|tests/run[\w-]*)(?:::(\w+))?$")


def faults(root: Path, document: Path, source: str) -> list[str]:
    """One line for each reference that leads nowhere."""
    prose = _without_blocks(source)
    found = []
    for target in _LINK.findall(prose):
        if not _link_leads_somewhere(document, source, target):
            found.append(f"the link {target} leads nowhere")
    for code in _CODE.findall(prose):
        if (path := _PATH.match(code)) and not _is_there(root, code.split("::")[0], path[1]):
            found.append(f"there is no {code}")
    return found


def _link_leads_somewhere(document: Path, source: str, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return True
    path, _, anchor = target.partition("#")
    file = document if not path else document.parent / path
    if not file.exists():
        return False
    if not anchor:
        return True
    text = source if not path else file.read_text()
    return anchor in _anchors(text)


def _anchors(source: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#{1,6}\s+(.*?)\s*$", _without_blocks(source), re.MULTILINE)
    anchors: set[str] = set()
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (slug if not number else f"{slug}-{number}") in anchors:
            number += 1
        anchors.add(slug if not number else f"{slug}-{number}")
    return anchors


def _without_blocks(source: str) -> str:
    return re.sub(r"^( *)(`{3,})[^\n]*\n.*?^ *\2`*\s*$", "", source, flags=re.MULTILINE | re.DOTALL)


def _is_there(root: Path, path: str, test: str | None) -> bool:
    file = root / path
    if not file.exists():
        return False
    return test is None or re.search(rf"^\s*(?:async )?(?:def|fn|pub fn) {test}\(", file.read_text(), re.MULTILINE) is not None
