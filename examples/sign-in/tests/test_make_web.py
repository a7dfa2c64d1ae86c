"""make web: the address, two accounts that can sign in, and nothing left after Ctrl-C."""

import re
import signal
import subprocess
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlencode

from server import CHECKOUT
from sign_in_site import end


def test_it_starts_and_ends():
    program = subprocess.Popen(["tools/web.sh"], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed = ""
        while "listening on" not in printed:
            line = program.stdout.readline()
            assert line, printed
            printed += line
        accounts = dict(re.findall(r"^(\w+)\b.*password: (\w+)$", printed, re.M))
        assert accounts.keys() == {"alice", "dora"}
        address = re.search(r"listening on http://(127\.0\.0\.1:\d+)$", printed, re.M)[1]
        alice, dora = (post(address, "/sign-in", {"user": user, "password": password}) for user, password in accounts.items())
        assert alice.headers["Location"] == dora.headers["Location"] == "/code"
        shown = re.search(r"^  (oathtool --totp -b [A-Z2-7]{32})$", printed, re.M)[1]
        code = subprocess.run(shown.split(), text=True, capture_output=True, check=True).stdout.strip()
        signed_in = post(address, "/code", {"code": code}, dora.headers["Set-Cookie"].split(";")[0])
        assert (signed_in.status, signed_in.headers["Location"]) == (303, "/")
        folder = re.search(r"^files: (/tmp/\S+)$", printed, re.M)[1]
        assert processes_of(folder) and Path(folder).exists()
    finally:
        end(program, signal.SIGINT)  # as the terminal does
        program.stdout.close()
    assert processes_of(folder) == [] and not Path(folder).exists()


def post(address: str, path: str, fields: dict[str, str], cookie: str = "") -> HTTPResponse:
    with closing(HTTPConnection(address, timeout=60)) as connection:
        connection.request("POST", path, urlencode(fields),
                           {"Origin": f"http://{address}", "Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"})
        return connection.getresponse()


def processes_of(folder: str) -> list[str]:
    """Command lines that name the folder; a server's process has it in its own."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if folder in command:
            found.append(command)
    return found
