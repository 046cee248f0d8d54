"""A recorded launch before and after it is compiled; and the passes of an op that are searched for launches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlab.autodiff.frameworks.side import Side, as_tuple
from gradlab.kernels.runtime.forking import Lock
from gradlab.kernels.spec import OpCase
from gradlab.profiling.ptx.global_memory import Extent

# Lock for parsing Python: the parser counts its recursion depth for all threads together (gh-106905), so that
# concurrent parsing may raise.
PARSER = Lock()


@dataclass(frozen=True, eq=False)
class Call:
    """What a launch is called with.

    Attributes:
        grid: its programs.
        arguments: those that are no compile-time constants, as integers of their bits.
        extents: the memory that it may reach.
        holds: whose memory that is.
    """

    grid: tuple[int, int, int]
    arguments: tuple[int, ...]
    extents: tuple[Extent, ...]
    holds: tuple[Any, ...]


@dataclass(frozen=True)
class Binary:
    """The compiled kernel: the assembly (PTX or amdgcn), the machine code, and what a launch must set aside.

    Attributes:
        shared: bytes of shared memory of a program; scratch: of global memory of a program for itself.
    """

    assembly: str
    code: bytes
    shared: int
    threads: int
    scratch: int = 0


@dataclass(frozen=True)
class Found:
    """A kernel as an op launches it.

    Attributes:
        kernel: its name without `_` and `_kernel`.
        variant: counted from 1 among the op's kernels of that name: other options, strides or tiles.
        direction: the first pass in which it runs: forward, backward, or second (the backward of the backward).
        grid: programs of its largest launch.
        warps, stages: what it is launched with.
        options: its compile-time constants, in words; Pallas has them inside the IR.
        call: what its largest launch is called with, where that is known.
        source: what the compiler takes: Triton's ASTSource, or Triton IR as text.
        file, line: the kernel's source; "" and 0 when not known.
    """

    kernel: str
    variant: int
    direction: str
    grid: tuple[int, ...]
    warps: int
    stages: int
    source: Any
    file: str
    line: int
    options: dict[str, str] = field(default_factory=dict)
    call: Call | None = field(default=None, compare=False)


def passes(at: OpCase, side: Side) -> list[tuple[str, Callable[..., Any]]]:
    """The op's passes by name, functions of (inputs, cotangents, cotangents of the gradients), all of them sequences.

    The backward of an op or a case of order 1 has no backward.
    """
    op, wrt, count = at.spec, list(at.wrt), len(at.inputs)
    fn = at.bind(side.op(op.name))
    pull = side.pullback(fn, wrt)

    def again(*arrays: Any) -> tuple[Any, ...]:
        return pull(arrays[:count], arrays[count:])

    def second(inputs: Sequence[Any], cotangents: Sequence[Any], seconds: Sequence[Any]) -> tuple[Any, ...]:
        both = (*inputs, *cotangents)
        return side.pullback(again, [*wrt, *range(count, len(both))])(both, seconds)

    named: list[tuple[str, Callable[..., Any]]] = [
        ("forward", lambda inputs, cotangents, seconds: as_tuple(fn(*inputs))),
        ("backward", lambda inputs, cotangents, seconds: pull(inputs, cotangents)),
        ("second", second),
    ]
    return named if min(op.order, at.case.order) > 1 else named[:2]


def largest(grids: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The grid of most programs."""
    return max(grids, key=math.prod)
