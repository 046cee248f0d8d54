"""What the device reaches in this run: bytes a second of a stream and FLOPs a second of a product, never a datasheet.

A stream reads an array and writes one; a small one lives in a cache, as the small operands of an op do, so bandwidth is
asked for at a size. A product is the framework's own, square, in the run's dtype and precision. The best of the samples
counts: what disturbs a ceiling only lowers it.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gradlab.autodiff.frameworks.side import Side
from gradlab.profiling.bench.clock import Call, Timer

# Most bytes of a stream, far beyond any cache, and the sides of the products.
LARGEST = {"cpu": 2**27, "cuda": 2**31}
PRODUCTS = {"cpu": (512, 1024), "cuda": (4096, 8192)}
# The same where only the steps are tried.
TINY, TINY_PRODUCTS = 2**20, (64, 128)
SAMPLES = 7


class Work(NamedTuple):
    """A call, and how much of what it does: bytes or FLOPs."""

    call: Call
    amount: int


class Works(Protocol):
    """What `ceilings_torch` and `ceilings_jax` hold."""

    stream: Callable[[int, str], Work]
    product: Callable[[int, str], Work]


class Ceilings:
    """The ceilings of one side's default device in one dtype, each measured when it is first asked for.

    With `tiny` they are those of a small stream and small products, which take no time and say nothing of the device.
    """

    def __init__(self, side: Side, dtype: str, timer: Timer, tiny: bool = False) -> None:
        self._works: Any = importlib.import_module(f"gradlab.profiling.bench.ceilings_{side.name}")
        self._side, self._dtype, self._timer = side, dtype, timer
        kind = "cuda" if side.device() == "cuda" else "cpu"
        self._largest, self._products = (TINY, TINY_PRODUCTS) if tiny else (LARGEST[kind], PRODUCTS[kind])
        self.bandwidth_at = functools.cache(self._bandwidth_at)
        self.rate = functools.cache(self._rate)

    def bandwidth(self, size: int) -> float:
        """Bytes a second of a stream of about `size` bytes, and never less than that of the largest."""
        nearest = min(self._largest, 2 ** max(16, (size - 1).bit_length()))
        return max(self.bandwidth_at(nearest), self.bandwidth_at(self._largest))

    def _bandwidth_at(self, size: int) -> float:
        return self._best(self._works.stream(size, self._dtype))

    def _rate(self) -> float:
        """FLOPs a second of a square product; the better one of two sizes."""
        return max(self._best(self._works.product(n, self._dtype)) for n in self._products)

    def _best(self, work: Work) -> float:
        self._side.wait(work.call())
        once = self._timer(work.call, 1)
        repeat = max(1, min(100, int(1e-3 / max(once, 1e-9))))
        return work.amount * repeat / min(self._timer(work.call, repeat) for _ in range(SAMPLES))
