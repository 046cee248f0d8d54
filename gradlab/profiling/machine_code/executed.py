"""The first program of a launch, executed: what instructions do, beside machine code, which says what they are."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gradlab.kernels.runtime.forking import Lock
from gradlab.profiling.machine_code.found import Call
from gradlab.profiling.ptx.execute import execute
from gradlab.profiling.ptx.parse import PTXError, parse
from gradlab.profiling.ptx.schedule import Budget
from gradlab.profiling.ptx.totals import Totals, by_line, totals

# Instructions of warps that one program may take: a second or two.
_BUDGET = 1_000_000
# The executor is Python: several threads are no faster, and its table of instructions is filled by the first one.
_ONE = Lock()


@dataclass(frozen=True)
class FirstProgram:
    """What one program of a launch did, on memory that nothing was written to.

    Attributes:
        warps: of a program.
        totals: sums over its warps.
        lines: line of the kernel's own file -> instructions of warps.
    """

    warps: int
    totals: Totals
    lines: dict[int, int]

    @property
    def instructions(self) -> float:
        """Of one warp, on average."""
        return self.totals.issued / self.warps

    def as_json(self) -> dict[str, Any]:
        """Plain values, with what is worked out of them."""
        shares = {name: getattr(self.totals, name) for name in ("active", "sectors_per_request", "used", "ways")}
        sums = dataclasses.asdict(self.totals)
        return {"warps": self.warps, "instructions": self.instructions, **sums, **shares, "lines": self.lines}


def first_program(call: Call, ptx: str, threads: int, shared: int, file: str) -> FirstProgram | None:
    """Execute it; None where it has instructions that the executor does not know, or takes too many of them."""
    try:
        with _ONE:
            done = execute(
                parse(ptx), call.grid, threads, shared, call.arguments, call.extents, budget=_BUDGET, blocks=1
            )
    except (PTXError, Budget):
        return None
    lines = {line: sums.issued for line, sums in by_line(done.program, done.counts, file).items() if line}
    return FirstProgram(-(-threads // 32), totals(done.counts), lines)
