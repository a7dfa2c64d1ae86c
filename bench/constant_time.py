"""Measures whether the time reveals what was compared, and who is enrolled. Writes bench/constant_time.md; a report, no gate.

usage: bench/constant_time.py PROGRAM     the program is bench/constant_time.rs, built; tools/measure.sh does both
"""

import math
import random
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "cluster" / "support"))

from fixture import server, version  # noqa: E402
from run import heading  # noqa: E402
from totp import NOON, active_user, code_at, fix_clock  # noqa: E402

IN_PROCESS = 1_000_000
PER_CLASS = 10_000
PERCENTILES = [1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5]

TEXT = """# Does the time reveal anything

{heading}. Made by `make constant-time`; a report; nothing depends on it.

The method is that of dudect: two classes of input take turns at random, and Welch's *t* compares their times, over all
samples and over those below seven percentiles; the largest is shown. |*t*| below 4.5 is no sign of a difference; above 10 it is
a certain one.

## In the process

{in_process:,} calls of each subject, both classes together. The last line is a comparison with an early exit, to show
that the measurement sees one.

| compared: first class, second class | first | second | *t* |
|---|---|---|---|
{pure}

## By SQL

{per_class:,} prepared calls of `totp_verify` of each class on one session over a unix socket, in µs, with the round trip.

| compared: first class, second class | first | second | *t* |
|---|---|---|---|
{by_sql}

The time does not reveal which digits of a code are right. It reveals who is enrolled: an unknown user has no row to charge
and no secret to try, and a locked one is refused before any work. `totp_check` and `totp_enabled` report both openly. So ask
for the code only after the password was right, or delay the answer in the application; see the [security
model](../docs/security-model.md#a-user-who-does-not-exist).
"""


def welch(a: list[float], b: list[float]) -> float:
    """Returns the largest |t| over samples below the percentiles of both classes together."""
    together = sorted(a + b)
    largest = 0.0
    for percentile in PERCENTILES:
        limit = together[int((len(together) - 1) * percentile)]
        x, y = ([time for time in times if time <= limit] for times in (a, b))
        if len(x) > 1 and len(y) > 1:
            error = math.sqrt(statistics.variance(x) / len(x) + statistics.variance(y) / len(y))
            largest = max(largest, abs(statistics.fmean(x) - statistics.fmean(y)) / error if error else 0.0)
        else:
            largest = math.inf  # one class is all below, the other all above
    return largest


def line(name: str, first: str, second: str, t: float) -> str:
    return f"| {name} | {first} | {second} | {'no overlap' if t == math.inf else f'{t:.1f}'} |"


def in_process(program: str) -> list[str]:
    lines = []
    for row in subprocess.run([program, str(IN_PROCESS)], check=True, text=True, capture_output=True).stdout.splitlines():
        name, _, first, second, t = row.split("\t")
        lines.append(line(name, f"{first} ns", f"{second} ns", float(t)))
    return lines


def by_sql(conn) -> list[str]:
    fix_clock(conn, NOON)
    secret = active_user(conn, "known")
    for _ in range(100):
        conn.execute("SELECT totp_verify('locked', '000000')")
    right = code_at(secret, NOON)
    wrong = [right[:place] + str((int(right[place]) + 1) % 10) + right[place + 1:] for place in (0, 5)]

    def call(user: str, code: str) -> float:
        begin = time.perf_counter_ns()
        conn.execute("SELECT totp_verify(%s, %s)", [user, code], prepare=True)
        return (time.perf_counter_ns() - begin) / 1000

    def pair(name: str, *classes: tuple[str, str]) -> str:
        times: list[list[float]] = [[], []]
        order = [0, 1] * PER_CLASS
        random.Random(1).shuffle(order)
        for n, which in enumerate(order):
            if n % 50 == 0:  # far from the lock, which comes with the hundredth failure
                conn.execute("SELECT totp_unlock('known')")
                for other in ("known", "nobody"):
                    call(other, "00000")  # the next one is not the first after an unlock
            times[which].append(call(*classes[which]))
        return line(name, *(f"{statistics.median(one):.1f} µs" for one in times), welch(*times))

    return [
        pair("the same call twice (noise)", ("known", wrong[0]), ("known", wrong[0])),
        pair("wrong in the first digit, in the last", ("known", wrong[0]), ("known", wrong[1])),
        pair("a user with a wrong code, an unknown user", ("known", wrong[0]), ("nobody", wrong[0])),
        pair("a user with a wrong code, a locked user", ("known", wrong[0]), ("locked", wrong[0])),
        pair("a locked user, an unknown user", ("locked", wrong[0]), ("nobody", wrong[0])),
        pair("a user with no code at all, an unknown user", ("known", "no"), ("nobody", "no")),
    ]


def main() -> None:
    pure = in_process(sys.argv[1])
    with server(totp__max_attempts="100", totp__hard_limit="100") as cluster:
        with closing(cluster.create_database().connect()) as conn:
            fix_clock(conn, NOON)
            active_user(conn, "locked")
            by = by_sql(conn)
        text = TEXT.format(heading=heading(version(cluster)), in_process=IN_PROCESS, per_class=PER_CLASS, pure="\n".join(pure), by_sql="\n".join(by))
    print(text)
    (HERE / "constant_time.md").write_text(text)


if __name__ == "__main__":
    main()
