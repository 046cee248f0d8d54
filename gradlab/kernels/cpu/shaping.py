"""Operations that move elements, through memory: reshape, join, cat, gather, histogram."""

import math
from collections.abc import Callable

from gradlab.kernels.cpu import lanes, memory, types
from gradlab.kernels.cpu.indexing import interleaves
from gradlab.kernels.cpu.lanes import Pointer, Ramp, Uniform, Vector, registers
from gradlab.kernels.cpu.masks import version_loops
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Buffer, Index, contiguous


def shape_anew(tiles: Tiles, op: Operation) -> bool:
    """Write the operation now; false if it moves no elements and can stay lazy."""
    return SHAPINGS[op.name](tiles, op)


def _reshape(tiles: Tiles, op: Operation) -> bool:
    if interleaves(tiles, op):
        return False
    before, after = op.operand_types[0].shape, op.type.shape
    if [n for n in before if n != 1] == [n for n in after if n != 1]:
        return False
    buffer = _in_order(tiles, op.operands[0])
    tiles.env[op.result] = Buffer(buffer.base, after, contiguous(after), buffer.element)
    return True


def _in_order(tiles: Tiles, name: str) -> Buffer:
    """A tensor in row-major memory."""
    value = tiles.env[name]
    # Loop-carried memory changes in place, and a view of it would change too.
    if isinstance(value, Buffer) and value.strides == contiguous(value.shape) and not _carried(tiles, value):
        return value
    return tiles.materialize(name)


def _carried(tiles: Tiles, buffer: Buffer) -> bool:
    return any(tiles.env.get(name) is buffer for name in tiles.owned)


def _join(tiles: Tiles, op: Operation) -> bool:
    """y[... 0] = a, y[... 1] = b."""
    users = tiles.users.get(op.result, ())
    if len(users) == 1 and interleaves(tiles, users[0]):
        return False
    (*front, _), element = op.type.shape, op.type.element
    shape, b = tuple(front), tiles.b
    y = tiles.buffer(op.type.shape, element)
    tiles.env[op.result] = y
    along, strides = len(shape) - 1, contiguous(y.shape)[:-1]
    width = tiles.width(shape, along, op.operands) if shape else 0
    if not width or element == "i1" or types.is_pointer(element):
        for i, name in enumerate(op.operands):
            _write_part(tiles, y, name, i, shape, strides)
        return True
    rows = Buffer(y.base, shape, strides, element)

    def body(index: Index) -> None:
        kind = b.type(element)
        left, right = (registers(b, tiles.lane(name, index)) for name in op.operands)
        p = tiles.place(rows, index)
        for half in range(2):
            picked = [i // 2 + i % 2 * width for i in range(half * width, (half + 1) * width)]
            order = f"<{width} x i32> {b.vector('i32', picked)}"
            pairs = b.emit(f"shufflevector {kind} {left}, {kind} {right}, {order}")
            start = lanes.moved(b, Pointer(p.base, None, p.element), lanes.known(half * width, "i64"))
            there = lanes.moved(b, start, Ramp(lanes.known(0, "i64"), 1, "i64"))
            memory.store(b, there, Vector(pairs, element), None)

    version_loops(tiles, op.operands, lambda: tiles.nest(shape, along, width, body))
    return True


def _cat(tiles: Tiles, op: Operation) -> bool:
    """Elements of a, then those of b; along the first axis."""
    shape, element = op.type.shape, op.type.element
    y = tiles.buffer(shape, element)
    first = 0
    for name, kind in zip(op.operands, op.operand_types, strict=True):
        _write_part(tiles, y, name, first, kind.shape, contiguous(kind.shape))
        first += math.prod(kind.shape)
    tiles.env[op.result] = y
    return True


def _write_part(
    tiles: Tiles, y: Buffer, name: str, first: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    kind = types.in_memory(y.element)
    base = tiles.b.emit(f"getelementptr inbounds {kind}, ptr {y.base}, i64 {first}") if first else y.base
    tiles.materialize(name, Buffer(base, shape, strides, y.element))


def _gather(tiles: Tiles, op: Operation) -> bool:
    """y[... i ...] = x[... index[... i ...] ...] along an axis."""
    source, index_name = op.operands
    axis, b = op.attributes["axis"], tiles.b
    x = _in_order(tiles, source)
    y = tiles.buffer(op.type.shape, op.type.element)
    along = len(op.type.shape) - 1
    width = tiles.width(op.type.shape, along, [source, index_name])

    def body(index: Index) -> None:
        wanted = tiles.lane(index_name, index)
        offset = b.op(
            "mul",
            "i64",
            b.convert("sext", wanted.element, "i64", registers(b, wanted)),
            b.constant(x.strides[axis], "i64"),
        )
        for i, place in enumerate(index):
            if i == axis or place is None:
                continue
            here = tiles.wide(place)
            if place.lanes and b.width:
                part = registers(
                    b, Ramp(lanes.multiply(b, here, lanes.known(x.strides[i], "i64")), x.strides[i], "i64")
                )
            else:
                part = b.splat("i64", lanes.multiply(b, here, lanes.known(x.strides[i], "i64")).ssa)
            offset = b.op("add", "i64", offset, part)
        if b.width:
            p = Pointer(x.base, Vector(offset, "i64"), "*" + x.element)
        else:
            p = lanes.moved(b, Pointer(x.base, None, "*" + x.element), Uniform(offset, "i64"))  # type: ignore[assignment]
        tiles.write(y, index, memory.load(b, p, None, None))

    tiles.nest(op.type.shape, along, width, body)
    tiles.env[op.result] = y
    return True


def _histogram(tiles: Tiles, op: Operation) -> bool:
    """y[n] = how many elements of x are n; elements outside [0, N) are not counted."""
    b, (N,) = tiles.b, op.type.shape
    y = tiles.buffer((N,), op.type.element)
    t = op.type.element

    def clear(index: Index) -> None:
        tiles.write(y, index, lanes.known(0, t))

    tiles.nest((N,), -1, 0, clear)
    masked = len(op.operands) > 1

    def count(index: Index) -> None:
        n = tiles.lane(op.operands[0], index)
        held = b.compare("ult", n.element, registers(b, n), b.constant(N, n.element))
        if masked:
            held = b.op("and", "i1", held, registers(b, tiles.lane(op.operands[1], index)))
        inside, after = b.label(), b.label()
        b.branch(held, inside, after)
        b.start(inside)
        with b.branch_scope():
            place = b.emit(
                f"getelementptr inbounds {types.llvm(t)}, ptr {y.base}, {types.llvm(n.element)} {registers(b, n)}"
            )
            old = b.emit(f"load {types.llvm(t)}, ptr {place}")
            b.do(f"store {types.llvm(t)} {b.op('add', t, old, '1')}, ptr {place}")
        b.jump(after)
        b.start(after)

    tiles.nest(op.operand_types[0].shape, -1, 0, count)
    tiles.env[op.result] = y
    return True


SHAPINGS: dict[str, Callable[[Tiles, Operation], bool]] = {
    "tt.reshape": _reshape,
    "tt.join": _join,
    "tt.cat": _cat,
    "tt.gather": _gather,
    "tt.histogram": _histogram,
}
