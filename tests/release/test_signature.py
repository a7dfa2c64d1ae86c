"""What tools/release.sh puts into a release; its sums and their signature, verified by the commands of SECURITY.md."""

import os
import shutil
import subprocess
from pathlib import Path

import blocks  # tests/docs
import pytest

ROOT = Path(__file__).resolve().parents[2]
[VERIFY] = [part.text for part in blocks.read((ROOT / "SECURITY.md").read_text(), "SECURITY.md") if part.file == "verify.sh"]


def key(folder: Path, name: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name], check=True)
    return folder / name


def allow(folder: Path, signer: Path) -> None:
    public = signer.with_suffix(".pub").read_text()
    (folder / "allowed_signers").write_text(f'pg_totp namespaces="pg_totp-release" {public}')


@pytest.fixture
def checkout(tmp_path):
    """What of this checkout signs, with a signer of its own."""
    folder = tmp_path / "checkout"
    for name in ("tools", "packaging"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Cargo.toml", "pgrx.toml"):
        shutil.copy(ROOT / name, folder)
    allow(folder / "packaging", key(tmp_path, "signer"))
    return folder


def sign(checkout: Path, release: Path, signer: Path | str) -> subprocess.CompletedProcess:
    return subprocess.run(["tools/release.sh", "sign", release], cwd=checkout, text=True, capture_output=True,
                          env={**os.environ, "RELEASE_KEY": str(signer)})


@pytest.fixture
def release(checkout, tmp_path):
    """A signed folder of two files, and what its reader has of the repository."""
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "pg_totp.deb").write_bytes(b"package")
    (folder / "pg_totp.zip").write_bytes(b"distribution")
    signed = sign(checkout, folder, tmp_path / "signer")
    assert signed.returncode == 0, signed.stderr
    shutil.copy(checkout / "packaging/allowed_signers", folder)
    return folder


