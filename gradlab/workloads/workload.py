"""A workload: network, data, loss, optimizer, and the accuracy expected of a run. NumPy only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from gradlab.workloads.network import Network

Layers = Literal["gradlab", "native"]
LAYERS: tuple[Layers, ...] = ("gradlab", "native")
PRECISIONS = ("float32", "bf16", "fp16")
Batch = tuple[np.ndarray, np.ndarray]


class Data(NamedTuple):
    """Inputs x[M ...] as float32 and targets t[M ...] (int64 classes, or float32), to train on and to test on.

    `source` describes where they come from.
    """

    train_x: np.ndarray
    train_t: np.ndarray
    test_x: np.ndarray
    test_t: np.ndarray
    source: str


class Optimizer(NamedTuple):
    """adam or sgd; momentum is sgd's alone."""

    kind: Literal["adam", "sgd"]
    lr: float
    momentum: float = 0.0

    def __str__(self) -> str:
        momentum = f" with momentum {self.momentum:g}" if self.momentum else ""
        return f"{'Adam' if self.kind == 'adam' else 'SGD'}{momentum} at {self.lr:g}"


@dataclass(frozen=True)
class Workload:
    """One of the networks that people compare frameworks with.

    Attributes:
        name: its name on the command line.
        network: its layers.
        loss: the op that its outputs and targets go into, by torch's name.
        optimizer, batch, epochs: the defaults; the last incomplete batch is left out.
        load: seed, path -> Data; raises DataError.
        file: the file that `--data` must name; empty if the data needs none.
        expected_accuracy: least share of right answers on the test data after `epochs`; None if not checked.
        max_dloss: the largest |difference of losses| allowed between two float32 runs in the first `early_steps` steps.
    """

    name: str
    network: Network
    loss: Literal["cross_entropy", "mse_loss", "binary_cross_entropy_with_logits"]
    optimizer: Optimizer
    batch: int
    epochs: int
    load: Callable[[int, Path | None], Data]
    file: str = ""
    expected_accuracy: float | None = None
    max_dloss: float = 2e-3
    early_steps: int = 50


class DataError(ValueError):
    """A data file that is missing, broken or of another shape: one line."""


def batches(data: Data, batch: int, epochs: int, seed: int = 0, done: int = 0) -> Iterator[Batch]:
    """The same batches for every run: x[batch ...], t[batch ...], in a new order each epoch, no incomplete one.

    The first `done` of them are skipped: a resumed run continues where it stopped.
    """
    rng = np.random.default_rng([seed, 1])
    each = len(data.train_x) // batch
    for epoch in range(epochs):
        order = rng.permutation(len(data.train_x))
        for k in range(each):
            if epoch * each + k >= done:
                rows = order[k * batch : (k + 1) * batch]
                yield data.train_x[rows], data.train_t[rows]


def steps(data: Data, batch: int, epochs: int) -> int:
    """The number of batches that `batches` yields.

    Raises:
        ValueError: a batch larger than the training data.
    """
    if batch > len(data.train_x):
        raise ValueError(f"train: batch-size is {batch}, wanted at most the {len(data.train_x)} training rows")
    return epochs * (len(data.train_x) // batch)


def score(workload: Workload, outputs: np.ndarray, t: np.ndarray) -> float:
    """The share of right answers; for a regression the root of the mean squared error."""
    if workload.loss == "cross_entropy":
        return float((outputs.argmax(1) == t).mean())
    if workload.loss == "mse_loss":
        return float(np.sqrt(np.mean((outputs.astype(np.float64) - t) ** 2)))
    return float(((outputs > 0) == (t > 0.5)).mean())


def shown(workload: Workload, value: float) -> str:
    """A score as text."""
    return f"rmse {value:.2g}" if workload.loss == "mse_loss" else f"{value:.2%}"
