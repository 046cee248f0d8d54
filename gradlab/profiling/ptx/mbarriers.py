"""mbarrier: barriers in shared memory that count arrivals and bytes, phase by phase.

A phase is complete when all its arrivals and all the bytes that it was told to expect have come; the next one begins.
Threads that wait for a phase stand still until it is complete. A wait that can never end is a deadlock.

Source: PTX ISA 8.7, section 9.7.13.15.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradlab.profiling.ptx.blocks import LANES, Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import SHARED_WINDOW, Machine, Step
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction

_SIZE = 8
MISUSED, BYTES, DEADLOCK = "misused barrier", "wrong byte count of a barrier", "deadlock"


@dataclass
class _Later:
    """What lands at a barrier when it must: of some blocks, and their barriers' numbers."""

    instruction: Instruction
    blocks: Array
    numbers: Array
    size: int
    land: Callable[[], None]


class Barriers:
    """The mbarriers of a machine; they are numbered in the order in which they are made.

    Attributes:
        count, pending, bytes: [block, barrier], arrivals of a phase, those that are to come, bytes that are to come.
        completed: phases that are over; since the barrier was made, `completed - base`.
    """

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.number = np.zeros(m.shared.stride // _SIZE, np.int64)
        # What a lane waits for: a barrier, and how many phases of it must be complete.
        self.waits, self.until = np.zeros(m.lanes, np.int64), np.zeros(m.lanes, np.int64)
        # What it asked about last, without waiting.
        self.asked = np.full((m.lanes, 2), -1)
        self.begin()

    def begin(self) -> None:
        """New blocks: there are no barriers."""
        self.number[:] = -1
        self.offsets: list[int] = []
        empty = (self.m.blocks, 0)
        self.count, self.pending, self.bytes, self.completed, self.base = (np.zeros(empty, np.int64) for _ in range(5))
        self.valid = np.zeros(empty, bool)
        self.places: list[int] = []
        # What was known to those who arrived: so far, and when the last phase was complete.
        self.told: list[Array] = []
        self.known: list[Array] = []
        self.waits[:], self.asked[:] = -1, -1
        self.on_their_way: list[_Later] = []
        # The last instruction that said how many bytes are to come, of each barrier.
        self.said: dict[int, Instruction] = {}

    def finish(self) -> None:
        """All threads are at their end: what is on its way lands, and as many bytes came as were expected."""
        while self.on_their_way:
            self._land(self.on_their_way[-1])
        self._settled(self.valid)

    def _settled(self, which: Array) -> None:
        """These barriers come to their end: what was expected of them has come."""
        left = np.where(which, self.bytes, 0)
        for work in self.on_their_way:
            np.subtract.at(left, (work.blocks, work.numbers), np.where(which[work.blocks, work.numbers], work.size, 0))
        for block, number in np.argwhere(left):
            size = int(left[block, number])
            text = f"{self.name(number)} ends with {abs(size)} bytes {'fewer' if size > 0 else 'more'} than expected"
            self.m.fault(BYTES, self.said[number], text, np.array([block * LANES]))

    def of(self, i: Instruction, lanes: Array, offsets: Array) -> Array:
        """The numbers of the barriers at these offsets; -1 where there is none, which is noted."""
        inside = self.m.shared.allowed(i, offsets, _SIZE, lanes)
        good = np.ones(lanes.size, bool) if inside is None else inside
        found = np.where(good, self.number[np.where(good, offsets // _SIZE, 0)], -1)
        blocks = self.m.block_of[lanes]
        made = (found >= 0) & (offsets % _SIZE == 0)
        if self.valid.shape[1]:
            made &= self.valid[blocks, found]
        if not made.all():
            wrong = np.flatnonzero(~made & good)
            if wrong.size:
                text = f"byte {int(offsets[wrong[0]])} of shared memory is no mbarrier: mbarrier.init must come before"
                self.m.fault(MISUSED, i, text, lanes[wrong])
            found = np.where(made, found, -1)
        lost = self.m.shared.touched(i, offsets[made], lanes[made])
        if lost.any():
            text = f"{self.name(found[made][lost][0])} was overwritten after mbarrier.init"
            self.m.fault(MISUSED, i, text, lanes[made][lost])
        return found

    def make(self, i: Instruction, lanes: Array, offsets: Array, counts: Array) -> None:
        """mbarrier.init."""
        for offset in np.unique(offsets):
            if self.number[offset // _SIZE] < 0:
                self._new(int(offset))
        blocks, number = self.m.block_of[lanes], self.number[offsets // _SIZE]
        self.count[blocks, number] = self.pending[blocks, number] = counts
        self.bytes[blocks, number] = 0
        self.base[blocks, number] = self.completed[blocks, number]
        self.valid[blocks, number] = True
        self.m.shared.held(i, offsets, lanes, True)

    def _new(self, offset: int) -> None:
        self.number[offset // _SIZE] = len(self.offsets)
        self.offsets.append(offset)
        column = np.zeros((self.m.blocks, 1), np.int64)
        for name in ("count", "pending", "bytes", "completed", "base", "valid"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate((old, column.astype(old.dtype)), 1))
        shadow = self.m.shared.shadow
        self.places.append(0 if shadow is None else shadow.clocks.new_place())
        empty = np.zeros((self.m.blocks, 2, 0 if shadow is None else shadow.clocks.places), np.int32)
        self.told.append(empty)
        self.known.append(empty)

    def end(self, i: Instruction, lanes: Array, offsets: Array, number: Array) -> None:
        """mbarrier.inval."""
        which = np.zeros(self.valid.shape, bool)
        which[self.m.block_of[lanes], number] = True
        self._settled(which)
        self.valid[self.m.block_of[lanes], number] = False
        self.m.shared.held(i, offsets, lanes, False)

    def arrive(self, lanes: Array, number: Array, counts: Array | int, drop: bool = False) -> None:
        """Lanes arrive, which tells those who wait of all that was before."""
        blocks = self.m.block_of[lanes]
        shadow = self.m.shared.shadow
        if shadow is not None:
            for each in np.unique(number):
                rows = np.unique(lanes[number == each] // 32)
                told, before = shadow.clocks.told(rows), self.told[each]
                told[..., : before.shape[2]] = np.maximum(told[..., : before.shape[2]], before)
                self.told[each] = told
        if drop:
            np.subtract.at(self.count, (blocks, number), counts)
        np.subtract.at(self.pending, (blocks, number), counts)

    def expect(self, i: Instruction, lanes: Array, number: Array, size: Array) -> None:
        """Phases wait for more bytes."""
        self.said.update(dict.fromkeys(number.tolist(), i))
        np.add.at(self.bytes, (self.m.block_of[lanes], number), size)

    def expect_arrivals(self, lanes: Array, number: Array) -> None:
        """Phases wait for one more arrival by each lane."""
        np.add.at(self.pending, (self.m.block_of[lanes], number), 1)

    def promise(self, lanes: Array, number: Array) -> tuple[Array, Array]:
        """By what it is known that something has landed that lanes give to barriers: a place in the clocks, a count."""
        due = self.completed[self.m.block_of[lanes], number] + 1
        return np.asarray(self.places)[number], due

    def later(self, i: Instruction, lanes: Array, number: Array, size: int, land: Callable[[], None]) -> None:
        """`land` is called as late, or as early, as barriers allow; each lane's barrier gets `size` bytes by it."""
        if size:
            self.said.update(dict.fromkeys(number.tolist(), i))
        self.on_their_way.append(_Later(i, self.m.block_of[lanes], number, size, land))
        if not self.m.late:
            self._land(self.on_their_way[-1])

    def _land(self, work: _Later) -> None:
        self.on_their_way.remove(work)
        work.land()
        np.subtract.at(self.bytes, (work.blocks, work.numbers), work.size)
        self.settle(work.instruction)

    def settle(self, i: Instruction) -> None:
        """Complete phases for which all has come, and let those go on that wait for them."""
        shadow = self.m.shared.shadow
        while True:
            full = self.valid & (self.pending <= 0) & (self.bytes == 0)
            if not full.any():
                break
            self._early(i, full)
            self.pending[full] += self.count[full]
            self.completed[full] += 1
            if shadow is not None:
                for number in np.flatnonzero(full.any(0)):
                    self._publish(int(number), full[:, number])
            if (self.count[full] <= 0).any():
                break
        over = self.valid & (self.pending < 0)
        if over.any():
            block, number = np.argwhere(over)[0]
            text = f"{self.name(number)} has more arrivals than the {self.count[block, number]} of a phase"
            self.m.fault(MISUSED, i, text)
            self.pending[over] = 0
        self._wake()

    def _publish(self, number: int, blocks: Array) -> None:
        """A phase is complete: what was told by those who arrived is there for those who wait."""
        told, place = self.told[number], self.places[number]
        known = self.known[number]
        if known.shape[2] < max(told.shape[2], place + 1):
            wider = np.zeros((*known.shape[:2], max(told.shape[2], place + 1)), np.int32)
            wider[..., : known.shape[2]] = known
            known = self.known[number] = wider
        known[blocks, :, : told.shape[2]] = told[blocks]
        known[blocks, 0, place] = self.completed[blocks, number]

    def _early(self, i: Instruction, full: Array) -> None:
        """A phase is complete, and copies that belong to it are not there yet."""
        for work in self.on_their_way:
            mine = full[work.blocks, work.numbers]
            if work.size and mine.any():
                number = work.numbers[mine][0]
                text = f"{self.name(number)} completes a phase while a copy of {work.size} bytes to it is on its way"
                self.m.fault(BYTES, work.instruction, f"{text}: fewer bytes were expected than are copied")

    def _wake(self) -> None:
        asleep = np.flatnonzero(self.m.stalled)
        if asleep.size:
            over = self.completed[self.m.block_of[asleep], self.waits[asleep]] >= self.until[asleep]
            self.m.stalled[asleep[over]] = False

    def wait(self, lanes: Array, number: Array, until: Array, ask: bool) -> Array:
        """Which lanes' phases are complete; the others stand still, or the first time that they only ask, do not."""
        blocks = self.m.block_of[lanes]
        over = self.completed[blocks, number] >= until
        shadow = self.m.shared.shadow
        if shadow is not None:
            for each in np.unique(number[over]):
                shadow.clocks.learn(np.unique(lanes[over & (number == each)] // 32), self.known[each])
        left = ~over
        if left.any():
            self.waits[lanes[left]], self.until[lanes[left]] = number[left], until[left]
            mine = np.stack((number, until), 1)
            again = (self.asked[lanes] == mine).all(1) | (not ask)
            self.m.stalled[lanes[left & again]] = True
            self.asked[lanes[left]] = mine[left]
        return over

    def unstall(self) -> bool:
        """Nothing can go on: let land what is waited for, then anything; whether that lets any lane go on."""
        while self.on_their_way:
            asleep = np.flatnonzero(self.m.stalled)
            wanted = np.zeros(self.valid.shape, bool)
            wanted[self.m.block_of[asleep], self.waits[asleep]] = True
            found = next((w for w in self.on_their_way if wanted[w.blocks, w.numbers].any()), self.on_their_way[0])
            self._land(found)
            if not self.m.stalled[asleep].all():
                return True
        return False

    def explain(self) -> bool:
        """Note why lanes wait for ever at barriers; whether there are any."""
        asleep = np.flatnonzero(self.m.stalled)
        seen: set[int] = set()
        for lane in asleep:
            number, block = int(self.waits[lane]), int(self.m.block_of[lane])
            if number in seen:
                continue
            seen.add(number)
            pending, size = int(self.pending[block, number]), int(self.bytes[block, number])
            phase = int(self.until[lane] - self.base[block, number]) - 1
            text = f"{self.name(number)}: phase {phase} never completes, "
            text += f"{pending} of {self.count[block, number]} arrivals and {size} bytes are missing"
            if size < 0:
                text += ": more bytes were copied than expected"
            kind = BYTES if size and not pending else DEADLOCK
            self.m.fault(kind, self.m.code.instructions[int(self.m.at[lane])], text, np.array([lane]))
        return bool(seen)

    def name(self, number: int) -> str:
        """A barrier in words."""
        return f"the mbarrier at byte {self.offsets[number]} of shared memory"


@instruction("mbarrier")
def mbarrier(i: Instruction, m: Machine) -> Step:
    """mbarrier.init, inval, arrive, arrive_drop, expect_tx, complete_tx, test_wait, try_wait."""
    barriers = m.part(Barriers)
    operands = list(i.operands)
    result = None if operands[0].startswith("[") else operands.pop(0)
    address = _address(operands.pop(0), i, m)
    what = i.opcode[1]
    if what == "init":
        counts = m.source(operands[0], "u32")

        def make(lanes: Lanes) -> None:
            where, offsets = m.where(lanes), address(lanes)
            if m.shared.allowed(i, offsets, _SIZE, lanes) is None:
                barriers.make(i, where, offsets, np.asarray(counts(lanes)).astype(np.int64))

        return make
    if what in ("test_wait", "try_wait"):
        return _wait(i, m, barriers, str(result), address, operands[0], what == "test_wait")
    write = m.target(result, "b64") if result else None
    given = m.source(operands[0], "u32") if operands else None
    if what not in ("inval", "arrive", "arrive_drop", "expect_tx", "complete_tx"):
        raise KeyError(what)

    def run(lanes: Lanes) -> None:
        where = m.where(lanes)
        offsets = address(lanes)
        number = barriers.of(i, where, offsets)
        amount = np.broadcast_to(1 if given is None else given(lanes), where.shape).astype(np.int64)
        right = number >= 0
        where, number, offsets, amount = where[right], number[right], offsets[right], amount[right]
        if not where.size:
            return
        if write is not None:
            blocks = m.block_of[where]
            write(where, (barriers.completed - barriers.base)[blocks, number].astype(np.uint64))
        if what == "inval":
            barriers.end(i, where, offsets, number)
            return
        if what == "complete_tx":
            amount = -amount
        if i.has("expect_tx", "complete_tx"):
            barriers.expect(i, where, number, amount)
        if what in ("arrive", "arrive_drop"):
            barriers.arrive(where, number, 1 if i.has("expect_tx") else amount, what == "arrive_drop")
        barriers.settle(i)

    return run


def _wait(
    i: Instruction, m: Machine, barriers: Barriers, result: str, address: Callable[[Lanes], Array], of: str, ask: bool
) -> Step:
    """`mbarrier.try_wait{.parity} p, [a], phase`: lanes whose phase is not complete are marked in `Machine.stalled`."""
    write = m.target(result, "pred")
    parity = i.has("parity")
    read = m.source(of, "u32" if parity else "b64")

    def run(lanes: Lanes) -> None:
        where = m.where(lanes)
        number = barriers.of(i, where, address(lanes))
        write(where[number < 0], True)
        right = number >= 0
        given = np.broadcast_to(read(lanes), where.shape).astype(np.int64)[right]
        where, number = where[right], number[right]
        blocks = m.block_of[where]
        completed, base = barriers.completed[blocks, number], barriers.base[blocks, number]
        # Of a parity, the phase is the current one or the one before it.
        phase = completed - base
        until = base + 1 + (np.where(phase % 2 == given % 2, phase, phase - 1) if parity else given)
        write(where, barriers.wait(where, number, until, ask))

    return run


def _address(text: str, i: Instruction, m: Machine) -> Callable[[Lanes], Array]:
    """Offsets in shared memory of an operand that may be a generic address."""
    address = m.address(text)
    if i.has("shared", "shared::cta", "shared::cluster"):
        return address
    return lambda lanes: address(lanes) % SHARED_WINDOW
