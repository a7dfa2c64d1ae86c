"""docs/operations/kubernetes.md: the commands that change the Secret, with a kubectl that keeps it in a file."""

import subprocess
from pathlib import Path
from secrets import token_hex

import pytest
from documents import block

PAGE = "operations/kubernetes.md"
ABOVE, ALONE = "new-key-above", "new-key-alone"
KEYS = ["old.base64", "old.key", "both.key", "new.key"]  # what the commands leave in the folder they run in

KUBECTL = r"""#!/bin/sh
PATH=/usr/bin:/bin
fail() { echo "error: $1" >&2; exit 1; }
case "$*" in
    *" -o jsonpath={.data.totp\\.key}")
        [ ! -e "$PLACE/logged-out" ] || fail "You must be logged in to the server (Unauthorized)"
        base64 -w 0 "$PLACE/secret" ;;
    "create secret generic totp-key --from-file=totp.key="*" --dry-run=client -o yaml")
        file=${5#--from-file=totp.key=}
        [ -e "$file" ] || fail "error reading $file: no such file or directory"
        printf 'data:\n  totp.key: %s\nkind: Secret\n' "$(base64 -w 0 "$file")" ;;
    "apply -f -")
        text=$(cat)
        [ -n "$text" ] || fail "no objects passed to apply"
        [ ! -e "$PLACE/read-only" ] || fail "secrets \"totp-key\" is forbidden"
        printf '%s\n' "$text" | sed -n 's/^  totp.key: *//p' | base64 -d >"$PLACE/secret" ;;
    *) fail "not a command of the page: $*" ;;
esac
"""


class Secret:
    """The Secret of the page, and a shell of someone who may change it."""

    def __init__(self, place: Path) -> None:
        self.place, self.bin, self.folder = place, place / "bin", place / "work"
        self.bin.mkdir()
        self.folder.mkdir()
        self.program("kubectl", KUBECTL)
        self.old = token_hex(32)
        self.set(f"{self.old}\n")

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def set(self, text: str) -> None:
        (self.place / "secret").write_text(text)

    def keys(self) -> list[str]:
        return (self.place / "secret").read_text().split()

    def paste(self, name: str) -> subprocess.CompletedProcess:
        """Paste a block into a shell, which goes on after a command that failed."""
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "PLACE": str(self.place), "LC_ALL": "C"}
        return subprocess.run(["sh", "-s"], input=block(PAGE, name), cwd=self.folder, env=environment, text=True, capture_output=True)

    def refuses(self, name: str, said: str) -> None:
        """The block stops, and the Secret is as it was."""
        before = self.keys()
        done = self.paste(name)
        assert done.returncode != 0 and said in done.stderr, done
        assert self.keys() == before

    def clean(self) -> None:
        """What the page says to do after a command that stopped."""
        for name in KEYS:
            (self.folder / name).unlink(missing_ok=True)


@pytest.fixture
def secret(tmp_path):
    return Secret(tmp_path)


def test_a_new_key_goes_above_the_old_one_and_then_stands_alone(secret):
    assert secret.paste(ABOVE).returncode == 0
    [new, below] = secret.keys()
    assert below == secret.old != new and len(new) == 64
    assert secret.paste(ALONE).returncode == 0
    assert secret.keys() == [new]
    assert {path.name: path.stat().st_mode & 0o777 for path in secret.folder.iterdir()} == dict.fromkeys(KEYS, 0o600)


def test_an_old_key_without_a_newline_stays_below(secret):
    secret.set(secret.old)
    assert secret.paste(ABOVE).returncode == 0
    assert secret.keys()[1:] == [secret.old]


def test_a_secret_that_cannot_be_read_is_not_replaced(secret):
    """An expired token, or a role that may write Secrets and not read them."""
    (secret.place / "logged-out").touch()
    secret.refuses(ABOVE, "You must be logged in")
    (secret.place / "logged-out").unlink()
    secret.clean()
    assert secret.paste(ABOVE).returncode == 0
    assert secret.keys()[1:] == [secret.old]


@pytest.mark.parametrize("text", ["", "{old}\n{other}\n", "# made in 2030\n{old}\n"], ids=["nothing", "two keys", "a comment"])
def test_a_secret_without_exactly_one_line_is_not_replaced(secret, text):
    secret.set(text.format(old=secret.old, other=token_hex(32)))
    secret.refuses(ABOVE, "must have one line")


def test_a_second_paste_makes_no_third_key(secret):
    """In the same folder, or in a clean one."""
    assert secret.paste(ABOVE).returncode == 0
    secret.refuses(ABOVE, "old.base64")
    secret.clean()
    secret.refuses(ABOVE, "must have one line")
    [new, _] = secret.keys()
    (secret.folder / "old.key").rename(secret.folder / "both.key")  # as the page says: go on
    assert secret.paste(ALONE).returncode == 0
    assert secret.keys() == [new]


@pytest.mark.parametrize("name, text", [("openssl", "exit 1"), ("openssl", "exit 0"), ("cat", "exit 1"), ("cat", "exit 0"), ("base64", "exit 1")],
                         ids=["no new key", "an empty new key", "no old key", "an empty old key", "no decoder"])
def test_a_program_that_fails_costs_no_key(secret, name, text):
    secret.program(name, f"#!/bin/sh\n{text}\n")
    secret.refuses(ABOVE, "")


def test_a_secret_that_cannot_be_written_stays(secret):
    (secret.place / "read-only").touch()
    secret.refuses(ABOVE, "forbidden")


@pytest.mark.parametrize("both", [None, "", "\n"], ids=["no file", "an empty file", "a blank line"])
def test_without_the_file_of_both_keys_the_old_one_stays(secret, both):
    """As in another folder than that of the first command."""
    if both is not None:
        (secret.folder / "both.key").write_text(both)
    secret.refuses(ALONE, "both.key")
    assert secret.keys() == [secret.old]
