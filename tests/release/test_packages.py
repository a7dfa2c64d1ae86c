"""The packages: what is in them, and that the same sources give the same bytes.

tests/run-release builds in another folder, as another user and on another day; it takes minutes. Here only what a package
is made of is looked at, and made again from the same build.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATE = {"SOURCE_DATE_EPOCH": "1893456000"}


def run(*command, cwd=ROOT, **environment: str) -> str:
    return subprocess.run([str(part) for part in command], cwd=cwd, check=True, text=True, stdout=subprocess.PIPE,
                          env={**os.environ, **environment}).stdout


def make_deb(folder: Path, umask: int = 0o022, **environment: str) -> Path:
    """The Debian package, not in target/package, where another step of .ci/run may have it."""
    made = subprocess.run(["tools/package.sh"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE, umask=umask,
                          env={**os.environ, **DATE, "PACKAGE_FOLDER": str(folder), **environment}).stdout
    return Path(made.splitlines()[-1])


@pytest.fixture(scope="module")
def deb(tmp_path_factory) -> Path:
    return make_deb(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def rpm(tmp_path_factory, places) -> Path:
    """The RPM, by the spec file as it is, from this checkout and its build, and Debian's PostgreSQL."""
    folder = tmp_path_factory.mktemp("rpm")
    major = re.search(r"\d+", places["version"])[0]
    version = re.search(r"^Version: +(\S+)", (ROOT / "packaging/pg_totp.spec").read_text(), re.MULTILINE)[1]
    (folder / "BUILD").mkdir()
    (folder / "BUILD" / f"pg_totp-{version}").symlink_to(ROOT)
    defined = {"_topdir": folder, "_dbpath": folder / "db", "pgmajorversion": major, "pginstdir": Path(places["bindir"]).parent,
               "pglibdir": places["pkglibdir"], "pgextensiondir": f"{places['sharedir']}/extension"}
    options = [option for name, value in defined.items() for option in ("--define", f"{name} {value}")]
    # Without BuildRequires: no package here is an RPM.
    run("rpmbuild", "-bb", "--quiet", "--noprep", "--nodeps", *options, "packaging/pg_totp.spec")
    [made] = (folder / "RPMS").rglob("*.rpm")
    return made


@pytest.fixture(scope="module")
def debian(deb, tmp_path_factory) -> Path:
    """What is in the Debian package."""
    folder = tmp_path_factory.mktemp("debian")
    run("dpkg-deb", "--raw-extract", deb, folder / "root")
    return folder / "root"


@pytest.fixture(scope="module")
def fedora(rpm, tmp_path_factory) -> Path:
    """What is in the RPM."""
    folder = tmp_path_factory.mktemp("fedora")
    packed = subprocess.run(["rpm2cpio", rpm], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["cpio", "--extract", "--make-directories", "--quiet", "--no-absolute-filenames"], cwd=folder, check=True, input=packed)
    return folder


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def query(rpm: Path, *options: str) -> list[str]:
    return run("rpm", "--query", "--package", *options, rpm).splitlines()


# --- The same bytes ------------------------------------------------------------------


def test_the_library_names_no_folder_of_this_machine(library):
    """Crates and bindings are named under /crates and /pg_totp, wherever they are: tools/rustc.sh."""
    here = {str(ROOT), os.environ.get("CARGO_HOME") or f"{os.environ['HOME']}/.cargo", os.environ["HOME"]}
    assert [folder for folder in here if folder.encode() + b"/" in library] == []
    assert b"/crates/pgrx-" in library and b"/pg_totp/target/release/build/pgrx-pg-sys-" in library


def test_the_functions_of_the_script_are_in_the_order_of_the_sources(script):
    places = [(path, int(line)) for path, line in re.findall(r"^-- (src/\S+\.rs):(\d+)$", script, re.MULTILINE)]
    sql = [line for path, line in places if path == "src/lib.rs"]
    functions = [place for place in places if place[0] != "src/lib.rs"]
    assert len(functions) > 40 and functions == sorted(functions)
    assert len(sql) > 3 and sql == sorted(sql)
    assert places[: len(sql) - 1] + places[-1:] == [("src/lib.rs", line) for line in sql] # the rights last


