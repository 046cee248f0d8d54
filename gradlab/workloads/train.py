"""`gradlab train`: one run on one side, which can be saved, interrupted and resumed."""

import importlib
import secrets
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import gradlab
from gradlab.base.exit_codes import OK, SIGNALLED, UNUSABLE
from gradlab.base.files import claim
from gradlab.base.terminal import print_line
from gradlab.workloads import checkpoint, folder, interrupt
from gradlab.workloads.compare import progress
from gradlab.workloads.layouts import Arrays
from gradlab.workloads.ranks import Ranks
from gradlab.workloads.training import Training, TrainingPlan
from gradlab.workloads.workload import shown
from gradlab.workloads.world import World

# Settings that a resumed run may change: the number of epochs and the path of its data.
FREE = ("epochs", "path")


def train(
    plan: TrainingPlan,
    save: Path | None = None,
    load: Path | None = None,
    state: Arrays | folder.SavedRun | None = None,
    ranks: Ranks | None = None,
) -> int:
    """Train `plan` and print the result.

    Args:
        plan: the run.
        save: a file for weights, optimizer and curve, written after each epoch, at the end and after Ctrl-C; a
            folder if it is one, or if ranks share the run.
        load: a file or folder of either side whose weights the run starts from.
        state: the state that `load_run` returned, to continue from.
        ranks: the processes that share the run, of which the first prints.

    Returns:
        An exit code: 0; 2 when the file could not be written; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ValueError: data or a file that cannot be read.
    """
    world = World() if ranks is None else ranks.world
    console, errors = Console(quiet=not world.leads), Console(stderr=True, quiet=not world.leads)
    place = None if save is None else _Place(save, plan.side, world, ranks)
    if place is not None:
        try:
            place.claim()
        except OSError as error:
            if world.shared:
                raise folder.CheckpointError(
                    f"{save}: {error.strerror or error}, wanted a folder to write to"
                ) from None
            print_line(errors, f"cannot write {save}: {error.strerror or error}")
            return UNUSABLE
    network = plan.workload.network
    weights = network.initial(plan.seed) if load is None else checkpoint.weights_for(network, load)
    data = plan.workload.load(plan.seed, plan.path)
    if ranks is not None:
        world.want_rows(plan.batch)
        facts = _facts(plan, {"data": data[:4], "weights": weights.values()})
        resumed = state.arrays.name if isinstance(state, folder.SavedRun) else "nothing" if state is None else "a file"
        ranks.begin(facts | {"spread": world.kind, "resume": resumed, "save": "given" if save else "not given"})
        if place is not None:
            place.want_shared()
    training = Training(plan, data, weights, world)
    if state is not None:
        training.restore(state)
    print_line(console, plan.setting(data.source))
    done, start, full, ended = len(training.losses), time.perf_counter(), "", 0
    heard = interrupt.delayed() if ranks is None else nullcontext(ranks.told)
    with progress(errors) as bars, training.quiet(), heard as told:
        task = bars.add_task(f"{plan.side} {plan.layers}", loss="", total=training.total, completed=done)
        for loss in training.steps():
            bars.update(task, advance=1, loss=f"loss {loss:.4f}")
            if ranks is not None:
                ranks.steps = len(training.losses)
            if place is not None and training.epoch_ends():
                full = place.saved(training)
            if ended := training.agreed(told[0] if told else 0):
                break
    if ended and len(training.losses) < training.total:
        failed = place.saved(training) if place is not None else ""
        saved = f"saved to {save}: --resume {save} continues" if save else "nothing was saved: --save names a file"
        print_line(errors, f"interrupted after {len(training.losses)} of {training.total} steps; {failed or saved}")
        return SIGNALLED + ended
    seconds = time.perf_counter() - start
    with training.quiet():
        tested = shown(plan.workload, training.test())
    peak = training.peak()
    parts = [f"final loss {training.losses[-1]:.6f}", f"{tested} on the test data"]
    parts += [f"{len(training.losses) - done} steps in {seconds:.1f} s"]
    parts += [f"peak memory {peak / 2**20:.0f} MiB"] if peak else []
    parts += [str(world)] if world.shared else []
    print_line(console, ", ".join(parts))
    if place is not None:
        full = full or place.saved(training)
        print_line(errors if full else console, full or f"saved to {save}")
    return UNUSABLE if full else OK


def load_run(path: Path, given: dict[str, Any]) -> tuple[TrainingPlan, Arrays | folder.SavedRun]:
    """The plan and the state of a run that `train` saved.

    Args:
        path: its file or folder.
        given: arguments of the command line by the plan's names; None where not given.

    Raises:
        CheckpointError: no such file, no run in it, or a run with other settings than those given.
    """
    state: Arrays | folder.SavedRun
    if folder.holds_run(path):
        state = folder.read(path)
        run: dict[str, Any] | None = state.plan
    else:
        state, run = checkpoint.read(path)
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
    if not isinstance(state, folder.SavedRun) and "losses" not in state:
        raise checkpoint.CheckpointError(f"{path}: holds no losses, wanted a run written by --save")
    return plan, state


def _facts(plan: TrainingPlan, arrays: Mapping[str, Iterable[np.ndarray]]) -> dict[str, Any]:
    """What all processes of a run must have in common: a path may differ, what is found there may not."""
    said = {name.replace("_", "-"): str(value) for name, value in plan.as_json().items() if name != "path"}
    facts = {"gradlab": gradlab.__version__, **said, "optimizer": str(plan.optimizer)}
    for name, parts in arrays.items():
        checksum = 0
        for array in parts:
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        facts[name] = f"checksum {checksum:08x}"
    return facts


class _Place:
    """Where a run is saved: a file of one process, or a folder."""

    def __init__(self, path: Path, side: str, world: World, ranks: Ranks | None) -> None:
        self._path, self._side, self._ranks = path, side, ranks
        self._folder, self._token = world.shared or path.is_dir(), secrets.token_hex(4)

    def claim(self) -> None:
        """Fail now, not when there is something to lose.

        Raises:
            OSError: it cannot be written.
            ValueError: something else is there.
        """
        if self._folder:
            importlib.import_module(f"gradlab.workloads.folder_{self._side}")
            folder.want(self._path)
            claim(self._path)
        else:
            importlib.import_module("safetensors")
            claim(self._path.parent)

    def want_shared(self) -> None:
        """Refuse a folder that is another one on another machine: each would hold a part of the run.

        Raises:
            ValueError: a process that does not find there what the first one wrote.
        """
        assert self._ranks is not None
        mark = self._path / f".shared-{self._ranks.token}"
        if self._ranks.world.leads:
            mark.touch()
        self._ranks.outcome("")
        rank = self._ranks.world.rank
        error = self._ranks.outcome("" if mark.exists() else f"save of rank {rank} is a folder of its own machine")
        if self._ranks.world.leads:
            mark.unlink(missing_ok=True)
        if error:
            raise folder.CheckpointError(f"train: {error}, wanted one that all machines share")

    def saved(self, training: Training) -> str:
        """Save the run; the error in one line if that fails, on any process, else empty."""
        token = self._token if self._ranks is None else self._ranks.token
        try:
            if self._folder:
                training.save_folder(self._path, token)
            else:
                checkpoint.save(self._path, training.state(), training.plan.as_json())
            error = ""
        except OSError as caught:
            error = f"cannot write {self._path}: {caught.strerror or caught}"
        if self._ranks is None:
            return error
        error = self._ranks.outcome(error)
        self._ranks.saved = self._ranks.saved if error else str(self._path)
        return error
