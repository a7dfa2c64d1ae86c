"""The list of crates of a release: what the library is linked from, no more and no less, as Cargo.lock has it."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_expression
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[2]
LOCK = {(crate["name"], crate["version"]): crate for crate in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
OURS = {"pg_totp", "otp", "seal", "tokens"}
VERSIONS = [name for name in tomllib.loads((ROOT / "Cargo.toml").read_text())["features"] if re.fullmatch(r"pg\d+", name)]


def run(*command: str, **environment: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE, env={**os.environ, **environment}).stdout


def make_sbom(**environment: str) -> str:
    return (ROOT / run("tools/dependencies.sh", "sbom", **{"SOURCE_DATE_EPOCH": "1893456000", **environment}).strip()).read_text()


@pytest.fixture(scope="module")
def text() -> str:
    return make_sbom()


@pytest.fixture(scope="module")
def sbom(text) -> dict:
    return json.loads(text)


def crates(sbom: dict) -> dict[str, tuple[str, str]]:
    """Name and version by reference, that of the library included."""
    return {c["bom-ref"]: (c["name"], c["version"]) for c in [sbom["metadata"]["component"], *sbom["components"]]}


def linked(feature: str) -> set[tuple[str, str]]:
    """The crates of `cargo tree`, without the macros and what only they need."""
    found, macro = set(), None
    for line in run("cargo", "tree", "--locked", "--package=pg_totp", "--edges=normal", "--no-default-features", f"--features={feature}",
                    "--prefix=depth", "--no-dedupe").splitlines():
        depth, name, version = re.match(r"(\d+)(\S+) v(\S+)", line).groups()
        if macro is not None and int(depth) > macro:
            continue
        macro = int(depth) if "(proc-macro)" in line else None
        if macro is None:
            found.add((name, version))
    return found


def test_it_is_valid_cyclonedx(text, sbom):
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(json.dumps({**sbom, "serialNumber": "0"})) is not None


@pytest.mark.parametrize("feature", VERSIONS)
def test_it_has_the_crates_that_cargo_links_for_each_postgresql(sbom, feature):
    found = crates(sbom)
    assert set(found.values()) == linked(feature)
    assert len(found) == len(set(found.values())) > 20


def test_it_has_nothing_that_only_builds_and_tests_use(sbom):
    """Though cargo has them all in one graph, and Cargo.lock in one list."""
    names = {name for name, _ in crates(sbom).values()}
    others = {name for name, _ in LOCK} - names
    assert {"pgrx-tests", "pgrx-macros", "pgrx-bindgen", "bindgen", "proptest", "thiserror-impl"} <= others
    assert {"pgrx", "pgrx-pg-sys", "aes-gcm", "hmac", "sha1", "zeroize", "getrandom", "libc"} | OURS <= names


def test_each_crate_is_the_one_of_cargo_lock(sbom):
    for crate in [sbom["metadata"]["component"], *sbom["components"]]:
        locked = LOCK[crate["name"], crate["version"]]
        [license_] = crate["licenses"]
        assert is_expression(license_["expression"]), crate
        if crate["name"] in OURS:
            assert "source" not in locked and "hashes" not in crate
            assert crate["purl"].startswith(f"pkg:generic/pg_totp@{crate['version']}")
        else:
            assert locked["source"].startswith("registry+")
            assert crate["hashes"] == [{"alg": "SHA-256", "content": locked["checksum"]}]
            assert crate["purl"] == f"pkg:cargo/{crate['name']}@{crate['version']}"


def test_its_graph_is_a_part_of_that_of_cargo_lock_and_leads_to_every_crate(sbom):
    found = crates(sbom)
    needs = {entry["ref"]: entry["dependsOn"] for entry in sbom["dependencies"]}
    assert set(needs) == set(found)
    for reference, dependencies in needs.items():
        locked = LOCK[found[reference]].get("dependencies", [])
        names = {tuple(entry.split()[:2]) for entry in locked}
        for name, version in (found[dependency] for dependency in dependencies):
            assert (name,) in names or (name, version) in names, (reference, name)
    reached, open_ = set(), [sbom["metadata"]["component"]["bom-ref"]]
    while open_:
        reference = open_.pop()
        if reference not in reached:
            reached.add(reference)
            open_ += needs[reference]
    assert reached == set(found)


def test_the_same_commit_gives_the_same_bytes(text, sbom):
    assert make_sbom(TZ="Pacific/Auckland", LC_ALL="C") == text
    other = json.loads(make_sbom(SOURCE_DATE_EPOCH="1893456001"))
    assert other["metadata"]["timestamp"] == "2030-01-01T00:00:01Z"
    assert other["serialNumber"] != sbom["serialNumber"]


def test_every_crate_that_the_library_names_is_in_it(sbom, library):
    """Panic messages have paths of sources. So the built library itself shows crates that a wrong list would leave out."""
    named = {(match[1].decode(), match[2].decode()) for match in re.finditer(rb"/crates/([\w-]+?)-(\d+\.\d+\.\d+[^/\0]*)/", library)}
    assert len(named) > 5
    assert named <= set(crates(sbom).values())
