"""The extension image that tools/image.sh makes: a valid OCI image, and all that a server needs that has it mounted.

PostgreSQL finds extensions outside of its own folders since 18 (extension_control_path). Before, only the image is looked at.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from health import health
from population import check_everyone, install, populate, rows
from server import CHECKOUT, PROJECT, Cluster
from totp import NOON, code_at, enroll, fix_clock, verify

PG_CONFIG = Path(PROJECT["PG_CONFIG"])
MAJOR = int(re.search(r"\d+", subprocess.run([PG_CONFIG, "--version"], check=True, text=True, capture_output=True).stdout)[0])
VERSION = re.search(r'^version = "(.*)"$', (CHECKOUT / "Cargo.toml").read_text(), re.MULTILINE)[1]
DATE = 1577836800  # of the files: 2020-01-01
MOUNTED = pytest.mark.skipif(MAJOR < 18, reason="PostgreSQL finds no extension outside of its own folders before 18")

OCI = "application/vnd.oci.image."
FILES = {"lib/pg_totp.so", "licenses/pg_totp/copyright", "licenses/pg_totp/crates.gz", "share/extension/pg_totp.control",
         f"share/extension/pg_totp--{VERSION}.sql", *(f"share/extension/{script.name}" for script in (CHECKOUT / "sql").glob("pg_totp--*--*.sql"))}


def make(**environment: str) -> Path:
    """Make the image of the build that the tests have; the archive."""
    made = subprocess.run(["tools/image.sh"], cwd=CHECKOUT, check=True, text=True, capture_output=True,
                          env={**os.environ, "PG_CONFIG": str(PG_CONFIG), "SOURCE_DATE_EPOCH": str(DATE), **environment}).stdout
    return CHECKOUT / made.strip()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A copy of the archive: another test makes it again."""
    return Path(shutil.copy(make(), tmp_path_factory.mktemp("image")))


class Image:
    """An image that was read from an archive: every blob is the one that its descriptor names."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            self.entries = tar.getmembers()
            self.files = {entry.name: tar.extractfile(entry).read() for entry in self.entries if entry.isfile()}
        self.used = {"oci-layout", "index.json"}
        self.index = json.loads(self.files["index.json"])
        [self.reference] = self.index["manifests"]
        self.manifest = json.loads(self.blob(self.reference, "manifest.v1+json"))
        self.config = json.loads(self.blob(self.manifest["config"], "config.v1+json"))
        self.layers = [gzip.decompress(self.blob(layer, "layer.v1.tar+gzip")) for layer in self.manifest["layers"]]

    def blob(self, descriptor: dict, kind: str) -> bytes:
        assert descriptor["mediaType"] == OCI + kind
        name = "blobs/" + descriptor["digest"].replace(":", "/")
        content = self.files[name]
        assert len(content) == descriptor["size"]
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        self.used.add(name)
        return content

    def unpack(self, folder: Path) -> Path:
        """What a kubelet mounts: the layers in their order."""
        folder.mkdir()
        for layer in self.layers:
            subprocess.run(["tar", "--extract", "--directory", folder], input=layer, check=True)
        return folder


@pytest.fixture(scope="module")
def image(archive) -> Image:
    return Image(archive)


# --- The image ---------------------------------------------------------------------------------------------------------------


def test_it_is_an_image_layout_in_which_each_blob_is_what_its_digest_says(image):
    assert json.loads(image.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert (image.index["schemaVersion"], image.index["mediaType"]) == (2, OCI + "index.v1+json")
    assert (image.manifest["schemaVersion"], image.manifest["mediaType"]) == (2, OCI + "manifest.v1+json")
    assert image.used == image.files.keys()
    assert image.config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in image.layers]}
    assert image.reference["platform"] == {name: image.config[name] for name in ("architecture", "os")}
    assert image.config["os"] == "linux" and len(image.config["history"]) == len(image.layers)


def test_the_folder_beside_the_archive_has_the_same(image):
    folder = make().with_suffix("")
    assert {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()} == image.files


def test_a_program_that_is_not_ours_reads_it(archive, image, tmp_path):
    """skopeo copies it as a registry would get it, and verifies the digests on the way."""
    source = f"oci-archive:{archive}:{image.reference['annotations']['org.opencontainers.image.ref.name']}"
    shown = json.loads(subprocess.run(["skopeo", "inspect", source], check=True, text=True, capture_output=True).stdout)
    assert shown["Digest"] == image.reference["digest"] and shown["Labels"] == image.config["config"]["Labels"]
    subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", source, f"dir:{tmp_path}/copy"], check=True)
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text()) == image.manifest


def test_it_has_the_files_of_the_extension_and_no_other(image):
    entries = [entry for layer in image.layers for entry in tarfile.open(fileobj=io.BytesIO(layer)).getmembers()]
    files = {entry.name for entry in entries if entry.isfile()}
    assert files == FILES
    assert {entry.name for entry in entries if not entry.isfile()} == {str(folder) for name in files for folder in list(Path(name).parents)[:-1]}
    for entry in [*entries, *image.entries]:
        assert entry.isfile() or entry.isdir(), entry.name
        assert (entry.uid, entry.gid, entry.mtime, entry.mode) == (0, 0, DATE, 0o644 if entry.isfile() else 0o755), entry.name


def test_its_labels_say_what_it_is_for(image):
    labels = image.config["config"]["Labels"]
    assert labels == image.manifest["annotations"] and all(isinstance(value, str) and value for value in labels.values())
    assert labels["io.cloudnativepg.image.base.pgmajor"] == str(MAJOR)
    assert labels["org.opencontainers.image.version"] == labels["io.cloudnativepg.image.sql.version"] == VERSION
    assert labels["org.opencontainers.image.created"] == image.config["created"] == "2020-01-01T00:00:00Z"
    tag = f"{VERSION}-{MAJOR}-{labels['io.cloudnativepg.image.base.os']}"
    assert image.reference["annotations"] == {"org.opencontainers.image.ref.name": tag}
    assert labels["org.opencontainers.image.title"] == f"pg_totp {tag}"


def test_the_same_build_gives_the_same_bytes(archive):
    assert make(TZ="Pacific/Auckland", LC_ALL="C.UTF-8").read_bytes() == archive.read_bytes()
    assert make(SOURCE_DATE_EPOCH=str(DATE + 1)).read_bytes() != archive.read_bytes()


# --- A server that has it mounted --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs() -> Path:
    """The programs of a copy of the installation in whose folders nothing is ours."""
    tree = Path(PROJECT["TREE"] + "-without")
    subprocess.run(["tools/tree.sh", tree], cwd=CHECKOUT, check=True, env={**os.environ, "PG_CONFIG": str(PG_CONFIG)})
    assert not list(tree.rglob("pg_totp*"))
    return tree / PG_CONFIG.parent.relative_to("/")


@pytest.fixture
def make_server(programs):
    """A function that makes a server with a folder of extensions as CloudNativePG sets it: make_server(folder)."""
    made = []

    def server(folder: Path) -> Cluster:
        made.append(Cluster(programs))
        return made[-1].init(**mounted(folder)).start()

    yield server
    for one in made:
        one.remove()


@pytest.fixture
def extensions():
    """A folder that the server's user may read, as /extensions in a pod."""
    folder = Path(subprocess.run(["mktemp", "--directory", "/tmp/pg_totp.XXXXXX"], check=True, text=True, capture_output=True).stdout.strip())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def mounted(folder: Path) -> dict[str, str]:
    return {"extension_control_path": f"$system:{folder}/share", "dynamic_library_path": f"$libdir:{folder}/lib"}


