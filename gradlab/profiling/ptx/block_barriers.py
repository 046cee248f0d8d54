"""bar and barrier: barriers of a block, by their number, for all of its threads or so many.

Source: PTX ISA 8.7, sections 9.7.13.1 to 9.7.13.3.
"""

import numpy as np

from gradlab.profiling.ptx.machine import Machine
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction

# The barrier that stands for a cluster's, behind those that a block has.
_CLUSTER = 16


class BlockBarriers:
    """Who waits at the barriers of a machine's blocks.

    Attributes:
        waits: the barrier that a lane waits at, -1 for none.
    """

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.waits = np.full(m.lanes, -1, np.int64)
        self.wanted = np.zeros(m.lanes, np.int64)
        # Threads that arrived without waiting, by block; the barriers by which lanes reduce, and what they give.
        self.arrived = np.zeros((_CLUSTER + 1, m.blocks), np.int64)
        self.reduces = np.full(m.lanes, -1, np.int64)
        self.given = np.zeros(m.lanes, bool)

    def begin(self) -> None:
        """New blocks: nobody waits."""
        self.waits[:], self.reduces[:], self.arrived[:] = -1, -1, 0

    def come(self, i: Instruction, lanes: Array, alive: Array) -> None:
        """Lanes come to `bar.sync a, b`, `bar.arrive a, b` or `bar.red.op p, a, b, c`."""
        operands = list(i.operands)
        if i.has("red"):
            operands = operands[1:]
            self.given[lanes] = self.m.source(operands.pop(), "pred")(lanes)
            self.reduces[lanes] = i.index
        names = np.broadcast_to(self.m.source(operands[0], "u32")(lanes) if operands else 0, lanes.shape).astype(int)
        if i.has("cluster"):
            names = np.full(lanes.shape, _CLUSTER)
        number = self.m.source(operands[1], "u32")(lanes) if len(operands) > 1 else 0
        for name in np.unique(names):
            mine = lanes[names == name]
            if i.has("arrive"):
                self.arrived[name] += np.bincount(self.m.block_of[mine], minlength=self.m.blocks)
                self.wanted[mine] = np.broadcast_to(number, lanes.shape)[names == name]
                self.m.shared.arrived(mine, int(name))
            else:
                self.waits[mine] = name
                self.wanted[mine] = np.broadcast_to(number, lanes.shape)[names == name]
            self._open(int(name), alive)

    def leave(self, alive: Array) -> None:
        """Some threads ended: those that wait for all wait for the others."""
        for name in np.unique(self.waits[self.waits >= 0]):
            self._open(int(name), alive)

    def _open(self, name: int, alive: Array) -> None:
        """Let those go on for whom all have come."""
        here = self.waits == name
        blocks, number = self.m.block_of, self.m.blocks
        come = np.bincount(blocks[here], minlength=number) + self.arrived[name]
        wanted = np.zeros(number, np.int64)
        np.maximum.at(wanted, blocks[here], self.wanted[here])
        full = (come >= np.where(wanted > 0, wanted, np.bincount(blocks[alive], minlength=number))) & (come > 0)
        passed = np.flatnonzero(here & full[blocks])
        if not passed.size:
            return
        self.waits[passed] = -1
        self.arrived[name][full] = 0
        self.m.shared.joined(passed, name)
        reducing = passed[self.reduces[passed] >= 0]
        if reducing.size:
            self._reduce(reducing)

    def _reduce(self, lanes: Array) -> None:
        """`bar.red`: what all that have met gave."""
        block = self.m.block_of[lanes]
        true = np.bincount(block[self.given[lanes]], minlength=self.m.blocks)[block]
        number = np.bincount(block, minlength=self.m.blocks)[block]
        for index in np.unique(self.reduces[lanes]):
            mine = self.reduces[lanes] == index
            i = self.m.code.instructions[int(index)]
            if i.has("popc"):
                self.m.target(i.operands[0], "u32")(lanes[mine], true[mine].astype(np.uint32))
            else:
                found = true > 0 if i.has("or") else true == number
                self.m.target(i.operands[0], "pred")(lanes[mine], found[mine])
        self.reduces[lanes] = -1

    def explain(self, alive: Array) -> None:
        """Note why lanes wait for ever."""
        waiting = self.waits >= 0
        for name in np.unique(self.waits[waiting]):
            lanes = np.flatnonzero(self.waits == name)
            block = self.m.block_of[lanes[0]]
            mine = alive & (self.m.block_of == block)
            come = np.count_nonzero(mine & (self.waits == name)) + self.arrived[name][block]
            wanted = int(self.wanted[lanes].max()) or np.count_nonzero(mine)
            code = self.m.code.instructions
            i = code[max(int(self.m.at[lanes[0]]) - 1, 0)]
            # Who waits at another barrier has gone past it.
            at = self.m.at - (self.waits >= 0)
            where = sorted({int(place) for place in at[mine & (self.waits != name)]})[:2]
            others = "; ".join(str(code[min(place, len(code) - 1)]) for place in where)
            text = f"barrier {name}: {come} of {wanted} threads are there, for ever"
            self.m.fault("deadlock", i, text + (f"; others are at {others}" if others else ""), lanes)
        if not waiting[alive].any() and not self.m.stalled[alive].any():
            lanes = np.flatnonzero(alive)
            i = self.m.code.instructions[min(int(self.m.at[lanes[0]]), len(self.m.code.instructions) - 1)]
            self.m.fault("deadlock", i, "not all threads of the warp come to what it must do together", lanes)
