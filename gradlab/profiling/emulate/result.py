"""What was executed and compared, as plain data: what the report prints and JSON holds."""

from dataclasses import dataclass

from gradlab.profiling.ptx.execute import Executed


@dataclass(frozen=True)
class Comparison:
    """A result held against what it should be.

    Attributes:
        what: the result in words: `y`, `gradient of x`.
        largest: the largest difference of an element; NaN where one is a number and the other is not.
        allowed: the most that it may be.
        ok: whether all elements are within what is allowed.
    """

    what: str
    largest: float
    allowed: float
    ok: bool


@dataclass(frozen=True)
class LaunchResult:
    """A launch of a kernel, executed.

    Attributes:
        kernel: its name without `_` and `_kernel`.
        side, arch, direction: torch or jax; what it was compiled for; the pass that launched it.
        grid, threads: programs (blocks), and threads of one.
        shared: bytes of a block, static and dynamic.
        registers: of a thread.
        file: the kernel's own, whose lines are shown.
        executed: counts and faults.
        ptx, cubin: what was executed, and what a GPU would execute.
    """

    kernel: str
    side: str
    arch: str
    direction: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    registers: int
    file: str
    executed: Executed
    ptx: str = ""
    cubin: bytes = b""


@dataclass(frozen=True)
class CaseResult:
    """A case of an op, or a function of anybody's: its launches and what came out of them.

    Attributes:
        op, case, side, dtype, arch: what was executed.
        order: of warps: "together", "first", "last".
        error: why it was not executed to its end, in one line.
        unheld: why results were held against nothing, in one line: a kernel that is not compiled for CPUs.
    """

    op: str
    case: str
    side: str
    dtype: str
    arch: str
    order: str
    launches: tuple[LaunchResult, ...]
    comparisons: tuple[Comparison, ...]
    seconds: float = 0.0
    error: str = ""
    unheld: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was executed, has no fault and every result is right."""
        faults = any(launch.executed.faults for launch in self.launches)
        return not self.error and not faults and all(c.ok for c in self.comparisons)
