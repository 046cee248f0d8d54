"""The main job: one network trained four times, torch and jax, hand-written and native, from the same start."""

import importlib
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from gradlab.autodiff.side import SIDES, side
from gradlab.profiling.machine import describe, stamp
from gradlab.workloads import demo_report as report
from gradlab.workloads import perceptron
from gradlab.workloads.demo_report import Run

if TYPE_CHECKING:
    from gradlab.workloads.digits import Digits

# What a side imports, and what the demo itself does: module -> the name that pip knows.
NEEDS = {"torch": {"torch": "torch", "triton": "triton"}, "jax": {"jax": "jax", "optax": "optax"}}
TOOLS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}

DONE, BROKEN, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def run(out: Path, epochs: int | None = None, seed: int = 0, sides: Sequence[str] = SIDES) -> int:
    """Train, print the table, write loss.png, table.md and results.json to `out`.

    Args:
        out: a folder, made when it is not there.
        epochs: passes over the training images; None for as many as the promised accuracy takes.
        seed: of the split, the initial weights and the order of the batches.
        sides: of "torch" and "jax"; one whose framework is not installed is left out.

    Returns:
        An exit code: 0; 1 when a run broke a promise; 2 when nothing could be trained or written; 130 after Ctrl-C,
        with the finished runs written.
    """
    console, errors = Console(), Console(stderr=True)
    epochs = perceptron.EPOCHS if epochs is None else epochs
    problem = _unusable(out, epochs, seed, sides)
    if problem:
        _say(errors, problem)
        return UNUSABLE
    present = []
    for name in dict.fromkeys(sides):
        if gone := _missing(NEEDS[name]):
            _say(errors, f"the {name} side is left out: {_not_installed(gone)} 'gradlab[{name}]'")
        else:
            present.append(name)

    from gradlab.workloads import digits

    plan = [(name, layers) for name in present for layers in get_args(perceptron.Layers)]
    finished: list[Run] = []
    interrupted = False
    data = digits.load(seed)
    try:
        with _progress(errors) as progress:
            steps = perceptron.steps(len(data.train_x), epochs)
            tasks = [progress.add_task(" ".join(planned), start=False, loss="", total=steps) for planned in plan]
            for task, (name, layers) in zip(tasks, plan, strict=True):
                finished.append(_train(name, layers, data, epochs, seed, progress, task))
    except KeyboardInterrupt:
        interrupted = True
        _say(errors, f"interrupted: {len(finished)} of {len(plan)} runs had finished")

    if finished:
        _show(console, finished)
        workload = _workload(data, epochs, seed)
        try:
            _write(out, finished, workload, complete=not interrupted)
        except OSError as error:
            _say(errors, f"cannot write to {out}: {error.strerror or error}")
            return UNUSABLE
        _say(console, f"written to {out}: loss.png, table.md, results.json")
    if interrupted:
        return INTERRUPTED
    broken = report.violations(finished)
    for line in broken:
        _say(errors, line)
    return BROKEN if broken else DONE


def _unusable(out: Path, epochs: int, seed: int, sides: Sequence[str]) -> str:
    """Why nothing can be trained or written, in one line; empty when it can."""
    unknown = [name for name in sides if name not in SIDES]
    if unknown or not sides:
        return f"sides are {', '.join(unknown) or 'none'}, wanted some of {', '.join(SIDES)}"
    if epochs < 1:
        return f"epochs is {epochs}, wanted at least 1"
    if not 0 <= seed < 2**32:
        return f"seed is {seed}, wanted 0 to 2^32 - 1"
    if gone := _missing(TOOLS):
        return f"{_not_installed(gone)} 'gradlab[demo]'"
    if all(_missing(NEEDS[name]) for name in sides):
        return f"{_not_installed([gone for name in sides for gone in _missing(NEEDS[name])])} 'gradlab[all]'"
    try:
        report.claim(out)
    except OSError as error:
        return f"cannot write to {out}: {error.strerror or error}"
    return ""


def _missing(modules: dict[str, str]) -> list[str]:
    return [name for module, name in modules.items() if importlib.util.find_spec(module) is None]


def _not_installed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed: pip install"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]:<11}"),
        TimeRemainingColumn(compact=True), TextColumn("left"), console=console,
    )  # fmt: skip


def _train(name: str, layers: Any, data: "Digits", epochs: int, seed: int, progress: Progress, task: TaskID) -> Run:
    """One of the runs; its seconds are those of training, compilation included, imports and test left out."""
    network = importlib.import_module(f"gradlab.workloads.perceptron_{name}")
    by_hand = "interpreted" if side(name).interpreted() else "compiled"
    result = Run(name, layers, by_hand if layers == "hand" else "native")
    progress.start_task(task)
    batches = perceptron.batches(data.train_x, data.train_t, epochs, seed)
    start = time.perf_counter()
    training = network.train(layers, perceptron.initial(seed), batches)
    while True:
        try:
            result.losses.append(next(training))
        except StopIteration as end:
            weights = end.value
            break
        progress.update(task, advance=1, loss=f"loss {result.losses[-1]:.4f}")
    result.seconds = time.perf_counter() - start
    result.accuracy = float((network.predict(layers, weights, data.test_x) == data.test_t).mean())
    return result


def _workload(data: "Digits", epochs: int, seed: int) -> dict[str, Any]:
    return {
        "data": "scikit-learn's handwritten digits, 8 x 8 pixels",
        "training_images": len(data.train_x),
        "test_images": len(data.test_x),
        "layers": [perceptron.K, perceptron.N, perceptron.V],
        "batch": perceptron.BATCH,
        "learning_rate": perceptron.LR,
        "epochs": epochs,
        "steps": perceptron.steps(len(data.train_x), epochs),
        "seed": seed,
    }


def _write(out: Path, runs: Sequence[Run], workload: dict[str, Any], complete: bool) -> None:
    from gradlab.workloads import demo_plot

    setting = (
        "{training_images} handwritten digits, a {0}-{1}-{2} perceptron, {epochs} epochs, batches of {batch}, "
        "Adam at {learning_rate}, seed {seed}"
    ).format(*workload["layers"], **workload)
    machine = describe()
    table = report.markdown(runs, setting, machine)
    numbers = report.results(runs, workload, machine, complete)
    report.write(out / "loss.png", lambda path: demo_plot.draw(runs, setting, stamp(machine), path))
    report.write(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    report.write(out / "results.json", lambda path: path.write_text(numbers, encoding="utf-8"))


def _show(console: Console, runs: Sequence[Run]) -> None:
    table = Table(box=box.SIMPLE)
    for i, column in enumerate(report.COLUMNS):
        table.add_column(column, justify="left" if i < 3 else "right", no_wrap=True)
    for row in report.rows(runs):
        table.add_row(*row)
    console.print(table)
    for note in report.notes(runs):
        _say(console, note)


def _say(console: Console, line: str) -> None:
    """A line as it is: no wrapping, no colours, and a path's brackets are no markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
