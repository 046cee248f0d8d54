"""The memory of one launch on arrays of a CPU, and the shadows of what it may write.

A result is fresh memory: what no program has stored, none may load, and nobody after the launch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.sanitize_run import NOTHING, Extent
from gradlab.profiling.pallas_cpu.launch import Launch

# Bytes of memory that nothing has written: not a number in every floating type, and no index that a kernel means.
_FRESH = 0xFF


class Memory:
    """The arguments of one launch.

    Args:
        launch: what is launched.
        operands: its operands.
        stored: numbers of the arguments that the kernel may store to, so that an operand among them is copied.

    Attributes:
        arrays: operands and results, each with the shape of its space.
    """

    def __init__(self, launch: Launch, operands: Sequence[np.ndarray], stored: set[int]) -> None:
        self._launch = launch
        fresh = [_fresh(s, d) for s, d in zip(launch.spaces[launch.operands :], launch.dtypes, strict=True)]
        given = []
        for i, x in enumerate(operands):
            if i not in launch.aliases and i not in stored and launch.spaces[i] == x.shape:
                given.append(np.ascontiguousarray(x))
                continue
            given.append(fresh[launch.aliases[i]] if i in launch.aliases else _fresh(launch.spaces[i], x.dtype))
            self._own(i, given[-1])[...] = x
        self.arrays = [*given, *fresh]
        # What addresses are handed out of has to stay.
        self._kept: list[np.ndarray] = []
        self._writers: dict[int, np.ndarray] = {}
        self._extents: list[Extent] = []

    def results(self) -> tuple[np.ndarray, ...]:
        """What the launch gives."""
        first = self._launch.operands
        return tuple(np.ascontiguousarray(self._own(i, self.arrays[i])) for i in range(first, len(self.arrays)))

    def extents(self, stored: set[int], race: bool, bounds: bool) -> list[Extent]:
        """What each argument points to.

        Args:
            stored: numbers of the arguments that the kernel may store to.
            race: whether there is more than one program.
            bounds: no shadows are wanted.
        """
        shadows: dict[int, tuple[int, int]] = {}
        overwritten = {self._launch.operands + result for result in self._launch.aliases.values()}
        for i, array in enumerate(self.arrays):
            if bounds or not array.size or (i < self._launch.operands and i not in stored):
                continue
            writers = self._kept_as(np.zeros(array.shape, np.int32))
            if i < self._launch.operands or i in overwritten:
                self._own(i, writers)[...] = layout.HOST
            self._writers[i] = writers
            readers = self._kept_as(np.zeros(array.shape, np.int32)).ctypes.data if race else 0
            shadows[array.ctypes.data] = writers.ctypes.data, readers
        # An operand that a result is written over has the result's shadows.
        self._extents = [
            Extent(
                a.ctypes.data,
                a.nbytes,
                a.itemsize.bit_length() - 1,
                self._inside(i),
                *shadows.get(a.ctypes.data, (0, 0)),
            )
            for i, a in enumerate(self.arrays)
        ]
        return self._extents

    def find(self, address: int, noted: bool, changed: object) -> Extent:
        """What an address that is no argument belongs to; whether loads there are noted changes nothing."""
        return next((e for e in self._extents if e.low <= address < e.low + e.bytes), NOTHING)

    def unwritten(self) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """Results of which elements were never stored: number of the argument, place of the first, how many."""
        return self._where(range(self._launch.operands, len(self.arrays)), lambda writers: writers == 0)

    def overwritten(self) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """Operands of which elements were stored though no result is written over them."""
        mine = [i for i in range(self._launch.operands) if i not in self._launch.aliases]
        return self._where(mine, lambda writers: np.abs(writers) > layout.HOST)

    def _where(
        self, numbers: Sequence[int], wanted: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[tuple[int, tuple[int, ...], int]]:
        for i in numbers:
            if i in self._writers:
                mask = wanted(self._own(i, self._writers[i]))
                if mask.any():
                    place = np.unravel_index(int(mask.argmax()), mask.shape)
                    yield i, tuple(map(int, place)), int(mask.sum())

    def _inside(self, i: int) -> int:
        """Address of what says of each element of a space whether it is the array's; 0 where all are."""
        array = self.arrays[i]
        if array.shape == self._launch.shapes[i]:
            return 0
        there = self._kept_as(np.zeros(array.shape, np.uint8))
        self._own(i, there)[...] = 1
        return there.ctypes.data

    def _own(self, i: int, space: np.ndarray) -> np.ndarray:
        """An argument's own elements of what has the shape of its space."""
        return space[tuple(map(slice, self._launch.shapes[i]))]

    def _kept_as(self, array: np.ndarray) -> np.ndarray:
        self._kept.append(array)
        return array


def _fresh(shape: Sequence[int], dtype: Any) -> np.ndarray:
    return np.full(math.prod(shape) * dtype.itemsize, _FRESH, np.uint8).view(dtype).reshape(shape)
