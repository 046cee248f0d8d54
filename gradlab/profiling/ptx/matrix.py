"""ldmatrix, stmatrix, movmatrix, mma: matrices in the registers of a warp.

Products are exact and summed in float32, of float64 in float64. How many bits a tensor core keeps of a sum on its
way is not documented. Source: PTX ISA 8.7, sections 9.7.14.5.
"""

import re
from collections.abc import Callable

import numpy as np

from gradlab.profiling.ptx.blocks import LANES, Lanes
from gradlab.profiling.ptx.fragments import COLUMNS, ROWS, SUMS, WIDTHS, left, numbers, right, saturated, spread
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.moves import parts
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction

_SHAPE = re.compile(r"^m(\d+)n(\d+)k(\d+)$")
# Bytes of a row of eight elements of 16 bits.
_ROW = 16


def whole(i: Instruction, m: Machine, step: Step) -> Step:
    """The step of what all threads of a warp do together; a warp that lacks some of them is a fault."""

    def run(lanes: Lanes) -> None:
        where = m.where(lanes)
        if where.size % LANES:
            m.fault("partial warp", i, f"{where.size} threads, wanted all {LANES} of each warp", lanes)
        else:
            step(lanes)

    return run


def _number(i: Instruction) -> int:
    if not i.has("b16") or not i.has("m8n8"):
        raise KeyError(".".join(i.opcode))
    return int(next(part for part in i.opcode if part in ("x1", "x2", "x4"))[1:])


def _rows(
    i: Instruction, m: Machine, address: Callable[[Lanes], Array], number: int, write: bool
) -> Callable[[Lanes], tuple[Array, Array] | None]:
    """What gives the offsets of rows, counted, and the lanes that ask: the first eight of each warp for each matrix."""

    def rows(lanes: Lanes) -> tuple[Array, Array] | None:
        asking = np.flatnonzero(m.lane_of[lanes] < ROWS * number)
        offsets, asked = address(lanes)[asking], m.where(lanes)[asking]
        if m.shared.allowed(i, offsets, _ROW, asked) is not None:
            return None
        m.counts.shared_access(i.index, offsets, asked, _ROW, write)
        return offsets, asked

    return rows


@instruction("ldmatrix")
def load_matrices(i: Instruction, m: Machine) -> Step:
    """`ldmatrix.num.trans.shared.b16 {d}, [a]`: a thread gets two neighbours of a row, or of a column."""
    number, transposed = _number(i), i.has("trans")
    targets = [m.target(name, "b32") for name in parts(i.operands[0])]
    rows = _rows(i, m, m.address(i.operands[1]), number, write=False)

    def run(lanes: Lanes) -> None:
        if (found := rows(lanes)) is None:
            return
        words = np.stack(m.shared.read(i, *found, 8, 2), -1)
        matrices = words.view(np.uint16).reshape(-1, number, ROWS, 8)
        if transposed:
            matrices = matrices.swapaxes(-1, -2)
        given = np.ascontiguousarray(matrices.swapaxes(0, 1)).view(np.uint32)
        for write, values in zip(targets, given.reshape(number, -1), strict=True):
            write(lanes, values)

    return whole(i, m, run)


@instruction("stmatrix")
def store_matrices(i: Instruction, m: Machine) -> Step:
    """`stmatrix.num.trans.shared.b16 [a], {b}`."""
    number, transposed = _number(i), i.has("trans")
    sources = [m.source(name, "b32") for name in parts(i.operands[1])]
    rows = _rows(i, m, m.address(i.operands[0]), number, write=True)

    def run(lanes: Lanes) -> None:
        if (found := rows(lanes)) is None:
            return
        given = np.stack([np.broadcast_to(read(lanes), m.where(lanes).shape) for read in sources])
        matrices = given.view(np.uint16).reshape(number, -1, ROWS, 8)
        if transposed:
            matrices = matrices.swapaxes(-1, -2)
        words = np.ascontiguousarray(matrices.swapaxes(0, 1)).view(np.uint64).reshape(-1, 2)
        m.shared.write(i, *found, 8, [words[:, 0], words[:, 1]])

    return whole(i, m, run)


@instruction("movmatrix")
def transpose(i: Instruction, m: Machine) -> Step:
    """`movmatrix.m8n8.trans.b16 d, a`."""
    write, read = m.target(i.operands[0], "b32"), m.source(i.operands[1], "b32")

    def run(lanes: Lanes) -> None:
        matrices = np.ascontiguousarray(read(lanes)).view(np.uint16).reshape(-1, ROWS, 8)
        write(lanes, np.ascontiguousarray(matrices.swapaxes(-1, -2)).view(np.uint32).reshape(-1))

    return whole(i, m, run)


def shape(i: Instruction) -> tuple[int, int, int]:
    """Rows, columns and depth that an opcode names."""
    match = next(found for part in i.opcode if (found := _SHAPE.match(part)))
    return int(match[1]), int(match[2]), int(match[3])


@instruction("mma")
def multiply(i: Instruction, m: Machine) -> Step:
    """`mma.shape.row.col.d.a.b.c d, a, b, c`: d = a b + c."""
    rows, columns, depth = shape(i)
    sum_kind, a_kind, b_kind, c_kind = i.opcode[-4:]
    if columns != 8 or rows not in (8, 16) or not i.has("row") or c_kind != sum_kind or i.has("sp", "and", "xor"):
        raise KeyError(".".join(i.opcode))
    halves = rows // ROWS
    a_raw, b_raw, c_raw, d_raw = ([m.raw(name) for name in parts(i.operands[n])] for n in (1, 2, 3, 0))
    each = max(32 // WIDTHS[a_kind], 1)
    if len(a_raw) * COLUMNS * each != halves * depth or len(b_raw) * COLUMNS * each != depth:
        raise KeyError(".".join(i.opcode))
    a_numbers, b_numbers = numbers(a_kind), numbers(b_kind)
    add = sums(sum_kind, i.has("satfinite"))
    half, dtype = sum_kind == "f16", SUMS[sum_kind]
    operations = 2 * rows * columns * depth

    def run(lanes: Lanes) -> None:
        a = left(a_numbers(np.stack([raw[lanes] for raw in a_raw])), halves)
        b = right(b_numbers(np.stack([raw[lanes] for raw in b_raw])))
        products = spread(np.matmul(a, b.swapaxes(-1, -2)), halves)
        c = np.stack([raw[lanes] for raw in c_raw]).view(dtype)
        if half:
            c = c.reshape(halves, -1, 2).swapaxes(-1, -2).reshape(2 * halves, -1)
        found = add(products, c)
        if half:
            found = np.ascontiguousarray(found.reshape(halves, 2, -1).swapaxes(-1, -2))
        bits = found.view(d_raw[0].dtype).reshape(len(d_raw), -1)
        for raw, values in zip(d_raw, bits, strict=True):
            raw[lanes] = values
        m.counts.operations[i.index] += operations * (bits.shape[1] // LANES)

    return whole(i, m, run)


def sums(kind: str, saturating: bool = False) -> Callable[[Array, Array], Array]:
    """What adds products to sums of a type."""
    if kind == "s32":
        if saturating:
            return lambda products, c: saturated(products.astype(np.int64) + c, kind)
        return lambda products, c: products.astype(np.int32) + c
    if kind == "f16":
        return lambda products, c: (products + c).astype(np.float16)
    return lambda products, c: products + c
