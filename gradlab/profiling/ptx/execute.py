"""One launch: all blocks of a grid, some of them at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.profiling.ptx.counts import Counts
from gradlab.profiling.ptx.faults import Fault, Faults
from gradlab.profiling.ptx.global_memory import Extent, GlobalMemory
from gradlab.profiling.ptx.machine import LANES, Machine
from gradlab.profiling.ptx.program import Program
from gradlab.profiling.ptx.schedule import Scheduler

# Lanes at once: enough that NumPy's cost for a call is small beside its work, few enough for a CPU's caches.
AT_ONCE = 4096
# Bytes of shared memory at once.
_SHARED_AT_ONCE = 1 << 25


@dataclass
class Executed:
    """What a launch did.

    Attributes:
        counts: by instruction.
        faults: what it did wrong.
    """

    program: Program
    counts: Counts
    faults: list[Fault]


def execute(
    program: Program,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    arguments: Sequence[int | bytes],
    extents: Sequence[Extent],
    order: str = "together",
    budget: int = 10**9,
    detailed: bool = True,
    exact: bool = True,
) -> Executed:
    """Run a kernel.

    Args:
        threads: of one block.
        shared: bytes of dynamic shared memory of one block.
        arguments: addresses and numbers as their bits; what is passed by value as bytes.
        extents: the memory that it may reach.
        order: of warps: "together", "first", "last".
        budget: the most instructions of warps.
        detailed: count sectors and bank conflicts too.
        exact: approximate instructions round to nearest; else they are as far off as is documented.

    Raises:
        PTXError: an instruction that is not known.
        Budget: more instructions than the budget.
    """
    blocks = grid[0] * grid[1] * grid[2]
    warps = -(-threads // LANES)
    at_once = max(1, min(blocks, AT_ONCE // (warps * LANES), _SHARED_AT_ONCE // max(shared, 1)))
    counts, faults = Counts(len(program.instructions), detailed), Faults()
    given = [*arguments, *[0] * (len(program.parameters) - len(arguments))]
    memory = GlobalMemory(extents)
    machine = Machine(program, at_once, threads, given, memory, shared, counts, faults, exact)
    with np.errstate(all="ignore"):
        scheduler = Scheduler(machine, order, budget)
        for first in range(0, blocks, at_once):
            scheduler.run(machine.begin(first, grid))
    return Executed(program, counts, list(faults.found.values()))
