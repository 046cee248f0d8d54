"""The workload that both frameworks train: logits[M V] = relu(x[M K] w1[K N] + b1[N]) w2[N V] + b2[V]. NumPy only.

Trained in float32, the four curves stay within 5e-4 of each other at every step. What parts them most is optax's Adam:
its 1 - 0.999^s is a float32 difference, wrong by 1e-5 of itself at the first step where torch and gradlab are exact,
and training magnifies that wherever a hidden value near 0 falls on the other side of its relu. Large batches and a
modest rate keep small what one such row can do: 9e-5 was the largest distance over 24 seeds.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

Layers = Literal["hand", "native"]
Batch = tuple[np.ndarray, np.ndarray]

K, N, V = 64, 128, 10
BATCH = 480
EPOCHS = 120
LR = 2e-3


class Weights(NamedTuple):
    """w1[K N], b1[N], w2[N V], b2[V] as float32: inputs down, outputs across."""

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray


def initial(seed: int = 0) -> Weights:
    """The weights that every run starts from: normal of variance 2/K before the relu, 1/N after it; zero biases."""
    rng = np.random.default_rng([seed, 0])
    w1 = rng.standard_normal((K, N)) * np.sqrt(2 / K)
    w2 = rng.standard_normal((N, V)) * np.sqrt(1 / N)
    return Weights(*(a.astype(np.float32) for a in (w1, np.zeros(N), w2, np.zeros(V))))


def batches(x: np.ndarray, t: np.ndarray, epochs: int = EPOCHS, seed: int = 0) -> Iterator[Batch]:
    """The same batches for every run: x[M K], t[M], M = BATCH, in a new order each epoch, no incomplete one."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for first in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[first : first + BATCH]
            yield x[rows], t[rows]


def steps(rows: int, epochs: int = EPOCHS) -> int:
    """How many batches `batches` gives."""
    return epochs * (rows // BATCH)
