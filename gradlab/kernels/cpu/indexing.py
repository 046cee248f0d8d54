"""Operations that only say which element of another tensor is meant: ranges, broadcasts, transposes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradlab.kernels.cpu import lanes
from gradlab.kernels.cpu.lanes import Lane, Ramp, Uniform
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Index, NotLowered, Position

if TYPE_CHECKING:
    from gradlab.kernels.cpu.tiles import Tiles


def _constant(tiles: "Tiles", op: Operation, index: Index, _: int) -> Lane:
    value = op.attributes["value"]
    if isinstance(value, (list, tuple)):
        raise NotLowered(op, "a constant tensor of different elements")
    return lanes.constant(value, op.result_types[0].element)


def _splat(tiles: "Tiles", op: Operation, index: Index, _: int) -> Lane:
    return tiles.lane(op.operands[0], ())


def _range(tiles: "Tiles", op: Operation, index: Index, _: int) -> Lane:
    (here,) = index
    first = lanes.known(op.attributes["start"], "i32")
    if here is None:
        return first
    base = lanes.add(tiles.b, Uniform(here.ssa, "i32", here.known), first)
    return Ramp(base, 1, "i32") if here.lanes and tiles.b.width else base


def _expand(tiles: "Tiles", op: Operation, index: Index, _: int) -> Lane:
    axis = op.attributes["axis"]
    return tiles.lane(op.operands[0], index[:axis] + index[axis + 1 :])


def _broadcast(tiles: "Tiles", op: Operation, index: Index, _: int) -> Lane:
    shape = op.operand_types[0].shape
    return tiles.lane(op.operands[0], tuple(None if n == 1 else i for n, i in zip(shape, index, strict=True)))


def _transpose(tiles: "Tiles", op: Operation, index: Index, _: int) -> Lane:
    source: list[Position | None] = [None] * len(index)
    for axis, from_axis in enumerate(op.attributes["order"]):
        source[from_axis] = index[axis]
    return tiles.lane(op.operands[0], tuple(source))


def _reshape(tiles: "Tiles", op: Operation, index: Index, _: int) -> Lane:
    """Axes of one element come and go; others are in memory by now (`shaping`)."""
    shape, given = op.operand_types[0].shape, op.result_types[0].shape
    moving = iter([i for i, n in zip(index, given, strict=True) if n != 1])
    return tiles.lane(op.operands[0], tuple(None if n == 1 else next(moving) for n in shape))


def _half(tiles: "Tiles", op: Operation, index: Index, result: int) -> Lane:
    return tiles.lane(op.operands[0], (*index, Position(str(result), result)))


RELABELLED: dict[str, Callable[["Tiles", Operation, Index, int], Lane]] = {
    "arith.constant": _constant, "tt.splat": _splat, "tt.make_range": _range, "tt.expand_dims": _expand,
    "tt.broadcast": _broadcast, "tt.trans": _transpose, "tt.reshape": _reshape, "tt.split": _half,
}  # fmt: skip
