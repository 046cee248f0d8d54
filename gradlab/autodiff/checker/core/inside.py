"""What a function works in, whatever its arguments and results are: casts to a low precision inside of it."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Inside(NamedTuple):
    """What is seen of one call.

    Attributes:
        unit: what rounding to the lowest float dtype may change, relative; 0 where none is known.
        draws: it draws random numbers.
    """

    unit: float = 0.0
    draws: bool = False

    @property
    def slack(self) -> float:
        """How far two ways to one number may be apart for its rounding, relative; 0 from float32 on."""
        return 32 * self.unit if self.unit > 2.0**-24 else 0.0


def inside(side: str, fn: Callable[..., Any], args: Sequence[Any]) -> Inside:
    """What `fn` works in at these arguments of a side; nothing is known where it cannot be looked into."""
    try:
        return importlib.import_module(f"gradlab.autodiff.checker.core.inside_{side}").inside(fn, args)
    except Exception:
        return Inside()
