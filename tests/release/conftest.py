"""What the tests of releases share: what make build leaves."""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def places() -> dict[str, str]:
    """The values of tools/env.sh, and what PostgreSQL says of itself."""
    lines = subprocess.run(["tools/env.sh"], cwd=ROOT, check=True, text=True, capture_output=True).stdout.splitlines()
    values = dict(line.split("=", 1) for line in lines)
    for name in ("bindir", "pkglibdir", "sharedir", "version"):
        values[name] = subprocess.run([values["PG_CONFIG"], f"--{name}"], check=True, text=True, capture_output=True).stdout.strip()
    return values


@pytest.fixture(scope="session")
def library(places) -> bytes:
    return Path(places["TREE"] + places["pkglibdir"], "pg_totp.so").read_bytes()


@pytest.fixture(scope="session")
def script(places) -> str:
    """The SQL of CREATE EXTENSION."""
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    return Path(places["TREE"] + places["sharedir"], f"extension/pg_totp--{version}.sql").read_text()
