"""What documents point at: the tester of references must see a test that is gone."""

import pytest
import references


@pytest.mark.parametrize("named, there", [
    ("tests/cluster/sign_in/test_replay.py", True),
    ("tests/cluster/sign_in/test_replay.py::test_once", True),
    ("crates/otp/tests/rfc.rs::appendix", True),
    ("tests/cluster/sign_in/test_replay.py::test_twice", False),
    ("tests/cluster/sign_in/test_replay.py::test_on", False),
    ("tests/cluster/sign_in/test_replay.py::test_called_only", False),
    ("tests/cluster/sign_in/test_gone.py::test_once", False),
    ("crates/otp/tests/rfc.rs::appendix_d", False),
    ("packaging/Dockerfile", False),
    ("tests/run-gone", False),
])
def test_a_named_test_must_be_there(tmp_path, named, there):
    for path, text in {"tests/cluster/sign_in/test_replay.py": "def test_once(db):\n    test_called_only()\n", "crates/otp/tests/rfc.rs": "#[test]\nfn appendix() {}\n"}.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    source = f"Shown by `{named}`.\n"
    assert references.faults(tmp_path, tmp_path / "README.md", source) == ([] if there else [f"there is no {named}"])
