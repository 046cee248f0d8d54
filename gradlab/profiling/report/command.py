"""`gradlab report`: check, inspect and time every op, and write one page to look at."""

import importlib.util
import json
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK
from gradlab.base.files import claim, write_whole
from gradlab.base.machine import describe
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.report import page
from gradlab.profiling.report.collect import DONE, Data, collect
from gradlab.profiling.report.stages import Scope

NEEDS = {"jinja2": "jinja2", "matplotlib": "matplotlib", "triton": "triton"}


@dataclass(frozen=True)
class ReportArgs:
    """The arguments of the command line.

    Attributes:
        ops: names; none for every op.
        train: trains the demonstration into a folder and gives its numbers; None leaves it out.
    """

    ops: tuple[str, ...]
    sides: tuple[str, ...]
    quick: bool
    out: Path
    train: Callable[[Path], dict[str, Any]] | None = None


def run(args: ReportArgs, console: Console, collect: Callable[..., None] = collect) -> int:
    """Collect, then write `report.html`, `results.json` and the figures: what was finished, whatever stops it.

    Returns:
        0; 1 when a stage failed; 130 when interrupted.

    Raises:
        ValueError: an unknown op, a folder that cannot be written.
        ModuleNotFoundError: what draws the page is not installed.
    """
    ops = tuple(spec(name).name for name in args.ops) or tuple(specs())
    if gone := [name for module, name in NEEDS.items() if importlib.util.find_spec(module) is None]:
        raise ModuleNotFoundError(f"report needs {', '.join(gone)}: pip install 'gradlab[all]'")
    try:
        claim(args.out)
    except OSError as error:
        raise ValueError(
            f"report: --out is {args.out} ({error.strerror or error}), wanted a folder to write to"
        ) from None
    scope = Scope(ops, args.sides, args.quick, secrets.randbits(32))
    data = Data(describe(), {"ops": list(ops), "sides": list(args.sides), "quick": args.quick, "seed": scope.seed})
    interrupted = False
    try:
        _collected(data, scope, console, collect)
        if args.train is not None:
            data.training = args.train(args.out)
    except KeyboardInterrupt:
        interrupted = True
    try:
        write_whole(args.out / "results.json", json.dumps(data.as_json(), indent=1) + "\n")
        written = page.write(data, args.out)
    except OSError as error:
        raise ValueError(
            f"report: --out is {args.out} ({error.strerror or error}), wanted a folder to write to"
        ) from None
    for name, stage in data.stages.items():
        words = f"{name:<12} {stage['became']} in {stage['seconds']:.0f} s {stage.get('error', '')}"
        console.print(words.rstrip(), highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {written}, with results.json and the figures", highlight=False, soft_wrap=True)
    if interrupted:
        console.print("interrupted: the page holds what was finished", style="bold red")
        return INTERRUPTED
    return OK if all(stage["became"] == DONE for stage in data.stages.values()) else FOUND


def _collected(data: Data, scope: Scope, console: Console, collect: Callable[..., None]) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        tempfile.TemporaryDirectory(prefix="gradlab-report-", ignore_cleanup_errors=True) as folder,
    ):
        tasks: dict[str, TaskID] = {}

        def on_event(name: str, words: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            progress.update(tasks[name], description=f"{name}: {words}"[:70])

        collect(data, scope, folder, on_event)
