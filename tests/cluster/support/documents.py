"""Blocks of a document that tests/docs does not run, since they need a server of their own: a cluster test runs them.

Such a block has a name: ```sql file=NAME. The ```text block after it is what psql prints for it.
"""

import blocks  # tests/docs
import compare
from server import CHECKOUT, Database


def block(page: str, name: str) -> str:
    """The text of the block of that name."""
    [found] = [part.text for part in _parts(page) if part.file == name]
    return found


def block_with(page: str, text: str) -> str:
    """The block that has this text. tests/docs runs it too."""
    [found] = [part.text for part in _parts(page) if text in part.text]
    return found


def run(db: Database, page: str, name: str, user: str = "postgres", **variables: str) -> None:
    """Run a block of SQL by psql as this role, with these variables. It must succeed, and print what the document says."""
    parts = _parts(page)
    [at] = [number for number, part in enumerate(parts) if part.file == name]
    options = [option for variable, value in variables.items() for option in ("-v", f"{variable}={value}")]
    printed = db.cluster.client("psql", "-X", "-v", "ON_ERROR_STOP=1", *options, "-d", db.name, "-U", user, stdin=parts[at].text)
    following = parts[at + 1] if at + 1 < len(parts) else None
    if following and following.language == "text":
        assert compare.matches(following.text, printed), compare.difference(following.text, printed)


def _parts(page: str) -> list[blocks.Block]:
    return blocks.read((CHECKOUT / "docs" / page).read_text(), page)
