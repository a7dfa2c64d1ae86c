"""A block with a name is not run by check.py. So each must be run by a cluster test, which calls it by that name."""

import blocks
from check import ROOT

RUN = {"sql", "conf", "ini", "sh", "cron"}  # the others are files that a document reads itself


def test_each_block_with_a_name_is_run_by_a_cluster_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests/cluster").rglob("*.py"))
    named = {(path.name, part.file) for path in (ROOT / "docs").rglob("*.md") for part in blocks.read(path.read_text(), path.name)
             if part.file and part.language in RUN}
    assert len(named) > 10
    for page, name in named:
        assert page in tests and f'"{name}"' in tests, (page, name)
