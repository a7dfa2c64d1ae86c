"""tools/setup.sh takes Debian's Rust by its path where an older one comes first in PATH, and says so in one line."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

DEBIAN = Path("/usr/bin/rustc")


def version(rustc: Path) -> str:
    return subprocess.run([rustc, "--version"], check=True, text=True, capture_output=True).stdout.split()[1]


@pytest.mark.skipif(not DEBIAN.exists(), reason="this machine builds with a Rust that is not Debian's")
def test_an_older_one_first_in_path_is_named_in_one_line(tmp_path):
    older = tmp_path / "rustc"
    older.write_text("#!/bin/sh\necho 'rustc 1.70.0 (an older one)'\n")
    older.chmod(0o755)
    said = subprocess.run(["tools/setup.sh"], cwd=ROOT, check=True, text=True, capture_output=True, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (said.stdout + said.stderr).splitlines() == [f"==> Rust: Debian's {version(DEBIAN)}, by its path {DEBIAN}; {older}, first in PATH, is 1.70.0"]
