"""One row of the benchmark: what was run, whether it was right, and the raw samples."""

from dataclasses import asdict, dataclass
from typing import Any

from gradlab.profiling.timing import Pairs, Spread, spread

MODES = ("eager", "compiled")
FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)
OK, WRONG, FAILED = "ok", "wrong", "failed"


@dataclass(frozen=True)
class Row:
    """What was measured; JSON has the same keys.

    Attributes:
        sizes: the case's axes, in words.
        direction: "forward" or "forward+backward".
        device: "cpu", "cuda", ...
        native: the framework's function that was timed beside the hand-written op.
        verdict: "ok", "wrong" (the two differ by more than rounding explains; not timed) or "failed" (an error).
        note: what is wrong, in a line.
        interpreted: whether the hand-written kernels were interpreted: then hand_seconds is no kernel's speed.
        flops, bytes: least work of the direction, from the op's Spec.
        repeat: calls a sample.
        hand_seconds, native_seconds: seconds a call, pair by pair.
    """

    op: str
    case: str
    sizes: str
    side: str
    mode: str
    direction: str
    dtype: str
    device: str
    native: str
    verdict: str
    interpreted: bool
    flops: int
    bytes: int
    note: str = ""
    repeat: int = 0
    hand_seconds: tuple[float, ...] = ()
    native_seconds: tuple[float, ...] = ()

    @property
    def hand(self) -> Spread:
        return spread(self.hand_seconds)

    @property
    def natively(self) -> Spread:
        return spread(self.native_seconds)

    @property
    def ratio(self) -> Spread:
        """hand / native, pair by pair."""
        return Pairs(self.hand_seconds, self.native_seconds, self.repeat).ratio()

    def as_json(self) -> dict[str, Any]:
        """Seconds to a tenth of a nanosecond: less is noise, and the file is kept."""
        rounded = {k: [round(s, 10) for s in getattr(self, k)] for k in ("hand_seconds", "native_seconds")}
        return asdict(self) | rounded

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        samples = {k: tuple(values[k]) for k in ("hand_seconds", "native_seconds")}
        return cls(**(values | samples))
