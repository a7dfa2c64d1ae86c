"""Measures pg_totp against the bare statements that do the same work, side by side in one run.

usage: bench/run.py [subject]...     default: all

Absolute times are noise on shared machines. So each pair is measured in interleaved rounds, and what counts is the
median of the ratios. Prints one table with a verdict per target. bench/results.md has a section for each subject, with
the date, machine, version and commit it was measured on: only those that ran are rewritten.
"""

import importlib
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "cluster" / "support"))
sys.path.append(str(HERE.parent / "examples" / "scale-out" / "tests"))  # for scale_out

import fixture  # noqa: E402

SUBJECTS = {
    "sign_in": "Accepted sign-ins by pgbench",
    "loop": "In the server, one transaction per call",
    "audit": "An audit row for each accepted code",
    "parts": "Where the time of a sign-in goes",
    "pgcrypto": "Without this extension: PL/pgSQL with pgcrypto",
    "application": "Without this extension: an application in Python",
    "rotation": "Key rotation",
    "seals": "The sealed trail",
    "bulk": "Enrollments, imports, QR codes",
    "policy": "Row-level security",
    "growth": "Growth",
    "day_two": "Ten million users",
    "contention": "Contention",
}
ON_REQUEST = {"capacity": "Capacity", "scale_out": "Over several servers"}  # other files have their figures
RESULTS = HERE / "results.md"


@dataclass
class Line:
    """One line of the table."""

    measured: str
    ours: str
    other: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def compare(measured: str, ours: list[float], other: list[float], unit: str, target: float | None = None, at_least: bool = False,
            times_faster: bool = False, decimals: int = 1) -> Line:
    """A pair measured in interleaved rounds: medians of both, and the median of their ratios against the target.

    The ratio is ours : other, or with `times_faster` other : ours.
    """
    at_least = at_least or times_faster
    ratio = statistics.median((b / a if times_faster else a / b) for a, b in zip(ours, other, strict=True))
    shown = (f"{statistics.median(values):,.{decimals}f} {unit}" for values in (ours, other))
    if target is None:
        return Line(measured, *shown, ratio)
    met = ratio >= target if at_least else ratio <= target
    return Line(measured, *shown, ratio, f"{'≥' if at_least else '≤'} {target:g}", met)


def figure(measured: str, value: str, other: str = "", ratio: float | None = None, target: str = "", met: bool | None = None) -> Line:
    """Returns the line of a figure, with or without a target."""
    return Line(measured, value, other, ratio, target, met)


def table(lines: list[Line]) -> str:
    rows = ["| measured | pg_totp | other | ratio | target | |", "|---|---|---|---|---|---|"]
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        verdict = "" if line.met is None else "met" if line.met else "**missed**"
        rows.append(f"| {line.measured} | {line.ours} | {line.other} | {ratio} | {line.target} | {verdict} |")
    return "\n".join(rows)


def heading(version: str) -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty=, changed since"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    cpu = next((row.split(":")[1].strip() for row in open("/proc/cpuinfo") if row.startswith("model name")), "unknown")
    return f"{date.today()}, commit {commit}, {version}, {os.cpu_count()} cores of {cpu}"


def write(subject: str, title: str, text: str) -> None:
    """Writes this subject's section into the results, and the table of all targets above the sections."""
    sections = {}
    if RESULTS.exists():
        for section in re.split(r"^## ", RESULTS.read_text(), flags=re.MULTILINE)[1:]:
            name = re.match(r"`(\w+)`", section)
            if name:
                sections[name[1]] = f"## {section.strip()}\n"
    sections[subject] = f"## `{subject}`: {title}\n\n{text}\n"
    ordered = [sections[name] for name in (*SUBJECTS, *ON_REQUEST) if name in sections]
    targets = [row for section in ordered for row in section.splitlines() if re.search(r"\| (met|\*\*missed\*\*) \|$", row)]
    RESULTS.write_text("\n".join([
        "# Results of `make bench`\n",
        "Both sides are measured in one run, in turns. The ratios count: they are medians of the rounds' ratios. Absolute times",
        "depend on the machine and on what else ran on it.\n",
        "## Targets\n", table([]), *targets, "", *ordered]))


def main() -> None:
    known = SUBJECTS | ON_REQUEST
    wanted = sys.argv[1:] or list(SUBJECTS)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.exit(f"no such subject: {', '.join(unknown)}; there are {', '.join(known)}")
    whole = fixture.SCALE >= 1
    lines, failed = [], []
    for name in wanted:
        print(f"==> {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            version, measured = importlib.import_module(name).measure(compare, figure)
        except Exception:  # noqa: BLE001 - the others take their time too, and are wanted
            traceback.print_exc()
            failed.append(name)
            continue
        minutes, secs = divmod(round(time.monotonic() - began), 60)
        if len(wanted) > 1:
            print(table(measured), file=sys.stderr, flush=True)
        lines += measured
        if whole:
            write(name, known[name], f"{heading(version)}; {minutes} min {secs} s\n\n{table(measured)}")
        print(f"==> {name} took {minutes} min {secs} s", file=sys.stderr, flush=True)
    verdicts = [line.met for line in lines if line.met is not None]
    print(f"{table(lines)}\n\n{sum(verdicts)} of {len(verdicts)} targets met.")
    if not whole:
        print(f"\nNot written to {RESULTS.name}: BENCH_SCALE is {fixture.SCALE:g}.")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
