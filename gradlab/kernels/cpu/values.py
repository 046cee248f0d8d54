"""Values of SSA names during lowering: lanes, memory, or an operation that has not been evaluated.

Lazy      an operation that is computed wherever it is used, which fuses elementwise chains into one loop
Buffer    the program's own memory, with strides chosen by the compiler
Affine    a lazy tensor plus a loop-carried scalar: pointers and ranges carried by `scf.for`
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gradlab.kernels.cpu.lanes import Lane, Uniform
from gradlab.kernels.cpu.ttir import Operation


class NotLowered(NotImplementedError):
    """An operation that is not compiled for CPUs."""

    def __init__(self, op: Operation, reason: str = "") -> None:
        super().__init__(reason or f"{op.name} is not compiled for CPUs")
        self.op = op
        self.reason = reason


class Position(NamedTuple):
    """A place along an axis: an i32, perhaps a compile-time constant, and whether the lanes extend along this axis."""

    ssa: str
    known: int | None = None
    lanes: bool = False


# One position for each axis; None where the axis has one element.
Index = tuple[Position | None, ...]


class Lazy(NamedTuple):
    """A result of an operation, not evaluated."""

    op: Operation
    result: int


class Buffer(NamedTuple):
    """Memory: strides in elements."""

    base: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    element: str


class Affine(NamedTuple):
    """The tensor `start` with `offset` added in every element; for pointers in elements of i64."""

    start: str
    offset: Uniform


Value = Lane | Lazy | Buffer | Affine


def position(ssa: str, laned: bool = False) -> Position:
    """A loop's counter as a position."""
    return Position(ssa, None if ssa.startswith("%") else int(ssa), laned)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides."""
    strides, count = [], 1
    for size in reversed(shape):
        strides.append(count)
        count *= size
    return tuple(reversed(strides))


def chain(
    env: Mapping[str, Value], name: str, into: Callable[[Operation], bool] = lambda op: True
) -> Iterator[Operation]:
    """The operations that a tensor is computed from, each once; `into` selects those whose operands are followed.

    Each is visited once: an operation that uses a value twice doubles the number of paths, which grows exponentially.
    """
    todo, seen = [name], set()
    while todo:
        one = todo.pop()
        value = env.get(one)
        if isinstance(value, Lazy) and one not in seen:
            seen.add(one)
            yield value.op
            if into(value.op):
                todo += value.op.operands
