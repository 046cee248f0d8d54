"""What a wgmma has in flight: registers and shared memory that nobody may touch before it is waited for.

A wgmma reads its operands and writes its sums at any time between its issue and the wait that covers its group. Each
group of a warp has a number; a register or a piece of shared memory remembers the last group that uses it.

What is wrong with registers NVIDIA's assembler sees and makes right: it adds a fence (its message C7519) or a wait
(C7517), or has every wgmma wait for the one before (C7514, C7515). Of shared memory it sees nothing. Source: PTX ISA
8.7, sections 9.7.15.2, 9.7.15.3, 9.7.15.7.
"""

import re

import numpy as np

from gradlab.profiling.ptx.blocks import LANES, Lanes
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction

# Warps that do a wgmma together; bytes that shared memory is marked by.
GROUP, PIECE = 4, 16
_REGISTER = re.compile(r"%[A-Za-z_$][\w$@]*")
# Roots of instructions that write no register.
_SILENT = ("st", "red", "bar", "barrier", "bra", "cp", "stmatrix", "fence", "membar", "mbarrier", "ret", "prefetch")


def names_of(i: Instruction) -> tuple[list[str], list[str]]:
    """Registers that a wgmma.mma_async sums in, and those that it reads."""
    sums = _REGISTER.findall(i.operands[0])
    return sums, _REGISTER.findall(i.operands[1]) if i.operands[1].startswith("{") else []


