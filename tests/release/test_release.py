"""What a release is made of: META.json, versions that agree, and a distribution that anyone can make again."""

import hashlib
import json
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
META = json.loads((ROOT / "META.json").read_text())
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
SEMANTIC = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")
RELEASED = [path.stem.removeprefix("pg_totp--") for path in (ROOT / "sql" / "install").glob("*.sql")]


def is_text(value) -> bool:
    return isinstance(value, str) and value.strip() != ""


def test_meta_json_is_as_the_pgxn_meta_spec_wants_it():
    """Version 1.0.0 of https://pgxn.org/spec/: what must be there, and the form of what may be."""
    assert set(META) <= {"name", "abstract", "description", "version", "maintainer", "license", "release_status", "prereqs", "provides",
                         "resources", "no_index", "generated_by", "meta-spec", "tags"}
    assert re.fullmatch(r"[^\s/\\\x00-\x1f]{2,}", META["name"])
    assert all(is_text(META[key]) for key in ("abstract", "description", "generated_by"))
    assert SEMANTIC.fullmatch(META["version"])
    assert META["maintainer"] and all(map(is_text, META["maintainer"]))
    assert META["license"] and all(is_text(name) and url.startswith("https://") for name, url in META["license"].items())
    assert META["release_status"] in ("stable", "testing", "unstable")
    assert META["meta-spec"]["version"] == "1.0.0"
    assert META["tags"] and all(is_text(tag) and len(tag) < 256 and "/" not in tag for tag in META["tags"])
    for phase, kinds in META["prereqs"].items():
        assert phase in ("configure", "build", "test", "runtime", "develop")
        for kind, wanted in kinds.items():
            assert kind in ("requires", "recommends", "suggests", "conflicts")
            assert all(version == 0 or SEMANTIC.fullmatch(version) for version in wanted.values())
    assert META["provides"]
    for provided in META["provides"].values():
        assert SEMANTIC.fullmatch(provided["version"])
        assert (ROOT / provided["file"]).is_file() and (ROOT / provided["docfile"]).is_file()


def test_every_place_names_the_same_version():
    for path in ("Cargo.lock", "fuzz/Cargo.lock"):
        packages = tomllib.loads((ROOT / path).read_text())["package"]
        assert {p["version"] for p in packages if p["name"] in ("pg_totp", "otp", "seal", "tokens")} == {VERSION}, path
    assert META["version"] == META["provides"]["pg_totp"]["version"] == VERSION
    spec = (ROOT / "packaging/pg_totp.spec").read_text()
    rust = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["rust-version"]
    assert f" rust >= {rust} " in spec
    assert re.findall(r"^Version: +(\S+)$", spec, re.MULTILINE) == [VERSION]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == VERSION


def test_a_released_version_is_frozen_once_the_next_has_begun():
    """Each build makes the script of this version again. It is frozen when it is no longer this version."""
    assert RELEASED and VERSION not in RELEASED


def test_a_released_script_is_never_changed():
    """released.sha256 has a line for the script of each released version, and for each that leads from one of them to another."""
    known = dict(reversed(line.split()) for line in (Path(__file__).parent / "released.sha256").read_text().splitlines())
    between = [path for path in (ROOT / "sql").glob("pg_totp--*--*.sql") if path.stem.split("--")[2] in RELEASED]
    scripts = {str(path.relative_to(ROOT)): path for path in [*(ROOT / "sql" / "install").glob("*.sql"), *between]}
    assert known == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in scripts.items()}


def test_every_released_version_has_a_way_to_this_one():
    steps = [path.stem.split("--")[1:] for path in (ROOT / "sql").glob("pg_totp--*--*.sql")]
    reached = {VERSION}
    for _ in steps:
        reached |= {old for old, new in steps if new in reached}
    assert set(RELEASED) <= reached


def test_scripts_of_releases_name_no_path_of_the_machine_that_made_them():
    for path in (ROOT / "sql" / "install").glob("*.sql"):
        assert set(re.findall(r"'((?:\$libdir|MODULE_PATHNAME|/)[^']*)'", path.read_text())) == {"MODULE_PATHNAME"}, path
        assert not re.search(r"/(home|root|tmp|usr|var|work)/", path.read_text()), path


