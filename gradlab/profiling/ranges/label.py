"""What a named range says, and where ranges go."""

from typing import NamedTuple, Protocol

from gradlab.profiling.ranges.cost import Shape

PASSES = ("forward", "backward", "second")


class Label(NamedTuple):
    """What a range says: it is what ranges are told apart and cached by.

    `kernel` is empty on an op's range, `way`, its pass, too on one that a profile marks its own steps with. `flops` and
    `bytes` are least work on an op's range (0 where its Spec does not tell); a kernel's `bytes` are what its tensors
    hold, and its FLOPs stand on the op around it.
    """

    op: str
    kernel: str
    way: str
    shapes: tuple[tuple[str, Shape], ...]
    dtype: str
    bytes: int
    flops: int

    @property
    def message(self) -> str:
        """What a timeline shows."""
        return f"{self.kernel or self.op} {self.way}".rstrip()


class Sink(Protocol):
    """Where ranges go; on each thread, what was pushed last is popped first."""

    def push(self, side: str, label: Label) -> None: ...

    def pop(self, side: str) -> None: ...
