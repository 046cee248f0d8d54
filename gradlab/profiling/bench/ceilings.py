"""The ceilings of the device, measured in this run: bytes per second of a stream, FLOPs per second of a matmul.

A stream reads one array and writes another; a small one stays in a cache, as the small operands of an op do, so
bandwidth is measured at a size. The matmul is the framework's own, square, in the run's dtype and precision. The best
sample counts, as disturbances only lower a ceiling.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gradlab.autodiff.frameworks.side import Side
from gradlab.profiling.bench.clock import Call, Timer

# Bytes of the largest stream, far beyond any cache, and the sizes of the square matmuls.
LARGEST = {"cpu": 2**27, "cuda": 2**31}
PRODUCTS = {"cpu": (512, 1024), "cuda": (4096, 8192)}
# The same for a quick run that measures nothing.
TINY, TINY_PRODUCTS = 2**20, (64, 128)
SAMPLES = 7


class Work(NamedTuple):
    """A call, and its bytes or FLOPs."""

    call: Call
    amount: int


class Works(Protocol):
    """The interface of `ceilings_torch` and `ceilings_jax`."""

    stream: Callable[[int, str], Work]
    product: Callable[[int, str], Work]


class Ceilings:
    """The ceilings of one side's default device in one dtype, each measured when first used.

    With `tiny` they come from a small stream and small matmuls: quick, but meaningless for the device.
    """

    def __init__(self, side: Side, dtype: str, timer: Timer, tiny: bool = False) -> None:
        self._works: Any = importlib.import_module(f"gradlab.profiling.bench.ceilings_{side.name}")
        self._side, self._dtype, self._timer = side, dtype, timer
        kind = "cuda" if side.device() == "cuda" else "cpu"
        self._largest, self._products = (TINY, TINY_PRODUCTS) if tiny else (LARGEST[kind], PRODUCTS[kind])
        self.bandwidth_at = functools.cache(self._bandwidth_at)
        self.rate = functools.cache(self._rate)

    def bandwidth(self, size: int) -> float:
        """Bytes per second of a stream of about `size` bytes, at least that of the largest stream."""
        nearest = min(self._largest, 2 ** max(16, (size - 1).bit_length()))
        return max(self.bandwidth_at(nearest), self.bandwidth_at(self._largest))

    def _bandwidth_at(self, size: int) -> float:
        return self._best(self._works.stream(size, self._dtype))

    def _rate(self) -> float:
        """FLOPs per second of a square matmul, the better of two sizes."""
        return max(self._best(self._works.product(n, self._dtype)) for n in self._products)

    def _best(self, work: Work) -> float:
        self._side.wait(work.call())
        once = self._timer(work.call, 1)
        repeat = max(1, min(100, int(1e-3 / max(once, 1e-9))))
        return work.amount * repeat / min(self._timer(work.call, repeat) for _ in range(SAMPLES))
