"""What a launch did, by instruction: how often it was issued, the sectors and bytes that it moved, its conflicts.

Source of the rules: NVIDIA, Nsight Compute's Profiling Guide, "Memory Tables"; CUDA C++ Best Practices Guide, "Shared
Memory and Memory Banks". For 8 and 16 bytes a lane: NVIDIA Developer Forums, "Unexpected shared memory bank conflict".
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from gradlab.profiling.ptx.global_memory import GlobalMemory
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.traffic import Traffic, distinct

WARP = 32
# Shared memory: bytes of a word, banks of one word each, and what all of them give at once.
WORD, BANKS = 4, 32
PASS = WORD * BANKS
# Accesses whose passes are remembered.
_MOST_KNOWN = 1 << 14


@dataclass
class Counts:
    """Sums over all warps of all blocks that ran; each array has an element for each instruction.

    Attributes:
        detailed: whether sectors and bank conflicts are counted.
        memory, blocks: of the launch, and how many blocks are executed at once.
        issued: warps that executed it.
        threads: threads that executed it, those without a true guard left out.
        requests, moved: warps that accessed global memory by it; bytes of it, each thread's.
        sectors: of 32 bytes of global memory, each once a request.
        shared_requests, shared_moved: the same of shared memory.
        passes: shared memory's, of at most 128 bytes; one a request where no two lanes want two words of one bank.
        operations: of a tensor core, a multiplication and an addition are two.
        divergent: branches by which a warp's threads went two ways.
        traffic: sectors by tensor, and how often each was wanted again.
        in_flight: the most bytes of asynchronous copies that were on their way in one block.
    """

    instructions: int
    detailed: bool = True
    memory: GlobalMemory = field(default_factory=lambda: GlobalMemory(()))
    blocks: int = 1
    issued: Array = field(init=False)
    threads: Array = field(init=False)
    requests: Array = field(init=False)
    sectors: Array = field(init=False)
    moved: Array = field(init=False)
    shared_requests: Array = field(init=False)
    shared_moved: Array = field(init=False)
    passes: Array = field(init=False)
    operations: Array = field(init=False)
    divergent: Array = field(init=False)
    traffic: Traffic = field(init=False)
    in_flight: int = 0
    _known: dict[Hashable, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ARRAYS:
            setattr(self, name, np.zeros(self.instructions, np.int64))
        self.traffic = Traffic(self.memory)

    def run(self, first: int, last: int, warps: int, threads: int) -> None:
        """Instructions `first` to `last`, the last included, were executed by so many warps and threads."""
        self.issued[first : last + 1] += warps
        self.threads[first : last + 1] += threads

    def skipped(self, index: int, threads: int) -> None:
        """So many threads had no true guard."""
        self.threads[index] -= threads

    def global_access(
        self, index: int, addresses: Array, lanes: Array, size: int, write: bool, cached: bool = True
    ) -> None:
        """Lanes access `size` bytes each, at most a sector and at a multiple of their size.

        Args:
            lanes: in ascending order.
            cached: whether L1 keeps what is read; it does not for `cp.async.cg`.
        """
        self.moved[index] += addresses.size * size
        if not self.detailed or not addresses.size:
            return
        warps = lanes // WARP
        self.requests[index] += np.count_nonzero(np.diff(warps)) + 1
        warps, sectors = distinct(warps, self.traffic.number(addresses))
        self.sectors[index] += sectors.size
        self.traffic.add(sectors, warps % self.blocks, write, cached)

    def shared_access(self, index: int, offsets: Array, lanes: Array, size: int, write: bool = False) -> None:
        """Lanes access `size` bytes each of shared memory at these offsets in their blocks; `lanes` ascend."""
        self.shared_moved[index] += offsets.size * size
        if not self.detailed or not offsets.size:
            return
        self.shared_requests[index] += np.count_nonzero(np.diff(lanes // WARP)) + 1
        if lanes.size != int(lanes[-1]) - int(lanes[0]) + 1:
            self.passes[index] += passes(offsets, lanes, size, write)
            return
        # A loop makes the same accesses again, or all of them some words further, in other banks.
        places = offsets - int(offsets[0]) // WORD * WORD
        key = (hash(places.tobytes()), int(lanes[0]), lanes.size, size, write)
        found = self._known.get(key)
        if found is None:
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            found = self._known[key] = passes(offsets, lanes, size, write)
        self.passes[index] += found

    def shared_pieces(self, index: int, requests: int, size: int) -> None:
        """So many times `size` bytes are read or written by no lane, without a conflict."""
        self.shared_moved[index] += requests * size
        self.shared_requests[index] += requests
        self.passes[index] += requests * -(-size // PASS)

    def next_blocks(self) -> None:
        """Other blocks come; L1 is taken to hold nothing for them."""
        self.traffic.next_blocks()


# The counts of an instruction.
ARRAYS = (
    *("issued", "threads", "divergent", "operations"),
    *("requests", "moved", "sectors", "shared_requests", "shared_moved", "passes"),
)


def passes(offsets: Array, lanes: Array, size: int, write: bool) -> int:
    """How often shared memory is accessed for one instruction of some warps.

    In one pass each bank gives one word, to all lanes that want it. 8 or 16 bytes a lane are served for a half or a
    quarter of a warp at a time; of loads for twice as many, where lanes n and n ^ 1, or n and n ^ 2, want the same.
    """
    words = max(size // WORD, 1)
    # Numbers of what is served together; warps whose lanes are paired have theirs behind all others.
    part = WARP // words
    groups = lanes // part
    if words > 1 and not write:
        paired = _paired(offsets, lanes)
        if paired is not None:
            groups = np.where(paired, (lanes[-1] // part + 1) + lanes // (2 * part), groups)
    at = offsets // WORD
    if words > 1:
        at, groups = (at[:, None] + np.arange(words)).ravel(), np.repeat(groups, words)
    groups, at = distinct(groups, at)
    wanted = np.bincount(groups * BANKS + at % BANKS)
    # Every group's busiest bank; the last group's last banks may be missing.
    return int(np.maximum.reduceat(wanted, np.arange(0, wanted.size, BANKS)).sum())


def _paired(offsets: Array, lanes: Array) -> Array | None:
    """Which lanes are of a warp in which every second or every other pair of lanes has one offset; None for none."""
    everyone = np.full((int(lanes[-1]) // WARP + 1) * WARP, -1, np.int64)
    everyone[lanes] = offsets
    found = np.zeros(everyone.size // WARP, bool)
    for apart in (1, 2):
        pairs = everyone.reshape(-1, WARP // (2 * apart), 2, apart)
        same = (pairs[:, :, 0] == pairs[:, :, 1]) | (pairs < 0).any(2)
        found |= same.all((1, 2))
    return found[lanes // WARP] if found.any() else None
