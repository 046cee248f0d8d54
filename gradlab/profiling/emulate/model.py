"""Cycles of a launch on a named GPU, from what was counted when it was executed: a model, never a time.

Each part of the GPU is taken to work without a pause, as if every other part were infinitely fast: the largest number
of cycles is the least that the launch can take. Latencies, and caches that do not hold what they could, are not in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradlab.profiling.emulate.result import LaunchResult
from gradlab.profiling.machine_code.gpus import GPU, RATES, Rates
from gradlab.profiling.machine_code.pipes import Mix, loops_of, mix
from gradlab.profiling.machine_code.targets import occupancy, target
from gradlab.profiling.ptx.counts import PASS, WARP, Counts
from gradlab.profiling.ptx.kinds import kind
from gradlab.profiling.ptx.program import Instruction, Program
from gradlab.profiling.ptx.totals import line_in
from gradlab.profiling.ptx.traffic import SECTOR

# Parts of a GPU, with what their cycles are.
PARTS = {
    "issue": "instructions of warps, over the schedulers",
    "FMA": "floating-point arithmetic and integer products, over the lanes that do them",
    "ALU": "integer arithmetic, logic, comparisons",
    "float64": "float64 arithmetic outside of tensor cores",
    "special": "special functions and conversions",
    "tensor": "FLOP of tensor cores",
    "shared": "shared memory and L1: passes, shuffles, and bytes of global memory by way of L1",
    "L2": "sectors that L1 does not have if it keeps all that a block reads, and all that are written",
    "memory": "sectors that are read or written at all, each once",
}


@dataclass(frozen=True)
class Model:
    """The least cycles that each part of a GPU needs for a launch; the largest is what bounds it.

    Attributes:
        gpu: its name.
        blocks: resident at once on one multiprocessor.
        occupancy: the share of the multiprocessor's warps that they make up.
        limiter: what allows no more of them.
        waves: blocks of the grid over what the GPU holds at once.
        busiest: blocks that the multiprocessor with the most of them gets.
        cycles: by part, whole launch, those of the busiest multiprocessor; L2's and memory's are the GPU's.
        instructions: of warps, executed; in PTX.
        machine: the same in machine code, estimated by source line; None where that is not known.
    """

    gpu: str
    blocks: int
    occupancy: float
    limiter: str
    waves: float
    busiest: int
    cycles: Mapping[str, float]
    instructions: int
    machine: float | None = None

    @property
    def bound(self) -> str:
        """The part with the most cycles."""
        return max(self.cycles, key=lambda part: self.cycles[part])

    def share(self, part: str) -> float:
        """A part's cycles, of those of the bound."""
        return self.cycles[part] / self.cycles[self.bound] if self.cycles[self.bound] else 0.0


