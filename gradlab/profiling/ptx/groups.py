"""What was begun and is waited for later: threads commit what they began as groups, and wait for those in order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from gradlab.profiling.ptx.numbers import Array


class Work(Protocol):
    """What some lanes began by one instruction; the lanes of it that are chosen are a Work too."""

    @property
    def lanes(self) -> Array: ...

    def part(self, which: Array) -> Self: ...


W = TypeVar("W", bound=Work)


@dataclass
class _Batch(Generic[W]):
    work: W
    group: Array


class Groups(Generic[W]):
    """What is on its way, of all lanes: groups are numbered from 1 by each lane."""

    def __init__(self, lanes: int) -> None:
        self.committed = np.zeros(lanes, np.int64)
        self.done = np.zeros(lanes, np.int64)
        self.batches: list[_Batch[W]] = []

    def begin(self) -> None:
        """New blocks: nothing is on its way."""
        self.committed[:], self.done[:] = 0, 0
        self.batches = []

    def add(self, work: W) -> Array:
        """Lanes begin something; the numbers of their groups."""
        group = self.committed[work.lanes] + 1
        self.batches.append(_Batch(work, group))
        return group

    def commit(self, lanes: Array) -> None:
        """What lanes began since their last commit is a group."""
        self.committed[lanes] += 1

    def wait(self, lanes: Array, left: int) -> list[W]:
        """Lanes wait until at most the last `left` of their groups are on their way: what has come."""
        self.done[lanes] = np.maximum(self.done[lanes], self.committed[lanes] - left)
        return self._take(lambda batch: batch.group <= self.done[batch.work.lanes])

    def all_of(self, lanes: Array) -> list[W]:
        """Everything that these lanes began, committed or not."""
        return self._take(lambda batch: np.isin(batch.work.lanes, lanes))

    def everything(self) -> list[W]:
        """Everything that is still on its way."""
        return self._take(lambda batch: np.ones(batch.group.shape, bool))

    def _take(self, which: Callable[[_Batch[W]], Array]) -> list[W]:
        found: list[W] = []
        kept: list[_Batch[W]] = []
        for batch in self.batches:
            chosen = which(batch)
            if chosen.all():
                found.append(batch.work)
            elif chosen.any():
                found.append(batch.work.part(chosen))
                kept.append(_Batch(batch.work.part(~chosen), batch.group[~chosen]))
            else:
                kept.append(batch)
        self.batches = kept
        return found
