"""How long an accepted sign-in holds the page locks: measured by a probe on the server's LockBuffer, without changing it."""

import os
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import fixture
from server import BIN

CALLS = fixture.scaled(5_000, 100)
WARM_UP = 100
USERS = WARM_UP + CALLS
EVENT = "pg_totp_bench"


def measure(database, first: int, figure):
    """Measures with users from `first` on. If perf or the right to set probes is missing, the line says so."""
    if not shutil.which("perf"):
        return [figure("time a page lock is held", "not measured: no perf here")]
    fixture.say("page lock")
    server = BIN / "postgres"
    # It may be left over from an earlier run that was killed.
    subprocess.run(["perf", "probe", "-q", "-d", f"{EVENT}:*"], capture_output=True)
    probe = subprocess.run(["perf", "probe", "-q", "-x", server, f"{EVENT}:lock=LockBuffer mode=%si:u32"], capture_output=True, text=True)
    if probe.returncode != 0:
        return [figure("time a page lock is held", "not measured: no right to set a probe")]
    try:
        held, probe_costs = _record(database, first)
    finally:
        subprocess.run(["perf", "probe", "-q", "-d", f"{EVENT}:*"], check=True, capture_output=True)
    return [figure("time that a sign-in holds its page locks, minus the cost of the probe: median; other: the probe",
                   f"{statistics.median(held):.1f} µs", f"{probe_costs:.1f} µs")]


def _record(database, first: int) -> tuple[list[float], float]:
    """Returns the microseconds that the locks were held, for each sign-in, and the cost of a probe.

    A sign-in locks both pages (mode 2 twice) and unlocks both (mode 0 twice). Between the second 2 and the first 0 lies
    what is done under the locks and one probe; between the two 0s a probe and next to nothing.
    """
    clock = fixture.START + 10_000_000_000
    with closing(database.connect()) as conn, tempfile.TemporaryDirectory() as folder:
        conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
        call = f"totp_verify('u' || n, '{fixture.code_of_period(clock)}')"
        fixture.loop_microseconds(conn, call, first, first + WARM_UP - 1)  # so that everything is loaded
        recorded = Path(folder) / "perf.data"
        before = fixture.uses(database)
        with _perf(conn.info.backend_pid, recorded):
            fixture.loop_microseconds(conn, call, first + WARM_UP, first + USERS - 1)
        assert fixture.uses(database) - before == CALLS, "a code was not accepted"
        script = subprocess.run(["perf", "script", "--ns", "-F", "time,trace", "-i", recorded], check=True, capture_output=True, text=True)
    events = [(float(time) * 1e6, mode) for time, mode in re.findall(r"^\s*([0-9.]+):.* mode=(\d+)", script.stdout, re.MULTILINE)]
    held, probes = [], []
    for i in range(len(events) - 3):
        times, modes = zip(*events[i:i + 4], strict=True)
        if modes == ("2", "2", "0", "0"):
            probes.append(times[3] - times[2])
            held.append(times[2] - times[1] - probes[-1])
    assert len(held) >= 0.9 * CALLS, f"{len(held)} of {CALLS} sign-ins seen"
    return held, statistics.median(probes)


@contextmanager
def _perf(pid: int, recorded: Path):
    """Records the probe in one process, from when perf reports that it records."""
    (commands, to_perf), (from_perf, answers) = os.pipe(), os.pipe()
    perf = subprocess.Popen(["perf", "record", "-q", "-D", "-1", f"--control=fd:{commands},{answers}", "-e", f"{EVENT}:lock", "-p", str(pid),
                             "-o", recorded], pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    os.close(commands)
    os.close(answers)
    try:
        os.write(to_perf, b"enable\n")
        if not os.read(from_perf, 10).startswith(b"ack"):
            raise RuntimeError(f"perf record: {perf.communicate()[1]}")
        yield
    finally:
        perf.send_signal(signal.SIGINT)
        perf.communicate()
        os.close(to_perf)
        os.close(from_perf)
