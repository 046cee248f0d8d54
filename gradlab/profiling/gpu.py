"""`make gpu`: on a machine with CUDA, the whole suite and every benchmark with compiled kernels, in ten minutes.

Each part is a process with a time limit; what it measured is on disk when it ends, and one that fails stops no other.
"""

import importlib.util
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradlab.autodiff.side import SIDES
from gradlab.profiling.bench.row import MODES
from gradlab.profiling.gpu_part import OK, SKIPPED, Outcome, execute
from gradlab.profiling.machine import describe

ROOT = Path(__file__).resolve().parents[2]
# Seconds for everything, below the ten minutes that a borrowed machine gives a command.
LIMIT = 560.0
BUDGET = "0.15"
WORKERS = 8
# Two frameworks share the GPU's memory, in the suite even in several processes.
ENV = {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


@dataclass(frozen=True)
class Part:
    """A process of the run; `weight` is its share of the time that is left when it starts.

    Attributes:
        missing: why it cannot run here, or nothing.
        file: the benchmark file that it writes.
    """

    name: str
    command: tuple[str, ...]
    weight: float
    env: tuple[tuple[str, str], ...] = ()
    missing: str = ""
    file: str = ""


def main() -> int:
    """0 when all is well, 1 when a part failed or ran out of time, 2 without CUDA, 130 when interrupted."""
    devices = {name: device(name) for name in SIDES}
    if "cuda" not in devices.values():
        seen = ", ".join(f"{name} sees {found}" for name, found in devices.items())
        print(f"gradlab gpu: no CUDA device here: {seen}", file=sys.stderr)
        return 2
    machine = describe()
    folder = ROOT / "results" / slug(machine.get("gpu", "cuda"))
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcomes = run(parts(devices, folder), folder, machine)
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {folder}", file=sys.stderr)
        return 130
    print(f"\n{folder / 'README.md'}")
    for outcome in outcomes:
        print(f"{outcome.name}: {outcome.verdict}, {outcome.seconds:.0f} s")
    return 0 if all(outcome.verdict in (OK, SKIPPED) for outcome in outcomes) else 1


def run(plan: Sequence[Part], folder: Path, machine: dict[str, str], limit: float = LIMIT) -> list[Outcome]:
    """Run the parts one after another and rewrite the page after each."""
    # Imported late, with what it needs: a bare Python is to hear that there is no CUDA, not that a table is missing.
    from gradlab.profiling.files import write_whole

    end = time.monotonic() + limit
    outcomes: list[Outcome] = []
    for i, part in enumerate(plan):
        if part.missing:
            outcomes.append(Outcome(part.name, SKIPPED, 0.0, (part.missing,)))
        else:
            if part.file:
                # An earlier run's numbers are not to stand for this one's.
                (folder / part.file).unlink(missing_ok=True)
            weights = [p.weight for p in plan[i:] if not p.missing]
            share = max(1.0, end - time.monotonic()) * part.weight / sum(weights)
            outcomes.append(execute(part.name, part.command, ROOT, {**ENV, **dict(part.env)}, share))
        write_whole(folder / "README.md", page(outcomes, plan, folder, machine))
    return outcomes


def parts(devices: dict[str, str], folder: Path) -> list[Part]:
    """The suite, then each side in each dtype: what matters most comes first."""
    suite: tuple[str, ...] = (sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(WORKERS, cores) if importlib.util.find_spec("xdist") else 1
    if workers > 1:
        suite += ("-n", str(workers))
    # Each worker's torch would start threads and compilers for every core.
    few = (("OMP_NUM_THREADS", str(max(1, cores // workers))), ("TORCHINDUCTOR_COMPILE_THREADS", "1"))
    plan = [Part("suite", suite, weight=5, env=few)]
    # Compiled comes last: each member costs seconds of a compiler, and what runs out of time should be that.
    for mode, dtype, side in itertools.product(MODES, ("float32", "bfloat16"), devices):
        name = f"{side}-{dtype}-{mode}.json"
        command = (
            sys.executable, "-m", "gradlab", "bench", "--side", side, "--dtype", dtype, "--mode", mode,
            "--json", str(folder / name), "--budget", BUDGET, "--pass", "forward", "--pass", "forward+backward",
        )  # fmt: skip
        missing = "" if devices[side] == "cuda" else f"no CUDA device for {side}, which sees {devices[side]}"
        plan.append(Part(f"benchmark, {side}, {dtype}, {mode}", command, weight=1, missing=missing, file=name))
    return plan


def page(outcomes: Sequence[Outcome], plan: Sequence[Part], folder: Path, machine: dict[str, str]) -> str:
    """Markdown: the machine, what became of each part, the tables of those that left a file."""
    from gradlab.profiling.bench.file import read_json
    from gradlab.profiling.bench.words import markdown

    lines = [f"# {machine.get('gpu', 'CUDA')}", "", "Written by `make gpu`, which replaces it.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += ["", "| part | became | seconds | last line |", "| --- | --- | ---: | --- |"]
    for outcome in outcomes:
        last = next((line for line in reversed(outcome.tail) if line.strip()), "").replace("|", "/")
        lines.append(f"| {outcome.name} | {outcome.verdict} | {outcome.seconds:.0f} | {last} |")
    lines += [f"| {part.name} | not started | | |" for part in plan[len(outcomes) :]]
    for outcome, part in zip(outcomes, plan, strict=False):
        if part.file and (folder / part.file).exists():
            rows, document = read_json(folder / part.file)
            cut = "" if document["complete"] else ": not complete"
            lines += ["", f"## {part.name.capitalize()}{cut}", "", f"Raw samples: [{part.file}]({part.file})", ""]
            lines += [markdown(rows, {}).rstrip()]
        if outcome.verdict not in (OK, SKIPPED):
            lines += ["", f"## {part.name}: {outcome.verdict}", "", "```", *outcome.tail, "```"]
    return "\n".join(lines) + "\n"


def device(side: str) -> str:
    """The kind of a side's default device, asked in a process of its own: this one is to hold none."""
    code = f"from gradlab.autodiff.side import side; print(side({side!r}).device())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **ENV}, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "nothing within 120 s"
    words = (done.stdout if done.returncode == 0 else done.stderr).split("\n")
    return next((word.strip() for word in reversed(words) if word.strip()), "nothing")


def slug(name: str) -> str:
    """`NVIDIA H200` -> `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
