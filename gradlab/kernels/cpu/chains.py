"""Long chains of operations that several loop nests use: where to evaluate a link once, into memory.

Every loop nest that uses a lazy tensor recomputes it. Where each link of a chain is used by a loop nest of its own and
by the next link (the exchanges of a sort), the n-th nest would recompute n links: code and time grow with the square of
the chain's length.
"""

from collections.abc import Mapping, Sequence

from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Lazy, Value

# Depth up to which a chain is always recomputed.
LINKS = 24
# Operations that evaluate their operands in a loop nest of their own; stores count as one, as neighbours share a nest.
_LOOPS = {"tt.reduce", "tt.scan", "tt.dot", "tt.gather", "tt.histogram", "tt.atomic_rmw", "tt.atomic_cas", "scf.yield"}
_ADDRESS, _STORE = -1, 0


class Chains:
    """The depth of each lazy tensor's chain, and which loop nests use it.

    Args:
        users: the users of each name of the kernel.
    """

    def __init__(self, users: Mapping[str, Sequence[Operation]]) -> None:
        self._users = users
        self._lengths: dict[str, int] = {}
        self._loops: dict[str, frozenset[int]] = {}

    def long(self, env: Mapping[str, Value], op: Operation) -> bool:
        """Note the depth of a lazy tensor's chain, itself included; returns whether it is long."""
        below = [self._lengths.get(name, 0) for name in op.operands if isinstance(env.get(name), Lazy)]
        length = 1 + max(below, default=0)
        for name in op.results:
            self._lengths[name] = length
        return length >= LINKS

    def wanted_twice(self, name: str) -> bool:
        """Whether two loop nests would each recompute a tensor.

        Operands of addresses do not count: a load derives its strides from their operations, which memory would hide.
        """
        loops = self._wanting(name)
        return len(loops) > 1 and _ADDRESS not in loops

    def _wanting(self, name: str) -> frozenset[int]:
        """The loop nests that use a tensor, addresses first; the search stops at two."""
        todo = [name]
        while todo:
            one = todo[-1]
            if one in self._loops:
                todo.pop()
                continue
            found: set[int] = set()
            unknown = []
            for user in self._users.get(one, ()):
                if user.name in _LOOPS:
                    found.add(id(user))
                elif user.name in ("tt.store", "tt.addptr"):
                    found.add(_STORE if user.name == "tt.store" else _ADDRESS)
                else:
                    for result in user.results:
                        if result in self._loops:
                            found |= self._loops[result]
                        else:
                            unknown.append(result)
            if unknown:
                todo += unknown
                continue
            self._loops[one] = frozenset(sorted(found)[:2])
            todo.pop()
        return self._loops[name]
