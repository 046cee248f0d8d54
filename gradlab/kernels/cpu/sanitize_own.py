"""Loads of what the same program stores right after: whoever races with such a load races with the store too.

So no shadow has to keep who loaded it.
"""

from collections.abc import Iterable, Iterator

from gradlab.kernels.cpu.ttir import Block, Function, Operation


def own_loads(function: Function) -> set[int]:
    """The loads of a function, by identity, whose every lane a later store of their block has too."""
    return {id(op) for op in _in_blocks(function.blocks)}


def _in_blocks(blocks: Iterable[Block]) -> Iterator[Operation]:
    for block in blocks:
        loads: list[Operation] = []
        for op in block.operations:
            if op.name == "tt.load":
                loads.append(op)
            elif op.name == "tt.store":
                yield from (load for load in loads if _covers(op, load))
            for region in op.regions:
                yield from _in_blocks(region)


def _covers(store: Operation, load: Operation) -> bool:
    """Whether a store has every lane of a load: one pointer, and one mask or none."""
    if store.operands[0] != load.operands[0]:
        return False
    return len(store.operands) < 3 or load.operands[1:2] == store.operands[2:]
