"""`gradlab sanitize` beside `triton-sanitizer` of triton-viz, on the kernels of `sanitizer_subjects.py`, one a process.

`python benchmarks/sanitizers.py --out FILE`, in an environment that has triton-viz too, prints what each finds, says
and takes, and writes it as Markdown; `--only WORDS` takes the subjects with these words in their name.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from inspect import getsourcelines
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from sanitizer_subjects import SUBJECTS, Subject

from gradlab.base.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("sanitizer_subjects.py")
LAB, VIZ = "gradlab", "triton-viz"
COMMANDS = {
    LAB: [sys.executable, "-m", "gradlab", "sanitize", "--floats"],
    VIZ: [str(Path(sys.executable).with_name("triton-sanitizer"))],
}
FOUND, ELSEWHERE, NOTHING, STOPPED, LATE = "found", "elsewhere", "nothing", "stopped", "late"
LIMIT = 60
# What a report may say of a fault, and how it is recognised in each tool's.
SAID = {
    "source line": (r"\.py:\d+: ", r"Line \d+:"),
    "argument's name": (r" of \w+[\[, ]", r"arg: +\w"),
    "index of the element": (r" of \w+\[-?\d+\]", r"(?i)index: +\d"),
    "shape and strides": (r"strides \[", r"strides:"),
    "program": (r"program \(\d", r"(?i)program \(\d"),
    "how many elements": (r" and [\d,]+ more", r"(?i)total invalid"),
    "calls that led there": (r"called from", r"#2 "),
    "expression of the address": (r"Expression Tree", r"Expression Tree"),
}


@dataclass(frozen=True)
class Result:
    """What a tool said of a subject.

    Attributes:
        verdict: FOUND, where it names the fault's line; ELSEWHERE, where another; NOTHING; STOPPED by an error of its
            own; LATE, past LIMIT seconds.
        text: all of it.
        seconds: of the CPU, for the whole command.
    """

    verdict: str
    text: str
    seconds: float


def line(subject: Subject) -> str:
    """File and line of a fault."""
    lines, first = getsourcelines(subject.kernel.fn)
    (found,) = [first + i for i, text in enumerate(lines) if subject.mark in text]
    return f"{Path(subject.kernel.fn.__code__.co_filename).name}:{found}"


def run(tool: str, name: str) -> Result:
    """One subject in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command = [*COMMANDS[tool], str(SCRIPT), name]
    with tempfile.TemporaryFile("w+") as said:
        limited = ["sh", "-c", f'ulimit -t {LIMIT}; exec "$@"', "sh", *command]
        process = subprocess.Popen(limited, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
        # Other processes take their time of the machine, and not of this one's CPU time.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        printed = said.read()
    seconds = used.ru_utime + used.ru_stime
    if -process.returncode in (signal.SIGKILL, signal.SIGXCPU):
        return Result(LATE, printed, seconds)
    text = re.sub(r"\x1b\[[\d;]*m", "", printed)
    if tool == LAB:
        faults = re.findall(r"^(?:\S*/)?(\w+\.py:\d+): \w", text, re.MULTILINE)
    else:
        faults = re.findall(r"#\d+ .* at (\w+\.py:\d+)", text)
    if not faults:
        verdict = STOPPED if "Traceback (most recent call last)" in text else NOTHING
    else:
        subject = SUBJECTS[name]
        verdict = FOUND if subject.kind and line(subject) in faults else ELSEWHERE
    return Result(verdict, text, seconds)


def by_kind(results: dict[str, dict[str, Result]]) -> list[str]:
    """Rows of a table: of each kind, how many there are and how many each tool finds."""
    rows = [_row("", "planted", *COMMANDS), "|---|---|" + "---|" * len(COMMANDS)]
    for kind in dict.fromkeys(SUBJECTS[name].kind for name in results):
        names = [name for name in results if SUBJECTS[name].kind == kind]
        cells = []
        for tool in COMMANDS:
            verdicts = [results[name][tool].verdict for name in names]
            if kind:
                cells.append(f"{verdicts.count(FOUND)} found{_others(verdicts, 'named by another line')}")
            else:
                cells.append(f"{verdicts.count(NOTHING)} pass{_others(verdicts, 'false alarm')}")
        rows.append(_row(kind or "right kernels", len(names), *cells))
    return rows


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _others(verdicts: Sequence[str], elsewhere: str) -> str:
    words = {ELSEWHERE: elsewhere, STOPPED: "stopped by its own error", LATE: f"over {LIMIT} s"}
    return "".join(f", {verdicts.count(v)} {word}" for v, word in words.items() if v in verdicts)


def said(results: dict[str, dict[str, Result]]) -> list[str]:
    """Rows: of the faults that both find, how many reports say what."""
    both = [found for found in results.values() if all(result.verdict == FOUND for result in found.values())]
    rows = [_row(f"said of the {len(both)} that both find", *COMMANDS), "|---|" + "---|" * len(COMMANDS)]
    for words, patterns in SAID.items():
        counts = [
            sum(bool(re.search(pattern, found[tool].text)) for found in both)
            for tool, pattern in zip(COMMANDS, patterns, strict=True)
        ]
        rows.append(_row(words, *counts))
    return rows


def seconds(results: dict[str, dict[str, Result]]) -> list[str]:
    """Rows: seconds of a command."""
    rows = [_row("seconds of the CPU a command", *COMMANDS), "|---|" + "---|" * len(COMMANDS)]
    small = [found for name, found in results.items() if not name.startswith("large")]
    groups = {"median": small} | {name: [found] for name, found in results.items() if name.startswith("large")}
    for words, group in groups.items():
        if group:
            rows.append(_row(words, *(f"{median(found[tool].seconds for found in group):.1f}" for tool in COMMANDS)))
    return rows


def main(
    out: Annotated[Path | None, typer.Option(help="a file for the tables")] = None,
    only: Annotated[str, typer.Option(help="words of the subjects' names")] = "",
    repeats: Annotated[int, typer.Option(help="the least time of so many runs counts")] = 2,
    jobs: Annotated[int, typer.Option(help="processes at a time")] = 1,
) -> None:
    """Run every subject under both tools."""
    names = [name for name in SUBJECTS if only in name]
    with ThreadPoolExecutor(jobs) as pool:

        def least(tool: str, name: str) -> Result:
            return min((run(tool, name) for _ in range(repeats)), key=lambda result: result.seconds)

        waiting = {name: {tool: pool.submit(least, tool, name) for tool in COMMANDS} for name in names}
        results: dict[str, dict[str, Result]] = {}
        for name, found in waiting.items():
            results[name] = {tool: one.result() for tool, one in found.items()}
            cells = ", ".join(f"{tool} {one.verdict} {one.seconds:.1f} s" for tool, one in results[name].items())
            print(f"{SUBJECTS[name].kind or 'right'}: {name}: {cells}", flush=True)
    lines = [f"{LAB} beside {VIZ} {version('triton-viz')}, torch {version('torch')}, Triton {version('triton')}", ""]
    lines += [*by_kind(results), "", *said(results), "", *seconds(results)]
    text = "\n".join(lines) + "\n"
    Console().print(Markdown(text))
    if out is not None:
        write_whole(out, text)


if __name__ == "__main__":
    typer.run(main)
