"""What was counted, summed: of a launch, by kind of instruction, by line of source."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gradlab.profiling.ptx.counts import ARRAYS, PASS, WARP, Counts
from gradlab.profiling.ptx.kinds import KINDS, kind
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction, Place, Program
from gradlab.profiling.ptx.traffic import SECTOR

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Totals:
    """Sums over some instructions of what `Counts` has of each.

    Attributes:
        ideal: the passes of shared memory that would do if no bank were wanted twice.
    """

    issued: int
    threads: int
    divergent: int
    operations: int
    requests: int
    moved: int
    sectors: int
    shared_requests: int
    shared_moved: int
    passes: int
    ideal: int

    @property
    def active(self) -> float:
        """The share of its 32 threads that a warp executes an instruction with, on average."""
        return self.threads / (WARP * self.issued) if self.issued else 0.0

    @property
    def sectors_per_request(self) -> float:
        """Sectors of global memory that an access of a warp wants, on average."""
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def used(self) -> float:
        """Bytes that threads ask for, of those of the sectors; above 1 where several threads ask for the same."""
        return self.moved / (SECTOR * self.sectors) if self.sectors else 0.0

    @property
    def ways(self) -> float:
        """Passes of shared memory for one that would do: 2 for a conflict of two ways everywhere."""
        return self.passes / self.ideal if self.ideal else 0.0


def totals(counts: Counts, chosen: Array | slice = slice(None)) -> Totals:
    """The sums over instructions of these indices; over all of them without."""
    sums = {name: int(getattr(counts, name)[chosen].sum()) for name in ARRAYS}
    least = np.maximum(counts.shared_requests, -(-counts.shared_moved // PASS))
    return Totals(**sums, ideal=int(np.minimum(least, counts.passes)[chosen].sum()))


def by_kind(program: Program, counts: Counts) -> dict[str, Totals]:
    """For each kind of instruction that was executed, in the order of `KINDS`."""
    found = _by(program, counts, kind)
    return {name: found[name] for name in KINDS if name in found}


def by_line(program: Program, counts: Counts, file: str) -> dict[int, Totals]:
    """For each line of a file: of what it calls too, unless that stands in the same file; 0 for what is of no line."""
    return dict(sorted(_by(program, counts, lambda i: line_in(i.place, file)).items()))


def line_in(place: Place, file: str) -> int:
    """The innermost line of a file that an instruction was inlined to; 0 where it has none."""
    name = file.rsplit("/", 1)[-1]
    return next((p.line for p in (place, *place.callers) if p.file.rsplit("/", 1)[-1] == name), 0)


def _by(program: Program, counts: Counts, key: Callable[[Instruction], Key]) -> dict[Key, Totals]:
    groups: dict[Key, list[int]] = {}
    for i in program.instructions:
        if counts.issued[i.index]:
            groups.setdefault(key(i), []).append(i.index)
    return {name: totals(counts, np.array(indices)) for name, indices in groups.items()}
