"""add.cc, addc, sub.cc, subc, mad.cc, madc: integers of more bits than a register, by a carry that each thread keeps.

Source: PTX ISA 8.7, section 9.7.2.
"""

from typing import Any

import numpy as np

from gradlab.profiling.ptx.arithmetic import product
from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.numbers import BITS, Array
from gradlab.profiling.ptx.program import Instruction


class Carry:
    """The carry of every lane, 0 or 1."""

    def __init__(self, machine: Machine) -> None:
        self.flag = np.zeros(machine.lanes, np.uint64)

    def begin(self) -> None:
        """New blocks come."""
        self.flag[:] = 0


@instruction("addc", "subc", "madc")
def with_carry(i: Instruction, m: Machine) -> Step:
    """`opc.type d, a, b`, `madc.lo.type d, a, b, c`; `.cc` where the carry is kept too."""
    kind = i.opcode[-1]
    unsigned = f"u{BITS[kind]}"
    write = m.target(i.operands[0], unsigned)
    sources = [m.source(o, kind) for o in i.operands[1:]]
    flag = m.part(Carry).flag
    takes, keeps, minus = i.root.endswith("c"), i.has("cc"), i.root.startswith("sub")
    multiply = product(kind, i) if i.root.startswith("mad") else None
    raw = np.dtype(f"u{BITS[kind] // 8}")

    def bits(value: Any) -> Array:
        return np.asarray(value).astype(raw)

    def run(lanes: Lanes) -> None:
        values = [source(lanes) for source in sources]
        if multiply is not None:
            values = [multiply(*values[:2]), values[2]]
        a, b = (bits(value) for value in values)
        given = bits(flag[lanes]) if takes else raw.type(0)
        if minus:
            found = a - b - given
            carried = (a < b) | ((a == b) & (given > 0))
        else:
            first = a + b
            found = first + given
            carried = (first < a) | (found < first)
        if keeps:
            flag[lanes] = carried
        write(lanes, found)

    return run
