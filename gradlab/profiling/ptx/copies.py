"""cp.async: copies of 4, 8 or 16 bytes from global to shared memory, which a thread begins and waits for later.

The bytes land at the wait, the last moment that a GPU may take; or at once, the first (`Machine.late`).

Source: PTX ISA 8.7, section 9.7.9.25.3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradlab.profiling.ptx import bulk
from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.groups import Groups
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.mbarriers import Barriers
from gradlab.profiling.ptx.memory import aligned
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction


@dataclass(frozen=True)
class Copy:
    """A copy by each of some lanes.

    Attributes:
        places: of shared memory, indices into all of it; sources: addresses; sizes: bytes that are read.
        size: bytes that are written, zeros behind those that are read.
    """

    instruction: Instruction
    lanes: Array
    places: Array
    sources: Array
    sizes: Array
    size: int

    def part(self, which: Array) -> "Copy":
        """The copies of some of the lanes."""
        lanes, places, sources, sizes = (p[which] for p in (self.lanes, self.places, self.sources, self.sizes))
        return Copy(self.instruction, lanes, places, sources, sizes, self.size)


class Copies:
    """The copies of a machine's threads that are on their way."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.groups: Groups[Copy] = Groups(m.lanes)
        self.outstanding = np.zeros(m.blocks, np.int64)

    def begin(self) -> None:
        """New blocks: nothing is on its way."""
        self.groups.begin()
        self.outstanding[:] = 0

    def start(self, copy: Copy) -> None:
        """Lanes begin a copy."""
        shadow = self.m.shared.shadow
        if shadow is not None:
            elements = shadow.elements_of(copy.places, copy.size)
            shadow.copy_begins(copy.instruction, copy.lanes, elements)
            twice = _written_twice(copy)
            if twice.any():
                shadow.conflict(copy.instruction, copy.lanes, elements, np.broadcast_to(twice[:, None], elements.shape))
        self.groups.add(copy)
        self._count(copy, 1)
        if not self.m.late:
            self._move(copy)

    def land(self, copies: list[Copy]) -> None:
        """Lanes have waited for copies."""
        shadow = self.m.shared.shadow
        for copy in copies:
            if self.m.late:
                self._move(copy)
            if shadow is not None:
                shadow.copy_landed(copy.instruction, copy.lanes, shadow.elements_of(copy.places, copy.size))
            self._count(copy, -1)

    def hand(self, copies: list[Copy], agent: Array, due: Array) -> None:
        """An mbarrier is told when copies have landed: by lane, its place in the clocks and the phase."""
        shadow = self.m.shared.shadow
        for copy in copies:
            if shadow is not None:
                elements = shadow.elements_of(copy.places, copy.size)
                shadow.copy_handed(copy.instruction, copy.lanes, elements, agent[copy.lanes], due[copy.lanes])

    def _count(self, copy: Copy, sign: int) -> None:
        number = np.bincount(self.m.block_of[copy.lanes], minlength=self.m.blocks)
        self.outstanding += sign * copy.size * number
        self.m.counts.in_flight = max(self.m.counts.in_flight, int(self.outstanding.max()))

    def _move(self, copy: Copy) -> None:
        """Write the bytes."""
        flat, memory = self.m.shared.flat, self.m.memory
        unit = min(copy.size, 8)
        view = flat.view(f"u{unit}")
        first = copy.places // unit
        whole = copy.sizes == copy.size
        for n in range(copy.size // unit):
            view[first] = 0
            view[first[whole]] = memory.load(copy.sources[whole] + n * unit, unit)
            first = first + 1
        for byte in range(copy.size):
            part = ~whole & (copy.sizes > byte)
            if not part.any():
                break
            flat[copy.places[part] + byte] = memory.load(copy.sources[part] + byte, 1)


def _written_twice(copy: Copy) -> Array:
    """Which lanes write what another lane writes too, from another source."""
    order = np.argsort(copy.places, kind="stable")
    same = np.diff(copy.places[order]) == 0
    other = same & ((np.diff(copy.sources[order]) != 0) | (np.diff(copy.sizes[order]) != 0))
    found = np.zeros(copy.places.size, bool)
    found[order[1:][other]] = True
    return found


@instruction("cp")
def copy(i: Instruction, m: Machine) -> Step:
    """cp.async and cp.async.bulk."""
    if i.has("bulk"):
        return bulk.copy(i, m)
    copies = m.part(Copies)
    if i.has("commit_group"):
        return lambda lanes: copies.groups.commit(m.where(lanes))
    if i.has("wait_group"):
        left = int(i.operands[0], 0)
        return lambda lanes: copies.land(copies.groups.wait(m.where(lanes), left))
    if i.has("wait_all"):

        def wait_all(lanes: Lanes) -> None:
            where = m.where(lanes)
            copies.groups.commit(where)
            copies.land(copies.groups.wait(where, 0))

        return wait_all
    if i.has("mbarrier"):
        return _hand(i, m, copies)
    return _start(i, m, copies)


def _start(i: Instruction, m: Machine, copies: Copies) -> Step:
    """`cp.async.ca.shared.global [d], [a], size{, size of the source | ignore the source}`."""
    to, source, size = m.address(i.operands[0]), m.address(i.operands[1]), int(i.operands[2], 0)
    sizes = _source_size(i, m, size)

    def run(lanes: Lanes) -> None:
        where, offsets, sources = m.where(lanes), to(lanes), source(lanes)
        number = sizes(lanes)
        right = aligned(i, m, offsets, lanes, size)
        inside = m.shared.allowed(i, offsets, size, lanes)
        right = right if inside is None else inside if right is None else inside & right
        # What is not read needs no address that is right.
        reads = number > 0
        if reads.any():
            chosen = np.flatnonzero(reads)
            for bytes_read in np.unique(number[chosen]):
                these = chosen[number[chosen] == bytes_read]
                wrong = m.memory.allowed(sources[these], int(bytes_read))
                even = aligned(i, m, sources[these], where[these], size)
                if wrong is not None:
                    outside = these[~wrong]
                    text = f"copy from {m.memory.describe(int(sources[outside[0]]))}"
                    m.fault("out of bounds", i, text, where[outside])
                for good in (wrong, even):
                    if good is not None:
                        right = np.ones(where.size, bool) if right is None else right
                        right[these[~good]] = False
        if right is not None:
            where, offsets, sources, number = where[right], offsets[right], sources[right], number[right]
            reads = number > 0
        if where.size:
            m.counts.global_access(i.index, sources[reads], where[reads], size, False, i.has("ca"))
            m.counts.shared_access(i.index, offsets, where, size, True)
            copies.start(Copy(i, where, m.shared.places(offsets, where), sources, number, size))

    return run


def _source_size(i: Instruction, m: Machine, size: int) -> Callable[[Lanes], Array]:
    """What gives the bytes that each lane reads."""
    given = i.operands[3 : len(i.operands) - any("cache_hint" in part for part in i.opcode)]

    def number(lanes: Lanes) -> int:
        return int(m.where(lanes).size)

    if not given:
        return lambda lanes: np.full(number(lanes), size, np.int64)
    if m.is_register(given[0]) and m.raw(given[0]).dtype == np.bool_:
        ignored = m.source(given[0], "pred")
        return lambda lanes: np.where(np.broadcast_to(ignored(lanes), number(lanes)), 0, size)
    read = m.source(given[0], "u32")
    return lambda lanes: np.minimum(np.broadcast_to(read(lanes), number(lanes)).astype(np.int64), size)


def _hand(i: Instruction, m: Machine, copies: Copies) -> Step:
    """`cp.async.mbarrier.arrive{.noinc} [mbarrier]`: arrives when all copies of the thread so far have landed."""
    barriers, address, keeps = m.part(Barriers), m.address(i.operands[0]), i.has("noinc")

    def run(lanes: Lanes) -> None:
        where, offsets = m.where(lanes), address(lanes)
        number = barriers.of(i, where, offsets)
        right = number >= 0
        where, number = where[right], number[right]
        agent, due = np.zeros(m.lanes, np.int64), np.zeros(m.lanes, np.int64)
        agent[where], due[where] = barriers.promise(where, number)
        taken = copies.groups.all_of(where)
        copies.hand(taken, agent, due)
        if not keeps:
            barriers.expect_arrivals(where, number)

        def landed() -> None:
            copies.land(taken)
            barriers.arrive(where, number, 1)

        barriers.later(i, where, number, 0, landed)

    return run