class Flight:
    """The wgmmas of a machine that are on their way.

    Attributes:
        rows: the number of each register that a wgmma uses.
        tables: registers of one wgmma that lie behind each other in one array, [register, lane].
        opened, done: of each warp how many groups are closed, and how many are waited for.
        summed, read: of each register and warp the last group that writes it, and that reads it.
        busy: of each warp group of a block, and each piece of its shared memory, the last group that reads it.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.rows: dict[str, int] = {}
        self.tables: dict[tuple[str, ...], Array] = {}
        for i in machine.code.instructions:
            if _multiplies(i):
                sums, a = names_of(i)
                for name in [*sums, *a]:
                    self.rows.setdefault(name, len(self.rows))
                for names in (sums, a):
                    self._table(tuple(names))
        warps = machine.warps * machine.blocks
        self.opened, self.done = np.zeros(warps, np.int64), np.zeros(warps, np.int64)
        self.summed, self.read = (np.zeros((len(self.rows), warps), np.int64) for _ in range(2))
        self.touched, self.written_ = (np.zeros((len(self.rows), warps), bool) for _ in range(2))
        self.shapes = np.zeros((len(self.rows), warps), np.int64)
        self.fenced = np.zeros(warps, bool)
        groups = -(-machine.warps // GROUP)
        self.busy = np.zeros((groups, machine.blocks, machine.shared.stride // PIECE), np.int64)
        self.outstanding = False
        machine.shared.watch = self
        self.begin()

    def begin(self) -> None:
        """New blocks come."""
        self.opened[:], self.done[:], self.outstanding = 0, 0, False
        for array in (self.summed, self.read, self.shapes, self.busy):
            array[:] = -1
        self.touched[:], self.written_[:], self.fenced[:] = False, False, False

    def _table(self, names: tuple[str, ...]) -> None:
        """Registers that are used together lie together, where none of them lies elsewhere yet."""
        registers = self.machine.registers
        if not names or names in self.tables or len(set(names)) < len(names) or registers.keys() & set(names):
            return
        kinds = {self.machine.kind(name) for name in names}
        if len(kinds) == 1:
            self.tables[names] = table = np.zeros((len(names), self.machine.lanes), kinds.pop())
            registers |= dict(zip(names, table, strict=True))

    def numbers(self, names: list[str]) -> Array:
        """Rows of registers."""
        return np.array([self.rows[name] for name in names], np.int64)

    def warps(self, lanes: Lanes) -> Lanes:
        """The warps that lanes belong to."""
        if isinstance(lanes, slice):
            return slice(lanes.start // LANES, -(-lanes.stop // LANES))
        return np.unique(lanes // LANES)

    def watched(self, i: Instruction, step: Step) -> Step:
        """The step of an instruction, which is a fault where it touches what is in flight."""
        if i.root == "wgmma":
            return step
        used = [[name for name in _REGISTER.findall(operand) if name in self.rows] for operand in i.operands]
        writes = used[0] if used and i.root not in _SILENT else []
        every = [name for names in used for name in names]
        if not every:
            return step
        touched, written = self.numbers(every), self.numbers(writes)

        def run(lanes: Lanes) -> None:
            warps = self.warps(lanes)
            if self.outstanding:
                self.check(i, self.summed, touched, warps, "summed in")
                self.check(i, self.read, written, warps, "read")
            for row in touched:
                self.touched[row, warps] = True
            for row in written:
                self.written_[row, warps] = True
            step(lanes)

        return run

    def check(self, i: Instruction, last: Array, rows: Array, warps: Lanes, how: str) -> None:
        """Note a fault where one of the registers is in flight."""
        late = last[rows][:, warps] >= self.done[warps]
        if late.any():
            row, warp = (int(found[0]) for found in np.nonzero(late))
            names = list(self.rows)
            text = f"{names[int(rows[row])]} is {how} by a wgmma that no wgmma.wait_group has waited for"
            self._fault("register in flight", i, text, warps, warp)

    def _fault(self, kind: str, i: Instruction, text: str, warps: Lanes, which: int) -> None:
        warp = np.arange(self.opened.size)[warps][which]
        self.machine.fault(kind, i, text, np.array([warp * LANES]), repaired=True)

    def issue(self, i: Instruction, sums: Array, a: Array, shape: int, warps: Lanes) -> None:
        """A wgmma starts in these warps, with these registers."""
        if self.outstanding:
            self.check(i, self.summed, a, warps, "summed in")
            self.check(i, self.read, sums, warps, "read")
        before = self.shapes[sums][:, warps]
        dirty = self.touched[sums][:, warps] | ((before >= 0) & (before != shape))
        for rows, found in ((sums, dirty), (a, self.written_[a][:, warps])):
            if found.any():
                row, warp = (int(f[0]) for f in np.nonzero(found))
                text = f"{list(self.rows)[int(rows[row])]} was used since the last wgmma.fence"
                self._fault("missing wgmma.fence", i, text, warps, warp)
        if not self.fenced[warps].all():
            self._fault("missing wgmma.fence", i, "the first wgmma has no fence before it", warps, 0)
        group = self.opened[warps]
        for row in sums:
            self.summed[row, warps], self.shapes[row, warps] = group, shape
        for row in a:
            self.read[row, warps] = group
        self.outstanding = True

    def reads(self, first: Array, offsets: Array) -> None:
        """Warp groups, given by their first lanes, read pieces of shared memory: offsets [n] or [group, n]."""
        block, warp = self.machine.block_of[first], self.machine.warp_of[first]
        places = np.broadcast_to(offsets // PIECE, (first.size, offsets.shape[-1]))
        self.busy[(warp // GROUP)[:, None], block[:, None], places] = self.opened[first // LANES][:, None]

    def written(self, i: Instruction, places: Array, size: int, lanes: Array) -> None:
        """Lanes write `size` bytes at places in the shared memory of all blocks, or a copy starts that will."""
        if not self.outstanding or not places.size:
            return
        m = self.machine
        stride = m.shared.stride
        block, offset = places // stride, places % stride
        done = self.done.reshape(m.warps, m.blocks)[::GROUP]
        for last in range(0, size, PIECE):
            late = self.busy[:, block, np.minimum(offset + last, stride - 1) // PIECE] >= done[:, block]
            if late.any():
                which = int(np.nonzero(late)[1][0])
                text = f"byte {int(offset[which])} of shared memory is read by a wgmma that is not waited for"
                m.fault("shared operand in flight", i, text, np.broadcast_to(lanes, places.shape)[which : which + 1])
                return

    def fence(self, warps: Lanes) -> None:
        """wgmma.fence."""
        self.touched[:, warps], self.written_[:, warps], self.shapes[:, warps] = False, False, -1
        self.fenced[warps] = True

    def commit(self, warps: Lanes) -> None:
        """wgmma.commit_group."""
        self.opened[warps] += 1

    def wait(self, warps: Lanes, left: int) -> None:
        """wgmma.wait_group."""
        self.done[warps] = np.maximum(self.done[warps], self.opened[warps] - left)
        self.outstanding = bool((self.summed.max(0) >= self.done).any())
        every = np.arange(self.done.size)[warps]
        self.machine.shared.finished("wgmma", every * LANES, self.done[every])


def _multiplies(i: Instruction) -> bool:
    return i.root == "wgmma" and i.has("mma_async")
