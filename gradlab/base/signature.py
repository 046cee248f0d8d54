"""Arrays of a signature in axis letters, `"x[M K], w[K N] -> y[M N]"`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Sizes = Mapping[str, Any]


@dataclass(frozen=True)
class Array:
    """One array of a signature: a name, its axes (one capital letter each), and whether it holds integers."""

    name: str
    axes: tuple[str, ...]
    integer: bool = False

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The lengths of its axes; an axis whose derived size is None is absent (a reduced result)."""
        return tuple(n for a in self.axes if (n := sizes[a]) is not None)


def arrays_of(side: str) -> tuple[Array, ...]:
    """The arrays of one side of a signature."""
    found = re.findall(r"([\w']+)\[([^\]]*)\](:\s*int)?", side)
    return tuple(Array(name, tuple(axes.split()), bool(integer)) for name, axes, integer in found)
