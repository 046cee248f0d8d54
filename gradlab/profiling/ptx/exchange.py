"""shfl, vote, redux, match, activemask, elect: what the threads of a warp hand to each other.

Source: PTX ISA 8.7, sections 9.7.9.6, 9.7.13.7 to 9.7.13.12.
"""

from typing import Any

import numpy as np

from gradlab.profiling.ptx.blocks import LANES, Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.program import Instruction


@instruction("shfl")
def shuffle(i: Instruction, m: Machine) -> Step:
    """`shfl.sync.mode.b32 d|p, a, b, c, membermask`: a value of another lane; of a lane out of the segment, its own."""
    mode = i.opcode[2]
    target, *inside = (name.strip() for name in i.operands[0].split("|"))
    value, write = m.source(i.operands[1], "b32"), m.target(target, "b32")
    distance, clamp = m.source(i.operands[2], "u32"), m.source(i.operands[3], "u32")
    write_inside = [m.target(name, "pred") for name in inside]

    def run(lanes: Lanes) -> None:
        where = m.where(lanes)
        lane = m.lane_of[lanes].astype(np.int64)
        by, bound = (np.asarray(v(lanes)).astype(np.int64) & 0x1F1F for v in (distance, clamp))
        by, segment, last = by & 31, bound >> 8, bound & 31
        high = (lane & segment) | (last & ~segment)
        low = lane & segment
        other = {"up": lane - by, "down": lane + by, "bfly": lane ^ by}.get(mode, low | (by & ~segment))
        valid = other >= high if mode == "up" else other <= high
        other = np.where(valid, other, lane)
        whole = np.broadcast_to(np.asarray(value(m.numbers)), m.lanes)
        found = whole[where - lane + other]
        write(lanes, found)
        for each in write_inside:
            each(lanes, valid)

    return run


def _ballot(m: Machine, lanes: Lanes, true: Any) -> np.ndarray:
    """For each lane the bits of its warp's lanes, among these, for which it is true."""
    warps = m.where(lanes) // LANES
    bits = np.where(true, np.uint64(1) << m.lane_of[lanes].astype(np.uint64), np.uint64(0))
    _, number = np.unique(warps, return_inverse=True)
    return np.bincount(number, bits.astype(np.float64)).astype(np.uint32)[number]


@instruction("vote")
def vote(i: Instruction, m: Machine) -> Step:
    """`vote.sync.mode d, p, membermask`."""
    mode = i.opcode[2]
    read = m.source(i.operands[1], "pred")
    write = m.target(i.operands[0], "b32" if mode == "ballot" else "pred")

    def run(lanes: Lanes) -> None:
        true = np.broadcast_to(read(lanes), m.where(lanes).shape)
        bits, everyone = _ballot(m, lanes, true), _ballot(m, lanes, np.ones(true.shape, bool))
        found = {"ballot": bits, "any": bits != 0, "all": bits == everyone}
        write(lanes, found[mode] if mode in found else (bits == 0) | (bits == everyone))

    return run


@instruction("activemask")
def active(i: Instruction, m: Machine) -> Step:
    """The lanes of the warp that are here."""
    write = m.target(i.operands[0], "b32")
    return lambda lanes: write(lanes, _ballot(m, lanes, True))


@instruction("redux")
def reduce(i: Instruction, m: Machine) -> Step:
    """`redux.sync.op.type d, a, membermask`."""
    kind = i.opcode[-1]
    operation: Any = {"add": np.add, "min": np.minimum, "max": np.maximum}.get(i.opcode[2])
    operation = operation or {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[i.opcode[2]]
    read, write = m.source(i.operands[1], kind), m.target(i.operands[0], kind)

    def run(lanes: Lanes) -> None:
        values = np.broadcast_to(np.asarray(read(lanes)), m.where(lanes).shape)
        starts = np.flatnonzero(np.diff(m.where(lanes) // LANES, prepend=-1))
        sizes = np.diff(np.append(starts, values.size))
        write(lanes, np.repeat(operation.reduceat(values, starts), sizes))

    return run


@instruction("elect")
def elect(i: Instruction, m: Machine) -> Step:
    """`elect.sync d|p, membermask`: true in the lowest lane."""
    target, predicate = (name.strip() for name in i.operands[0].split("|"))
    write, write_lane = m.target(predicate, "pred"), m.target(target, "b32")

    def run(lanes: Lanes) -> None:
        where = m.where(lanes)
        first = np.diff(where // LANES, prepend=-1) != 0
        write(lanes, first)
        starts = np.flatnonzero(first)
        write_lane(lanes, np.repeat(m.lane_of[where[starts]], np.diff(np.append(starts, where.size))))

    return run
