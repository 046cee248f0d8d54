"""Trains one network four times (torch and jax, hand-written and native) from the same weights, compares the losses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK, UNUSABLE
from gradlab.base.files import claim, whole
from gradlab.base.machine import describe, stamp
from gradlab.base.terminal import print_line
from gradlab.workloads import compare_report as report
from gradlab.workloads.process import run_in_subprocess
from gradlab.workloads.training import NEEDS, TrainingPlan, TrainingRun, missing
from gradlab.workloads.workload import LAYERS, steps


def compare(plan: TrainingPlan, out: Path, sides: Sequence[str]) -> int:
    """Train `plan` on each of `sides` with each kind of layers; print the table, write it, a figure and the numbers.

    Args:
        plan: what is trained; its side and layers are ignored.
        out: a folder for loss.png, table.md and results.json, made when it is not there.
        sides: of "torch" and "jax"; one whose framework is not installed is left out.

    Returns:
        An exit code: 0; 1 when a run failed or violated an expectation; 2 when nothing could be trained or written;
            130 after
        Ctrl-C. Finished runs are written in every case.

    Raises:
        ValueError: data that cannot be read, a batch that is too large.
    """
    console, errors = Console(), Console(stderr=True)
    present = []
    for name in dict.fromkeys(sides):
        if gone := missing(NEEDS[name]):
            print_line(errors, f"the {name} side is left out: {not_installed(gone)} 'gradlab[{name}]'")
        else:
            present.append(name)
    if not present:
        print_line(errors, "nothing to train with: pip install 'gradlab[all]'")
        return UNUSABLE
    if gone := missing({"sklearn": "scikit-learn", "matplotlib": "matplotlib"}):
        print_line(errors, f"{not_installed(gone)} 'gradlab[demo]'")
        return UNUSABLE
    data = plan.workload.load(plan.seed, plan.path)
    total, setting = steps(data, plan.batch, plan.epochs), plan.setting(data.source)
    try:
        claim(out)
    except OSError as error:
        print_line(errors, f"cannot write to {out}: {error.strerror or error}")
        return UNUSABLE

    plans = [replace(plan, side=name, layers=layers) for name in present for layers in LAYERS]
    finished: list[TrainingRun] = []
    stopped = ""
    with progress(errors) as bars:
        tasks = [bars.add_task(f"{p.side} {p.layers}", start=False, loss="", total=total) for p in plans]
        try:
            for task, one in zip(tasks, plans, strict=True):
                bars.start_task(task)

                def on_loss(loss: float, task: TaskID = task) -> None:
                    bars.update(task, advance=1, loss=f"loss {loss:.4f}")

                finished.append(run_in_subprocess(one, on_loss))
        except KeyboardInterrupt:
            stopped = "interrupted"
        except RuntimeError as error:
            stopped = str(error)
    if stopped:
        print_line(errors, f"{stopped}: {len(finished)} of {len(plans)} runs had finished")
    if finished:
        _show(console, finished, plan)
        try:
            _write(out, finished, plan, setting, complete=not stopped)
        except OSError as error:
            print_line(errors, f"cannot write to {out}: {error.strerror or error}")
            return UNUSABLE
        print_line(console, f"written to {out}: loss.png, table.md, results.json")
    if stopped:
        return INTERRUPTED if stopped == "interrupted" else FOUND
    broken = report.violations(finished, plan)
    for line in broken:
        print_line(errors, line)
    return FOUND if broken else OK


def not_installed(names: Sequence[str]) -> str:
    """... is not installed: pip install"""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed: pip install"


def progress(console: Console) -> Progress:
    """A bar a run: steps, the last loss, the time left."""
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]:<11}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
    )


def _write(out: Path, runs: Sequence[TrainingRun], plan: TrainingPlan, setting: str, complete: bool) -> None:
    from gradlab.workloads import compare_plot

    machine = describe()
    table = report.markdown(runs, plan, setting, machine)
    numbers = report.results(runs, plan, setting, machine, complete)
    whole(out / "loss.png", lambda path: compare_plot.draw(runs, plan, setting, stamp(machine), path))
    whole(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    whole(out / "results.json", lambda path: path.write_text(numbers, encoding="utf-8"))


def _show(console: Console, runs: Sequence[TrainingRun], plan: TrainingPlan) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for i, column in enumerate(report.COLUMNS):
        table.add_column(column, justify="left" if i < 3 else "right", no_wrap=True)
    for row in report.rows(runs, plan.workload):
        table.add_row(*row)
    console.print(table)
    for note in report.notes(runs, plan):
        print_line(console, note)
