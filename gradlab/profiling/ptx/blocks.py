"""Some blocks of a grid, whose threads are lanes: which lane is whose, and what is told of them.

A lane is a thread. They are ordered by warp, then block, then lane of the warp: what one warp of every block does is a
slice of every register.
"""

import numpy as np

from gradlab.profiling.ptx.counts import Counts
from gradlab.profiling.ptx.faults import Faults
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction, Program

# Lanes: a slice of all of them, or their sorted indices.
Lanes = slice | Array
LANES = 32


class Blocks:
    """`blocks` blocks of `warps` warps.

    Attributes:
        code: the kernel.
        blocks, warps, lanes: how many there are; `lanes` in all.
        threads: of one block.
        numbers: 0 to lanes - 1.
        block_of, warp_of, lane_of: of each lane its block, its warp within the block, its place in the warp.
        program: the linear index in the grid of each of the blocks.
        counts, faults: what is counted, what was found.
    """

    def __init__(self, code: Program, blocks: int, threads: int, counts: Counts, faults: Faults) -> None:
        self.code, self.threads = code, threads
        self.blocks, self.warps = blocks, -(-threads // LANES)
        self.lanes = self.blocks * self.warps * LANES
        self.numbers = np.arange(self.lanes)
        self.lane_of = (self.numbers % LANES).astype(np.uint32)
        self.block_of = self.numbers // LANES % self.blocks
        self.warp_of = (self.numbers // (LANES * self.blocks)).astype(np.uint32)
        self.program = np.zeros(blocks, np.int64)
        self.counts, self.faults = counts, faults

    def where(self, lanes: Lanes) -> Array:
        """Indices of lanes."""
        return self.numbers[lanes]

    def fault(
        self, kind: str, instruction: Instruction, text: str, lanes: Lanes | None = None, repaired: bool = False
    ) -> None:
        """Note what an instruction did wrong, in the first of the lanes."""
        program, warp = None, None
        if lanes is not None:
            lane = int(self.where(lanes)[0])
            program, warp = int(self.program[self.block_of[lane]]), int(self.warp_of[lane])
        self.faults.add(kind, instruction, text, program, warp, repaired)
