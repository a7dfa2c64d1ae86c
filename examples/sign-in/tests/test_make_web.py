"""make web: the address, two accounts, and nothing left after Ctrl-C."""

import re
import signal
import subprocess
from http.client import HTTPConnection
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
        for user, password in accounts.items():
            connection = HTTPConnection(address, timeout=60)
            connection.request("POST", "/sign-in", urlencode({"user": user, "password": password}),
                               {"Origin": f"http://{address}", "Content-Type": "application/x-www-form-urlencoded"})
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Location"]) == (303, "/code")
            connection.close()
        folder = re.search(r"^files: (/tmp/\S+)$", printed, re.M)[1]
        assert processes_of(folder) and Path(folder).exists()
    finally:
        end(program, signal.SIGINT)  # as the terminal does
        program.stdout.close()
    assert processes_of(folder) == [] and not Path(folder).exists()


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
