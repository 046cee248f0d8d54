"""Loop-carried values: scalars in registers, tensors in memory, pointers and ranges as a start plus an offset."""

from collections.abc import Sequence

from gradlab.kernels.cpu import lanes, orientation, packing, types
from gradlab.kernels.cpu.lanes import Lane, Pointer, Uniform
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Block, Operation, Type
from gradlab.kernels.cpu.values import Affine, Buffer, Lazy

# How a value is carried: a scalar, a tensor in memory, or a tensor to which each iteration adds one scalar.
Kind = None | Buffer | Uniform


class Carried:
    """The loop-carried values of one loop.

    Attributes:
        arguments: names and types in the loop's body.
        kinds: how each is carried.
    """

    def __init__(
        self, tiles: Tiles, arguments: Sequence[tuple[str, Type]], starts: Sequence[str], kinds: Sequence[Kind]
    ) -> None:
        self.tiles = tiles
        self.arguments = list(arguments)
        self.starts = list(starts)
        self.kinds = list(kinds)
        self._holes: list[tuple[int, str, str, str]] = []
        self._ends: list[str] = []
        self._before = ""

    def enter(self, before: str) -> None:
        """At the loop's head: write a phi for each scalar and each offset."""
        b, self._before = self.tiles.b, before
        for (name, kind), start, how in zip(self.arguments, self.starts, self.kinds, strict=True):
            if isinstance(how, Buffer):
                self.tiles.env[name] = how
                self.tiles.owned.add(name)
                continue
            ssa = b.name()
            element = kind.element if how is None else how.element
            first = _register(self.tiles.scalar(start)) if how is None else "0"
            self._holes.append((len(b.lines), ssa, types.llvm(element), first))
            b.lines.append("")
            if how is None:
                self.tiles.env[name] = lanes.made(b, ssa, element)
            else:
                self.tiles.env[name] = Affine(start, Uniform(ssa, element))

    def leave(self, ends: Sequence[str]) -> None:
        """At the end of an iteration: store the tensors, note the next scalars and offsets."""
        _overwrite(
            self.tiles, [(how, end) for how, end in zip(self.kinds, ends, strict=True) if isinstance(how, Buffer)]
        )
        for (name, _), how, end in zip(self.arguments, self.kinds, ends, strict=True):
            if how is None:
                self._ends.append(_register(self.tiles.scalar(end)))
            elif isinstance(how, Uniform):
                value = self.tiles.env[name]
                assert isinstance(value, Affine)
                self._ends.append(lanes.add(self.tiles.b, value.offset, how).ssa)

    def close(self, last: str) -> None:
        """After the body's last block: complete the phis, whose predecessor is now known."""
        for (line, ssa, kind, first), end in zip(self._holes, self._ends, strict=True):
            self.tiles.b.lines[line] = f"  {ssa} = phi {kind} [ {first}, %{self._before} ], [ {end}, %{last} ]"

    def results(self, names: Sequence[str]) -> None:
        """After the loop: bind its results to the carried values."""
        for name, (argument, _) in zip(names, self.arguments, strict=True):
            self.tiles.env[name] = self.tiles.env[argument]


def carry(
    tiles: Tiles,
    block: Block,
    arguments: Sequence[tuple[str, Type]],
    starts: Sequence[str],
    ends: Sequence[str],
    results: Sequence[str],
    affine: bool = True,
) -> Carried:
    """Choose how each value of a loop is carried, and store the tensors' initial values."""
    kinds: list[Kind] = []
    for (name, kind), start, end, result in zip(arguments, starts, ends, results, strict=True):
        if not kind.shape:
            kinds.append(None)
            continue
        moved = _movement(tiles, block, name, end) if affine else None
        if moved is not None:
            if tiles.expensive(start):
                tiles.env[start] = tiles.materialize(start)
                tiles.pending.discard(start)
            kinds.append(moved)
            continue
        buffer = tiles.buffer(kind.shape, kind.element, _strides(tiles, kind, name, end, result))
        tiles.materialize(start, buffer)
        kinds.append(buffer)
    return Carried(tiles, arguments, starts, kinds)


def _strides(tiles: Tiles, kind: Type, name: str, end: str, result: str) -> tuple[int, ...] | None:
    """Strides of a carried tensor's memory: an accumulator lies as it is stored after the loop."""
    op = tiles.definitions.get(end)
    if op is None or op.name != "tt.dot" or op.operands[2] != name or not orientation.by_columns(tiles, op, result):
        return None
    return packing.strides(kind.shape, kind.element, columns_first=True)


def _movement(tiles: Tiles, block: Block, name: str, end: str) -> Uniform | None:
    """The loop-invariant scalar that each iteration adds to a carried tensor; None if it does anything else."""
    op = tiles.definitions.get(end)
    if op is None or op.block is not block or op.name not in ("arith.addi", "tt.addptr") or op.operands[0] != name:
        return None
    by = tiles.definitions.get(op.operands[1])
    if by is None:
        return None
    element = "i64" if op.name == "tt.addptr" else tiles.types[name].element
    if by.name == "arith.constant" and isinstance(by.attributes["value"], int):
        return lanes.known(by.attributes["value"], element)
    if by.name == "tt.splat" and by.operands[0] in tiles.env:
        # Defined before the loop: loop-invariant.
        scalar = tiles.scalar(by.operands[0])
        assert isinstance(scalar, Uniform)
        return lanes.widen(tiles.b, scalar, element)
    return None


def _overwrite(tiles: Tiles, pairs: Sequence[tuple[Buffer, str]]) -> None:
    """Overwrite carried tensors with their new values; no value may read a tensor that has been overwritten already."""
    todo = [(buffer, end) for buffer, end in pairs if tiles.env[end] is not buffer]
    taken = {buffer.base for buffer, _ in todo}
    ready: list[tuple[Buffer, str]] = []
    for buffer, end in todo:
        straight, sideways = _reads(tiles, end)
        # Tensors written in one loop nest: a value may read carried tensors only at the place that it writes.
        if sideways & taken or straight & (taken - {buffer.base}):
            temporary = tiles.materialize(end)
            tiles.env[end] = temporary
        ready.append((buffer, end))
    groups: dict[tuple[int, ...], list[tuple[Buffer, str]]] = {}
    for buffer, end in ready:
        groups.setdefault(buffer.shape, []).append((buffer, end))
    for group in groups.values():
        tiles.fill(group)


def _reads(tiles: Tiles, name: str) -> tuple[set[str], set[str]]:
    """The buffers that a lazy tensor reads at its own place, and those that it reads at other places."""
    straight: set[str] = set()
    sideways: set[str] = set()
    todo = [(name, True)]
    seen: set[tuple[str, bool]] = set()
    while todo:
        one, direct = todo.pop()
        if (one, direct) in seen:
            continue
        seen.add((one, direct))
        value = tiles.env.get(one)
        if isinstance(value, Buffer):
            (straight if direct else sideways).add(value.base)
        elif isinstance(value, Affine):
            todo.append((value.start, direct))
        elif isinstance(value, Lazy):
            todo += [(operand, direct and not _moves(value.op)) for operand in value.op.operands]
    return straight, sideways


def _moves(op: Operation) -> bool:
    return op.name in ("tt.trans", "tt.reshape", "tt.expand_dims", "tt.broadcast", "tt.split", "tt.splat")


def _register(value: Lane) -> str:
    if isinstance(value, Pointer):
        return value.base
    assert isinstance(value, Uniform)
    return value.ssa