WORKFLOWS = {path.name: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def test_the_workflows_run_each_step_of_the_ci_and_nothing_else():
    """The machines of a workflow differ in nothing but the steps of .ci/run, so that it alone says what is run."""
    steps = []
    for text in WORKFLOWS.values():
        [called] = re.findall(r"- run: \.ci/run (.+)$", text, re.MULTILINE)
        listed = re.search(r"^ +steps: \[(.*)\]$", text, re.MULTILINE)[1] if called == "${{ matrix.steps }}" else called
        steps += re.split(r",? +", listed)
        assert not re.search(r"\bmake \w|tools/\w+\.sh|tests/run", re.sub(r"\$\{\{.*?\}\}", "", text))
    refused = subprocess.run([".ci/run", "no-such-step"], cwd=ROOT, text=True, capture_output=True)
    assert refused.returncode == 2 and refused.stdout == ""
    assert sorted(steps) == sorted(refused.stderr.strip().partition("of: ")[2].split())


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS))
def test_a_workflow_names_only_files_that_are_there(workflow):
    named = re.findall(r"(?<![\w/.*-])(?:\.ci|tools|tests|Cargo|deny)[/.][\w./-]+", WORKFLOWS[workflow])
    assert ".ci/run" in named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.fixture
def checkout(tmp_path):
    """A repository with the files of this one, as they are in its working tree, in one commit of a fixed time."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns("target", ".git", "__pycache__"))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=test", GIT_COMMITTER_DATE="2030-01-01T12:00:00Z", GIT_AUTHOR_DATE="2030-01-01T12:00:00Z")
    return folder


def git(folder, *arguments, **environment) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test"]
    return subprocess.run(["git", *identity, *map(str, arguments)], cwd=folder, check=True, text=True, capture_output=True,
                          env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", **environment}).stdout


def dist(folder, **environment) -> Path:
    made = subprocess.run(["tools/dist.sh"], cwd=folder, check=True, text=True, capture_output=True,
                          env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", **environment}).stdout
    return folder / made.strip()


def test_the_distribution_is_reproducible_and_laid_out_as_pgxn_wants_it(checkout, tmp_path):
    made = dist(checkout)
    assert made.name == f"pg_totp-{VERSION}.zip"
    first = made.read_bytes()
    made.unlink()
    (checkout / "not-committed").write_text("")
    assert dist(checkout, TZ="Pacific/Auckland", LANG="de_DE.UTF-8").read_bytes() == first
    with zipfile.ZipFile(made) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        assert json.loads(archive.read(f"pg_totp-{VERSION}/META.json")) == META
        assert archive.getinfo(f"pg_totp-{VERSION}/tools/build.sh").external_attr >> 16 & 0o111
    assert names == {f"pg_totp-{VERSION}/{name}" for name in git(checkout, "ls-files").splitlines()}


@pytest.fixture
def make_release(checkout, tmp_path, places):
    """A function that runs tools/release.sh, with a make that runs the commands given and makes an empty package."""
    (checkout / "tools/dependencies.sh").write_text("#!/bin/sh\necho target/empty\n")
    git(checkout, "commit", "--quiet", "--all", "--message=no list of crates")
    (tmp_path / "bin").mkdir()
    (tmp_path / "key").touch()

    def run(commands: str = "") -> subprocess.CompletedProcess:
        make = tmp_path / "bin/make"
        make.write_text(f"#!/bin/sh -e\n{commands}\n: >target/empty\n: >target/package.deb\necho target/package.deb\n")
        make.chmod(0o755)
        return subprocess.run(["tools/release.sh"], cwd=checkout, text=True, capture_output=True,
                              env={"PATH": f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": "/",
                                   "RELEASE_KEY": str(tmp_path / "key"), "PG_CONFIG": places["PG_CONFIG"]})

    return run


def said_by(done: subprocess.CompletedProcess) -> str:
    assert done.returncode != 0  # at the latest at the key, which is none
    return done.stderr


def test_a_release_is_made_from_its_tag_and_has_a_date(checkout, make_release):
    tag, changes = f"v{VERSION}", checkout / "CHANGELOG.md"
    assert f"there is no tag {tag}: do not publish this" in said_by(make_release())
    changes.write_text(re.sub(r"^## .*$", f"## {VERSION} (unreleased)", changes.read_text(), count=1, flags=re.MULTILINE))
    git(checkout, "commit", "--quiet", "--allow-empty", "--all", "--message=no date")
    git(checkout, "tag", tag)
    assert f"CHANGELOG.md has no date for {VERSION}" in said_by(make_release())
    changes.write_text(changes.read_text().replace("(unreleased)", "(2030-01-01)", 1))
    git(checkout, "commit", "--quiet", "--all", "--message=release")
    assert f"HEAD is not the tag {tag}" in said_by(make_release())
    git(checkout, "tag", "--force", "--annotate", "--message=release", tag)
    said = said_by(make_release())
    assert "tag" not in said and "date" not in said and "new in target/release-" in said


@pytest.mark.parametrize("change", ["git -c user.name=test -c user.email=test commit --quiet --allow-empty --message=meanwhile", "echo >>README.md"])
def test_a_checkout_that_changes_meanwhile_is_not_signed(checkout, make_release, change):
    assert "the checkout has changed meanwhile: nothing is signed" in said_by(make_release(change))
    assert not list(checkout.glob("target/release-*/SHA256SUMS*"))
