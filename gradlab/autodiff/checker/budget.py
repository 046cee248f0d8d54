"""What is left out by default where a call of the function is slow: parts in order of their worth, and most edges."""

import time
from collections.abc import Callable
from dataclasses import dataclass

# From so many seconds a call with its gradient on: the parts that are left out, and the edges that are not.
_SLOW: tuple[tuple[float, tuple[str, ...], int | None], ...] = (
    (0.0, (), None),
    (0.1, (), 4),
    (1.0, ("second", "edges"), 0),
    (10.0, ("contract", "second", "precision", "edges"), 0),
)


@dataclass(frozen=True)
class Worth:
    """What one call takes, and what is left out for it.

    Attributes:
        seconds: of a call with its gradient.
        left_out: parts.
        edges: at most so many; all of them when None.
    """

    seconds: float = 0.0
    left_out: tuple[str, ...] = ()
    edges: int | None = None

    def said(self, parts: tuple[str, ...]) -> str:
        """What is left out of these parts, in words; empty when nothing is."""
        said = [part for part in self.left_out if part in parts]
        if self.edges and "edges" in parts:
            said.append(f"edges but for the first {self.edges}")
        if not said:
            return ""
        return f"a call takes {self.seconds:.2g} s, so left out: {', '.join(said)}; `parts=` or `budget=` asks for them"


def worth(seconds: float) -> Worth:
    """What a call of so many seconds is worth."""
    _, left_out, edges = [level for level in _SLOW if seconds >= level[0]][-1]
    return Worth(seconds, left_out, edges)


def took(start: float, again: Callable[[], object]) -> float:
    """Seconds since `start`, or what the call takes again, when that was long: the first compiles and imports."""
    first = time.perf_counter() - start
    if first < _SLOW[1][0]:
        return first
    start = time.perf_counter()
    again()
    return min(first, time.perf_counter() - start)
