"""Long chains of operations that several loops want: where one of them is evaluated once, into memory.

A lazy tensor is evaluated anew by every loop that wants it. Where each link of a chain is wanted by a loop of its own
and by the next link as well (the exchanges of a sort), the n-th loop would evaluate n links: code and time grow with
the square of the chain.
"""

from collections.abc import Mapping, Sequence

from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Lazy, Value

# Operations one upon the other that are evaluated anew without a second thought.
LINKS = 24
# Operations that evaluate their operands in a loop of their own; all stores count as one, as neighbours share a loop.
_LOOPS = {"tt.reduce", "tt.scan", "tt.dot", "tt.gather", "tt.histogram", "tt.atomic_rmw", "tt.atomic_cas", "scf.yield"}
_ADDRESS, _STORE = -1, 0


class Chains:
    """How long each lazy tensor's chain is, and which loops want it.

    Args:
        users: the users of each name of the kernel.
    """

    def __init__(self, users: Mapping[str, Sequence[Operation]]) -> None:
        self._users = users
        self._lengths: dict[str, int] = {}
        self._loops: dict[str, frozenset[int]] = {}

    def long(self, env: Mapping[str, Value], op: Operation) -> bool:
        """Note how many operations lie one upon the other below a lazy tensor, itself among them; whether many do."""
        below = [self._lengths.get(name, 0) for name in op.operands if isinstance(env.get(name), Lazy)]
        length = 1 + max(below, default=0)
        for name in op.results:
            self._lengths[name] = length
        return length >= LINKS

    def wanted_twice(self, name: str) -> bool:
        """Whether two loops would evaluate a tensor, each anew.

        What addresses are made of does not count: a load sees from its operations how they grow, and not from memory.
        """
        loops = self._wanting(name)
        return len(loops) > 1 and _ADDRESS not in loops

    def _wanting(self, name: str) -> frozenset[int]:
        """The loops that want a tensor: two of them are enough to know, the addresses before others."""
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
