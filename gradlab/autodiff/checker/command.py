"""`gradlab check`: runs the check for the arguments of the command line, prints and writes the report."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gradlab.autodiff.checker.check import check as run
from gradlab.autodiff.checker.core.options import parsed_sizes
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.checker.target import load
from gradlab.autodiff.frameworks.side import selected
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.base.exit_codes import FOUND, OK
from gradlab.base.files import write_whole
from gradlab.kernels.spec import spec, specs


@dataclass(frozen=True)
class CheckArgs:
    """The arguments of the command line, not yet validated."""

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


def check(args: CheckArgs, console: Console) -> int:
    """Check ops or a function in a file and print the report; exit code 0 when every finding is ok, else 1."""
    for path in (args.json, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"check: --json or --plot is {path}, wanted a file in a folder that exists")
    for name in args.sides:
        side_of(name)
    options: dict[str, Any] = {
        "order": args.order,
        "seed": args.seed,
        "dtypes": args.dtypes,
        "parts": args.parts,
        "compiled": args.compiled,
        "raises": False,
    }
    sizes = None if args.sizes is None else parsed_sizes(args.sizes)
    if sizes is not None and not _is_file(args.target):
        raise ValueError(
            "check: --sizes: came with an op, wanted FILE.py::function: an op is checked at the sizes of its Spec"
        )
    report = Report()
    try:
        if args.target is not None and _is_file(args.target):
            target = load(args.target, args.shapes, args.sides[0] if args.sides else None, args.seed)
            given = {"reference": target.reference, "cases": target.cases}
            report = run(target.fn, *target.args, sizes=sizes, budget=args.budget, **given, **options)
        else:
            _ops(args, console, options, report)
    finally:
        if report.findings:
            report.print(console)
            _write(args, report, console)
    return OK if report else FOUND


def _is_file(target: str | None) -> bool:
    return target is not None and target not in specs() and ("::" in target or ".py" in target)


def _ops(args: CheckArgs, console: Console, options: dict[str, Any], report: Report) -> None:
    """Check one op or all of them; the findings made before Ctrl-C stay in the report."""
    sides = selected(args.sides)
    names = [spec(args.target).name] if args.target else list(specs())
    start = time.perf_counter()
    with console.status("starting") as status:
        for name in names:
            left = None if args.budget is None else max(args.budget - (time.perf_counter() - start), 1e-3)
            report.add(run(name, side=sides, budget=left, on_event=lambda what, spent: status.update(what), **options))


def _write(args: CheckArgs, report: Report, console: Console) -> None:
    """Write the requested files, each complete or not at all."""
    if args.json is not None:
        write_whole(args.json, report.to_json())
    if args.plot is not None and report.views:
        console.print(f"plot: {report.plot(args.plot)}", highlight=False)
