"""Blocks, loops and branches: roots and scalars are lowered in order, tensors when a root uses them."""

import itertools
from collections.abc import Callable, Iterator, Sequence

from gradlab.kernels.cpu import assembly, lanes, library, types
from gradlab.kernels.cpu.atomics import compare_and_swap, read_modify_write
from gradlab.kernels.cpu.carried import carry
from gradlab.kernels.cpu.dot import dot
from gradlab.kernels.cpu.dot_scaled import dot_scaled
from gradlab.kernels.cpu.elementwise import RULES
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, Pointer, Uniform
from gradlab.kernels.cpu.messages import check, print_values
from gradlab.kernels.cpu.reduction import reduce, scan
from gradlab.kernels.cpu.shaping import SHAPINGS, shape_anew
from gradlab.kernels.cpu.stores import store_scalar, store_together
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Block, Operation
from gradlab.kernels.cpu.values import Buffer, Index, NotLowered, Position, contiguous

# Roots: operations that write memory, or that must execute at their place in the program.
EFFECTS = {"tt.store", "tt.atomic_rmw", "tt.atomic_cas", "gpu.barrier", "ttg.barrier", "tt.call"}
# Imported for its rules, which register themselves.
assert {library.call, assembly.nothing}.issubset(RULES.values())
_TERMINATORS = {"scf.yield", "scf.condition", "tt.return", "tt.map_elementwise.return", "cf.br", "cf.cond_br"}
_NOTHING = {"llvm.intr.assume", "ttg.local_barrier", "scf.reduce"}


def lower_operations(tiles: Tiles, operations: Sequence[Operation]) -> Operation | None:
    """Lower operations in order; returns the terminator of a region, which the region's owner reads."""
    at = 0
    while at < len(operations):
        op, following = operations[at], operations[at + 1 :]
        tiles.at = op
        if op.name in _TERMINATORS:
            return op
        if op.name == "tt.store" and op.operand_types[0].shape:
            at += store_together(tiles, operations[at:], _define)
            continue
        if EFFECTS.intersection(_names(op)):
            tiles.settle([op, *following] if op.regions else following)
        root = _ROOTS.get(op.name)
        if root is not None:
            with_following(tiles, following, root, op)
        elif op.name not in _NOTHING:
            _define(tiles, op)
        at += 1
    return None


def with_following(
    tiles: Tiles, following: Sequence[Operation], write: Callable[[Tiles, Operation], None], op: Operation
) -> None:
    """Lower an operation while `following` ones are on record as still to come."""
    tiles.later.append(following)
    try:
        write(tiles, op)
    finally:
        tiles.later.pop()


def _names(op: Operation) -> Iterator[str]:
    return (inner.name for inner in op.walk())


def _define(tiles: Tiles, op: Operation) -> None:
    """Compute a scalar now; note a tensor as lazy."""
    if op.name == "tt.elementwise_inline_asm":
        assembly.check(op)
    if op.name in SHAPINGS and shape_anew(tiles, op):
        return
    if op.name == "arith.constant" and isinstance(op.attributes["value"], list):
        tiles.env[op.result] = _table(tiles, op)
        return
    if any(kind.shape for kind in op.result_types):
        tiles.define(op)
        return
    with tiles.b.lanes(0):
        tiles.env[op.result] = _scalar(tiles, op)


def _table(tiles: Tiles, op: Operation) -> Buffer:
    """A constant tensor of different elements, in read-only memory."""
    shape, element = op.type.shape, op.type.element
    kind = types.in_memory(element)
    written = "i8" if element == "i1" else element
    items = ", ".join(f"{kind} {types.constant(value, written)}" for value in op.attributes["value"])
    return Buffer(tiles.b.table(f"[{op.type.elements} x {kind}] [{items}]"), shape, contiguous(shape), element)


def _scalar(tiles: Tiles, op: Operation) -> Lane:
    kind = op.type.element
    if op.name == "arith.constant":
        return lanes.constant(op.attributes["value"], kind)
    if op.name == "tt.get_program_id":
        return Uniform(f"%program{op.attributes['axis']}", "i32")
    if op.name == "tt.get_num_programs":
        return Uniform(f"%grid{op.attributes['axis']}", "i32")
    if op.name == "tt.unsplat":
        return tiles.lane(op.operands[0], (None,) * len(op.operand_types[0].shape))
    operands = [tiles.scalar(name) for name in op.operands]
    if op.name == "tt.load":
        return tiles.load(op, operands)
    if op.name not in RULES:
        raise NotLowered(op)
    tiles.scalar_operation(op, operands)
    try:
        return RULES[op.name](tiles.b, op, operands)
    except NotImplementedError as error:
        raise NotLowered(op, str(error)) from None


def _yielded(block: Block) -> Sequence[str]:
    """The values that a region yields; a yield of nothing is not printed."""
    last = block.operations[-1] if block.operations else None
    return last.operands if last is not None and last.name == "scf.yield" else ()


