"""What rules that relabel or mask a tensor ask of who evaluates it: values by name, and their lanes at a place."""

from typing import Protocol

from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane
from gradlab.kernels.cpu.ttir import Operation, Type
from gradlab.kernels.cpu.values import Index, Value


class Tensors(Protocol):
    """A kernel's values while its code is written; `tiles.Tiles` is one.

    Attributes:
        b: writes instructions.
        env, types: value and type by name.
        definitions, users: the operation that makes a name, and those that take it.
        holding: masks that hold everywhere in the loops being written.
        held: masks that hold at a place of them.
    """

    b: Emitter
    env: dict[str, Value]
    types: dict[str, Type]
    definitions: dict[str, Operation]
    users: dict[str, list[Operation]]
    holding: frozenset[str]
    held: frozenset[tuple[str, Index]]

    def scalar(self, name: str) -> Lane:
        """The value of a scalar name."""

    def lane(self, name: str, index: Index) -> Lane:
        """A tensor's lanes at a place."""

    def forget(self) -> None:
        """Drop the cached lanes: the place changes."""

    def loads(self, name: str) -> list[Operation]:
        """The loads that evaluating a lazy tensor performs."""

    def transcendental(self, name: str) -> bool:
        """Whether computing a tensor takes a transcendental function."""
