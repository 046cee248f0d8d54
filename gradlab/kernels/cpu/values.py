"""What a name of a kernel stands for while it is lowered: lanes, memory, or an operation that is not evaluated.

Lazy      an operation, evaluated anew at each place that wants it; whole elementwise chains fuse into one loop
Buffer    memory of the program's own, with strides of our choice
Affine    a lazy tensor plus a scalar that a loop moves: pointers and ranges carried by `scf.for`
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
    """Where along an axis: an i32, known or not, and whether the lanes go on from there along this axis."""

    ssa: str
    known: int | None = None
    lanes: bool = False


# One position an axis; None where the axis has one element.
Index = tuple[Position | None, ...]


class Lazy(NamedTuple):
    """What an operation gives, not evaluated."""

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
    """Strides of a tensor whose rows lie one after another."""
    strides, count = [], 1
    for size in reversed(shape):
        strides.append(count)
        count *= size
    return tuple(reversed(strides))


def chain(
    env: Mapping[str, Value], name: str, into: Callable[[Operation], bool] = lambda op: True
) -> Iterator[Operation]:
    """The operations that a tensor is computed of, each once; `into` says whose operands are followed.

    An operation that uses a value twice doubles the ways to what is in front of it: who walks every way does not end.
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
