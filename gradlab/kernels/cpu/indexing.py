"""Operations that only change the index of an element: ranges, broadcasts, transposes."""

from collections.abc import Callable

from gradlab.kernels.cpu import lanes, types
from gradlab.kernels.cpu.elementwise import RULES
from gradlab.kernels.cpu.lanes import Lane, Ramp, Uniform, Vector, registers
from gradlab.kernels.cpu.tensors import Tensors
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Index, NotLowered, Position, chain


def _constant(tiles: Tensors, op: Operation, index: Index, _: int) -> Lane:
    value = op.attributes["value"]
    if isinstance(value, (list, tuple)):
        raise NotLowered(op, "a constant tensor of different elements")
    return lanes.constant(value, op.result_types[0].element)


def _splat(tiles: Tensors, op: Operation, index: Index, _: int) -> Lane:
    return tiles.lane(op.operands[0], ())


def _range(tiles: Tensors, op: Operation, index: Index, _: int) -> Lane:
    (here,) = index
    first = lanes.known(op.attributes["start"], "i32")
    if here is None:
        return first
    base = lanes.add(tiles.b, Uniform(here.ssa, "i32", here.known), first)
    return Ramp(base, 1, "i32") if here.lanes and tiles.b.width else base


def _expand_from(tiles: Tensors, op: Operation, index: Index, width: int) -> tuple[Index, int]:
    axis = op.attributes["axis"]
    return index[:axis] + index[axis + 1 :], width


def _broadcast_from(tiles: Tensors, op: Operation, index: Index, width: int) -> tuple[Index, int]:
    shape = op.operand_types[0].shape
    return tuple(None if n == 1 else i for n, i in zip(shape, index, strict=True)), width


def _transpose_from(tiles: Tensors, op: Operation, index: Index, width: int) -> tuple[Index, int]:
    source: list[Position | None] = [None] * len(index)
    for axis, from_axis in enumerate(op.attributes["order"]):
        source[from_axis] = index[axis]
    return tuple(source), width


def _reshape_from(tiles: Tensors, op: Operation, index: Index, width: int) -> tuple[Index, int]:
    """A reshape that adds or drops axes of one element or interleaves two tensors; others use memory (`shaping`)."""
    shape, given = op.operand_types[0].shape, op.result_types[0].shape
    if interleaves(tiles, op):
        (*front, here), b = index, tiles.b
        assert here is not None
        with b.lanes(0):
            half = here.known // 2 if here.known is not None else None
            ssa = b.emit(f"lshr i32 {here.ssa}, 1") if half is None else str(half)
        return (*front, Position(ssa, half, here.lanes), here), width // 2 if here.lanes else width
    moving = iter([i for i, n in zip(index, given, strict=True) if n != 1])
    return tuple(None if n == 1 else next(moving) for n in shape), width


def _join_from(tiles: Tensors, op: Operation, index: Index, width: int) -> tuple[Index, int]:
    return index[:-1], width


def _splat_from(tiles: Tensors, op: Operation, index: Index, width: int) -> tuple[Index, int]:
    return (), width


# The index at which an operation's operand is evaluated, and over how many lanes.
SOURCES: dict[str, Callable[[Tensors, Operation, Index, int], tuple[Index, int]]] = {
    "tt.splat": _splat_from,
    "tt.expand_dims": _expand_from,
    "tt.broadcast": _broadcast_from,
    "tt.trans": _transpose_from,
    "tt.reshape": _reshape_from,
    "tt.join": _join_from,
}


def _relabelled(tiles: Tensors, op: Operation, index: Index, _: int) -> Lane:
    there, _ = SOURCES[op.name](tiles, op, index, tiles.b.width)
    return tiles.lane(op.operands[0], there)


def interleaves(tiles: Tensors, op: Operation) -> bool:
    """Whether a reshape interleaves two tensors only for stores, so that it needs no memory."""
    joined = tiles.definitions.get(op.operands[0]) if op.name == "tt.reshape" else None
    if joined is None or joined.name != "tt.join" or len(tiles.users[joined.result]) > 1:
        return False
    *front, n, two = joined.type.shape
    if op.type.shape != (*front, two * n) or n < 2 or types.is_pointer(op.type.element) or op.type.element == "i1":
        return False
    users = tiles.users.get(op.result, ())
    while len(users) == 1 and users[0].name in RULES and users[0].block is op.block:
        users = tiles.users.get(users[0].result, ())
    return len(users) == 1 and users[0].name == "tt.store" and users[0].block is op.block is joined.block


def interleaved(tiles: Tensors, name: str) -> bool:
    """Whether a tensor is computed elementwise from an interleaving of two tensors."""
    return any(interleaves(tiles, op) for op in chain(tiles.env, name, lambda op: op.name in RULES))


def _reshape(tiles: Tensors, op: Operation, index: Index, _: int) -> Lane:
    if not interleaves(tiles, op):
        return _relabelled(tiles, op, index, 0)
    # Lanes a, b, a, b, ...: half as many of each; one of the two where lanes are along another axis than the last.
    (joined, b), here = (tiles.definitions[op.operands[0]], tiles.b), index[-1]
    assert here is not None
    element, width = joined.type.element, b.width
    there, narrower = _reshape_from(tiles, op, index, width)
    with b.lanes(narrower):
        kind = b.type(element)
        x, y = (registers(b, tiles.lane(name, there[:-1])) for name in joined.operands)
    if here.lanes and width:
        order = b.vector("i32", [i // 2 + i % 2 * narrower for i in range(width)])
        return Vector(b.emit(f"shufflevector {kind} {x}, {kind} {y}, <{width} x i32> {order}"), element)
    with b.lanes(0):
        odd = b.emit(f"trunc i32 {here.ssa} to i1")
    return lanes.made(b, b.emit(f"select i1 {odd}, {kind} {y}, {kind} {x}"), element)


def _half(tiles: Tensors, op: Operation, index: Index, result: int) -> Lane:
    return tiles.lane(op.operands[0], (*index, Position(str(result), result)))


RELABELLED: dict[str, Callable[[Tensors, Operation, Index, int], Lane]] = {
    "arith.constant": _constant,
    "tt.splat": _splat,
    "tt.make_range": _range,
    "tt.expand_dims": _relabelled,
    "tt.broadcast": _relabelled,
    "tt.trans": _relabelled,
    "tt.reshape": _reshape,
    "tt.split": _half,
}
