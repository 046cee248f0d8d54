"""The label of a named range, and the sinks that ranges are sent to."""

from typing import NamedTuple, Protocol

from gradlab.profiling.ranges.cost import Shape

PASSES = ("forward", "backward", "second")


class Label(NamedTuple):
    """The label of a range; ranges are cached by it.

    `kernel` is empty on an op's range; `direction`, its pass, is empty too on a profile's own step ranges. `flops` and
    `bytes` are minimum work on an op's range (0 if its Spec does not state it); a kernel's `bytes` are those of its
    tensors, and its FLOPs are on the op around it.
    """

    op: str
    kernel: str
    direction: str
    shapes: tuple[tuple[str, Shape], ...]
    dtype: str
    bytes: int
    flops: int

    @property
    def message(self) -> str:
        """What a timeline shows."""
        return f"{self.kernel or self.op} {self.direction}".rstrip()


class Sink(Protocol):
    """Where ranges go; on each thread, what was pushed last is popped first."""

    def push(self, side: str, label: Label) -> None: ...

    def pop(self, side: str) -> None: ...
