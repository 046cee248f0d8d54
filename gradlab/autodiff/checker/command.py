"""`gradlab check`: what the command does with what was said on it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gradlab.autodiff.checker.check import check as run
from gradlab.autodiff.checker.core.request import parsed_sizes
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.checker.target import load
from gradlab.autodiff.frameworks.side import selected
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.base.exit_codes import FOUND, OK
from gradlab.base.files import write_whole
from gradlab.kernels.spec import spec, specs


@dataclass(frozen=True)
class CheckArgs:
    """The command line, as it came."""

    target: str | None
    sides: Sequence[str]
    order: int | None
    seed: int
    shapes: str | None
    sizes: str | None
    dtypes: Sequence[str] | None
    parts: Sequence[str] | None
    compiled: bool
    budget: float | None
    json: Path | None
    plot: Path | None


def check(asked: CheckArgs, console: Console) -> int:
    """Check ops or somebody's function and print the report; 0 when all is well, 1 when not."""
    for path in (asked.json, asked.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"check: {path.parent} is no folder to write {path.name} into")
    for name in asked.sides:
        side_of(name)
    options: dict[str, Any] = {
        "order": asked.order,
        "seed": asked.seed,
        "dtypes": asked.dtypes,
        "parts": asked.parts,
        "compiled": asked.compiled,
        "raises": False,
    }
    sizes = None if asked.sizes is None else parsed_sizes(asked.sizes)
    if sizes is not None and not _is_file(asked.target):
        raise ValueError("check: --sizes are of a FILE.py::function; an op of the lab has those of its Spec")
    report = Report()
    try:
        if asked.target is not None and _is_file(asked.target):
            found = load(asked.target, asked.shapes, asked.sides[0] if asked.sides else None, asked.seed)
            fn, args, given = found.fn, found.args, {"reference": found.reference, "cases": found.cases}
            report = run(fn, *args, sizes=sizes, budget=asked.budget, **given, **options)
        else:
            _ops(asked, console, options, report)
    finally:
        if report.findings:
            report.print(console)
            _write(asked, report, console)
    return OK if report else FOUND


def _is_file(target: str | None) -> bool:
    return target is not None and target not in specs() and ("::" in target or ".py" in target)


def _ops(asked: CheckArgs, console: Console, options: dict[str, Any], report: Report) -> None:
    """One op or all; what was found before Ctrl-C is printed."""
    sides = selected(asked.sides)
    names = [spec(asked.target).name] if asked.target else list(specs())
    begun = time.perf_counter()
    with console.status("starting") as status:
        for name in names:
            left = None if asked.budget is None else max(asked.budget - (time.perf_counter() - begun), 1e-3)
            report.add(run(name, side=sides, budget=left, started=lambda what, spent: status.update(what), **options))


def _write(asked: CheckArgs, report: Report, console: Console) -> None:
    """The files that were asked for, whole or not at all."""
    if asked.json is not None:
        write_whole(asked.json, report.to_json())
    if asked.plot is not None and report.views:
        console.print(f"plot: {report.plot(asked.plot)}", highlight=False)
