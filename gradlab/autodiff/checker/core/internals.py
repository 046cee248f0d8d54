"""What a function does between its arguments and results: casts to a low precision, random numbers."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Internals(NamedTuple):
    """What was observed in one call.

    Attributes:
        unit: the rounding unit of the lowest float dtype; 0 if unknown.
        draws: whether it draws random numbers, on jax; False on torch, where nothing asks.
    """

    unit: float = 0.0
    draws: bool = False

    @property
    def slack(self) -> float:
        """The relative difference that this rounding allows between two computations of one number; 0 from float32
        on."""
        return 32 * self.unit if self.unit > 2.0**-24 else 0.0


def internals(side: str, fn: Callable[..., Any], args: Sequence[Any]) -> Internals:
    """What `fn` does at these arguments of a side; the defaults where it cannot be observed."""
    try:
        return importlib.import_module(f"gradlab.autodiff.checker.core.internals_{side}").internals(fn, args)
    except Exception:
        return Internals()
