"""Packs a dot's operands in memory for its micro-kernel."""

from collections.abc import Callable, Sequence

from gradlab.kernels.cpu import floats, lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, Vector, registers
from gradlab.kernels.cpu.masks import version_loops
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.values import Buffer, Position

LINE = 64


def either_way(tiles: Tiles, name: str, element: str) -> Buffer:
    """The operand with rows or columns contiguous, whichever is contiguous in its source."""
    kind, value = tiles.types[name], tiles.env[name]
    if isinstance(value, Buffer) and value.element == element:
        return value
    along = tiles.along(kind.shape, [name])
    buffer = tiles.buffer(kind.shape, element, strides(kind.shape, element, along == len(kind.shape) - 2))
    tiles.fill([(buffer, name)], along, lambda x, source, target: cast(tiles.b, x, source, target))
    return buffer


def columns_of(tiles: Tiles, name: str, element: str) -> Buffer:
    """The operand with columns contiguous, as they are in its source."""
    kind, value = tiles.types[name], tiles.env[name]
    if isinstance(value, Buffer) and value.element == element and value.strides[-2] == 1:
        return value
    buffer = tiles.buffer(kind.shape, element, strides(kind.shape, element, columns_first=True))
    tiles.fill([(buffer, name)], len(kind.shape) - 2, lambda x, source, target: cast(tiles.b, x, source, target))
    return buffer


def rows(tiles: Tiles, name: str, element: str) -> Buffer:
    """The operand with rows contiguous."""
    kind, value = tiles.types[name], tiles.env[name]
    if isinstance(value, Buffer) and value.element == element and value.strides[-1] == 1:
        return value
    along, last = tiles.along(kind.shape, [name]), len(kind.shape) - 1
    if along == last - 1 and min(kind.shape[-2:]) >= 8 and not isinstance(value, Buffer):
        return _transposed_rows(tiles, name, element)
    buffer = tiles.buffer(kind.shape, element, strides(kind.shape, element))
    along = along if along >= last - 1 else last
    tiles.fill([(buffer, name)], along, lambda x, source, target: cast(tiles.b, x, source, target))
    return buffer


