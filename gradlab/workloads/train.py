"""`gradlab train`: one run on one side, which can be saved, interrupted and resumed."""

import importlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from gradlab.base.exit_codes import INTERRUPTED, OK, UNUSABLE
from gradlab.base.files import claim
from gradlab.base.terminal import print_line
from gradlab.workloads import checkpoint
from gradlab.workloads.compare import progress
from gradlab.workloads.training import Training, TrainingPlan
from gradlab.workloads.workload import shown

# Settings that a resumed run may change: the number of epochs and the path of its data.
FREE = ("epochs", "path")


def train(
    plan: TrainingPlan, save: Path | None = None, load: Path | None = None, state: dict[str, Any] | None = None
) -> int:
    """Train `plan` and print the result.

    Args:
        plan: the run.
        save: a file for weights, optimizer and curve, written after each epoch, at the end and after Ctrl-C.
        load: a file of either side whose weights the run starts from.
        state: the state that `load_run` returned, to continue from.

    Returns:
        An exit code: 0; 2 when the file could not be written; 130 after Ctrl-C.

    Raises:
        ValueError: data or a file that cannot be read.
    """
    console, errors = Console(), Console(stderr=True)
    if save is not None:
        # A missing module must fail now, not when there is something to lose.
        importlib.import_module("safetensors")
        try:
            claim(save.parent)
        except OSError as error:
            print_line(errors, f"cannot write {save}: {error.strerror or error}")
            return UNUSABLE
    weights = None if load is None else checkpoint.weights_for(plan.workload.network, load)
    data = plan.workload.load(plan.seed, plan.path)
    training = Training(plan, data, weights)
    if state is not None:
        training.restore(state)
    print_line(console, plan.setting(data.source))
    done, start, full = len(training.losses), time.perf_counter(), ""
    with progress(errors) as bars, training.quiet(), _between_steps() as stop:
        task = bars.add_task(f"{plan.side} {plan.layers}", loss="", total=training.total, completed=done)
        for loss in training.steps():
            bars.update(task, advance=1, loss=f"loss {loss:.4f}")
            if save is not None and training.epoch_ends():
                full = _saved(training, save)
            if stop:
                break
    if stop and len(training.losses) < training.total:
        failed = _saved(training, save) if save is not None else ""
        saved = f"saved to {save}: --resume {save} continues" if save else "nothing was saved: --save names a file"
        print_line(errors, f"interrupted after {len(training.losses)} of {training.total} steps; {failed or saved}")
        return INTERRUPTED
    seconds = time.perf_counter() - start
    with training.quiet():
        tested = shown(plan.workload, training.test())
    peak = training.peak()
    parts = [f"final loss {training.losses[-1]:.6f}", f"{tested} on the test data"]
    parts += [f"{len(training.losses) - done} steps in {seconds:.1f} s"]
    parts += [f"peak memory {peak / 2**20:.0f} MiB"] if peak else []
    print_line(console, ", ".join(parts))
    if save is not None:
        full = full or _saved(training, save)
        print_line(errors if full else console, full or f"saved to {save}")
    return UNUSABLE if full else OK


def load_run(path: Path, given: dict[str, Any]) -> tuple[TrainingPlan, dict[str, Any]]:
    """The plan and the state of a run that `train` saved.

    Args:
        path: its file.
        given: arguments of the command line by the plan's names; None where not given.

    Raises:
        CheckpointError: no such file, no run in it, or a run with other settings than those given.
    """
    arrays, run = checkpoint.read(path)
    if run is None:
        raise checkpoint.CheckpointError(
            f"{path}: holds weights only, wanted a run written by --save; --load takes weights"
        )
    try:
        plan = TrainingPlan.of(run)
    except (TypeError, KeyError) as error:
        raise checkpoint.CheckpointError(
            f"{path}: its run cannot be read ({error}), wanted a run written by --save"
        ) from None
    for name, value in given.items():
        saved = getattr(plan, name)
        if value is not None and name not in FREE and value != saved:
            raise checkpoint.CheckpointError(
                f"{path}: its {name} is {saved}, wanted {value}; leave the option out to continue"
            )
    plan = replace(plan, **{name: given[name] for name in FREE if given.get(name) is not None})
    if "losses" not in arrays:
        raise checkpoint.CheckpointError(f"{path}: holds no losses, wanted a run written by --save")
    return plan, arrays


@contextmanager
def _between_steps() -> Iterator[list[int]]:
    """Delay Ctrl-C to the end of the step, so that all weights belong to one step; a second Ctrl-C stops at once.

    Yields a list that is empty until then.
    """
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_interrupt(number: int, frame: object) -> None:
        stop.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _saved(training: Training, path: Path) -> str:
    """Save the run; the error in one line if that fails, else empty."""
    try:
        checkpoint.save(path, training.state(), training.plan.as_json())
    except OSError as error:
        return f"cannot write {path}: {error.strerror or error}"
    return ""