def _for(tiles: Tiles, op: Operation) -> None:
    """`scf.for`; its operands are lower bound, upper bound, step, then the initial carried values."""
    (block,), b = op.regions[0], tiles.b
    first, last, step = (tiles.scalar(name) for name in op.operands[:3])
    (counter, _), *arguments = block.arguments
    ends = _yielded(block)
    carried = carry(tiles, block, arguments, op.operands[3:], ends, op.results)
    assert isinstance(first, Uniform)
    assert isinstance(last, Uniform)
    assert isinstance(step, Uniform)
    t = types.llvm(first.element)
    head, body, leave, before = b.label(), b.label(), b.label(), b.block
    with b.loop_scope():
        b.jump(head)
        b.start(head)
        i = b.name()
        at = len(b.lines)
        b.lines.append("")
        carried.enter(before)
        predicate = "ult" if op.attributes.get("unsigned") else "slt"
        b.branch(b.emit(f"icmp {predicate} {t} {i}, {last.ssa}"), body, leave)
        b.start(body)
        tiles.env[counter] = Uniform(i, first.element)
        lower_operations(tiles, block.operations)
        carried.leave(ends)
        following = b.emit(f"add {t} {i}, {step.ssa}")
        b.lines[at] = f"  {i} = phi {t} [ {first.ssa}, %{before} ], [ {following}, %{b.block} ]"
        carried.close(b.block)
        b.jump(head)
    b.start(leave)
    carried.results(op.results)


def _while(tiles: Tiles, op: Operation) -> None:
    """`scf.while`: a condition region that forwards values, and a body region."""
    (deciding,), (going,) = op.regions
    b = tiles.b
    condition, ends = deciding.terminator, _yielded(going)
    # Results are what the condition forwards, which need not be as many as the carried values.
    results = op.results if len(op.results) == len(ends) else ends
    carried = carry(tiles, deciding, deciding.arguments, op.operands, ends, results, affine=False)
    head, body, leave, before = b.label(), b.label(), b.label(), b.block
    with b.loop_scope():
        b.jump(head)
        b.start(head)
        carried.enter(before)
        lower_operations(tiles, deciding.operations)
        handed = condition.operands[1:]
        for (name, _), given in zip(going.arguments, handed, strict=True):
            tiles.env[name] = tiles.env[given]
        go_on = tiles.scalar(condition.operands[0])
        assert isinstance(go_on, Uniform)
        b.branch(go_on.ssa, body, leave)
        b.start(body)
        lower_operations(tiles, going.operations)
        carried.leave(ends)
        carried.close(b.block)
        b.jump(head)
    b.start(leave)
    for name, given in zip(op.results, handed, strict=True):
        tiles.env[name] = tiles.env[given]


def _if(tiles: Tiles, op: Operation) -> None:
    """`scf.if`: scalar results by a phi, tensor results through memory that both branches write."""
    b = tiles.b
    condition = tiles.scalar(op.operands[0])
    assert isinstance(condition, Uniform)
    buffers = [tiles.buffer(t.shape, t.element) if t.shape else None for t in op.result_types]
    yes, no, after = b.label(), b.label(), b.label()
    b.branch(condition.ssa, yes, no)
    ends: list[tuple[str, list[str]]] = []
    for label, region in itertools.zip_longest((yes, no), op.regions[:2]):
        b.start(label)
        values: list[str] = []
        if region:
            (block,) = region
            with b.branch_scope():
                done = lower_operations(tiles, block.operations)
                for buffer, name in zip(buffers, done.operands if done else [], strict=True):
                    if buffer is None:
                        values.append(scalar_register(tiles.scalar(name)))
                    else:
                        tiles.materialize(name, buffer)
        ends.append((b.block, values))
        b.jump(after)
    b.start(after)
    place = 0
    for name, kind, buffer in zip(op.results, op.result_types, buffers, strict=True):
        if buffer is not None:
            tiles.env[name] = buffer
            continue
        sources = ", ".join(f"[ {values[place]}, %{label} ]" for label, values in ends)
        tiles.env[name] = lanes.made(b, b.emit(f"phi {types.llvm(kind.element)} {sources}"), kind.element)
        place += 1


def scalar_register(value: Lane) -> str:
    """The LLVM value of a scalar."""
    if isinstance(value, Pointer):
        return value.base
    assert isinstance(value, Uniform)
    return value.ssa


def _call(tiles: Tiles, op: Operation) -> None:
    """`tt.call`: the callee is inlined, its names made unique."""
    results = tiles.inline(op)
    for name, value in zip(op.results, results, strict=True):
        tiles.env[name] = value


