"""One run of a workload: what was asked for, the steps, where it stands, and what came of it."""

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

# What a side imports: module -> the name that pip knows.
NEEDS = {"torch": {"torch": "torch", "triton": "triton"}, "jax": {"jax": "jax", "optax": "optax"}}


def missing(modules: dict[str, str]) -> list[str]:
    """pip's names of the modules that are not installed."""
    return [name for module, name in modules.items() if importlib.util.find_spec(module) is None]


@dataclass(frozen=True)
class Plan:
    """All that decides a run's numbers, but the machine."""

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

    def said(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        return {**asdict(self), "optimizer": self.optimizer._asdict(), "path": self.path and str(self.path)}

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Plan":
        """The inverse of `said`."""
        path = said["path"]
        return cls(
            **{**said, "optimizer": Optimizer(**said["optimizer"]), "path": None if path is None else Path(path)}
        )

    def setting(self, source: str) -> str:
        """What is trained, in one line."""
        return (
            f"{self.name}: {source}; {self.workload.network}; {self.epochs} epochs, batches of {self.batch}, "
            f"{self.optimizer}, {self.precision}, seed {self.seed}"
        )


@dataclass
class Run:
    """What came of one training.

    `kernels` is "native" for the framework's own layers, else "compiled" or "interpreted"; an interpreted run's
    seconds are not a kernel's speed. `peak` is in bytes, of the device or, on a CPU, of the process beyond what it had
    before; 0 where nobody can tell.
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
    """A plan under way: `steps()` takes the next ones, `state()` is all that going on needs."""

    def __init__(self, plan: Plan, data: Data, weights: Weights | None = None) -> None:
        self.plan, self.data = plan, data
        self.losses: list[float] = []
        self.total = steps(data, plan.batch, plan.epochs)
        module = importlib.import_module(f"gradlab.workloads.trainer_{plan.side}")
        network = plan.workload.network
        start = network.initial(plan.seed) if weights is None else weights
        # After the import: a framework's own code is not the network's memory.
        reset_peak()
        self._trainer = module.Trainer(plan.workload, plan.layers, plan.optimizer, plan.precision, start)

    def steps(self) -> Iterator[float]:
        """Train from where it stands to the end of the plan: the loss of each batch before its step."""
        rest = batches(self.data, self.plan.batch, self.plan.epochs, self.plan.seed, len(self.losses))
        for x, t in rest:
            value = self._trainer.step(x, t)
            self.losses.append(value)
            yield value

    def epoch_ends(self) -> bool:
        """Whether the last step taken was the last of its epoch."""
        return len(self.losses) % (self.total // self.plan.epochs) == 0

    def state(self) -> Arrays:
        """Weights, optimizer and the curve so far."""
        return self._trainer.state() | {"losses": np.array(self.losses, np.float64)}

    def restore(self, state: Arrays) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: a plan of fewer steps than were taken.
        """
        self._trainer.restore(state)
        self.losses = state["losses"].tolist()
        if len(self.losses) > self.total:
            raise ValueError(f"train: epochs is {self.plan.epochs}, wanted more: {len(self.losses)} steps are done")

    def test(self) -> float:
        """The score on the test data, taken in batches of the training's size."""
        x = self.data.test_x
        parts = [self._trainer.predict(x[i : i + self.plan.batch]) for i in range(0, len(x), self.plan.batch)]
        return score(self.plan.workload, np.concatenate(parts), self.data.test_t)

    def peak(self) -> int:
        """Most bytes so far: of device memory or, on a CPU, of the process beyond those before; 0 if nobody knows."""
        return self._trainer.peak() or peak_since_reset()

    def quiet(self) -> AbstractContextManager[None]:
        """The threads that a network of this size can use, and no more."""
        return self._trainer.quiet()


def run(plan: Plan, data: Data, on_loss: Callable[[float], object] = lambda loss: None) -> Run:
    """The whole of a plan in this process; `on_loss` gets the loss of every step.

    Its seconds are those of training, compilation included, imports and test left out.
    """
    by_hand = "interpreted" if side(plan.side).interpreted() else "compiled"
    result = Run(plan.side, plan.layers, by_hand if plan.layers == "gradlab" else "native")
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
