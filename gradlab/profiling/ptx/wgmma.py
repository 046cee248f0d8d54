"""wgmma: four warps multiply matrices in shared memory, asynchronously.

Products are exact and summed in float32; a GPU keeps fewer bits of a sum of 8-bit floating-point numbers. The operation
is executed when it is issued; that nothing depends on when is what `flight.py` watches. Source: PTX ISA 8.7, section
9.7.15.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradlab.profiling.ptx import descriptors, flight
from gradlab.profiling.ptx.blocks import LANES, Lanes
from gradlab.profiling.ptx.fragments import COLUMNS, ROWS, SUMS, WIDTHS, numbers
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.matrix import shape, sums
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction

_GROUP, _HEIGHT = 4, 64
# Bytes of K that one instruction takes, of every type.
_DEPTH = 32


@dataclass
class Groups:
    """Lanes of whole warp groups, and how to see a table of registers [register, lane] by group.

    Attributes:
        lanes: a slice, or indices [group, lane of 128].
        split: warp groups, and blocks, that they are of.
        first: the first lane of each group.
    """

    lanes: Lanes
    split: tuple[int, int]
    first: Array

    def gather(self, table: Array) -> Array:
        """[register, warp group, warp, block, row, column]: a view where that is possible."""
        many, blocks = self.split
        return table[:, self.lanes].reshape(len(table), many, _GROUP, blocks, ROWS, COLUMNS)

    def scatter(self, table: Array, values: Array) -> None:
        """Write what `gather` gave."""
        chosen = table[:, self.lanes]
        table[:, self.lanes] = values.reshape(chosen.shape)


def _groups(m: Machine, lanes: Lanes) -> Groups | None:
    """The warp groups that lanes are; None where some of their warps are missing."""
    each = _GROUP * m.blocks * LANES
    if isinstance(lanes, slice) and lanes.start % each == 0 and lanes.stop % each == 0:
        many = (lanes.stop - lanes.start) // each
        starts = np.arange(lanes.start, lanes.stop, each)[:, None] + np.arange(0, m.blocks * LANES, LANES)
        return Groups(lanes, (many, m.blocks), starts.ravel())
    where = m.where(lanes)
    if where.size % (_GROUP * LANES):
        return None
    warps = where[::LANES] // LANES
    warp, block = warps // m.blocks, warps % m.blocks
    order = np.lexsort((warp, block, warp // _GROUP))
    chosen = where.reshape(-1, LANES)[order].reshape(-1, _GROUP, LANES)
    group = (warp // _GROUP * m.blocks + block)[order].reshape(-1, _GROUP)
    if (group != group[:, :1]).any():
        return None
    return Groups(chosen, (len(chosen), 1), chosen[:, 0, 0])


@instruction("wgmma")
def warp_group(i: Instruction, m: Machine) -> Step:
    """`wgmma.fence`, `.commit_group`, `.wait_group n`, `.mma_async`."""
    if i.has("mma_async"):
        return _multiply(i, m)
    watch = m.part(flight.Flight)
    if i.has("fence"):
        return lambda lanes: watch.fence(watch.warps(lanes))
    if i.has("commit_group"):
        return lambda lanes: watch.commit(watch.warps(lanes))
    if not i.has("wait_group"):
        raise KeyError(i.opcode[1])
    left = int(i.operands[0], 0)
    return lambda lanes: watch.wait(watch.warps(lanes), left)


def _multiply(i: Instruction, m: Machine) -> Step:
    """`wgmma.mma_async.sync.aligned.shape.d.a.b d, a, b, scale-d, negations, transpositions`."""
    rows, columns, depth = shape(i)
    sum_kind, a_kind, b_kind = i.opcode[-3:]
    if rows != _HEIGHT or depth * WIDTHS[a_kind] != 8 * _DEPTH:
        raise KeyError(".".join(i.opcode))
    watch = m.part(flight.Flight)
    d_names, a_names = flight.names_of(i)
    d_rows, a_rows = watch.numbers(d_names), watch.numbers(a_names)
    keep, *flags = i.operands[3:]
    given = [int(flag, 0) for flag in flags]
    negate = given[:2].count(-1) == 1
    transposed = given[2:]
    a_turned = bool(not a_names and len(transposed) == 2 and transposed[0])
    b_turned = bool(transposed and transposed[-1])
    a_read = _registers(i, m, a_names, a_kind) if a_names else _shared(i, m, 1, a_kind, _HEIGHT, a_turned)
    b_read = _shared(i, m, 2, b_kind, columns, b_turned)
    keeps = m.source(keep, "pred")
    add = sums(sum_kind, i.has("satfinite"))
    half = sum_kind == "f16"
    dtype = SUMS[sum_kind]
    each = 2 if half else 1
    if len(d_names) * each != columns // 2:
        raise KeyError(".".join(i.opcode))
    known = watch.tables.get(tuple(d_names))
    raw = None if known is not None else [m.raw(name) for name in d_names]

    def run(lanes: Lanes) -> None:
        groups = _groups(m, lanes)
        if groups is None:
            m.fault("partial warp group", i, f"{m.where(lanes).size} threads, wanted all 128 of each group", lanes)
            return
        watch.issue(i, d_rows, a_rows, columns * depth, watch.warps(lanes))
        a, b = a_read(groups), b_read(groups)
        if a is None or b is None:
            return
        many, blocks = groups.split
        products = np.matmul(a, b.swapaxes(-1, -2))
        if negate:
            products = -products
        # [group, block, warp, half, row, 8 columns, pair of columns, two] as registers have it.
        parts = products.reshape(many, blocks, _GROUP, 2, ROWS, columns // 8, COLUMNS, 2)
        parts = parts.transpose(5, 3, 7, 0, 2, 1, 4, 6)
        table = known if known is not None else np.stack(raw or [])
        before = groups.gather(table).view(dtype)
        kept = np.broadcast_to(keeps(groups.first), groups.first.shape)
        if not kept.all():
            before = np.where(kept.reshape(1, many, 1, blocks, 1, 1), before, np.zeros((), dtype))
        if half:
            parts = np.moveaxis(parts, 2, -1)
        found = add(parts, before.reshape(parts.shape))
        bits = np.ascontiguousarray(found).astype(dtype, copy=False).view(table.dtype)
        groups.scatter(table, bits)
        if raw is not None:
            for register, values in zip(raw, table, strict=True):
                register[groups.lanes] = values[groups.lanes]
        m.counts.operations[i.index] += 2 * _HEIGHT * columns * depth * groups.first.size

    return run


def _registers(i: Instruction, m: Machine, names: list[str], kind: str) -> Callable[[Groups], Array | None]:
    """The left matrix [group, block, row, K] from registers."""
    make, raw = numbers(kind), [m.raw(name) for name in names]
    known = m.part(flight.Flight).tables.get(tuple(names))
    if len(names) != 4:
        raise KeyError(".".join(i.opcode))

    def read(groups: Groups) -> Array:
        many, blocks = groups.split
        values = make(np.ascontiguousarray(groups.gather(known if known is not None else np.stack(raw))))
        parts = values.reshape(2, 2, many, _GROUP, blocks, ROWS, COLUMNS, values.shape[-1])
        return parts.transpose(2, 4, 3, 1, 5, 0, 6, 7).reshape(many, blocks, _HEIGHT, -1)

    return read


def _shared(
    i: Instruction, m: Machine, operand: int, kind: str, rows: int, turned: bool
) -> Callable[[Groups], Array | None]:
    """A matrix [group, block, row or column, K] from shared memory, which a descriptor describes."""
    make, source = numbers(kind), m.source(i.operands[operand], "b64")
    elements = 8 * _DEPTH // WIDTHS[kind]
    if turned and WIDTHS[kind] != 16:
        raise KeyError(".".join(i.opcode))

    def read(groups: Groups) -> Array | None:
        bits = np.broadcast_to(source(groups.first), groups.first.shape)
        every = [int(bits[0])] if (bits == bits[0]).all() else [int(value) for value in bits]
        offsets = np.stack([descriptors.pieces(each, rows, elements, turned).ravel() for each in every])
        if (
            m.shared.allowed(i, offsets.ravel(), descriptors.PIECE, np.repeat(groups.first[0], offsets.size))
            is not None
        ):
            return None
        count = sum(descriptors.passes(each, rows, elements, turned) for each in every)
        _count(i, m, groups.first.size, rows, count if len(every) > 1 else count * groups.first.size)
        words = m.shared.pieces(i, offsets, groups.first)
        m.part(flight.Flight).reads(groups.first, offsets)
        values = make(words)
        if turned:
            values = values.reshape(-1, rows // 8, elements, 8).swapaxes(-1, -2)
        return np.ascontiguousarray(values).reshape(*groups.split, rows, elements)

    return read


def _count(i: Instruction, m: Machine, groups: int, rows: int, passes: int) -> None:
    m.counts.shared_moved[i.index] += groups * rows * _DEPTH
    m.counts.shared_requests[i.index] += groups
    m.counts.passes[i.index] += passes
