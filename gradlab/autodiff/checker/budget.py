"""What a check leaves out by default when one call of the function is slow: whole parts, and most edge inputs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

# (seconds of one call with its gradient, parts left out from there on, most edge inputs; None for all of them)
_SLOW: tuple[tuple[float, tuple[str, ...], int | None], ...] = (
    (0.0, (), None),
    (0.1, (), 4),
    (1.0, ("second", "edges"), 0),
    (10.0, ("contract", "second", "precision", "edges"), 0),
)


@dataclass(frozen=True)
class Omitted:
    """What a check leaves out for the time that one call takes.

    Attributes:
        seconds: of one call with its gradient.
        left_out: names of the parts that do not run.
        edges: the most edge inputs that are tried; all of them when None.
    """

    seconds: float = 0.0
    left_out: tuple[str, ...] = ()
    edges: int | None = None

    def note(self, parts: tuple[str, ...]) -> str:
        """A note that names which of these parts are left out; empty when none is."""
        names = [part for part in self.left_out if part in parts]
        if self.edges and "edges" in parts:
            names.append(f"edges after the first {self.edges}")
        if not names:
            return ""
        return (
            f"a call takes {self.seconds:.2g} s, so the check leaves out {', '.join(names)}; set `parts=` "
            "or `budget=` to run them"
        )


def omitted(seconds: float) -> Omitted:
    """What is left out when one call takes this many seconds."""
    _, left_out, edges = [level for level in _SLOW if seconds >= level[0]][-1]
    return Omitted(seconds, left_out, edges)


def call_seconds(start: float, call: Callable[[], object]) -> float:
    """Seconds since `start`; after a long first call, which may compile and import, the call is timed again."""
    first = time.perf_counter() - start
    if first < _SLOW[1][0]:
        return first
    start = time.perf_counter()
    call()
    return min(first, time.perf_counter() - start)
