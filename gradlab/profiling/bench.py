"""`gradlab bench`: every op beside what its framework offers, eager and compiled, forward and there and back."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gradlab.autodiff.arguments import FLOATS
from gradlab.autodiff.side import Side
from gradlab.autodiff.side import side as side_of
from gradlab.kernels.spec import Case, Spec, spec, specs
from gradlab.profiling.bench_file import write_json
from gradlab.profiling.bench_report import policy, show
from gradlab.profiling.bench_row import MODES, OK, PASSES, Row
from gradlab.profiling.bench_subject import Subject
from gradlab.profiling.machine import describe
from gradlab.profiling.native import natives


def run(ops: Sequence[str] | None, sides: Sequence[str], dtype: str, json: Path | None, budget: float,
        console: Console) -> int:  # fmt: skip
    """Measure, print, and write what was measured after each row.

    Args:
        ops: names, or None for every op.
        sides: "torch", "jax" or both.
        dtype: float64, float32, float16 or bfloat16.
        json: a file for raw samples and the machine.
        budget: seconds of timing a row, beside compilation and proof.
        console: where progress and tables go.

    Returns:
        0; 1 when a row is wrong or failed; 130 when interrupted, the finished rows printed and written.

    Raises:
        ValueError: an unknown op, side or dtype, a budget that is not positive, a folder that is not there.
    """
    if dtype not in FLOATS:
        raise ValueError(f"bench: unknown dtype {dtype!r}; the lab has {', '.join(FLOATS)}")
    if not budget > 0:
        raise ValueError(f"bench: budget is {budget}, wanted a number of seconds above 0")
    if json is not None and (json.is_dir() or not json.absolute().parent.is_dir()):
        raise ValueError(f"bench: cannot write {json}: it is a folder, or its folder does not exist")
    # Before jax is imported: it would take three quarters of the GPU's memory from torch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen = specs().values() if ops is None else [spec(name) for name in ops]
    plan = [(op, case, side) for op in chosen for side in map(side_of, sides) for case in cases(op, side)]
    machine = describe()
    rows: list[Row] = []
    total = len(plan) * len(MODES) * len(PASSES)
    where = ", ".join(f"{name} on {side_of(name).device()}" for name in sides)
    console.print(f"{machine.get('gpu') or machine['cpu']}; {where}; {policy(dtype)}", highlight=False, soft_wrap=True)
    busy = _busy()
    if busy:
        console.print(busy, style="yellow")
    try:
        with Progress(
            TextColumn("{task.description:<50}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        ) as progress:  # fmt: skip
            task = progress.add_task("", total=total)
            for subject in _subjects(plan, dtype):
                for direction, mode in itertools.product(PASSES, MODES):
                    what = f"{subject.op.name} on {subject.side.name}, {subject.case.name}"
                    progress.update(task, description=f"{what}: {mode}, {direction}")
                    rows.append(subject.row(mode, direction, budget))
                    progress.advance(task)
                    if json is not None:
                        write_json(json, rows, dtype, machine, complete=len(rows) == total)
    except KeyboardInterrupt:
        show(rows, console)
        console.print(f"interrupted: {len(rows)} of {total} rows", style="bold red")
        return 130
    show(rows, console)
    return 0 if all(row.verdict == OK for row in rows) else 1


def cases(op: Spec, side: Side) -> tuple[Case, ...]:
    """What is timed on a side: on CUDA also the cases that are too large for anything else."""
    return op.select("bench") + (op.select("bench gpu") if side.device() == "cuda" else ())


def _subjects(plan: Sequence[tuple[Spec, Case, Side]], dtype: str) -> Iterator[Subject]:
    for op, case, side in plan:
        natives(side.name).forget()
        yield Subject(op, case, side, dtype)


def _busy() -> str:
    """A warning where other work runs on the machine: then short calls wait for a core, and the spread shows it."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    return (
        f"load average {load:.1f} on {cores} cores: other work runs here, times will spread" if load > cores / 2 else ""
    )
