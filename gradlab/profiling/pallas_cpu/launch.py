"""One launch of a Pallas kernel, as its program for CUDA has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Launch:
    """What a kernel is launched with beside its operands.

    Attributes:
        name: the kernel's.
        file, line: where it is written.
        source: its Triton IR.
        warps, stages: what a GPU launches it with.
        grid: programs along Triton's axes.
        axes: programs along the kernel's own axes, those of jax.vmap first.
        order: the kernel's own axes, the one along which Triton numbers programs first.
        names: the kernel's parameters, operands before results.
        shapes: of operands and results.
        spaces: of the memory that the source has for them: in an axis whose last block is a part, all of that block.
        aliases: place of an operand -> place of the result that is written over it.
        dtypes: of the results.
    """

    name: str
    file: str
    line: int
    source: str
    warps: int
    stages: int
    grid: Shape
    axes: Shape
    order: Shape
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    spaces: tuple[Shape, ...]
    aliases: dict[int, int]
    dtypes: tuple[Any, ...]

    @property
    def operands(self) -> int:
        """How many operands there are."""
        return len(self.shapes) - len(self.dtypes)

    def place(self, program: int) -> Shape:
        """Where a program stands in the kernel's own grid."""
        found = [0] * len(self.axes)
        for axis in self.order:
            program, found[axis] = divmod(program, self.axes[axis])
        return tuple(found)


def strides(shape: Sequence[int]) -> Shape:
    """Elements from one to the next along each axis, of what lies in memory row by row."""
    found = [1]
    for n in reversed(shape[1:]):
        found.insert(0, found[0] * n)
    return tuple(found[: len(shape)])
