"""What documents point at: the tester of references must see a test that is gone, and every promise of the security model names a test."""

import re

import pytest
import references
from check import ROOT

MODEL = ROOT / "docs/security-model.md"
TEST = r"`(?:tests|crates|examples)/[\w/-]+\.(?:py|rs)::\w+`"


@pytest.mark.parametrize("named, there", [
    ("tests/cluster/sign_in/test_replay.py", True),
    ("tests/cluster/sign_in/test_replay.py::test_once", True),
    ("crates/otp/tests/rfc.rs::appendix", True),
    ("tests/cluster/sign_in/test_replay.py::test_twice", False),
    ("tests/cluster/sign_in/test_replay.py::test_on", False),
    ("tests/cluster/sign_in/test_replay.py::test_called_only", False),
    ("tests/cluster/sign_in/test_gone.py::test_once", False),
    ("crates/otp/tests/rfc.rs::appendix_d", False),
])
def test_a_named_test_must_be_there(tmp_path, named, there):
    for path, text in {"tests/cluster/sign_in/test_replay.py": "def test_once(db):\n    test_called_only()\n", "crates/otp/tests/rfc.rs": "#[test]\nfn appendix() {}\n"}.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    source = f"Shown by `{named}`.\n"
    assert references.faults(tmp_path, tmp_path / "README.md", source) == ([] if there else [f"there is no {named}"])


def test_every_requirement_names_its_tests_or_says_that_there_is_none():
    """In the tables "requirement | how | test": tests in back quotes, or "-"."""
    rows = re.findall(r"^\| (?!requirement |---)([^|]+) \| ([^|]+) \| ([^|]+) \|$", MODEL.read_text().partition("## RFC 6238")[2], re.MULTILINE)
    assert len(rows) > 40
    for requirement, _, tests in rows:
        assert re.fullmatch(rf"-|{TEST}(?:, {TEST})*", tests.strip()), requirement
