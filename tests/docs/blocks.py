"""The blocks of a Markdown document: fenced code, and the HTML comments that the tester reads.

A visible block is ```LANGUAGE [file=NAME] ... ```. A hidden one, for set-up that would only distract the reader, is a
comment whose first line is <!-- LANGUAGE [file=NAME] and whose last line is -->. All other text is prose.
"""

import re
from dataclasses import dataclass

FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*(.*?)\s*$")
COMMENT = re.compile(r"^<!-- (sql|text|csv|python|sh)((?: file=\S+)?)$")


class DocumentError(Exception):
    """A document that cannot be read: its message names file and line."""


@dataclass
class Block:
    """One block. `line` is that of its opening fence; `file` is the name that it is to be written under, if any."""

    language: str
    text: str
    line: int
    hidden: bool = False
    file: str | None = None


def read(source: str, name: str) -> list[Block]:
    """The blocks of a document in their order. A block without an end is a DocumentError."""
    blocks = []
    lines = iter(enumerate(source.splitlines(), 1))
    for number, line in lines:
        if comment := COMMENT.match(line):
            text = _until(lines, lambda later: later.strip() == "-->", "")
            info = (comment[1] + comment[2]).split()
        elif fence := FENCE.match(line):
            mark = fence[2]
            text = _until(lines, lambda later: _closes(later, mark), fence[1])
            info = fence[3].split()
        elif line.startswith("<!-- sql"):
            raise DocumentError(f"{name}:{number}: a hidden block begins with a line <!-- sql and ends with a line -->")
        else:
            continue
        if text is None:
            raise DocumentError(f"{name}:{number}: this block is not closed")
        blocks.append(Block(info[0] if info else "", text, number, hidden=bool(comment), file=_file(info)))
    return blocks


def _closes(line: str, mark: str) -> bool:
    stripped = line.strip()
    return len(stripped) >= len(mark) and set(stripped) == {mark[0]}


def _file(info: list[str]) -> str | None:
    names = [word.removeprefix("file=") for word in info[1:] if word.startswith("file=")]
    return names[0] if names else None


def _until(lines, is_end, indent: str) -> str | None:
    """The lines up to the end of the block, without its indentation; None if the document ends first."""
    text = []
    for _, line in lines:
        if is_end(line):
            return "".join(line + "\n" for line in text)
        text.append(line.removeprefix(indent))
    return None
