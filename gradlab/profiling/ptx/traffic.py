"""Sectors of global memory by tensor: how many were read and written, and how often each again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.profiling.ptx.global_memory import Extent, GlobalMemory
from gradlab.profiling.ptx.numbers import Array

# Bytes of what an L2 cache and memory are asked for.
SECTOR = 32
# Reads whose blocks are kept before they are made distinct.
_KEPT = 1 << 18


@dataclass(frozen=True)
class TensorTraffic:
    """The sectors of a tensor.

    Attributes:
        name: the argument's; of memory that several arguments share, all of theirs.
        size: bytes.
        read, written: sectors, each once a request.
        fetched: those of the reads that an L1 cache does not have if it keeps all that its block has read.
        distinct_read, distinct_written: sectors that were read or written at all.
    """

    name: str
    size: int
    read: int
    written: int
    fetched: int
    distinct_read: int
    distinct_written: int

    @property
    def again(self) -> float:
        """How often a sector that is read is read, on average."""
        return self.read / self.distinct_read if self.distinct_read else 0.0


class Traffic:
    """Counts of every sector of the memory of a launch."""

    def __init__(self, memory: GlobalMemory) -> None:
        self.memory = memory
        self.regions: list[Extent] = []
        self._pending: list[Array] = []
        self._pending_size = self._distinct_size = 0
        self.read = self.written = self.fetched = np.zeros(1, np.uint32)
        self._take()

    def _take(self) -> None:
        """Count the sectors of what the memory has now, and keep what was counted."""
        self.next_blocks()
        known = list(zip(self.regions, np.cumsum([0, *map(_sectors, self.regions)]), strict=False))
        self.seen = self.memory.extents
        self.regions = _regions(self.seen)
        self.bases = np.array([r.base // SECTOR for r in self.regions], np.int64)
        # Where each region's sectors begin among all of them; the last one is of what lies in no region.
        self.starts = np.cumsum([0, *map(_sectors, self.regions)]).astype(np.int64)
        before = self.read, self.written, self.fetched
        after = [np.zeros(int(self.starts[-1]) + 1, np.uint32) for _ in before]
        for region, start in known:
            (at,) = self.number(np.array([region.base]))
            for old, new in zip(before, after, strict=True):
                new[at : at + _sectors(region)] += old[start : start + _sectors(region)]
        self.read, self.written, self.fetched = after

    def number(self, addresses: Array) -> Array:
        """The sectors of addresses, counted through all regions."""
        sectors = addresses // SECTOR
        if not self.regions and self.seen is self.memory.extents:
            return np.zeros(addresses.size, np.int64)
        if not self.regions:
            self._take()
            return self.number(addresses)
        first, last = (int(np.searchsorted(self.bases, s, side="right")) - 1 for s in (sectors.min(), sectors.max()))
        if first == last >= 0:
            found = sectors - (self.bases[first] - self.starts[first])
            end = self.starts[first + 1]
        else:
            region = np.searchsorted(self.bases, sectors, side="right") - 1
            found = np.where(region >= 0, sectors - self.bases[region] + self.starts[region], self.starts[-1])
            end = self.starts[region + 1]
        known = found < end
        if not known.all() and self.seen is not self.memory.extents:
            self._take()
            return self.number(addresses)
        return np.where(known, found, self.starts[-1])

    def add(self, sectors: Array, blocks: Array, write: bool, cached: bool) -> None:
        """Requests for these sectors from these of the blocks that run."""
        if write:
            np.add.at(self.written, sectors, 1)
            return
        np.add.at(self.read, sectors, 1)
        if not cached:
            np.add.at(self.fetched, sectors, 1)
            return
        self._pending.append(blocks * self.read.size + sectors)
        self._pending_size += sectors.size
        if self._pending_size > max(_KEPT, 2 * self._distinct_size):
            self._settle()

    def next_blocks(self) -> None:
        """The blocks that ran have ended."""
        self._settle()
        if self._pending:
            np.add.at(self.fetched, self._pending[0] % self.read.size, 1)
        self._pending, self._pending_size, self._distinct_size = [], 0, 0

    def _settle(self) -> None:
        if self._pending:
            self._pending = [np.unique(np.concatenate(self._pending))]
            self._pending_size = self._distinct_size = self._pending[0].size

    def tensors(self) -> list[TensorTraffic]:
        """By tensor, those that were accessed."""
        found = []
        for n, region in enumerate(self.regions):
            part = slice(int(self.starts[n]), int(self.starts[n + 1]))
            read, written = self.read[part], self.written[part]
            sums = (int(a.sum(dtype=np.int64)) for a in (read, written, self.fetched[part]))
            counted = (int(np.count_nonzero(a)) for a in (read, written))
            tensor = TensorTraffic(region.name, region.size, *sums, *counted)
            if tensor.read or tensor.written:
                found.append(tensor)
        return found


def _sectors(region: Extent) -> int:
    return -(-(region.base + region.size) // SECTOR) - region.base // SECTOR


def _regions(extents: Sequence[Extent]) -> list[Extent]:
    """Memory without overlap, by address: extents that share some are one."""
    found: list[Extent] = []
    for extent in sorted(extents, key=lambda e: e.base):
        if found and extent.base < found[-1].base + found[-1].size:
            last = found[-1]
            size = max(last.size, extent.base + extent.size - last.base)
            names = last.name.split(", ")
            found[-1] = Extent(last.base, size, ", ".join([*names, *[n for n in [extent.name] if n not in names]]))
        else:
            found.append(extent)
    return found


def distinct(first: Array, second: Array) -> tuple[Array, Array]:
    """The pairs of two arrays of numbers, of which the second are below 2^40 and not negative, each once and sorted."""
    keys = (first.astype(np.int64) << 40) | second
    steps = np.diff(keys)
    if (steps < 0).any():
        keys.sort()
        steps = np.diff(keys)
    if not steps.all():
        keys = keys[np.append(True, steps != 0)]
    return keys >> 40, keys & ((1 << 40) - 1)
