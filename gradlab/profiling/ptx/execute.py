"""One launch: all blocks of a grid, some of them at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradlab.profiling.ptx.blocks import LANES
from gradlab.profiling.ptx.counts import Counts
from gradlab.profiling.ptx.faults import Fault, Faults
from gradlab.profiling.ptx.global_memory import Extent, GlobalMemory
from gradlab.profiling.ptx.machine import Machine
from gradlab.profiling.ptx.program import Program
from gradlab.profiling.ptx.schedule import Budget, Scheduler
from gradlab.profiling.ptx.shadow import bytes_per_block

# Lanes at once: enough that NumPy's cost for a call is small beside its work, few enough for a CPU's caches.
AT_ONCE = 4096
# Bytes that the address of scratch memory is a multiple of: a tensor map lies in it.
_ALIGNMENT = 128
# Bytes of shared memory at once.
_SHARED_AT_ONCE = 1 << 25
# Bytes of what is known about it.
_SHADOW_AT_ONCE = 1 << 26


@dataclass
class Executed:
    """What a launch did.

    Attributes:
        counts: by instruction.
        faults: what it did wrong.
        notes: what it did wrong by PTX, and the assembler makes right at a cost in time.
    """

    program: Program
    counts: Counts
    faults: list[Fault]
    notes: list[Fault] = field(default_factory=list)


def execute(
    program: Program,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    arguments: Sequence[int | bytes],
    extents: Sequence[Extent],
    more: Callable[[], Iterable[Extent]] | None = None,
    order: str = "together",
    budget: int = 10**9,
    detailed: bool = True,
    exact: bool = True,
    check: bool = False,
    late: bool = True,
    blocks: int | None = None,
) -> Executed:
    """Run a kernel.

    Args:
        threads: of one block.
        shared: bytes of dynamic shared memory of one block.
        arguments: addresses and numbers as their bits; what is passed by value as bytes.
        extents: the memory that it may reach; `more`: what else there is, asked when an address lies in none of them.
        order: of warps: "together", "first", "last".
        budget: the most instructions of warps.
        detailed: count sectors and bank conflicts too.
        exact: approximate instructions round to nearest; else they are as far off as is documented.
        check: find races, missing waits and fences in shared memory, whatever order the warps run in.
        late: asynchronous copies land at the last moment that a GPU may take, else at the first.
        blocks: execute the first ones of the grid alone, so many.

    Raises:
        PTXError: an instruction that is not known.
        Budget: more instructions than the budget, as soon as the first blocks say so.
    """
    blocks = min(grid[0] * grid[1] * grid[2], blocks or 2**62)
    warps = -(-threads // LANES)
    at_once = max(1, min(blocks, AT_ONCE // (warps * LANES), _SHARED_AT_ONCE // max(shared, 1)))
    if check:
        at_once = max(1, min(at_once, _SHADOW_AT_ONCE // max(bytes_per_block(program, shared, warps), 1)))
    given = [*arguments, *[0] * (len(program.parameters) - len(arguments))]
    memory = GlobalMemory(extents, more)
    counts, faults = Counts(len(program.instructions), detailed, memory, at_once), Faults()
    machine = Machine(program, at_once, threads, given, memory, shared, counts, faults, exact, check, late)
    with np.errstate(all="ignore"):
        scheduler = Scheduler(machine, order, budget)
        for first in range(0, blocks, at_once):
            # What the first blocks take tells early that all of them would take too many; some may take half of it.
            share = min(1.0, (first + at_once) / blocks)
            scheduler.budget = min(budget, int(2 * budget * share))
            try:
                working = machine.begin(first, grid)
                scheduler.run(working & (machine.program[machine.block_of] < blocks))
            except Budget:
                raise Budget(int(scheduler.spent / share)) from None
            counts.next_blocks()
    found = faults.found.values()
    wrong, repaired = ([fault for fault in found if fault.repaired == which] for which in (False, True))
    return Executed(program, counts, wrong, repaired)


def scratch_memory(size: int) -> np.ndarray:
    """Zeros that begin where a GPU's allocation may: at a multiple of what a tensor map needs."""
    whole = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % _ALIGNMENT
    return whole[start : start + size]