def lower_blocks(
    tiles: Tiles, blocks: Sequence[Block], leave: str, results: Sequence[Buffer | None], result_elements: Sequence[str]
) -> list[Lane]:
    """A function's blocks, each of which ends in a branch or a return.

    Args:
        leave: where a return goes.
        results: memory for the tensors that are returned.

    Returns:
        The scalars that are returned, as they are at `leave`, which is started.
    """
    b = tiles.b
    labels = {block.label: b.label() for block in blocks[1:]}
    incoming: dict[str, list[tuple[str, list[str]]]] = {label: [] for label in labels}
    phis: dict[str, list[tuple[int, str, str]]] = {}
    memory: dict[str, list[Buffer | None]] = {
        block.label: [tiles.buffer(t.shape, t.element) if t.shape else None for _, t in block.arguments]
        for block in blocks[1:]
    }
    returned: list[tuple[str, list[str]]] = []

    def hand_on(names: Sequence[str], buffers: Sequence[Buffer | None]) -> list[str]:
        values = []
        for name, buffer in zip(names, buffers, strict=True):
            if buffer is None:
                values.append(scalar_register(tiles.scalar(name)))
            else:
                tiles.materialize(name, buffer)
        return values

    def write(number: int, block: Block) -> None:
        if number:
            b.start(labels[block.label])
            phis[block.label] = []
            for (name, kind), buffer in zip(block.arguments, memory[block.label], strict=True):
                if buffer is not None:
                    tiles.env[name] = buffer
                    continue
                ssa = b.name()
                phis[block.label].append((len(b.lines), ssa, types.llvm(kind.element)))
                b.lines.append("")
                tiles.env[name] = lanes.made(b, ssa, kind.element)
        rest = [op for later in blocks[number + 1 :] for op in later.operations]
        tiles.later.append(rest)
        done = lower_operations(tiles, block.operations)
        tiles.later.pop()
        assert done is not None
        if done.name in ("tt.return", "tt.map_elementwise.return"):
            values = hand_on(done.operands, results)
            returned.append((b.block, values))
            b.jump(leave)
            return
        targets = done.attributes["to"]
        # Each edge has a block of its own: both may lead to one block with different values.
        ways = [b.label() for _ in targets] if len(targets) > 1 else []
        if ways:
            b.branch(scalar_register(tiles.scalar(done.operands[0])), *ways)
        for way, (label, names) in itertools.zip_longest(ways, targets):
            if way is not None:
                b.start(way)
                tiles.forget()
            with b.branch_scope():
                values = hand_on(names, memory[label])
            incoming[label].append((b.block, values))
            b.jump(labels[label])

    # The first block dominates the others.
    write(0, blocks[0])
    for number, block in enumerate(blocks[1:], 1):
        with b.branch_scope():
            write(number, block)
    for label, holes in phis.items():
        for i, (line, ssa, llvm_type) in enumerate(holes):
            sources = ", ".join(f"[ {values[i]}, %{source} ]" for source, values in incoming[label])
            b.lines[line] = f"  {ssa} = phi {llvm_type} {sources}"
    b.start(leave)
    scalars: list[Lane] = []
    elements = [t for t, buffer in zip(result_elements, results, strict=True) if buffer is None]
    for i, returned_as in enumerate(elements):
        sources = ", ".join(f"[ {values[i]}, %{source} ]" for source, values in returned)
        scalars.append(lanes.made(b, b.emit(f"phi {types.llvm(returned_as)} {sources}"), returned_as))
    return scalars


def _map(tiles: Tiles, op: Operation) -> None:
    """`tt.map_elementwise`: a region of scalars for every element, or for `pack` neighbours at once."""
    shape, pack = op.operand_types[0].shape, op.attributes.get("pack", 1)
    (blocks,), b = op.regions, tiles.b
    buffers = [tiles.buffer(kind.shape, kind.element) for kind in op.result_types]
    elements = [kind.element for kind in op.result_types for _ in range(pack)]

    def body(index: Index) -> None:
        places = [(*index[:-1], _next(b, index[-1], pack, i)) for i in range(pack)]
        given = [tiles.lane(name, place) for name in op.operands for place in places]
        for (name, _), value in zip(blocks[0].arguments, given, strict=True):
            tiles.env[name] = value
        found = lower_blocks(tiles, blocks, b.label(), [None] * len(elements), elements)
        for i, value in enumerate(found):
            tiles.write(buffers[i // pack], places[i % pack], value)

    tiles.nest((*shape[:-1], shape[-1] // pack), -1, 0, body)
    for name, buffer in zip(op.results, buffers, strict=True):
        tiles.env[name] = buffer


def _next(b: Emitter, place: Position | None, pack: int, more: int) -> Position | None:
    """The position of element `more` in the group of `pack` neighbours number `place`."""
    if pack == 1:
        return place
    if place is None or place.known is not None:
        at = pack * (place.known or 0 if place else 0) + more
        return Position(str(at), at)
    return Position(b.emit(f"add nuw nsw i32 {b.emit(f'mul nuw nsw i32 {place.ssa}, {pack}')}, {more}"))


def _barrier(tiles: Tiles, op: Operation) -> None:
    """A barrier orders memory; loads before it have been evaluated already."""


_ROOTS: dict[str, Callable[[Tiles, Operation], None]] = {
    "scf.for": _for,
    "scf.while": _while,
    "scf.if": _if,
    "tt.call": _call,
    "tt.reduce": reduce,
    "tt.scan": scan,
    "tt.dot": dot,
    "tt.store": store_scalar,
    "tt.atomic_rmw": read_modify_write,
    "tt.atomic_cas": compare_and_swap,
    "tt.assert": check,
    "tt.print": print_values,
    "gpu.barrier": _barrier,
    "ttg.barrier": _barrier,
    "tt.map_elementwise": _map,
    "tt.dot_scaled": dot_scaled,
}
