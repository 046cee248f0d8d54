"""Stores: neighbouring stores of one shape share a loop nest, in which the loads of a place come before its stores."""

from collections.abc import Callable, Sequence

from gradlab.kernels.cpu.elementwise import RULES
from gradlab.kernels.cpu.indexing import interleaved
from gradlab.kernels.cpu.masks import version_loops, version_place
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Affine, Index, Lazy

# Rows up to this many vectors are short: the last vector, with lanes masked off, is a large part of one.
SHORT = 8
_PASSED = {"arith.constant", "tt.splat", "tt.make_range", "tt.expand_dims", "tt.broadcast", "tt.trans"}


def store_scalar(tiles: Tiles, op: Operation) -> None:
    """A store of one element."""
    p, value, mask = (*(tiles.scalar(name) for name in op.operands), None)[:3]
    assert p is not None
    assert value is not None
    tiles.stores([op])
    with tiles.b.lanes(0):
        tiles.store(op, (), p, value, mask)


def store_together(tiles: Tiles, operations: Sequence[Operation], define: Callable[[Tiles, Operation], None]) -> int:
    """Write the first store and those after it that can share its loops; returns the number of operations consumed.

    Args:
        define: called for a pure operation between them, to note it as lazy.
    """
    shape = operations[0].operand_types[0].shape
    group: list[Operation] = []
    count = 0
    for op in operations:
        if op.name == "tt.store" and op.operand_types[0].shape == shape:
            group.append(op)
        elif op.name in RULES or op.name in _PASSED:
            define(tiles, op)
        else:
            break
        count += 1
    _part_from_stores(tiles, group)
    tiles.settle(operations[count:])
    pointers = [op.operands[0] for op in group]
    values = [op.operands[1] for op in group]
    along = tiles.along(shape, values, pointers)
    width = tiles.width(shape, along, values)
    if width and along == len(shape) - 1 and any(interleaved(tiles, name) for name in values):
        # Full vectors of the two interleaved tensors.
        width = min(2 * width, shape[along])
    loose = any(tiles.step(name, along) is None for name in pointers)

    # Beside a transcendental function there is no register left for the test's result.
    test_full = not any(tiles.transcendental(name) for name in values)

    operands = [name for op in group for name in op.operands]
    short = len([n for n in shape if n > 1]) > 1 and width and 1 < shape[along] // width <= SHORT

    def body(index: Index) -> None:
        if short and tiles.b.vector_bits < 512:
            version_place(tiles, operands, index, lambda: place(index))
        else:
            place(index)

    def place(index: Index) -> None:
        found = [[tiles.lane(name, index) for name in op.operands] for op in group]
        for op, (p, value, *mask) in zip(group, found, strict=True):
            tiles.store(op, index, p, value, mask[0] if mask else None, test_full)

    tiles.stores(group)
    version_loops(tiles, operands, lambda: tiles.nest(shape, along, width, body, loose, steady=True))
    return count


def _part_from_stores(tiles: Tiles, group: Sequence[Operation]) -> None:
    """Evaluate those loads now that may read what these stores write at another place.

    A load and a store through one address read and write the same element and may share the loop. Different arguments
    are taken to be
    different tensors, or one tensor at the same places: anything else is a race between the threads of a GPU's program.
    """
    stored = {(_root(tiles, op.operands[0]), op.operands[0]) for op in group}
    for op in group:
        for name in op.operands:
            for load in tiles.loads(name):
                root, address = _root(tiles, load.operands[0]), load.operands[0]
                if any(root == other and address != written for other, written in stored):
                    tiles.env[load.result] = tiles.materialize(load.result)
                    tiles.pending.discard(load.result)


def _root(tiles: Tiles, name: str) -> str:
    """The argument, or the scalar, that an address comes from."""
    while True:
        value = tiles.env.get(name)
        if isinstance(value, Affine):
            name = value.start
            continue
        op = value.op if isinstance(value, Lazy) else tiles.definitions.get(name)
        if op is None or op.name not in (
            "tt.addptr",
            "tt.splat",
            "tt.broadcast",
            "tt.expand_dims",
            "tt.bitcast",
            "tt.trans",
            "tt.reshape",
        ):
            return name
        name = op.operands[0]
