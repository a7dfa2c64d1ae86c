"""Measures pg_totp against the bare statements that do the same work, side by side in one run.

usage: bench/run.py [subject]...     subjects: sign_in, loop, bulk, rotation; default: all

Absolute times are noise on shared machines. So each pair is measured in interleaved rounds, and what counts is the
median of the ratios. Prints one table with a verdict per target and writes it to bench/results.md.
"""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "cluster"))

import bulk  # noqa: E402
import loop  # noqa: E402
import rotation  # noqa: E402
import sign_in  # noqa: E402

SUBJECTS = {"sign_in": sign_in.measure, "loop": loop.measure, "bulk": bulk.measure, "rotation": rotation.measure}


@dataclass
class Line:
    """One line of the table."""

    subject: str
    ours: str
    other: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def compare(subject: str, ours: list[float], other: list[float], unit: str, target: float, at_least: bool = False) -> Line:
    """A pair measured in interleaved rounds: medians of both, and the median of their ratios against the target."""
    ratio = statistics.median(a / b for a, b in zip(ours, other, strict=True))
    met = ratio >= target if at_least else ratio <= target
    return Line(subject, f"{statistics.median(ours):,.1f} {unit}", f"{statistics.median(other):,.1f} {unit}", ratio,
                f"{'≥' if at_least else '≤'} {target:g}", met)


def figure(subject: str, value: str, other: str = "") -> Line:
    """A figure with no target."""
    return Line(subject, value, other)


def table(lines: list[Line]) -> str:
    rows = ["| measured | pg_totp | bare | ratio | target | |", "|---|---|---|---|---|---|"]
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        verdict = "" if line.met is None else "met" if line.met else "**missed**"
        rows.append(f"| {line.subject} | {line.ours} | {line.other} | {ratio} | {line.target} | {verdict} |")
    return "\n".join(rows)


def heading(version: str) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    cpu = next((row.split(":")[1].strip() for row in open("/proc/cpuinfo") if row.startswith("model name")), "unknown")
    return f"{date.today()}, commit {commit}, {version}, {os.cpu_count()} cores of {cpu}"


def main() -> None:
    wanted = sys.argv[1:] or list(SUBJECTS)
    lines, version = [], ""
    for name in wanted:
        print(f"==> {name}", file=sys.stderr, flush=True)
        version, measured = SUBJECTS[name](compare, figure)
        lines += measured
    text = f"# Results of `make bench`\n\n{heading(version)}\n\n{table(lines)}\n"
    print(text)
    if not sys.argv[1:]:
        (HERE / "results.md").write_text(text)


if __name__ == "__main__":
    main()
