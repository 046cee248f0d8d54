"""call: of CUDA's own functions __assertfail and vprintf. A module's functions are read in place of their calls.

Source: CUDA C++ Programming Guide, "Assertion", "Formatted Output".
"""

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.local_memory import LocalMemory
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.moves import parts
from gradlab.profiling.ptx.program import Instruction


@instruction("call")
def call(i: Instruction, m: Machine) -> Step:
    """`call (result), name, (parameters)`: a failed assertion is a fault; nothing is printed."""
    name = next(o for o in i.operands if not o.startswith("("))
    given = parts(i.operands[-1].replace("(", "{").replace(")", "}"))
    if name == "vprintf":
        return lambda lanes: None
    if name != "__assertfail":
        raise KeyError(name)
    message = m.code.local[given[0]]

    def failed(lanes: Lanes) -> None:
        where = m.where(lanes)
        (address,) = m.part(LocalMemory).read(np.array([message]), where[:1], 8, 1)
        text = m.memory.text(int(address[0]))
        m.fault("failed assertion", i, f"{text!r} in {where.size} threads" if text else f"{where.size} threads", where)

    return failed
