"""fence and membar: an order of accesses to memory, which here are all done at once, but for those of other proxies.

Source: PTX ISA 8.7, section 9.7.13.4.
"""

from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.program import Instruction


@instruction("fence", "membar")
def fence(i: Instruction, m: Machine) -> Step:
    """`fence.proxy.async`: what was done before may be relied on by tensor cores and bulk copies; others do nothing."""
    if not any(part == "async" or part.startswith("async::") for part in i.opcode) or not i.has("proxy"):
        return lambda lanes: None
    return lambda lanes: m.shared.fenced(m.where(lanes))


@instruction("bar", "barrier")
def warp_barrier(i: Instruction, m: Machine) -> Step:
    """`bar.warp.sync`: the threads of a warp know of each other here in any case. An arrival at a cluster of one block
    is nothing: its wait is the barrier."""
    return lambda lanes: None
