"""Loop versioning: loops are written once without masks, for full tiles, and once with masks, for tiles at an edge.

Most tiles of a launch are full. Whether a mask holds for all of a tile is tested once, in front of its loops: a mask
compares an index that grows along the axes with one number, so testing a corner of the tile is enough.
"""

from collections.abc import Callable, Iterable, Iterator

from gradlab.kernels.cpu import lanes, steps
from gradlab.kernels.cpu.elementwise import compute
from gradlab.kernels.cpu.indexing import SOURCES
from gradlab.kernels.cpu.lanes import Lane, Uniform
from gradlab.kernels.cpu.tensors import Tensors
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Index, Lazy, Position

# Comparisons decided by the last element where the left side grows, and by the first where the right side does.
_DECIDED_LAST = {"slt", "sle"}
_DECIDED_FIRST = {"sgt", "sge"}
_RELABELLING = {"tt.expand_dims", "tt.broadcast", "tt.trans"}
# Integers that grow faster may be meant to wrap, as in a hash.
_FASTEST = 2**16


def version_loops(tiles: Tensors, names: Iterable[str], write: Callable[[], None]) -> None:
    """Write the loops that evaluate `names` in two versions: without the masks that can be tested before, and with."""
    names = list(names)
    found = {leaf.result: leaf for leaf in _comparisons(tiles, names) if _decidable(tiles, leaf)}
    if not found or not _worth(tiles, names):
        write()
        return
    b = tiles.b
    with b.lanes(0):
        whole: Lane = lanes.known(1, "i1")
        for leaf in found.values():
            for truth in _at_corners(tiles, leaf):
                whole = _both(tiles, whole, truth)
    assert isinstance(whole, Uniform)
    if whole.known == 0:
        write()
        return
    before, tiles.holding = tiles.holding, tiles.holding | found.keys()
    if whole.known == 1:
        write()
        tiles.holding = before
        return
    one, other, after = b.label(), b.label(), b.label()
    b.branch(whole.ssa, one, other)
    b.start(one)
    with b.branch_scope():
        write()
    b.jump(after)
    tiles.holding = before
    b.start(other)
    with b.branch_scope():
        write()
    b.jump(after)
    b.start(after)


def version_place(tiles: Tensors, names: Iterable[str], index: Index, write: Callable[[], None]) -> None:
    """Write the evaluation of `names` at a place in two versions: for vectors with no lane masked off, and others.

    A row a few vectors long ends in the middle of its last vector; the vectors before it, most of them, are full.
    """
    b = tiles.b
    leaves = _leaves(tiles, names, index)
    whole: Lane = lanes.known(1, "i1")
    with b.lanes(0):
        for leaf, at, width in leaves:
            for truth in _over_lanes(tiles, leaf, at, width):
                whole = _both(tiles, whole, truth)
    assert isinstance(whole, Uniform)
    if whole.known is not None:
        write()
        return
    one, other, after = b.label(), b.label(), b.label()
    b.branch(whole.ssa, one, other)
    for label, held in ((one, frozenset((leaf.result, at) for leaf, at, _ in leaves)), (other, tiles.held)):
        before, tiles.held = tiles.held, held
        b.start(label)
        tiles.forget()
        with b.branch_scope():
            write()
        tiles.held = before
        b.jump(after)
    tiles.forget()
    b.start(after)


def _leaves(tiles: Tensors, names: Iterable[str], index: Index) -> list[tuple[Operation, Index, int]]:
    """The comparisons that make up the masks and are decided by a first or last lane, with their index and lanes."""
    found: dict[tuple[str, Index], tuple[Operation, Index, int]] = {}
    seen = set()
    todo = [(name, index, tiles.b.width, tiles.types[name].element == "i1") for name in names]
    while todo:
        one = todo.pop()
        name, at, width, is_mask = one
        value = tiles.env.get(name)
        if one in seen or name in tiles.holding or not isinstance(value, Lazy):
            continue
        seen.add(one)
        op = value.op
        if op.name == "tt.load":
            todo += [(mask, at, width, True) for mask in op.operands[1:2]]
        elif op.name in SOURCES and op.operands:
            there, lanes_ = SOURCES[op.name](tiles, op, at, width)
            if is_mask and op.name == "tt.splat":
                found[name, at] = op, at, width
            todo += [(operand, there, lanes_, is_mask) for operand in op.operands]
        elif not is_mask:
            todo += [(operand, at, width, False) for operand in op.operands]
        elif op.name == "arith.andi":
            todo += [(operand, at, width, True) for operand in op.operands]
        elif op.name == "arith.cmpi" and _lane_side(tiles, op, at) is not None:
            found[name, at] = op, at, width
    return list(found.values())


def _lane_side(tiles: Tensors, leaf: Operation, at: Index) -> tuple[int, bool] | None:
    """As `_corner`, along the axis of the lanes."""
    predicate = leaf.attributes["predicate"]
    axis = next((i for i, place in enumerate(at) if place is not None and place.lanes), None)
    if axis is None:
        return 0, False
    if predicate not in _DECIDED_LAST | _DECIDED_FIRST or tiles.loads(leaf.result):
        return None
    moves = [steps.step(tiles.env, name, axis) for name in leaf.operands]
    for side, other in ((0, 1), (1, 0)):
        move = moves[side]
        if move is not None and 0 <= move < _FASTEST and moves[other] == 0:
            return side, (predicate in _DECIDED_LAST) == (side == 0)
    return None


