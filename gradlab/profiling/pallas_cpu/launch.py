"""One launch of a Pallas kernel, as its program for CUDA has it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Launch:
    """What a kernel is launched with beside its operands.

    Attributes:
        name: the kernel's.
        source: its Triton IR.
        grid: programs along the axes.
        aliases: place of an operand -> place of the result that is written over it.
        results: shape and dtype of each result.
    """

    name: str
    source: str
    grid: tuple[int, ...]
    aliases: dict[int, int]
    results: tuple[tuple[tuple[int, ...], Any], ...]
