"""What a launch did, by instruction: how often it was issued, the sectors and bytes that it moved, its conflicts."""

from dataclasses import dataclass, field

import numpy as np

from gradlab.profiling.ptx.numbers import Array

# Bytes of a sector, what an L2 cache and memory are asked for; and of a bank of shared memory.
SECTOR, BANK, BANKS = 32, 4, 32


@dataclass
class Counts:
    """Sums over all warps of all blocks that ran; each array has an element for each instruction.

    Attributes:
        issued: warps that executed it.
        threads: threads that executed it, those without a true guard left out.
        requests: warps that accessed memory by it.
        sectors: of 32 bytes of global memory, each once a request.
        moved: bytes of global or shared memory, each thread's.
        passes: shared memory's, one a request where no two lanes want two words of one bank.
        operations: of a tensor core, a multiplication and an addition are two.
        divergent: branches by which a warp's threads went two ways.
        read, written: by sector of global memory, how many requests had it: address / 32 -> times.
        in_flight: the most bytes of asynchronous copies that were on their way in one block.
    """

    instructions: int
    detailed: bool = True
    issued: Array = field(init=False)
    threads: Array = field(init=False)
    requests: Array = field(init=False)
    sectors: Array = field(init=False)
    moved: Array = field(init=False)
    passes: Array = field(init=False)
    operations: Array = field(init=False)
    divergent: Array = field(init=False)
    read: list[Array] = field(default_factory=list)
    written: list[Array] = field(default_factory=list)
    in_flight: int = 0

    def __post_init__(self) -> None:
        for name in ("issued", "threads", "requests", "sectors", "moved", "passes", "operations", "divergent"):
            setattr(self, name, np.zeros(self.instructions, np.int64))

    def run(self, first: int, last: int, warps: int, threads: int) -> None:
        """Instructions `first` to `last`, the last included, were executed by so many warps and threads."""
        self.issued[first : last + 1] += warps
        self.threads[first : last + 1] += threads

    def skipped(self, index: int, threads: int) -> None:
        """So many threads had no true guard."""
        self.threads[index] -= threads

    def global_access(self, index: int, addresses: Array, lanes: Array, size: int, write: bool) -> None:
        """Lanes access `size` bytes each."""
        self.moved[index] += addresses.size * size
        if not self.detailed or not addresses.size:
            return
        warps = lanes // 32
        self.requests[index] += np.count_nonzero(np.diff(warps)) + 1
        sector = addresses // SECTOR
        keys = np.unique(np.stack((warps, sector)), axis=1) if size <= SECTOR else np.stack((warps, sector))
        self.sectors[index] += keys.shape[1]
        (self.written if write else self.read).append(keys[1])

    def shared_access(self, index: int, offsets: Array, lanes: Array, size: int) -> None:
        """Lanes access `size` bytes each of shared memory at these offsets in their blocks."""
        self.moved[index] += offsets.size * size
        if not self.detailed or not offsets.size:
            return
        # A request of 8 or 16 bytes a lane is served for a half or a quarter of a warp at a time.
        part = 32 if size <= BANK else max(128 // size, 1)
        groups = lanes // part
        self.requests[index] += np.count_nonzero(np.diff(lanes // 32)) + 1
        words = (offsets[:, None] + np.arange(0, max(size, 1), BANK)) // BANK
        keys = np.stack((np.broadcast_to(groups[:, None], words.shape).ravel(), words.ravel()))
        group, word = np.unique(keys, axis=1)
        _, index_of = np.unique(group, return_inverse=True)
        load = np.bincount(index_of * BANKS + word % BANKS)
        self.passes[index] += (
            int(load[: load.size // BANKS * BANKS].reshape(-1, BANKS).max(1).sum())
            if (load.size % BANKS == 0)
            else int(np.pad(load, (0, -load.size % BANKS)).reshape(-1, BANKS).max(1).sum())
        )
