"""mov, cvta, mapa and what does nothing here: registers, pairs of them, addresses.

Source: PTX ISA 8.7, sections 9.7.9.4 to 9.7.9.6, 9.7.9.20, 9.7.9.22.
"""

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import LOCAL_WINDOW, SHARED_WINDOW, Machine, Step
from gradlab.profiling.ptx.numbers import BITS
from gradlab.profiling.ptx.program import Instruction


def parts(operand: str) -> list[str]:
    """The registers of a vector operand, or the only one."""
    return [p.strip() for p in operand.strip("{} ").split(",")] if operand.startswith("{") else [operand]


@instruction("mov")
def move(i: Instruction, m: Machine) -> Step:
    """`mov.type d, a`, where one of them may be a vector of parts."""
    kind = i.opcode[-1]
    d, a = i.operands
    if kind == "pred":
        write, read = m.target(d, "pred"), m.source(a, "pred")
        return lambda lanes: write(lanes, read(lanes))
    bits = BITS[kind]
    if d.startswith("{"):
        names = parts(d)
        each = bits // len(names)
        read = m.source(a, f"b{bits}")
        writes = [m.target(name, f"b{each}") for name in names]

        def split(lanes: Lanes) -> None:
            value = np.asarray(read(lanes))
            for n, write in enumerate(writes):
                write(lanes, (value >> value.dtype.type(n * each)).astype(f"u{each // 8}"))

        return split
    if a.startswith("{"):
        names = parts(a)
        each = bits // len(names)
        write = m.target(d, f"b{bits}")
        reads = [m.source(name, f"b{each}") for name in names]
        raw = np.dtype(f"u{bits // 8}").type

        def join(lanes: Lanes) -> None:
            found = raw(0)
            for n, part in enumerate(reads):
                found = found | (np.asarray(part(lanes)).astype(raw) << raw(n * each))
            write(lanes, found)

        return join
    write, read = m.target(d, f"b{bits}"), m.source(a, f"b{bits}")
    return lambda lanes: write(lanes, read(lanes))


@instruction("cvta")
def convert_address(i: Instruction, m: Machine) -> Step:
    """Between generic addresses and those of a space; global ones are the same."""
    write, read = m.target(i.operands[0], "s64"), m.source(i.operands[1], "s64")
    if not i.has("shared", "shared::cta", "shared::cluster", "local"):
        return lambda lanes: write(lanes, read(lanes))
    window = LOCAL_WINDOW if i.has("local") else SHARED_WINDOW
    shift = np.int64(-window if i.has("to") else window)
    return lambda lanes: write(lanes, read(lanes) + shift)


@instruction("mapa")
def map_address(i: Instruction, m: Machine) -> Step:
    """An address of shared memory in a block of the cluster; a cluster has one block here."""
    kind = i.opcode[-1]
    write, read = m.target(i.operands[0], kind), m.source(i.operands[1], kind)
    return lambda lanes: write(lanes, read(lanes))


@instruction(
    "prefetch", "prefetchu", "discard", "applypriority", "nanosleep", "griddepcontrol", "setmaxnreg", "createpolicy"
)
def nothing(i: Instruction, m: Machine) -> Step:
    """What changes speed alone."""
    if i.root == "createpolicy":
        write = m.target(i.operands[0], "b64")
        return lambda lanes: write(lanes, np.uint64(0))
    return lambda lanes: None