def verify(release: Path, commands: str = VERIFY) -> tuple[int, str]:
    done = subprocess.run(["sh", "-e"], input=commands, cwd=release, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def test_a_release_is_verified_as_the_page_says(release):
    assert [line.split("  ")[1] for line in (release / "SHA256SUMS").read_text().splitlines()] == ["pg_totp.deb", "pg_totp.zip"]
    status, said = verify(release)
    assert status == 0 and 'Good "pg_totp-release" signature for pg_totp' in said
    assert "pg_totp.deb: OK" in said and "pg_totp.zip: OK" in said


def test_one_file_of_it_can_be_verified_alone(release):
    (release / "pg_totp.zip").unlink()
    assert verify(release)[0] == 0
    (release / "pg_totp.deb").unlink()
    assert verify(release)[0] != 0


def test_a_changed_file_is_refused(release):
    (release / "pg_totp.deb").write_bytes(b"another")
    status, said = verify(release)
    assert status != 0 and "pg_totp.deb: FAILED" in said


def test_changed_sums_are_refused(release):
    sums = release / "SHA256SUMS"
    (release / "pg_totp.deb").write_bytes(b"another")
    sums.write_text(subprocess.run(["sha256sum", "pg_totp.deb", "pg_totp.zip"], cwd=release, check=True, text=True, capture_output=True).stdout)
    status, said = verify(release)
    assert status != 0 and "incorrect signature" in said


@pytest.mark.parametrize("namespace", ["pg_totp-release", "file"])
def test_a_signature_of_another_key_or_for_another_purpose_is_refused(release, tmp_path, namespace):
    signer = key(tmp_path, "other") if namespace == "pg_totp-release" else tmp_path / "signer"
    (release / "SHA256SUMS.sig").unlink()
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", signer, "-n", namespace, release / "SHA256SUMS"], check=True)
    assert verify(release)[0] != 0


def test_nothing_is_signed_with_a_key_that_readers_do_not_know(checkout, release, tmp_path):
    signed = sign(checkout, release, key(tmp_path, "other"))
    assert signed.returncode != 0 and "packaging/allowed_signers does not name the key" in signed.stderr
    assert not (release / "SHA256SUMS.sig").exists()


@pytest.mark.parametrize("signer, said", [("", "RELEASE_KEY is not set"), ("/nonexistent", "/nonexistent: no such file")])
def test_without_a_key_nothing_is_made(checkout, release, signer, said):
    before = {path: path.read_bytes() for path in release.iterdir()}
    signed = sign(checkout, release, signer)
    assert signed.returncode != 0 and said in signed.stderr
    assert {path: path.read_bytes() for path in release.iterdir()} == before


def test_what_was_signed_is_not_signed_again_if_it_has_changed(checkout, release, tmp_path):
    """As when packages of another architecture are put beside it."""
    (release / "pg_totp_arm64.deb").write_bytes(b"package")
    signed = sign(checkout, release, tmp_path / "signer")
    assert signed.returncode == 0 and f"new in {release}: allowed_signers pg_totp_arm64.deb\n" in signed.stderr
    assert verify(release)[0] == 0
    sums = (release / "SHA256SUMS").read_text()
    (release / "pg_totp.deb").write_bytes(b"another")
    signed = sign(checkout, release, tmp_path / "signer")
    assert signed.returncode != 0 and "are not those of SHA256SUMS" in signed.stderr
    (release / "SHA256SUMS").write_text(sums.replace("0", "1"))
    signed = sign(checkout, release, tmp_path / "signer")
    assert signed.returncode != 0 and "is not the signature of SHA256SUMS" in signed.stderr


def test_a_key_that_was_replaced_still_verifies_what_it_signed(release):
    """With the option that SECURITY.md names, and not without."""
    signers = release / "allowed_signers"
    signers.write_text(signers.read_text().replace('-release" ', '-release",valid-before="20270101" '))
    late, then = (VERIFY.replace(" -s ", f" -O verify-time={day} -s ") for day in ("20270201", "20261231"))
    assert [verify(release, commands)[0] == 0 for commands in (late, then)] == [False, True]


def test_the_committed_signers_are_for_releases_alone():
    """Also the line that the comment gives as an example."""
    text = (ROOT / "packaging/allowed_signers").read_text().replace("# A line: ", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines and all(line.startswith('pg_totp namespaces="pg_totp-release" ') for line in lines)


STAND_INS = {  # each makes a file, and names it; in target/, or in that of another Debian
    "tools/dist.sh": "echo >target/pg_totp.zip; echo target/pg_totp.zip",
    "tools/dependencies.sh": "echo >target/pg_totp.cdx.json; echo target/pg_totp.cdx.json",
    "tools/chroot.sh": """case $1 in
    --target) echo "$PWD/target/debian/$2/build" ;;
    *) export BUILD=target/debian/$1/build && shift && exec "$@" ;;
esac""",
    "bin/make": """kind=$2 major=$(echo "$3" | sed 's|.*/postgresql/\\([0-9]*\\)/.*|\\1|')
mkdir -p "${BUILD:=target}/$kind" && echo "$*" >"$BUILD/$kind/$kind-$major" && echo target/$kind/$kind-$major""",
}


def test_a_release_has_a_package_for_each_postgresql_and_an_image_from_18_on(checkout, tmp_path):
    for name, script in STAND_INS.items():
        path = checkout / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (checkout / ".gitignore").write_text("/target/\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=test"]):
        subprocess.run([*git, *command], cwd=checkout, check=True)
    for release, major, is_for_building in (("forky", 18, True), ("sid", 19, True), ("sid", 14, False)):
        system = checkout / "target/debian" / release
        (system / "build").mkdir(parents=True, exist_ok=True)
        (system / f"usr/lib/postgresql/{major}/bin").mkdir(parents=True)
        (system / f"usr/lib/postgresql/{major}/bin/pg_config").touch()
        if is_for_building:
            (system / f"usr/include/postgresql/{major}/server").mkdir(parents=True)
            (system / f"usr/include/postgresql/{major}/server/postgres.h").touch()
    environment = {name: value for name, value in os.environ.items() if name != "PG_CONFIG"}
    environment |= {"RELEASE_KEY": str(tmp_path / "signer"), "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "SOURCE_DATE_EPOCH": "1700000000"}
    made = subprocess.run(["tools/release.sh"], cwd=checkout, text=True, capture_output=True, env=environment)
    assert made.returncode == 0, made.stderr

    here = {path.parts[4] for path in Path("/usr/lib/postgresql").glob("*/bin/pg_config")
            if Path(f"/usr/include/postgresql/{path.parts[4]}/server/postgres.h").exists()}
    expected = {f"package-{major}" for major in here | {"18", "19"}} | {f"image-{major}" for major in {"18", "19"} | {m for m in here if int(m) > 17}}
    folder = checkout / made.stdout.strip()
    sums = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert sums == expected | {"pg_totp.zip", "pg_totp.cdx.json"}
    assert (folder / "image-18").read_text().endswith("PG_CONFIG=/usr/lib/postgresql/18/bin/pg_config SOURCE_DATE_EPOCH=1700000000\n")
    shutil.copy(checkout / "packaging/allowed_signers", folder)
    assert verify(folder)[0] == 0
