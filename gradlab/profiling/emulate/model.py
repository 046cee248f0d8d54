"""Cycles of a launch on a named GPU, from what was counted when it was executed: a model, never a time."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The least cycles that each part of a GPU needs for a launch; the largest is what bounds it.

    Attributes:
        gpu: its name.
        blocks: resident at once on one multiprocessor.
        occupancy: the share of the multiprocessor's warps that they make up.
        limiter: what allows no more of them.
        waves: blocks of the grid over what the GPU holds at once.
        rounds: blocks that the busiest multiprocessor gets.
        cycles: part of the GPU -> cycles, whole launch.
        ratio: machine instructions that an executed PTX instruction became, by source line; None if not known.
    """

    gpu: str
    blocks: int
    occupancy: float
    limiter: str
    waves: float
    rounds: int
    cycles: Mapping[str, float]
    ratio: float | None = None

    @property
    def bound(self) -> str:
        """The part with the most cycles."""
        return max(self.cycles, key=lambda part: self.cycles[part])