LIBRARIES = """
SELECT DISTINCT p.probin FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'pg_totp' WHERE p.probin IS NOT NULL"""


def loaded(conn) -> set[str]:
    """The libraries of ours in the memory of a session."""
    return set(re.findall(r"/\S*pg_totp\S*\.so", Path(f"/proc/{conn.info.backend_pid}/maps").read_text()))


def faults(conn) -> dict:
    """What totp_health() calls a failure at noon, but that it is always noon."""
    fix_clock(conn, NOON)
    return {name: told for name, told in health(conn).items() if told[0] == "fail" and name != "test_clock"}


@MOUNTED
def test_a_server_with_the_image_mounted_signs_a_user_in(image, make_server, extensions):
    folder = image.unpack(extensions / "pg-totp")
    server = make_server(folder)
    db = server.create_database()
    assert db.execute(LIBRARIES) == [("pg_totp",)]
    with closing(db.connect()) as conn:
        fix_clock(conn, NOON)
        secret = enroll(conn, "alice")
        assert verify(conn, "alice", code_at(secret, NOON)) is True
        assert verify(conn, "alice", code_at(secret, NOON)) is False
        assert faults(conn) == {}
        assert loaded(conn) == {f"{folder}/lib/pg_totp.so"}


@MOUNTED
def test_the_next_image_updates_what_the_one_before_has_made(image, make_server, extensions):
    """As a rolling update does: the server is started again with the other folder, and then the database is updated."""
    new, old = image.unpack(extensions / "new"), extensions / "old"
    as_it_was_in_0_1_0(new, old)
    server = make_server(old)
    db = server.create_database(extension=False)
    install(db, "0.1.0")
    assert db.execute(LIBRARIES) == [("$libdir/pg_totp",)]
    known = populate(db)
    before = rows(db)

    server.stop()
    server.configure(**mounted(new))
    server.start()
    with closing(db.connect()) as conn:  # the SQL of before, with the library of now
        assert conn.execute("SELECT totp_enabled('alice')").fetchone() == (True,)
        assert loaded(conn) == {f"{new}/lib/pg_totp.so"}
    db.execute("ALTER EXTENSION pg_totp UPDATE")
    assert rows(db, like=before) == before
    assert db.execute(LIBRARIES) == [("pg_totp",)]
    with closing(db.connect()) as conn:
        assert faults(conn) == {}
    check_everyone(db, known)


def as_it_was_in_0_1_0(new: Path, old: Path) -> None:
    """The folder of an image of the release: its script and what its control file said. The library is the one of now."""
    (old / "share" / "extension").mkdir(parents=True)
    shutil.copytree(new / "lib", old / "lib")
    control = (new / "share" / "extension" / "pg_totp.control").read_text()
    said = (CHECKOUT / "sql" / "install" / "pg_totp--0.1.0.control").read_text()
    (old / "share" / "extension" / "pg_totp.control").write_text(re.sub("^module_pathname.*\n", lambda _: said, control, flags=re.MULTILINE).replace(VERSION, "0.1.0"))
    shutil.copy(CHECKOUT / "sql" / "install" / "pg_totp--0.1.0.sql", old / "share" / "extension")
