"""Cycles of a launch on a named GPU, from what was counted when it was executed: a model, never a time.

Each part of the GPU is taken to work without a pause, as if every other part were infinitely fast: the largest number
of cycles is the least that the launch can take. Latencies, and caches that do not hold what they could, are not in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gradlab.profiling.emulate.result import LaunchResult
from gradlab.profiling.machine_code.cycles import machine_units, multiprocessor, ptx_units
from gradlab.profiling.machine_code.gpus import GPU, RATES
from gradlab.profiling.machine_code.pipes import Mix, mix
from gradlab.profiling.machine_code.targets import occupancy, target
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
    issued = ptx_units(program, counts) if code is None else machine_units(program, counts, code, launch.file)
    # The busiest multiprocessor has so much of all blocks' work.
    cycles = {part: n * busiest / blocks for part, n in multiprocessor(program, counts, rates, issued).items()}
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
        None if code is None else sum(issued.values()),
    )


def closest(launch: LaunchResult, gpu: GPU) -> Model | None:
    """The model by the kernel's machine code, which is assembled once more for its lines."""
    return model(launch, gpu, mix(launch.ptx, launch.cubin, target(launch.arch), launch.file))
