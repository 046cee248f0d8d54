"""Most memory that a call has in use at once beyond its inputs, where the framework tells."""

import importlib
from collections.abc import Callable
from typing import Any

from gradlab.autodiff.frameworks.side import Side


def peak_bytes(side: Side, call: Callable[[], Any]) -> int | None:
    """Bytes at most in use beyond those before the call; None where nothing tells.

    torch counts its allocator's blocks; jax plans a compiled program's memory ahead, and has none to tell of a call
    that is many programs.
    """
    found: Callable[[Side, Callable[[], Any]], int | None] = importlib.import_module(
        f"gradlab.profiling.bench.peak_{side.name}"
    ).peak_bytes
    return found(side, call)
