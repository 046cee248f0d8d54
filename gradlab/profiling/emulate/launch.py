"""One launch as it is handed on to be executed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gradlab.profiling.ptx.global_memory import Extent


@dataclass(frozen=True, eq=False)
class Compiled:
    """A kernel compiled for a GPU, and what it is called with.

    Attributes:
        ptx, cubin: what it was compiled to.
        threads, shared: of a block; bytes of dynamic shared memory of one.
        scratch: bytes of global memory that each block has for itself.
        arguments: the kernel's, as integers of their bits, or bytes of what is passed by value.
        extents: the memory that it may reach, as far as its arguments say.
        more: what else there is.
    """

    ptx: str
    cubin: bytes
    threads: int
    shared: int
    scratch: int
    arguments: tuple[int | bytes, ...]
    extents: tuple[Extent, ...]
    more: Callable[[], Iterable[Extent]] | None = None


@dataclass(frozen=True, eq=False)
class Launch:
    """A compiled kernel and where it is launched.

    Attributes:
        kernel: its name without `_` and `_kernel`.
        grid: programs along three axes.
        file: the kernel's own; "" where it is not known.
    """

    kernel: str
    grid: tuple[int, int, int]
    made: Compiled
    file: str
