"""Layout of a dot's accumulator in memory: column-major where it is stored along its columns.

d = a b is d^T = b^T a^T. Where a and the result are contiguous along their first axis, as pixels in a convolution are,
the transposed product reads and stores full vectors.
"""

from collections.abc import Iterator, Mapping, Sequence

from gradlab.kernels.cpu import dot_amx, steps
from gradlab.kernels.cpu.elementwise import RULES
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Lazy, Value, chain


class _Ahead(Mapping[str, Value]):
    """The values of a kernel, with operations that are still to be lowered taken as lazy."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles

    def __getitem__(self, name: str) -> Value:
        found = self._tiles.env.get(name)
        if found is not None:
            return found
        op = self._tiles.definitions[name]
        return Lazy(op, op.results.index(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tiles.definitions)

    def __len__(self) -> int:
        return len(self._tiles.definitions)


def by_columns(tiles: Tiles, op: Operation, result: str) -> bool:
    """Whether a dot's accumulator is column-major: a is read, and `result` stored, along the first axis."""
    if len(op.result_types[0].shape) != 2 or dot_amx.covers(tiles, op):
        return False
    ahead = _Ahead(tiles)
    pointers = [load.operands[0] for load in _loads(ahead, op.operands[0])]
    stores = list(_stores(tiles, result))
    return bool(pointers and stores) and all(_along_rows(ahead, group) for group in (pointers, stores))


def _along_rows(env: Mapping[str, Value], pointers: Sequence[str]) -> bool:
    """Whether matrices of addresses are contiguous along the first axis rather than the second."""
    found: dict[tuple[str, int], int | None] = {}
    scores = [0, 0]
    for pointer in pointers:
        for axis in (0, 1):
            step = steps.step(env, pointer, axis, found)
            scores[axis] += 4 if step == 1 else 1 if step is None else 0
    return scores[0] > scores[1]


def _loads(env: Mapping[str, Value], name: str) -> Iterator[Operation]:
    for op in chain(env, name, lambda op: op.name != "tt.load"):
        if op.name == "tt.load" and len(op.result_types[0].shape) == 2:
            yield op


def _stores(tiles: Tiles, name: str) -> Iterator[str]:
    """The addresses to which a tensor, or an elementwise function of it, is stored."""
    todo, seen = [name], set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        for user in tiles.users.get(one, ()):
            if user.name == "tt.store" and user.operands[1] == one:
                yield user.operands[0]
            elif user.name in RULES:
                todo += user.results
