"""The first program of a launch, executed: what instructions do, beside machine code, which says what they are."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradlab.kernels.runtime.forking import Lock
from gradlab.profiling.machine_code.cycles import machine_units, multiprocessor
from gradlab.profiling.machine_code.found import Binary, Call
from gradlab.profiling.machine_code.gpus import RATES
from gradlab.profiling.machine_code.pipes import mix
from gradlab.profiling.machine_code.targets import Target
from gradlab.profiling.ptx.execute import execute, scratch_memory
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import PTXError, parse
from gradlab.profiling.ptx.schedule import Budget
from gradlab.profiling.ptx.totals import Totals, by_line, totals
from gradlab.profiling.ptx.traffic import SECTOR

# Instructions of warps that one program may take: a second or two.
_BUDGET = 1_000_000
# The executor is Python: several threads are no faster, and its table of instructions is filled by the first one.
_ONE = Lock()


@dataclass(frozen=True)
class FirstProgram:
    """What one program of a launch did, on memory that nothing was written to.

    Attributes:
        warps: of a program.
        programs: of the launch.
        totals: sums over its warps.
        lines: line of the kernel's own file -> instructions of warps.
        machine: its instructions of warps in machine code, estimated by source line.
        cycles: of one multiprocessor, that each of its parts needs for them if nothing ever waits, by part; what other
            programs and memory would do is not in it.
        touched: bytes of the sectors of global memory that it reads or writes, each once.
    """

    warps: int
    programs: int
    totals: Totals
    lines: dict[int, int]
    machine: float
    cycles: Mapping[str, float]
    touched: int

    @property
    def instructions(self) -> float:
        """Of one warp, on average."""
        return self.totals.issued / self.warps

    @property
    def tensor_share(self) -> float:
        """The cycles of tensor cores, of those of the part that needs the most."""
        most = max(self.cycles.values(), default=0.0)
        return self.cycles.get("tensor", 0.0) / most if most else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, with what is worked out of them."""
        shares = {name: getattr(self.totals, name) for name in ("active", "sectors_per_request", "used", "ways")}
        sums = dataclasses.asdict(self.totals)
        more = {"machine": self.machine, "cycles": dict(self.cycles), "tensor_share": self.tensor_share}
        more["touched"] = self.touched
        return {"warps": self.warps, "instructions": self.instructions, **sums, **shares, **more, "lines": self.lines}


def first_program(call: Call, made: Binary, where: Target, file: str) -> FirstProgram | None:
    """Execute it; None where it has instructions that the executor does not know, or takes too many of them."""
    scratch = scratch_memory(made.scratch)
    # Triton's last two arguments: memory of a program for itself, and a profiler's.
    arguments = [*call.arguments, scratch.ctypes.data if scratch.size else 0, 0]
    extents = [*call.extents, Extent(scratch.ctypes.data, scratch.size, "scratch memory")]
    program = parse(made.assembly)
    try:
        with _ONE:
            done = execute(
                program,
                call.grid,
                made.threads,
                made.shared,
                arguments[: len(program.parameters)],
                extents,
                budget=_BUDGET,
                blocks=1,
            )
    except (PTXError, Budget):
        return None
    program, counts = done.program, done.counts
    lines = {line: sums.issued for line, sums in by_line(program, counts, file).items() if line}
    code = machine_units(program, counts, mix(made.assembly, made.code, where, file), file)
    rates = RATES.get(where.name)
    cycles = multiprocessor(program, counts, rates, code) if rates else {}
    tensors = counts.traffic.tensors()
    touched = SECTOR * sum(t.distinct_read + t.distinct_written for t in tensors)
    programs = math.prod(call.grid)
    return FirstProgram(-(-made.threads // 32), programs, totals(counts), lines, sum(code.values()), cycles, touched)
