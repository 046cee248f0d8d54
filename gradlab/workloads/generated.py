"""Generated data sets: deterministic for a seed, and learnable."""

from pathlib import Path

import numpy as np

from gradlab.workloads.workload import Data


def line(seed: int = 0, path: Path | None = None) -> Data:
    """Five points on a line: x = 1 ... 5, y = 0 ... 4, to train on and to test on."""
    x = np.arange(1, 6, dtype=np.float32)[:, None]
    return Data(x, x - 1, x, x - 1, "the points (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)")


def sigmoid_teacher(seed: int = 0, path: Path | None = None) -> Data:
    """The outputs of a sigmoid network with random weights for 640 normal inputs [4]: a teacher of the same shape."""
    rng = np.random.default_rng([seed, 2])
    x = rng.standard_normal((640, 4))
    hidden = _sigmoid(x @ rng.standard_normal((4, 8)) * 1.5)
    t = _sigmoid((hidden - 0.5) @ rng.standard_normal((8, 1)) * 3)
    return _split(x, t, 512, "512 outputs of a random sigmoid network")


def preferences(seed: int = 0, path: Path | None = None) -> Data:
    """16384 pairs of a user's and an item's 32 traits, and whether the user likes the item: their match, with noise.

    The answer depends on products of traits, which no linear model can fit; one answer in twenty is flipped.
    """
    rng = np.random.default_rng([seed, 3])
    user, item = rng.standard_normal((2, 20480, 32))
    # Two directions of the traits decide, as tastes do.
    taste = rng.standard_normal((32, 2)) / np.sqrt(32)
    liked = ((user @ taste) * (item @ taste)).sum(1) > 0
    liked ^= rng.random(20480) < 0.05
    return _split(np.hstack([user, item]), liked[:, None], 16384, "16384 generated likes")


def topics(seed: int = 0, path: Path | None = None) -> Data:
    """2560 bags of 60 words out of 128, drawn from ten topics; counts over the square root of the length."""
    rng = np.random.default_rng([seed, 4])
    frequencies = rng.dirichlet(np.full(128, 0.5), 10)
    common = rng.dirichlet(np.full(128, 0.5))
    t = rng.integers(0, 10, 3200)
    counts = np.stack([rng.multinomial(60, 0.5 * frequencies[k] + 0.5 * common) for k in t])
    return _split(counts / np.sqrt(60), t, 2560, "2560 generated bags of words")


def _split(x: np.ndarray, t: np.ndarray, train: int, source: str) -> Data:
    x = x.astype(np.float32)
    t = t.astype(np.int64 if t.dtype.kind in "iu" else np.float32)
    return Data(x[:train], t[:train], x[train:], t[train:], source)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
