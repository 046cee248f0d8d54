"""`make gpu`: on a machine with CUDA, first a minute that always leaves figures, then benchmarks and the suite.

`make gpu PART=smoke` launches every kernel once, holds it against the CPU, and times the four main ops. `make gpu` goes
on with what is missing, within five and a half minutes; a later call goes on from there. `PART` names one part, or by
its first words several. Each part is a process with a time limit, each row is on disk before the next one starts, and
what fails stops nothing else. Needed are Python, NumPy and the frameworks; pytest and hypothesis for the suite.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gradlab.autodiff.frameworks.side import SIDES
from gradlab.base import exit_codes
from gradlab.base.machine import describe
from gradlab.profiling.gpu.part import FAILED, OK, SKIPPED, Outcome, execute

ROOT = Path(__file__).resolve().parents[3]
# Seconds for a call, below the six minutes that a borrowed machine gives it; and for the first part of each side.
LIMIT, SMOKE = 330.0, {"torch": 90.0, "jax": 60.0}
# The share of a smoke part that comparisons may take.
COMPARED = 0.6
# Seconds in which tiles are tried.
TUNED = 60.0
WORKERS = 8
# Two frameworks share the GPU's memory, in the suite even in several processes.
ENV = {
    "PYTHONPATH": str(ROOT),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "100",
    "KINETO_LOG_LEVEL": "99",
}
# What became of the parts of this package so far, beside their files.
STATE = "parts.json"


@dataclass(frozen=True)
class Part:
    """A process of the run.

    Attributes:
        name: one word, as `PART` takes it.
        weight: its share of the time that is left when it starts.
        most: seconds that it may take, whatever is left.
        missing: why it cannot run here, or nothing.
        file: the benchmark file that it writes.
    """

    name: str
    command: tuple[str, ...]
    weight: float = 1.0
    most: float = LIMIT
    env: tuple[tuple[str, str], ...] = ()
    missing: str = ""
    file: str = ""


def main(words: Sequence[str] | None = None, root: Path = ROOT, tiny: bool = False) -> int:
    """0 when all is well, 1 when a part failed or was late, 2 without CUDA or such a part, 130 when interrupted."""
    start = time.monotonic()
    requested = [word for word in (sys.argv[1:] if words is None else words) if word]
    found = devices()
    if "cuda" not in found.values():
        seen = ", ".join(f"{name} sees {device}" for name, device in found.items())
        print(f"gradlab gpu: no CUDA device here: {seen}", file=sys.stderr)
        return exit_codes.UNUSABLE
    machine = describe()
    folder = root / "results" / slug(machine.get("gpu", "cuda"))
    about = {"gpu": machine.get("gpu", "cuda"), "source": source()}
    plan = parts(found, folder, about, tiny)
    named = {part.name for part in plan for word in requested if part.name.startswith(word)}
    if requested and not named:
        print(
            f"gradlab gpu: part is {' '.join(requested)!r}, wanted one of {', '.join(p.name for p in plan)}",
            file=sys.stderr,
        )
        return exit_codes.UNUSABLE
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcomes = run(plan, folder, machine, about, named, start + LIMIT)
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {folder}", file=sys.stderr)
        return exit_codes.INTERRUPTED
    print(f"\n{folder / 'README.md'}")
    for part in plan:
        outcome = outcomes.get(part.name)
        print(f"{part.name}: " + (f"{outcome.verdict}, {outcome.seconds:.0f} s" if outcome else "not started"))
    asked_for = [o for name, o in outcomes.items() if not named or name in named]
    return exit_codes.OK if all(outcome.verdict in (OK, SKIPPED) for outcome in asked_for) else exit_codes.FOUND


def run(
    plan: Sequence[Part],
    folder: Path,
    machine: Mapping[str, str],
    about: Mapping[str, str],
    named: set[str],
    end: float,
) -> dict[str, Outcome]:
    """Run the parts that are named, or those that are not finished, until `end`; state and page are written after each.

    Returns:
        What became of each part that was started, now or by an earlier call for the same package and machine.
    """
    # Imported late, with what it needs: a bare Python is to hear that there is no CUDA, not that a table is missing.
    from gradlab.base.files import write_whole

    outcomes = earlier(folder, about)
    due = [p for p in plan if (p.name in named if named else outcomes.get(p.name, _NONE).verdict != OK)]
    for i, part in enumerate(due):
        left = end - time.monotonic()
        # A process takes seconds to import a framework: with less there is nothing to be had.
        if part.missing:
            outcomes[part.name] = Outcome(part.name, SKIPPED, 0.0, (part.missing,))
        elif left > min(10.0, part.most):
            share = left * part.weight / sum(p.weight for p in due[i:] if not p.missing)
            limit = min(part.most, max(share, min(left, 45.0)))
            outcomes[part.name] = execute(part.name, part.command, ROOT, {**ENV, **dict(part.env)}, limit)
        state = {**about, "parts": {name: asdict(outcome) for name, outcome in outcomes.items()}}
        write_whole(folder / STATE, json.dumps(state, indent=1) + "\n")
        write_whole(folder / "README.md", page(outcomes, plan, folder, machine))
    return outcomes


_NONE = Outcome("", FAILED, 0.0, ())


def earlier(folder: Path, about: Mapping[str, str]) -> dict[str, Outcome]:
    """What became of the parts in earlier calls; nothing where the package or the machine was another."""
    try:
        found = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if any(found[key] != value for key, value in about.items()):
            return {}
        return {name: Outcome(**{**one, "tail": tuple(one["tail"])}) for name, one in found["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def parts(found: Mapping[str, str], folder: Path, about: Mapping[str, str], tiny: bool = False) -> list[Part]:
    """What matters most comes first: smoke, then eager torch and compiled jax, the suite, the other modes, tiles.

    Args:
        tiny: sizes that take no time, and one op compared: to try the steps on a CPU.
    """
    plan = []
    same = tuple(word for key, value in about.items() for word in (f"--{key}", value))
    gone = {
        side: "" if device == "cuda" else f"no CUDA device for {side}, which sees {device}"
        for side, device in found.items()
    }
    for side in found:
        seconds = SMOKE[side]
        command = (
            *_module("smoke"),
            "--side",
            side,
            *same,
            "--file",
            str(folder / f"smoke-{side}.json"),
            "--rows",
            str(folder / f"smoke-{side}-rows.json"),
            "--seconds",
            str(COMPARED * seconds),
            *(("--tiny", "--ops", "relu") if tiny else ()),
        )
        plan.append(Part(f"smoke-{side}", command, 3, seconds, missing=gone[side], file=f"smoke-{side}-rows.json"))

    def rows(side: str, dtype: str, mode: str) -> Part:
        name = f"{side}-{dtype}-{mode}"
        command = (
            *_module("rows"),
            "--side",
            side,
            "--dtype",
            dtype,
            "--mode",
            mode,
            *same,
            "--file",
            str(folder / f"{name}.json"),
            *(("--tiny",) if tiny else ()),
        )
        return Part(name, command, missing=gone[side], file=f"{name}.json")

    usual = {"torch": "eager", "jax": "compiled"}
    other = {"torch": "compiled", "jax": "eager"}
    both = list(itertools.product(("bfloat16", "float32"), found))
    plan += [rows(side, dtype, usual[side]) for dtype, side in both]
    plan += [suite(side, gone[side]) for side in found]
    plan += [rows(side, dtype, other[side]) for dtype, side in both]
    return plan + ([tuned(folder, gone["torch"], tiny)] if "torch" in found else [])


def tuned(folder: Path, missing: str, tiny: bool) -> Part:
    """Tiles of products in half precision, measured into a file beside the results."""
    for package in ("typer", "rich"):
        if importlib.util.find_spec(package) is None:
            missing = missing or f"{package} is not installed"
    words = (
        "tune",
        "linear",
        "--limit",
        str(TUNED),
        "--to",
        str(folder / "tiles.toml"),
        *(("--dry-run",) if tiny else ()),
    )
    # What was begun within its limit is finished.
    return Part("tune", (sys.executable, "-m", "gradlab", *words), most=TUNED + 30.0, missing=missing)


def suite(side: str, missing: str) -> Part:
    """The tests of a side, on as many processes as help where pytest-xdist is there."""
    command: tuple[str, ...] = (sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(WORKERS, cores) if importlib.util.find_spec("xdist") else 1
    if workers > 1:
        command += ("-n", str(workers))
    command += tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").glob(f"test_*_{side}.py")))
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            missing = missing or f"{package} is not installed"
    # Each worker's torch would start threads and compilers for every core.
    few = (("OMP_NUM_THREADS", str(max(1, cores // workers))), ("TORCHINDUCTOR_COMPILE_THREADS", "1"))
    return Part(f"suite-{side}", command, weight=2, env=few, missing=missing)


def _module(name: str) -> tuple[str, ...]:
    return sys.executable, "-m", f"gradlab.profiling.gpu.{name}"


def page(outcomes: Mapping[str, Outcome], plan: Sequence[Part], folder: Path, machine: Mapping[str, str]) -> str:
    """Markdown: the machine, what became of each part, the tables of those that left a file."""
    from gradlab.profiling.bench.file import read_json
    from gradlab.profiling.bench.words import markdown

    lines = [f"# {machine.get('gpu', 'CUDA')}", "", "Written by `make gpu`, which replaces it.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += ["", "| part | became | seconds | last line |", "| --- | --- | ---: | --- |"]
    for part in plan:
        outcome = outcomes.get(part.name)
        if outcome is None:
            lines.append(f"| {part.name} | not started | | |")
            continue
        last = next((line for line in reversed(outcome.tail) if line.strip()), "").replace("|", "/")
        lines.append(f"| {part.name} | {outcome.verdict} | {outcome.seconds:.0f} | {last} |")
    for part in plan:
        outcome = outcomes.get(part.name)
        if part.file and outcome and (folder / part.file).exists():
            rows, document = read_json(folder / part.file)
            cut = "" if document["complete"] else ": not complete"
            lines += ["", f"## {part.name}{cut}", "", f"Raw samples: [{part.file}]({part.file})", ""]
            lines += [markdown(rows, {}).rstrip()] if rows else []
        if outcome and outcome.verdict not in (OK, SKIPPED):
            lines += ["", f"## {part.name}: {outcome.verdict}", "", "```", *outcome.tail, "```"]
    return "\n".join(lines) + "\n"


def source() -> str:
    """What tells one state of the package from another, with git or without: a digest of its Python files."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "gradlab").rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def devices() -> dict[str, str]:
    """The kind of each side's default device, determined in subprocesses, so that this process initialises none."""
    code = "import sys; from gradlab.autodiff.frameworks.side import side; print(side(sys.argv[1]).device())"
    requested = {
        side: subprocess.Popen(
            [sys.executable, "-c", code, side],
            env={**os.environ, **ENV},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for side in SIDES
    }
    return {side: _answer(process) for side, process in requested.items()}


def _answer(process: subprocess.Popen) -> str:
    try:
        out, error = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        return "nothing within 120 s"
    words = (out if process.returncode == 0 else error).split("\n")
    return next((word.strip() for word in reversed(words) if word.strip()), "nothing")


def slug(name: str) -> str:
    """`NVIDIA H200` -> `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
