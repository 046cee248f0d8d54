"""Shared memory of every block: bytes that start as what is no number, and what is known of each."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction

if TYPE_CHECKING:
    from gradlab.profiling.ptx.machine import Lanes, Machine


class SharedMemory:
    """`size` bytes for each block of a machine.

    Attributes:
        data: bytes[block, offset].
        flat: the same bytes, all blocks behind each other; a block begins at a multiple of `stride`.
    """

    def __init__(self, machine: "Machine", size: int) -> None:
        self.machine, self.size = machine, size
        self.stride = -(-max(size, 16) // 16) * 16
        self.data = np.empty((machine.blocks, self.stride), np.uint8)
        self.flat = self.data.reshape(-1)
        self._views = {n: self.flat.view(f"u{n}") for n in (1, 2, 4, 8)}

    def begin(self) -> None:
        """Forget what is in it: new blocks come."""
        self.flat[:] = 0xFF

    def allowed(self, instruction: Instruction, offsets: Array, size: int, lanes: "Lanes") -> Array | None:
        """Which offsets lie within a block's shared memory; None where all do."""
        inside = (offsets >= 0) & (offsets + size <= self.size)
        if inside.all():
            return None
        first = np.flatnonzero(~inside)[0]
        text = f"byte {int(offsets[first])} of shared memory, of which a block has {self.size}"
        self.machine.fault("out of bounds", instruction, text, self.machine.where(lanes)[~inside])
        return inside

    def places(self, offsets: Array, lanes: Array) -> Array:
        """Indices into `flat` of offsets in the lanes' blocks."""
        return offsets + self.machine.block_of[lanes] * self.stride

    def read(self, instruction: Instruction, offsets: Array, lanes: Array, size: int, number: int) -> list[Array]:
        """`number` unsigned integers of `size` bytes from each offset."""
        first = self.places(offsets, lanes) // size
        return [self._views[size][first + n] for n in range(number)]

    def write(self, instruction: Instruction, offsets: Array, lanes: Array, size: int, values: list[Any]) -> None:
        """Store unsigned integers of `size` bytes behind each other at each offset."""
        first = self.places(offsets, lanes) // size
        for n, value in enumerate(values):
            self._views[size][first + n] = value

    def joined(self, lanes: Array) -> None:
        """These lanes have passed a barrier together: what their warps did before is known to all of them."""
