"""Where an address comes from: the argument, or the scalar, that a pointer of Triton IR is made of."""

from collections.abc import Iterable, Sequence

from gradlab.kernels.cpu.ttir import Block, Function, Operation

# What moves a pointer or arranges pointers anew: the first operand is where they come from.
_MOVES = {
    "tt.addptr",
    "tt.splat",
    "tt.broadcast",
    "tt.expand_dims",
    "tt.bitcast",
    "arith.bitcast",
    "tt.trans",
    "tt.reshape",
    "tt.unsplat",
    "ttg.convert_layout",
}


class Origins:
    """The names that each name may be a copy of, or be moved from."""

    def __init__(self) -> None:
        self._from: dict[str, list[str]] = {}

    def learn(self, function: Function) -> None:
        """Note the pointers of a function."""
        self._blocks(function.blocks)

    def same(self, name: str, given: str) -> None:
        """Note that a callee's argument is what the caller gives."""
        self._from.setdefault(name, []).append(given)

    def of(self, name: str) -> set[str]:
        """The names that a pointer comes from in the end: one where it is known."""
        found: set[str] = set()
        seen: set[str] = set()
        todo = [name]
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            sources = self._from.get(one)
            if sources is None:
                found.add(one)
            else:
                todo += sources
        return found

    def _blocks(self, blocks: Sequence[Block]) -> None:
        named = {block.label: block for block in blocks}
        for block in blocks:
            for op in block.operations:
                self._operation(op)
                for label, given in op.attributes.get("to", ()):
                    self._pairs([name for name, _ in named[label].arguments], given)
                for region in op.regions:
                    self._blocks(region)

    def _operation(self, op: Operation) -> None:
        if op.name in _MOVES:
            self.same(op.result, op.operands[0])
        elif op.name == "arith.select":
            self._pairs([op.result, op.result], op.operands[1:])
        elif op.name == "scf.for":
            inside = [name for name, _ in op.regions[0][0].arguments[1:]]
            self._pairs(inside, op.operands[3:])
            self._pairs(inside, _handed(op.regions[0][0]))
            self._pairs(op.results, inside)
        elif op.name == "scf.while":
            deciding, going = op.regions[0][0], op.regions[1][0]
            first = [name for name, _ in deciding.arguments]
            self._pairs(first, op.operands)
            self._pairs(first, _handed(going))
            handed = deciding.terminator.operands[1:]
            self._pairs([name for name, _ in going.arguments], handed)
            self._pairs(op.results, handed)
        elif op.name == "scf.if":
            for (block,) in op.regions:
                self._pairs(op.results, _handed(block))

    def _pairs(self, names: Iterable[str], given: Iterable[str]) -> None:
        for name, one in zip(names, given, strict=False):
            self.same(name, one)


def _handed(block: Block) -> Sequence[str]:
    """What a region hands on at its end."""
    last = block.operations[-1] if block.operations else None
    return last.operands if last is not None and last.name == "scf.yield" else ()
