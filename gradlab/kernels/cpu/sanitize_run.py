"""Launches of a sanitized kernel: the state that it reads and writes, and the faults that it noted.

Numbers and addresses come in and go out; which tensors they belong to is the caller's business.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.binary import Binary
from gradlab.kernels.cpu.launching import Grid, Kernel, _Memory

_Find = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
_Words = ctypes.c_int64 * layout.EXTENT
# A tick is kept in 32 bits.
LAST_TICK = 2**30


class Extent(NamedTuple):
    """Memory that an access may touch.

    Attributes:
        low: address of the first byte.
        bytes: from there on.
        shift: log2 of the bytes of an element, to which `inside` and the shadows have one entry.
        inside: address of a byte for each element: whether it is one; 0 where all are.
        writers, readers: addresses of the shadows, 0 where none is kept.
    """

    low: int
    bytes: int
    shift: int = 0
    inside: int = 0
    writers: int = 0
    readers: int = 0

    def words(self) -> tuple[int, ...]:
        """As the kernel reads it."""
        fast = self.bytes >= layout.SPAN and not (self.inside or self.writers or self.readers)
        first = (self.low, self.bytes) if fast else (layout.NOWHERE, layout.PLENTY)
        dense = self.writers and not self.inside and self.bytes >= layout.LARGEST
        return (*first, *self, self.shift if dense else -1)


# What an argument that is no tensor points to: unknown.
ANYTHING = Extent(0, layout.PLENTY)
NOTHING = Extent(0, 0)


# See `Examined.examine`.
Find = Callable[[int, bool, Callable[[int, Extent], None]], Extent]


class Noted(NamedTuple):
    """A fault as the kernel noted it.

    Attributes:
        site: number of the access.
        kind: of the fault, as `sanitize_layout.KINDS` numbers them.
        elements: how many it was noted of.
        program: number of the first program that it was noted in.
        at: address of the first element.
        other: number of the other program of a race.
        low: where the extent begins that an address out of memory was held against.
    """

    site: int
    kind: int
    elements: int
    program: int
    at: int
    other: int
    low: int


class Clock:
    """The tick that goes on from launch to launch.

    Attributes:
        now: the last tick.
    """

    def __init__(self) -> None:
        self.now = layout.HOST + 1


class Examined(Kernel):
    """A sanitized kernel: its programs run in order, one launch at a time.

    Attributes:
        file: where the kernel's source stands now.
    """

    def __init__(self, binary: Binary, threads: Callable[[], int]) -> None:
        super().__init__(binary, threads)
        self.file = "<unknown>"
        self._state = 0

    def _take(self) -> _Memory:
        memory = super()._take()
        struct.pack_into("<Q", memory.report, 8 * layout.STATE, self._state)
        return memory

    def examine(
        self, grid: Grid, values: Sequence[Any], extents: Sequence[Extent], find: "Find", clock: Clock
    ) -> list[Noted]:
        """Run the kernel, and give what it noted.

        Args:
            extents: what each argument points to; of one that is no pointer it is not read.
            find: what an address out of memory belongs to; called with the address, whether loads there are noted, and
                a function for what it has said before, of such an address whose loads are not, and says otherwise now.
        """
        count, sites = len(self.binary.arguments), len(self.binary.sites)
        state = (ctypes.c_int64 * (layout.ARGUMENTS + layout.EXTENT * count))()
        records = (ctypes.c_int64 * (sites * len(layout.KINDS) * layout.RECORD))()
        starts = (ctypes.c_int32 * max(grid[0] * grid[1] * grid[2], 1))()
        kept: dict[int, Any] = {}
        errors: list[Exception] = []

        def changed(address: int, extent: Extent) -> None:
            kept[address][:] = extent.words()

        def found(tagged: int) -> int:
            try:
                extent = find(tagged % 2**63, tagged < 0, changed)
            except Exception as error:
                # No exception passes through compiled code.
                errors.append(error)
                extent = ANYTHING
            words = _Words(*extent.words())
            kept[tagged] = words
            return ctypes.addressof(words)

        callback = _Find(found)
        answers = (ctypes.c_int64 * (2 << layout.ANSWER_BITS))()
        state[layout.ANSWERS] = ctypes.addressof(answers)
        state[layout.TICK] = state[layout.EPOCH] = epoch = clock.now
        state[layout.STARTS], state[layout.RECORDS] = ctypes.addressof(starts), ctypes.addressof(records)
        state[layout.FIND] = ctypes.cast(callback, ctypes.c_void_p).value or 0
        for i, extent in enumerate(extents):
            first = layout.ARGUMENTS + layout.EXTENT * i
            state[first : first + layout.EXTENT] = list(extent.words())
        self._state = ctypes.addressof(state)
        try:
            self(grid, values)
        finally:
            self._state = 0
            clock.now = state[layout.TICK]
        if errors:
            raise errors[0]
        if not state[layout.FAULTS]:
            return []
        return [
            noted
            for site in range(sites)
            for kind in range(len(layout.KINDS))
            if (noted := _noted(records, site, kind, starts, epoch)).elements
        ]


def _noted(records: Any, site: int, kind: int, starts: Any, epoch: int) -> Noted:
    first = (site * len(layout.KINDS) + kind) * layout.RECORD
    count, program, at, other, found = records[first : first + 5]
    low = ctypes.c_int64.from_address(found + 8 * layout.LOW).value if found else 0
    return Noted(site, kind, count, program, at, _program(starts, other) if other > epoch else -1, low)


def _program(starts: Any, tick: int) -> int:
    """The number of the program that was running at a tick: the last that began not after it."""
    ran = [number for number, start in enumerate(starts) if 0 < start <= tick]
    return max(ran, key=lambda number: starts[number], default=-1)


def loaded(binary: Binary, threads: Callable[[], int], file: str = "<unknown>") -> Kernel:
    """A kernel in memory, sanitized or not, whose source stands in a file."""
    if not binary.sites:
        return Kernel(binary, threads)
    kernel = Examined(binary, threads)
    kernel.file = file
    return kernel