def _over_lanes(tiles: Tensors, leaf: Operation, at: Index, width: int) -> Iterator[Lane]:
    """Conditions that imply that a comparison holds in every lane at a place."""
    if leaf.name == "tt.splat":
        yield tiles.scalar(leaf.operands[0])
        return
    decided = _lane_side(tiles, leaf, at)
    assert decided is not None
    side, last = decided
    first, final = (tuple(_lane_of(tiles, place, i) for place in at) for i in (0, width - 1))
    yield compute(tiles.b, leaf, [_scalar(tiles, name, final if last else first) for name in leaf.operands])
    if first != final:
        yield _compared(tiles, "sle", leaf, *(_scalar(tiles, leaf.operands[side], end) for end in (first, final)))


def _lane_of(tiles: Tensors, place: Position | None, i: int) -> Position | None:
    """The position of one lane."""
    if place is None or not place.lanes:
        return place
    at = lanes.add(tiles.b, Uniform(place.ssa, "i32", place.known), lanes.known(i, "i32"))
    return Position(at.ssa, at.known)


def _worth(tiles: Tensors, names: Iterable[str]) -> bool:
    """Whether versioning pays: with AVX-512 a mask is one more operand of a load, which costly arithmetic hides."""
    return tiles.b.vector_bits < 512 or not any(tiles.transcendental(name) for name in names)


def _comparisons(tiles: Tensors, names: Iterable[str]) -> Iterator[Operation]:
    """The comparisons that make up the masks of these tensors' loads, and the masks among the tensors."""
    todo = [op.operands[1] for name in names for op in tiles.loads(name) if len(op.operands) > 1]
    todo += [name for name in names if tiles.types[name].element == "i1"]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        value = tiles.env.get(name)
        if name in seen or name in tiles.holding or not isinstance(value, Lazy):
            continue
        seen.add(name)
        if value.op.name == "arith.andi" or value.op.name in _RELABELLING:
            todo += value.op.operands
        elif value.op.name in ("arith.cmpi", "tt.splat"):
            yield value.op


def _decidable(tiles: Tensors, leaf: Operation) -> bool:
    if leaf.name == "tt.splat":
        return tiles.types[leaf.result].element == "i1"
    return _corner(tiles, leaf) is not None and not tiles.loads(leaf.result)


def _corner(tiles: Tensors, leaf: Operation) -> tuple[int, bool] | None:
    """Which side of a comparison grows along the axes, and whether the last element decides, else the first."""
    predicate = leaf.attributes["predicate"]
    if predicate not in _DECIDED_LAST | _DECIDED_FIRST:
        return None
    axes = range(len(leaf.operand_types[0].shape))
    moves = [[steps.step(tiles.env, name, axis) for axis in axes] for name in leaf.operands]
    for side, other in ((0, 1), (1, 0)):
        slow = all(s is not None and 0 <= s < _FASTEST for s in moves[side])
        if slow and all(s == 0 for s in moves[other]):
            return side, (predicate in _DECIDED_LAST) == (side == 0)
    return None


def _at_corners(tiles: Tensors, leaf: Operation) -> Iterator[Lane]:
    """Conditions that imply that a comparison holds everywhere: at one corner, its growing side not wrapped."""
    if leaf.name == "tt.splat":
        # One truth value for the tile, such as whether its only row is in range.
        yield tiles.scalar(leaf.operands[0])
        return
    corner = _corner(tiles, leaf)
    assert corner is not None
    side, last = corner
    shape = leaf.operand_types[0].shape
    ends: list[Index] = [
        tuple(None if n == 1 else Position(str(at(n)), at(n)) for n in shape) for at in (lambda n: 0, lambda n: n - 1)
    ]
    yield compute(tiles.b, leaf, [_scalar(tiles, name, ends[last]) for name in leaf.operands])
    first, final = (_scalar(tiles, leaf.operands[side], end) for end in ends)
    if first != final:
        yield _compared(tiles, "sle", leaf, first, final)


def _scalar(tiles: Tensors, name: str, index: Index) -> Lane:
    tiles.forget()
    found = tiles.lane(name, index)
    tiles.forget()
    return found


def _compared(tiles: Tensors, predicate: str, leaf: Operation, x: Lane, y: Lane) -> Lane:
    t = leaf.operand_types[0].element
    assert isinstance(x, Uniform)
    assert isinstance(y, Uniform)
    if x.known is not None and y.known is not None:
        return lanes.known(x.known <= y.known, "i1")
    return Uniform(tiles.b.compare(predicate, t, x.ssa, y.ssa), "i1")


def _both(tiles: Tensors, x: Lane, y: Lane) -> Uniform:
    assert isinstance(x, Uniform)
    assert isinstance(y, Uniform)
    if x.known is not None:
        return y if x.known else x
    if y.known is not None:
        return x if y.known else y
    return Uniform(tiles.b.op("and", "i1", x.ssa, y.ssa), "i1")