def _transposed_rows(tiles: Tiles, name: str, element: str) -> Buffer:
    """x[R C] that is contiguous along R in its source: full vectors along R, transposed in registers."""
    kind, e = tiles.types[name], tiles.b
    *_, R, C = kind.shape
    buffer = tiles.buffer(kind.shape, element, strides(kind.shape, element))
    lanes_ = min(e.vector_bits // types.bits(element), R, C)

    def block(front: tuple[Position | None, ...], r: str, c: str) -> None:
        with e.lanes(lanes_):
            vectors = columns(tiles, name, element, front, moved(e, r, 0, True), c, lanes_)
            for i, row in enumerate(transposed(e, vectors, element)):
                tiles.write(buffer, (*front, moved(e, r, i, False), moved(e, c, 0, True)), Vector(row, element))

    # The run-time test for contiguous memory is then hoisted out of the inner loop over blocks.
    down = all(tiles.step(load.operands[0], len(kind.shape) - 2) == 1 for load in tiles.loads(name))
    blocks(tiles, name, lanes_, lanes_, block, down)
    return buffer


def blocks(
    tiles: Tiles,
    name: str,
    high: int,
    wide: int,
    write: Callable[[tuple[Position | None, ...], str, str], None],
    down: bool = False,
) -> None:
    """Loops over a matrix, or a batch of them, in blocks; `write` is called with the batch index, row and column.

    Args:
        down: whether the inner loop goes down a column of blocks.
    """
    *front, R, C = tiles.types[name].shape
    e = tiles.b

    def matrix(place: tuple[Position | None, ...]) -> None:
        # The inner loop follows memory, so that a cache line is used up before it is evicted.
        (outer, by), (inner, step) = ((C, wide), (R, high)) if down else ((R, high), (C, wide))

        def strip(i: str, _: Sequence[str]) -> list[str]:
            def one(j: str, _: Sequence[str]) -> list[str]:
                write(place, *((j, i) if down else (i, j)))
                tiles.forget()
                return []

            e.loop(inner, step, [], one)
            return []

        e.loop(outer, by, [], strip)

    def each(z: str, _: Sequence[str]) -> list[str]:
        matrix((moved(e, z, 0, False) if front[0] > 1 else None,))
        return []

    def all_of_it() -> None:
        if front:
            e.loop(front[0], 1, [], each)
        else:
            matrix(())

    tiles.forget()
    with e.steady(), e.moving_across():
        version_loops(tiles, [name], all_of_it)


def columns(
    tiles: Tiles, name: str, element: str, front: tuple[Position | None, ...], r: Position | None, c: str, count: int
) -> list[str]:
    """Vectors of `count` columns from c on, in another type.

    They are computed in a loop, through memory: unrolled over the columns, a convolution's address arithmetic would be
    most of a kernel's code.
    """
    e, width = tiles.b, tiles.b.width
    block = Buffer(e.slot(count * width, element), (count, width), (width, 1), element)
    inner = Position("0", 0, True)

    def one(i: str, _: Sequence[str]) -> list[str]:
        with e.lanes(0):
            here = Position(e.emit(f"add nuw nsw i32 {c}, {i}"))
        tiles.write(block, (moved(e, i, 0, False), inner), column(tiles, name, element, front, r, here))
        return []

    e.loop(count, 1, [], one)
    tiles.forget()
    return [registers(e, tiles.read(block, (moved(e, str(i), 0, False), inner))) for i in range(count)]


def column(
    tiles: Tiles, name: str, element: str, front: tuple[Position | None, ...], r: Position | None, c: Position | None
) -> Lane:
    """A vector of an operand, in another type."""
    tiles.forget()
    found = cast(tiles.b, tiles.lane(name, (*front, r, c)), tiles.types[name].element, element)
    tiles.forget()
    return found


def moved(b: Emitter, counter: str, more: int, laned: bool) -> Position:
    """The position `more` past a loop's counter."""
    if not counter.startswith("%"):
        return Position(str(int(counter) + more), int(counter) + more, laned)
    if not more:
        return Position(counter, None, laned)
    with b.lanes(0):
        return Position(b.emit(f"add nuw nsw i32 {counter}, {more}"), None, laned)


def transposed(b: Emitter, vectors: list[str], element: str) -> list[str]:
    """The transpose of as many vectors as they have lanes: log2 steps, each swaps blocks across the diagonal."""
    count, kind = len(vectors), b.type(element)
    size = 1
    while size < count:
        swapped = [""] * count
        for i in range(count):
            if i & size:
                continue
            j = i | size
            low = [q if not q & size else count + (q ^ size) for q in range(count)]
            high = [q | size if not q & size else count + q for q in range(count)]
            for place, mask in ((i, low), (j, high)):
                picked = b.vector("i32", mask)
                swapped[place] = b.emit(
                    f"shufflevector {kind} {vectors[i]}, {kind} {vectors[j]}, <{count} x i32> {picked}"
                )
        vectors, size = swapped, 2 * size
    return vectors


def cast(b: Emitter, x: Lane, source: str, target: str) -> Lane:
    """An operand's lanes in the type that is multiplied."""
    if source == target:
        return x
    with b.lanes(0 if lanes.is_scalar(x) else b.width):
        value = registers(b, x)
        if target == "i32":
            return lanes.made(b, b.convert("sext", source, target, value), target)
        if source == "f64":
            raise NotImplementedError("a dot of float64 that accumulates in float32")
        return lanes.made(b, floats.converted(b, source, target, value), target)


def strides(shape: Sequence[int], element: str, columns_first: bool = False) -> tuple[int, ...]:
    """Strides of a packed operand: rows, or columns, are padded by a cache line where their size is a power of two.

    A strip of the micro-kernel goes down the rows. With a power of two as stride they would share a few sets of the L1
    cache, and the strip would be read from L2 each time.
    """
    *front, R, C = shape
    inner, outer = (R, C) if columns_first else (C, R)
    line = LINE // types.size(element)
    step = inner + line if inner % (4 * line) == 0 else inner
    found = [1, step] if columns_first else [step, 1]
    count = step * outer
    for size in reversed(front):
        found.insert(0, count)
        count *= size
    return tuple(found)
