"""Reductions and scans: vectors of partial results, combined in a fixed order by the operation's own region."""

from collections.abc import Sequence

from gradlab.kernels.cpu import lanes
from gradlab.kernels.cpu.elementwise import RULES, compute
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, Uniform, Vector, registers
from gradlab.kernels.cpu.masks import version_loops
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Buffer, Index, NotLowered, Position

# Independent partial results, which hide the latency of the operation.
CHAINS = 4


def reduce(tiles: Tiles, op: Operation) -> None:
    """`tt.reduce` along an axis, of one tensor or of several jointly."""
    shape, axis = op.operand_types[0].shape, op.attributes["axis"]
    elements = [kind.element for kind in op.operand_types]
    along = tiles.along(shape, op.operands)
    if shape[along] == 1:
        along = axis
    width = tiles.width(shape, along, op.operands)
    left = shape[:axis] + shape[axis + 1 :]
    buffers = [tiles.buffer(left, element) for element in elements]
    # Lanes along the reduced axis are combined at the end; along another axis each lane is a result.
    across = along == axis and width > 0
    step = width if across else 1

    def one_result(index: Index) -> None:
        def at(place: Position) -> list[Lane]:
            tiles.forget()
            here = list(index)
            here[axis] = place if shape[axis] > 1 else None
            return [_full(tiles.b, tiles.lane(name, tuple(here))) for name in op.operands]

        found = _combine_all(tiles, op, shape[axis], step, across, elements, at)
        if across:
            found = _join_lanes(tiles, op, found)
        with tiles.b.lanes(0 if across else tiles.b.width):
            for buffer, value in zip(buffers, found, strict=True):
                tiles.write(buffer, index[:axis] + index[axis + 1 :], value)

    def write() -> None:
        tiles.nest(shape, along, width, one_result, skip=axis, steady=True)

    if tiles.b.vector_bits < 512:
        version_loops(tiles, op.operands, write)
    else:
        write()
    for name, buffer in zip(op.results, buffers, strict=True):
        tiles.env[name] = buffer if left else _scalar(tiles, buffer)


def _scalar(tiles: Tiles, buffer: Buffer) -> Lane:
    with tiles.b.lanes(0):
        return tiles.read(buffer, ())


def scan(tiles: Tiles, op: Operation) -> None:
    """`tt.scan` along an axis: sequential along it, lanes along another axis."""
    shape, axis = op.operand_types[0].shape, op.attributes["axis"]
    elements = [kind.element for kind in op.operand_types]
    backward = bool(op.attributes.get("reverse"))
    buffers = [tiles.buffer(shape, element) for element in elements]
    free = [i for i in range(len(shape)) if i != axis and shape[i] > 1]
    along = free[-1] if free else axis
    width = tiles.width(shape, along, op.operands) if free else 0
    count, b = shape[axis], tiles.b

    def one_line(index: Index) -> None:
        def at(place: Position) -> tuple[Index, list[Lane]]:
            tiles.forget()
            here = list(index)
            here[axis] = place if count > 1 else None
            return tuple(here), [_full(b, tiles.lane(name, tuple(here))) for name in op.operands]

        def keep(here: Index, values: Sequence[Lane]) -> None:
            for buffer, value in zip(buffers, values, strict=True):
                tiles.write(buffer, here, value)

        first = count - 1 if backward else 0
        here, values = at(Position(str(first), first))
        keep(here, values)
        if count == 1:
            return

        def following(i: str, carried: list[str]) -> list[str]:
            with b.lanes(0):
                place = b.emit(f"sub nsw i32 {count - 2}, {i}") if backward else b.emit(f"add nuw nsw i32 {i}, 1")
            here, new = at(Position(place))
            before = [lanes.made(b, ssa, t) for ssa, t in zip(carried, elements, strict=True)]
            joined = [_full(b, x) for x in combine(tiles, op, before, new)]
            keep(here, joined)
            return [registers(b, x) for x in joined]

        b.loop(count - 1, 1, [(b.type(t), registers(b, x)) for t, x in zip(elements, values, strict=True)], following)

    tiles.nest(shape, along, width, one_line, skip=axis, steady=True)
    for name, buffer in zip(op.results, buffers, strict=True):
        tiles.env[name] = buffer


