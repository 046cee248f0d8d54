"""One training run of a workload: its plan, its steps, its state and its result."""

import importlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.autodiff.frameworks.side import side
from gradlab.base.memory import peak_since_reset, reset_peak
from gradlab.workloads import folder
from gradlab.workloads.catalogue import workload
from gradlab.workloads.layouts import Arrays
from gradlab.workloads.network import Weights
from gradlab.workloads.workload import Data, Layers, Optimizer, Workload, batches, score, steps
from gradlab.workloads.world import World

# Modules that a side imports -> their names for pip.
NEEDS = {"torch": {"torch": "torch", "triton": "triton"}, "jax": {"jax": "jax", "optax": "optax"}}


def missing(modules: dict[str, str]) -> list[str]:
    """pip's names of the modules that are not installed."""
    return [name for module, name in modules.items() if importlib.util.find_spec(module) is None]


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that determines a run's numbers, except the machine."""

    name: str
    side: str
    layers: Layers
    precision: str
    optimizer: Optimizer
    batch: int
    epochs: int
    seed: int
    path: Path | None = None

    @property
    def workload(self) -> Workload:
        return workload(self.name)

    def as_json(self) -> dict[str, Any]:
        """The plan as values for JSON."""
        return {**asdict(self), "optimizer": self.optimizer._asdict(), "path": self.path and str(self.path)}

    @classmethod
    def of(cls, values: dict[str, Any]) -> "TrainingPlan":
        """The inverse of `as_json`."""
        path = values["path"]
        return cls(
            **{**values, "optimizer": Optimizer(**values["optimizer"]), "path": None if path is None else Path(path)}
        )

    def setting(self, source: str) -> str:
        """What is trained, in one line."""
        return (
            f"{self.name}: {source}; {self.workload.network}; {self.epochs} epochs, batches of {self.batch}, "
            f"{self.optimizer}, {self.precision}, seed {self.seed}"
        )


@dataclass
class TrainingRun:
    """The result of one training run.

    `kernels` is "native" for the framework's own layers, else "compiled" or "interpreted"; an interpreted run's
    seconds are not a kernel's speed. `peak` is in bytes, of the device or, on a CPU, of the process beyond what it had
    before; 0 if unknown.
    """

    side: str
    layers: str
    kernels: str
    losses: list[float] = field(default_factory=list)
    score: float = float("nan")
    seconds: float = 0.0
    peak: int = 0

    @property
    def name(self) -> str:
        return f"{self.side} {self.layers}"


class Training:
    """A run in progress: `steps()` trains on, `state()` is what is needed to continue later.

    The processes of a world go through the same batches, each with its own rows of every one, so that the losses are
    those of a single process; all of them call every method together.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        data: Data,
        weights: Weights | None = None,
        world: World = World(),  # noqa: B008 - a tuple
    ) -> None:
        world.want_rows(plan.batch)
        self.plan, self.data, self.world = plan, data, world
        self.losses: list[float] = []
        # The arrays of the last save to a folder.
        self._arrays: Path | None = None
        self.total = steps(data, plan.batch, plan.epochs)
        module = importlib.import_module(f"gradlab.workloads.trainer_{plan.side}")
        network = plan.workload.network
        start = network.initial(plan.seed) if weights is None else weights
        # After the import, so that the framework's own code is not counted.
        reset_peak()
        self._trainer = module.Trainer(plan.workload, plan.layers, plan.optimizer, plan.precision, start, world)

    def steps(self) -> Iterator[float]:
        """Train to the end of the plan; yields the loss of each batch before its step."""
        rest = batches(self.data, self.plan.batch, self.plan.epochs, self.plan.seed, len(self.losses))
        own = self.world.part(self.plan.batch)
        for x, t in rest:
            value = self._trainer.step(x[own], t[own])
            self.losses.append(value)
            yield value

    def agreed(self, signal: int) -> int:
        """The signal that all processes end with after this step, as one of them was told to; 0 to go on."""
        return self._trainer.agreed(signal)

    def epoch_ends(self) -> bool:
        """Whether the last step taken was the last of its epoch."""
        return len(self.losses) % (self.total // self.plan.epochs) == 0

    def state(self) -> Arrays:
        """Weights, optimizer state and the losses so far."""
        return self._trainer.state() | {"losses": np.array(self.losses, np.float64)}

    def save_folder(self, path: Path, token: str) -> None:
        """Save the run as a folder; each process writes its part.

        Args:
            path: the folder.
            token: 8 hex digits, the same on all processes, of this run alone.

        Raises:
            OSError: it cannot be written; what the folder held before is unharmed.
        """
        arrays = folder.arrays_of(path, len(self.losses), token)
        if arrays == self._arrays:
            return
        try:
            _store(self.plan.side).write(arrays, self._trainer.live())
            if self.world.leads:
                folder.commit(path, folder.SavedRun(arrays, self.plan.side, self.plan.as_json(), self.losses))
        except OSError:
            if self.world.leads:
                shutil.rmtree(arrays, ignore_errors=True)
            raise
        self._arrays = arrays

    def restore(self, state: Arrays | folder.SavedRun) -> None:
        """Continue from what `state` returned, or from a folder.

        Raises:
            ValueError: a plan of fewer steps than were already taken; arrays that cannot be read.
        """
        if isinstance(state, folder.SavedRun):
            arrays, losses = _store(state.side).read(state.arrays, self._trainer.live()), state.losses
        else:
            arrays, losses = state, state["losses"].tolist()
        self._trainer.restore(arrays)
        self.losses = losses
        if len(self.losses) > self.total:
            raise ValueError(
                f"train: epochs is {self.plan.epochs}, wanted more: {len(self.losses)} steps are already done"
            )

    def test(self) -> float:
        """The score on the test data, which the processes share, taken in batches of the training's size."""
        x, size = self.data.test_x, self.world.size
        # As many rows on each process, so that all take the same steps: the last ones of the last are the first again.
        padded = -(-len(x) // size) * size
        own = x if size == 1 else x.take(range(padded), axis=0, mode="wrap")[self.world.part(padded)]
        each = self.plan.batch // size
        parts = [self._trainer.predict(own[i : i + each]) for i in range(0, len(own), each)]
        outputs = self._trainer.gathered(np.concatenate(parts))
        return score(self.plan.workload, outputs[: len(x)], self.data.test_t)

    def peak(self) -> int:
        """Peak bytes so far: of device memory or, on a CPU, of the process beyond those before; 0 if unknown."""
        return self._trainer.peak() or peak_since_reset()

    def quiet(self) -> AbstractContextManager[None]:
        """Limit the threads to those that a network of this size can use."""
        return self._trainer.quiet()


def _store(side: str) -> Any:
    """What writes and reads a folder's arrays."""
    return importlib.import_module(f"gradlab.workloads.folder_{side}")


def run(plan: TrainingPlan, data: Data, on_loss: Callable[[float], object] = lambda loss: None) -> TrainingRun:
    """Train a plan in this process; `on_loss` is called with the loss of every step.

    Its seconds are those of training, compilation included, imports and test left out.
    """
    compiled = "interpreted" if side(plan.side).interpreted() else "compiled"
    result = TrainingRun(plan.side, plan.layers, compiled if plan.layers == "gradlab" else "native")
    training = Training(plan, data)
    with training.quiet():
        start = time.perf_counter()
        for loss in training.steps():
            on_loss(loss)
        result.seconds = time.perf_counter() - start
        result.losses = training.losses
        result.score = training.test()
    result.peak = training.peak()
    return result