def test_a_package_made_again_is_the_same(deb, tmp_path):
    assert make_deb(tmp_path, umask=0o077, TZ="Pacific/Auckland", LC_ALL="C").read_bytes() == deb.read_bytes()


def test_everything_in_it_has_the_date_of_the_commit_and_belongs_to_root(deb):
    lines = run("dpkg-deb", "--contents", deb, TZ="UTC").splitlines()
    assert len(lines) > 50
    for line in lines:
        mode, owner, _, day, hour, name = line.split()
        assert (owner, day, hour) == ("root/root", "2030-01-01", "00:00"), line
        assert mode == ("drwxr-xr-x" if name.endswith("/") else "-rw-r--r--"), line


def test_its_size_does_not_depend_on_the_file_system(debian):
    inside = [path for path in (debian / "usr").rglob("*")]
    size = 1 + sum(1 if path.is_dir() else -(-path.stat().st_size // 1024) for path in inside)
    assert f"\nInstalled-Size: {size}\n" in (debian / "DEBIAN/control").read_text()


# --- RPM -----------------------------------------------------------------------------


def test_the_rpm_is_named_as_those_of_postgresql(rpm, places):
    major = re.search(r"\d+", places["version"])[0]
    assert query(rpm, "--queryformat", "%{NAME} %{LICENSE} %{RELEASE}\n") == [f"pg_totp_{major} PostgreSQL 1PGDG"]


def test_the_rpm_has_the_files_of_the_debian_package(debian, fedora, places):
    ours, theirs = files(debian), files(fedora)
    folders = [places["pkglibdir"].strip("/"), places["sharedir"].strip("/")]
    installed = {name for name in ours if name.startswith(tuple(folders))}
    assert {name for name in theirs if name.startswith(tuple(folders))} == installed and len(installed) == 4
    for name in installed:
        assert name.endswith(".so") or theirs[name] == ours[name], name

    [doc] = (debian / "usr/share/doc").iterdir()
    [rpm_doc] = (fedora / "usr/share/doc").iterdir()
    debian_only = {"changelog.gz", "changelog.Debian.gz", "copyright", "crates.gz"}
    expected = {name: content for name, content in files(doc).items() if name not in debian_only}
    assert len(expected) > 40
    assert files(rpm_doc) == {**expected, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_bytes()}
    [licenses] = (fedora / "usr/share/licenses").iterdir()
    assert (licenses / "crates").read_text() == run("gzip", "-dc", doc / "crates.gz")
    assert (licenses / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_library_of_the_rpm_is_that_of_the_debian_package(debian, fedora, places, tmp_path):
    """Both are stripped, each in its own way."""
    name = places["pkglibdir"].strip("/") + "/pg_totp.so"
    stripped = []
    for root in (debian, fedora):
        run("strip", "--strip-all", "--remove-section=.comment", "--remove-section=.note*", "-o", tmp_path / "library", root / name)
        stripped.append((tmp_path / "library").read_bytes())
    assert stripped[0] == stripped[1]


def test_the_rpm_lists_each_file_that_is_in_it(rpm, fedora):
    listed = {line.strip("/") for line in query(rpm, "--list")}
    assert set(files(fedora)) <= listed
    assert all((fedora / name).is_dir() for name in listed - set(files(fedora)))


def test_the_rpm_requires_what_the_debian_package_depends_on_and_runs_nothing(rpm, debian, places):
    control = (debian / "DEBIAN/control").read_text()
    major, minor = re.search(r"^Depends: postgresql-(\d+) \(>= (\S+)\)", control, re.MULTILINE).groups()
    required = query(rpm, "--requires")
    assert f"postgresql{major}-server >= {minor}" in required
    assert any(line.startswith("libc.so.6(GLIBC_") for line in required) and "libc6 (>= " in control
    others = {line.split("(")[0].split(" ")[0] for line in required} - {f"postgresql{major}-server", "rpmlib"}
    assert all(re.fullmatch(r"(libc|libm|libgcc_s|ld-linux-.*|rtld)\.?.*", name) for name in others), others
    assert query(rpm, "--scripts") == query(rpm, "--triggers") == []
