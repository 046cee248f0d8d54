"""One training run of a workload: its plan, its steps, its state and its result."""

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.autodiff.frameworks.side import side
from gradlab.base.memory import peak_since_reset, reset_peak
from gradlab.workloads.catalogue import workload
from gradlab.workloads.layouts import Arrays
from gradlab.workloads.network import Weights
from gradlab.workloads.workload import Data, Layers, Optimizer, Workload, batches, score, steps

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
    """A run in progress: `steps()` trains on, `state()` is what is needed to continue later."""

    def __init__(self, plan: TrainingPlan, data: Data, weights: Weights | None = None) -> None:
        self.plan, self.data = plan, data
        self.losses: list[float] = []
        self.total = steps(data, plan.batch, plan.epochs)
        module = importlib.import_module(f"gradlab.workloads.trainer_{plan.side}")
        network = plan.workload.network
        start = network.initial(plan.seed) if weights is None else weights
        # After the import, so that the framework's own code is not counted.
        reset_peak()
        self._trainer = module.Trainer(plan.workload, plan.layers, plan.optimizer, plan.precision, start)

    def steps(self) -> Iterator[float]:
        """Train to the end of the plan; yields the loss of each batch before its step."""
        rest = batches(self.data, self.plan.batch, self.plan.epochs, self.plan.seed, len(self.losses))
        for x, t in rest:
            value = self._trainer.step(x, t)
            self.losses.append(value)
            yield value

    def epoch_ends(self) -> bool:
        """Whether the last step taken was the last of its epoch."""
        return len(self.losses) % (self.total // self.plan.epochs) == 0

    def state(self) -> Arrays:
        """Weights, optimizer state and the losses so far."""
        return self._trainer.state() | {"losses": np.array(self.losses, np.float64)}

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` returned.

        Raises:
            ValueError: a plan of fewer steps than were already taken.
        """
        self._trainer.restore(state)
        self.losses = state["losses"].tolist()
        if len(self.losses) > self.total:
            raise ValueError(
                f"train: epochs is {self.plan.epochs}, wanted more: {len(self.losses)} steps are already done"
            )

    def test(self) -> float:
        """The score on the test data, taken in batches of the training's size."""
        x = self.data.test_x
        parts = [self._trainer.predict(x[i : i + self.plan.batch]) for i in range(0, len(x), self.plan.batch)]
        return score(self.plan.workload, np.concatenate(parts), self.data.test_t)

    def peak(self) -> int:
        """Peak bytes so far: of device memory or, on a CPU, of the process beyond those before; 0 if unknown."""
        return self._trainer.peak() or peak_since_reset()

    def quiet(self) -> AbstractContextManager[None]:
        """Limit the threads to those that a network of this size can use."""
        return self._trainer.quiet()


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
