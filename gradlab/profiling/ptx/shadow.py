"""What is known of each element of shared memory: who wrote it last, who has read it, what is on its way to or from it.

An access is right if what it conflicts with is known to have happened before it (clocks.py). What is not known is a
fault, in whichever order the warps ran:
- a race: two warps touch an element, one of them writes, and no barrier lies between;
- a copy in flight: a copy writes what is accessed, and its wait, with a barrier for other warps, does not come before;
- an operand in flight: a tensor core or a bulk copy reads what is written, and its wait does not come before;
- a missing proxy fence: a tensor core or a bulk copy reads what was written by plain stores, no fence between.
"""

import numpy as np

from gradlab.profiling.ptx.blocks import Blocks
from gradlab.profiling.ptx.clocks import NEVER, Clocks
from gradlab.profiling.ptx.numbers import BITS, Array
from gradlab.profiling.ptx.program import Instruction, Program

RACE, IN_FLIGHT, OPERAND = "race in shared memory", "copy in flight", "shared operand in flight"
UNWRITTEN, UNFENCED = "uninitialised shared memory", "missing proxy fence"
# How an element was written last: by a bulk copy; as a barrier; as the end of one.
PLAIN, BULK, HELD, ENDED = 0, 1, 2, 4
_WIDEST = 16


def granule(program: Program) -> int:
    """Bytes of the narrowest access to shared memory that a kernel may make."""
    return min([_WIDEST, *(_width(i) for i in program.instructions)])


def bytes_per_block(program: Program, shared: int, warps: int) -> int:
    """About what the shadow of a block takes."""
    return (program.static + shared) // granule(program) * (20 + 4 * warps)