def model(launch: LaunchResult, gpu: GPU, code: Mix | None = None) -> Model | None:
    """The model of a launch; None where the architecture has none, or a multiprocessor has no room for a block.

    Args:
        code: the kernel's machine code, where instructions are to be taken from that.
    """
    where, rates = target(gpu.arch), RATES.get(gpu.arch)
    full = occupancy(where, launch.registers, launch.threads, launch.shared)
    if rates is None or full is None or not full.blocks:
        return None
    program, counts, blocks = launch.executed.program, launch.executed.counts, math.prod(launch.grid)
    busiest = -(-blocks // gpu.multiprocessors)
    units = _units(program, counts) if code is None else _machine(program, counts, code, launch.file)
    # The busiest multiprocessor has so much of all blocks' work.
    cycles = {part: n * busiest / blocks for part, n in _multiprocessor(program, counts, rates, units).items()}
    tensors = counts.traffic.tensors()
    if gpu.l2:
        cycles["L2"] = SECTOR * sum(t.fetched + t.written for t in tensors) / gpu.l2
    moved = SECTOR * sum(t.distinct_read + t.distinct_written for t in tensors)
    cycles["memory"] = moved / (gpu.ceilings.bandwidth / gpu.clock)
    return Model(
        gpu.name,
        full.blocks,
        full.share,
        full.limiter,
        blocks / (gpu.multiprocessors * full.blocks),
        busiest,
        {part: cycles[part] for part in PARTS if cycles.get(part)},
        int(counts.issued.sum()),
        None if code is None else sum(units.values()),
    )


def closest(launch: LaunchResult, gpu: GPU) -> Model | None:
    """The model by the kernel's machine code, which is assembled once more for its lines."""
    return model(launch, gpu, mix(launch.ptx, launch.cubin, target(launch.arch), launch.file))


def _multiprocessor(program: Program, counts: Counts, rates: Rates, units: Mapping[str, float]) -> dict[str, float]:
    """Cycles of one multiprocessor that executes all of it.

    Args:
        units: instructions of warps by what executes them.
    """
    tensor = l1 = 0.0
    passes = float(counts.passes.sum())
    for i in program.instructions:
        issued, what = int(counts.issued[i.index]), kind(i)
        if what == "tensor":
            tensor += counts.operations[i.index] / (rates.tensor[_operands(i)] * (rates.mma if i.root == "mma" else 1))
        elif what == "exchange":
            # Shuffles pass through the lanes of shared memory.
            passes += issued
        elif what in ("load", "store", "atomic"):
            l1 += int(counts.sectors[i.index]) * SECTOR
    lanes = {unit: WARP * units.get(unit, 0.0) for unit in (*_UNITS.values(), "half")}
    fma = (lanes["float32"] + lanes["multiply"]) / rates.float32 + lanes["half"] / rates.half
    return {
        "issue": sum(units.values()) / rates.schedulers,
        "FMA": max(fma, lanes["multiply"] / rates.multiply),
        "ALU": lanes["integer"] / rates.integer,
        "float64": lanes["float64"] / rates.float64,
        "special": lanes["special"] / rates.special,
        "tensor": tensor,
        "shared": passes * PASS / rates.shared + l1 / rates.shared,
    }


def _units(program: Program, counts: Counts) -> dict[str, float]:
    """Instructions of warps by the units that execute them, as PTX has them."""
    found: dict[str, float] = {}
    for i in program.instructions:
        what = kind(i)
        unit = "integer" if what == "convert" and _narrow(i) else _UNITS.get(what, "other")
        found[unit] = found.get(unit, 0.0) + float(counts.issued[i.index])
    return found


_UNITS = {
    "float32": "float32",
    "half": "half",
    "multiply": "multiply",
    "integer": "integer",
    "compare": "integer",
    "float64": "float64",
    "special": "special",
    "convert": "special",
}


def _operands(i: Instruction) -> str:
    """The type of what tensor cores multiply: `wgmma...d.a.b`, `mma...d.a.b.c`."""
    return i.opcode[-2] if i.root == "wgmma" else i.opcode[-3]


def _narrow(i: Instruction) -> bool:
    """Whether a conversion is a shift or a permutation of bits: of integers, and from 16 bits to float32."""
    to, of = i.opcode[-2:]
    return (to[0] in "sub" and of[0] in "sub" and "f" not in to + of) or (to == "f32" and of in ("f16", "bf16"))


def _machine(program: Program, counts: Counts, code: Mix, file: str) -> dict[str, float]:
    """Instructions of warps by unit, in machine code.

    An instruction of a line in a loop is taken to be executed as often as those of PTX on that line in that loop are on
    average; if the loop has no such line, as those of the loop; what is in no loop and on no line, once by each warp.
    Where machine code has not as many loops as PTX, it is all taken as one.
    """
    labels = program.labels
    branches = [(labels[i.operands[-1]], i.index) for i in program.instructions if i.root == "bra"]
    loops = loops_of(len(program.instructions), [(first, last) for first, last in branches if first < last])
    alike = max(loops, default=0) == code.loops
    by_line: dict[tuple[int, int], list[int]] = {}
    by_loop: dict[int, list[int]] = {}
    for i in program.instructions:
        loop = loops[i.index] if alike else 0
        by_line.setdefault((loop, line_in(i.place, file)), []).append(int(counts.issued[i.index]))
        by_loop.setdefault(loop, []).append(int(counts.issued[i.index]))
    warps = [int(counts.issued[0])] if counts.issued.size else [0]
    found: dict[str, float] = {}
    for (inside, line), units in code.parts.items():
        loop = inside if alike else 0
        often = float(np.mean(by_line.get((loop, line), by_loop[loop] if loop else warps)))
        for unit, number in units.items():
            found[unit] = found.get(unit, 0.0) + number * often
    return found