def combine(tiles: Tiles, op: Operation, x: Sequence[Lane], y: Sequence[Lane]) -> list[Lane]:
    """Apply the operation's region to two sets of values."""
    (block,) = op.regions[0]
    env: dict[str, Lane] = dict(zip([name for name, _ in block.arguments], [*x, *y], strict=True))
    for inner in block.operations:
        if inner.name in ("tt.reduce.return", "tt.scan.return"):
            return [_defined(tiles, env, name) for name in inner.operands]
        if inner.name == "arith.constant":
            env[inner.result] = lanes.constant(inner.attributes["value"], inner.type.element)
        elif inner.name in RULES:
            env[inner.result] = compute(tiles.b, inner, [_defined(tiles, env, name) for name in inner.operands])
        else:
            raise NotLowered(inner, f"{inner.name} within {op.name} is not compiled for CPUs")
    raise NotLowered(op, f"{op.name} whose region returns nothing")


def _defined(tiles: Tiles, env: dict[str, Lane], name: str) -> Lane:
    return env[name] if name in env else tiles.scalar(name)


def _combine_all(
    tiles: Tiles, op: Operation, count: int, step: int, across: bool, elements: list[str], at
) -> list[Lane]:
    """Combine `count` places, `step` at once, in CHAINS independent chains that are combined pairwise at the end."""
    b, passes = tiles.b, count // step
    # Sixteen registers hold the constants of only one transcendental function.
    few = b.vector_bits == 256 and any(tiles.transcendental(name) for name in op.operands)
    chains = CHAINS if passes >= 2 * CHAINS and not few else 2 if passes >= 4 else 1
    parts = [at(Position(str(i * step), i * step, across)) for i in range(chains)]
    stride = chains * step
    if count > stride:

        def following(i: str, carried: list[str]) -> list[str]:
            result = []
            for chain in range(chains):
                with b.lanes(0):
                    place = b.emit(f"add nuw nsw i32 {i}, {stride + chain * step}")
                new = at(Position(place, None, across))
                first = chain * len(elements)
                before = [lanes.made(b, carried[first + k], t) for k, t in enumerate(elements)]
                result += [registers(b, _full(b, x)) for x in combine(tiles, op, before, new)]
            return result

        start = [(b.type(t), registers(b, x)) for part in parts for t, x in zip(elements, part, strict=True)]
        ends = b.loop(count - stride, stride, start, following)
        size = len(elements)
        parts = [[lanes.made(b, ends[chain * size + k], t) for k, t in enumerate(elements)] for chain in range(chains)]
    while len(parts) > 1:
        parts = [combine(tiles, op, parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
    return [_full(b, x) for x in parts[0]]


def _join_lanes(tiles: Tiles, op: Operation, values: Sequence[Lane]) -> list[Lane]:
    """Combine the lanes of vectors: the lower half with the upper half, until one lane is left."""
    b, found, width = tiles.b, list(values), tiles.b.width
    while width > 1:
        half = width // 2
        with b.lanes(width):
            low = [_part(b, x, 0, half) for x in found]
            high = [_part(b, x, half, half) for x in found]
        width = half
        with b.lanes(width):
            found = [_full(b, x) for x in combine(tiles, op, low, high)]
    return [_first(b, x) for x in found]


def _part(b: Emitter, x: Lane, first: int, count: int) -> Lane:
    kind = b.type(x.element)
    places = ", ".join(f"i32 {first + i}" for i in range(count))
    value = registers(b, x)
    return Vector(b.emit(f"shufflevector {kind} {value}, {kind} poison, <{count} x i32> <{places}>"), x.element)


def _first(b: Emitter, x: Lane) -> Lane:
    if isinstance(x, Uniform):
        return x
    with b.lanes(1):
        kind = b.type(x.element)
        value = registers(b, x)
    ssa = b.emit(f"extractelement {kind} {value}, i64 0")
    with b.lanes(0):
        return lanes.made(b, ssa, x.element)


def _full(b: Emitter, x: Lane) -> Lane:
    """The value with all its lanes in a register, so that a loop can carry it."""
    if not b.width or isinstance(x, Vector):
        return x
    return Vector(registers(b, x), x.element)
