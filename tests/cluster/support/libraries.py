"""Libraries of others that some tests load into the server. Debian does not have all of them for its newest PostgreSQL."""

import subprocess
from pathlib import Path

import pytest
from server import BIN

_FOLDER = Path(subprocess.run([BIN / "pg_config", "--pkglibdir"], check=True, text=True, capture_output=True).stdout.strip())


def skip_without(library: str) -> None:
    """tools/setup.sh installs those that there are."""
    if not (_FOLDER / f"{library}.so").exists():
        pytest.skip(f"this PostgreSQL has no {library}")
