"""Local memory: bytes that each thread has for itself, for arrays and what registers have no room for."""

import numpy as np

from gradlab.profiling.ptx.blocks import Blocks, Lanes
from gradlab.profiling.ptx.numbers import Array


class LocalMemory:
    """The bytes of every lane of some blocks, which start as what is no number."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.size = blocks, blocks.code.local_size
        self.stride = -(-max(self.size, 16) // 16) * 16
        self.flat = np.empty(blocks.lanes * self.stride, np.uint8)
        self._views = {n: self.flat.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.begin()

    def begin(self) -> None:
        """Forget what is in it: new blocks come."""
        self.flat[:] = 0xFF

    def inside(self, offsets: Array, size: int) -> Array | None:
        """Which offsets lie within a thread's memory; None where all do."""
        right = (offsets >= 0) & (offsets + size <= self.size)
        return None if right.all() else right

    def read(self, offsets: Array, lanes: Lanes, size: int, number: int) -> list[Array]:
        """`number` unsigned integers of `size` bytes from each offset."""
        first = (offsets + self.blocks.where(lanes) * self.stride) // size
        return [self._views[size][first + n] for n in range(number)]

    def write(self, offsets: Array, lanes: Lanes, size: int, values: list[Array]) -> None:
        """Store unsigned integers of `size` bytes behind each other at each offset."""
        first = (offsets + self.blocks.where(lanes) * self.stride) // size
        for n, value in enumerate(values):
            self._views[size][first + n] = value