def _width(i: Instruction) -> int:
    if i.root in ("ld", "st", "atom", "red", "ldu") and not i.has("global", "param", "const", "local"):
        vector = {"v2": 2, "v4": 4, "v8": 8}.get(next((p for p in i.opcode if p[:1] == "v"), ""), 1)
        return max(BITS[i.opcode[-1]] // 8, 1) * vector
    if i.root == "cp" and i.has("async") and not i.has("bulk") and len(i.operands) > 2:
        return int(i.operands[2], 0)
    return {"mbarrier": 8, "tensormap": 4}.get(i.root, _WIDEST)


class Shadow:
    """The shadow of the shared memory of some blocks.

    Attributes:
        unit: bytes of an element.
    """

    def __init__(self, blocks: Blocks, stride: int) -> None:
        self.m, self.unit, self.stride = blocks, granule(blocks.code), stride
        self.elements = blocks.blocks * stride // self.unit
        self.clocks = Clocks(blocks.blocks, blocks.warps)
        kinds = {"writer": np.int16, "when": np.int32, "agent": np.int16, "due": np.int32, "by": np.int32}
        self.writer, self.when, self.agent, self.due, self.by = (
            np.zeros(self.elements, kind) for kind in kinds.values()
        )
        self.how = np.zeros(self.elements, np.uint8)
        self.readers = np.zeros((blocks.warps, self.elements), np.int32)
        # When each warp changed an element by an atomic last; no array before any does.
        self.atomics: Array | None = None
        # Asynchronous readers: the number of the group, by warp.
        self.groups: dict[str, Array] = {}

    def begin(self) -> None:
        """New blocks: nobody has touched anything."""
        self.clocks.begin()
        self.writer[:], self.due[:], self.how[:], self.readers[:] = -1, 0, 0, 0
        self.groups, self.atomics = {}, None

    def elements_of(self, places: Array, size: int) -> Array:
        """Elements[access, number] of accesses to `size` bytes at these places."""
        return places[:, None] // self.unit + np.arange(size // self.unit)

    def read(self, i: Instruction, lanes: Array, elements: Array, atomic: bool = False) -> None:
        """Lanes read elements[lane, number]."""
        rows = (lanes // 32)[:, None]
        self._blank(i, lanes, elements)
        self._unordered(i, lanes, elements, rows, "read")
        if not atomic:
            self._apart(i, lanes, elements, rows, self.atomics, "read", "changed it by an atomic")
            warp = rows // self.m.blocks
            self.readers[warp, elements] = self.clocks.now(rows)

    def read_async(self, i: Instruction, kind: str, lanes: Array, elements: Array, group: Array) -> None:
        """A tensor core or a bulk copy reads for lanes' warps, until their group of this kind is waited for."""
        rows = (lanes // 32)[:, None]
        self._blank(i, lanes, elements)
        bad = self._unordered(i, lanes, elements, rows, "read")
        self._apart(i, lanes, elements, rows, self.atomics, "read", "changed it by an atomic")
        self._unfenced(i, lanes, elements, rows, bad, "read")
        pending = self.groups.get(kind)
        if pending is None:
            pending = self.groups[kind] = np.zeros((self.m.warps, self.elements), np.int32)
        warp = rows // self.m.blocks
        pending[warp, elements] = np.asarray(group)[:, None]
        self.readers[warp, elements] = self.clocks.now(rows)

    def finished(self, kind: str, lanes: Array, group: Array) -> None:
        """The lanes' warps have waited for their groups of asynchronous reads, up to these."""
        rows = lanes // 32
        place = self.clocks.reader(kind, rows)
        np.maximum.at(self.clocks.known[:, 0], (rows, place), group)

    def atomic(self, i: Instruction, lanes: Array, elements: Array) -> None:
        """Lanes change elements[lane, number] by an atomic, which is in order with all other atomics."""
        rows = (lanes // 32)[:, None]
        if self.atomics is None:
            self.atomics = np.zeros((self.m.warps, self.elements), np.int32)
        self._before_write(i, lanes, elements, rows, None, atomic=True)
        self.atomics[rows // self.m.blocks, elements] = self.clocks.now(rows)

    def write(self, i: Instruction, lanes: Array, elements: Array, same: Array | None, how: int = PLAIN) -> None:
        """Lanes write elements[lane, number].

        Args:
            same: where the bytes are what they were: who wrote them last may be any warp.
        """
        rows = (lanes // 32)[:, None]
        self._before_write(i, lanes, elements, rows, same)
        self.writer[elements] = rows // self.m.blocks
        self.when[elements] = self.due[elements] = self.clocks.now(rows)
        self.agent[elements] = rows // self.m.blocks
        self.by[elements], self.how[elements] = i.index, how

    def copy_begins(
        self, i: Instruction, lanes: Array, elements: Array, agent: Array | None = None, due: Array | None = None
    ) -> None:
        """A copy that lanes issue will write elements[lane, number] at any time up to its wait.

        Args:
            agent, due: what it is waited for by: a place of the clocks and its count. None: by the lane itself.
        """
        rows = (lanes // 32)[:, None]
        bad = self._before_write(i, lanes, elements, rows, None)
        if agent is not None:
            self._unfenced(i, lanes, elements, rows, bad, "written")
        self.writer[elements] = rows // self.m.blocks
        self.when[elements] = self.clocks.now(rows)
        self.agent[elements] = rows // self.m.blocks if agent is None else agent[:, None]
        self.due[elements] = NEVER if due is None else due[:, None]
        self.by[elements] = i.index
        self.how[elements] = PLAIN if agent is None else BULK

    def copy_landed(self, i: Instruction, lanes: Array, elements: Array) -> None:
        """Lanes have waited for copies that they issued themselves."""
        rows = np.broadcast_to((lanes // 32)[:, None], elements.shape)
        still = (self.due[elements] == NEVER) & (self.by[elements] == i.index)
        still &= self.agent[elements] == rows // self.m.blocks
        self.due[elements[still]] = self.clocks.now(rows[still])

    def copy_handed(self, i: Instruction, lanes: Array, elements: Array, agent: Array, due: Array) -> None:
        """Copies that lanes issued are waited for by an mbarrier."""
        rows = np.broadcast_to((lanes // 32)[:, None], elements.shape)
        still = (self.due[elements] == NEVER) & (self.by[elements] == i.index)
        still &= self.agent[elements] == rows // self.m.blocks
        self.agent[elements[still]] = np.broadcast_to(agent[:, None], elements.shape)[still]
        self.due[elements[still]] = np.broadcast_to(due[:, None], elements.shape)[still]

    def conflict(self, i: Instruction, lanes: Array, elements: Array, lost: Array) -> None:
        """Of several lanes that wrote one element at once, these wrote another value than what is there now."""
        self._say(RACE, i, lanes, elements, lost, "is written by two lanes at once, with different values")

    def _before_write(
        self,
        i: Instruction,
        lanes: Array,
        elements: Array,
        rows: Array,
        same: Array | None,
        atomic: bool = False,
    ) -> Array:
        bad = self._unordered(i, lanes, elements, rows, "written", same)
        if not atomic:
            self._apart(i, lanes, elements, rows, self.atomics, "written", "changed it by an atomic")
        known = self.clocks.known
        blocks = self.m.blocks
        for warp in range(self.m.warps):
            apart = self._apart(i, lanes, elements, rows, self.readers, "written", "read it", warp)
            for kind, pending in self.groups.items():
                place = int(self.clocks.reader(kind, np.array([warp * blocks]))[0])
                late = (pending[warp, elements] > known[rows, 0, place]) & ~apart
                if late.any():
                    what = "a tensor core" if kind == "wgmma" else "a bulk copy"
                    text = f"is written while {what} may still read it for warp {warp}; its wait must come before"
                    self._say(OPERAND, i, lanes, elements, late, text + _for_others(lanes, late, warp, blocks))

        return bad

    def _unfenced(self, i: Instruction, lanes: Array, elements: Array, rows: Array, bad: Array, verb: str) -> None:
        """What plain stores and cp.async wrote must have passed a fence between proxies; barriers need none."""
        known = self.clocks.known[rows, 1, self.agent[elements]] >= self.due[elements]
        plain = ((self.how[elements] & (BULK | HELD | ENDED)) == 0) & (self.writer[elements] >= 0)
        unfenced = plain & ~known & ~bad
        if unfenced.any():
            what = "a tensor core" if i.root == "wgmma" else "a bulk copy"
            text = f"is {verb} by {what} after {self._author(elements, unfenced)} wrote it"
            self._say(UNFENCED, i, lanes, elements, unfenced, f"{text}; fence.proxy.async must come between")

    def _apart(
        self,
        i: Instruction,
        lanes: Array,
        elements: Array,
        rows: Array,
        times: Array | None,
        verb: str,
        before: str,
        only: int | None = None,
    ) -> Array:
        """Which accesses come without a barrier after what a warp did at these times; it is noted."""
        apart = np.zeros(elements.shape, bool)
        if times is None:
            return apart
        for warp in range(self.m.warps) if only is None else (only,):
            apart = times[warp, elements] > self.clocks.known[rows, 0, warp]
            if apart.any():
                text = f"is {verb} after warp {warp} {before}, or before; a barrier must come between"
                self._say(RACE, i, lanes, elements, apart, text)
        return apart

    def _blank(self, i: Instruction, lanes: Array, elements: Array) -> None:
        blank = self.writer[elements] < 0
        if blank.any():
            self._say(UNWRITTEN, i, lanes, elements, blank, "is read, and nobody has written it")

    def _unordered(
        self, i: Instruction, lanes: Array, elements: Array, rows: Array, verb: str, same: Array | None = None
    ) -> Array:
        """Which accesses do not know of the last write; what is wrong with them is noted."""
        bad = self.clocks.known[rows, 0, self.agent[elements]] < self.due[elements]
        bad &= self.writer[elements] >= 0
        if not bad.any():
            return bad
        seen = self.clocks.known[rows, 0, self.writer[elements]] >= self.when[elements]
        flying = bad & seen
        apart = bad & ~seen
        if same is not None:
            apart &= ~same
        if flying.any():
            text = f"is {verb} while {self._author(elements, flying)} may still write it"
            self._say(IN_FLIGHT, i, lanes, elements, flying, f"{text}; {self._missing(lanes, elements, flying)}")
        if apart.any():
            text = f"is {verb} after {self._author(elements, apart)} wrote it; a barrier must come between"
            self._say(RACE, i, lanes, elements, apart, text)
        return bad

    def _author(self, elements: Array, which: Array) -> str:
        first = elements[which][0]
        other = self.m.code.instructions[int(self.by[first])]
        return f"warp {int(self.writer[first])} ({'.'.join(other.opcode[:3])}, {other.place})"

    def _missing(self, lanes: Array, elements: Array, flying: Array) -> str:
        """What must come between a copy and an access to what it writes."""
        first = elements[flying][0]
        if self.agent[first] >= self.m.warps:
            return "the wait for its mbarrier must come before"
        own = lanes[flying.any(1)][0] // 32 // self.m.blocks == self.writer[first]
        return "its wait must come before" if own else "its wait, and then a barrier, must come before"

    def _say(self, kind: str, i: Instruction, lanes: Array, elements: Array, which: Array, text: str) -> None:
        first = np.argwhere(which)[0]
        byte = int(elements[tuple(first)]) * self.unit % self.stride
        mine = lanes[which.any(1)]
        self.m.fault(kind, i, f"byte {byte} of shared memory {text}", mine)


def _for_others(lanes: Array, late: Array, warp: int, blocks: int) -> str:
    other = (lanes[late.any(1)] // 32 // blocks != warp).any()
    return ", and a barrier" if other else ""
