"""Clocks of warps: what is known to have happened before what, whatever order the warps ran in.

Each warp counts its releases. A vector clock holds, for a warp, how far into every other warp's work it has been told
of: a barrier joins the clocks of those that meet at it. Behind the warps' places in the vector come others, for work
that no warp does itself: each mbarrier's completed phases, each warp's finished groups of asynchronous reads.

There are two vectors for each warp. The first is of plain accesses; the second is what of it has passed a proxy fence,
which is what the tensor cores' and the bulk copies' way to memory may rely on.

Source: Flanagan and Freund, FastTrack (PLDI 2009); PTX ISA 8.7, "Memory Consistency Model", "Proxy".
"""

import numpy as np

from gradlab.profiling.ptx.numbers import Array

# Groups of asynchronous reads: what a tensor core reads, what a bulk copy reads.
READERS = ("wgmma", "bulk")
NEVER = np.int32(2**31 - 1)


class Clocks:
    """The vectors of `warps` warps of each of `blocks` blocks; a row is a warp's: row = warp * blocks + block.

    Attributes:
        known: int32[row, 0 for plain accesses and 1 for what passed a proxy fence, place in the vector].
    """

    def __init__(self, blocks: int, warps: int) -> None:
        self.blocks, self.warps = blocks, warps
        self.rows = np.arange(blocks * warps)
        self.warp_of, self.block_of = self.rows // blocks, self.rows % blocks
        self.begin()

    def begin(self) -> None:
        """New blocks: nobody knows of anybody."""
        self.places = self.warps * (1 + len(READERS))
        self.known = np.zeros((self.rows.size, 2, self.places), np.int32)
        self.known[self.rows, 0, self.warp_of] = 1
        # What arrived at a barrier of the block without waiting there, by the barrier's number.
        self.arrived: dict[int, Array] = {}

    def new_place(self) -> int:
        """One more place in all vectors."""
        self.known = np.concatenate((self.known, np.zeros((self.rows.size, 2, 1), np.int32)), 2)
        self.arrived = {name: _widened(told, self.places + 1) for name, told in self.arrived.items()}
        self.places += 1
        return self.places - 1

    def now(self, rows: Array) -> Array:
        """The warps' own counts."""
        return self.known[rows, 0, self.warp_of[rows]]

    def tick(self, rows: Array) -> None:
        """What these warps do from now on is not what they have told others of."""
        self.known[rows, 0, self.warp_of[rows]] += 1

    def told(self, rows: Array) -> Array:
        """By block, what these warps together know; they go on to something new."""
        found = np.zeros((self.blocks, 2, self.places), np.int32)
        np.maximum.at(found, self.block_of[rows], self.known[rows])
        self.tick(rows)
        return found

    def learn(self, rows: Array, told: Array) -> None:
        """These warps know what `told` says of their blocks."""
        more = told[self.block_of[rows]]
        self.known[rows, :, : more.shape[2]] = np.maximum(self.known[rows, :, : more.shape[2]], more)

    def meet(self, name: int, rows: Array) -> None:
        """Warps leave a barrier of the block together."""
        told = self.told(rows)
        earlier = self.arrived.pop(name, None)
        if earlier is not None:
            mine = np.unique(self.block_of[rows])
            told[mine] = np.maximum(told[mine], earlier[mine])
            earlier[mine] = 0
            self.arrived[name] = earlier
        self.learn(rows, told)

    def arrive(self, name: int, rows: Array) -> None:
        """Warps arrive at a barrier of the block and go on."""
        told = self.told(rows)
        earlier = self.arrived.get(name)
        self.arrived[name] = told if earlier is None else np.maximum(earlier, told)

    def fence(self, rows: Array) -> None:
        """A proxy fence: what is known by now may be relied on by other ways to memory too."""
        self.known[rows, 1] = self.known[rows, 0]
        self.tick(rows)

    def reader(self, kind: str, rows: Array) -> Array:
        """The place of the warps' own groups of asynchronous reads."""
        return self.warps * (1 + READERS.index(kind)) + self.warp_of[rows]


def _widened(told: Array, places: int) -> Array:
    return np.concatenate((told, np.zeros((*told.shape[:2], places - told.shape[2]), np.int32)), 2)
