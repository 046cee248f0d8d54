"""Peak memory of a call beyond its inputs, where the framework reports it."""

import importlib
from collections.abc import Callable
from typing import Any

from gradlab.autodiff.frameworks.side import Side


def peak_bytes(side: Side, call: Callable[[], Any]) -> int | None:
    """Bytes at most in use beyond those before the call; None if unknown.

    torch counts its allocator's blocks; jax knows the memory plan of one compiled program, but not of a call
    that runs several.
    """
    found: Callable[[Side, Callable[[], Any]], int | None] = importlib.import_module(
        f"gradlab.profiling.bench.peak_{side.name}"
    ).peak_bytes
    return found(side, call)
