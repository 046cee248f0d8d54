"""Side effects and randomness: the state that a function changes beside its results."""

import functools
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Larger arrays and longer containers are compared by identity.
_MANY = 10_000


def state(fn: Callable[..., Any]) -> dict[str, Any]:
    """Fingerprints, by name, of the state that a function can reach and change."""
    found: dict[str, Any] = {"random's generator": random.getstate()}
    # The legacy global generator, from which a function can draw without an argument.
    found["NumPy's generator"] = _mark(np.random.get_state())  # noqa: NPY002
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch's generator"] = _mark(torch.get_rng_state())
    while isinstance(fn, functools.partial):
        fn = fn.func
    owner: Any = getattr(fn, "__self__", None if hasattr(fn, "__code__") else fn)
    if owner is not None:
        module = hasattr(owner, "named_buffers")
        for name, value in getattr(owner, "__dict__", {}).items():
            # A module's private attributes belong to torch: buffers, parameters, and what a call rebuilds.
            if not (module and name.startswith("_")):
                found[f"its {name}"] = _mark(value)
        if module:
            found.update({f"its buffer {name}": _mark(b) for name, b in owner.named_buffers()})
    plain: Any = getattr(fn, "__func__", fn)
    code = getattr(plain, "__code__", None)
    if code is None:
        return found
    for name, cell in zip(code.co_freevars, getattr(plain, "__closure__", None) or (), strict=False):
        try:
            found[f"{name}, which it closes over"] = _mark(cell.cell_contents)
        except ValueError:
            continue  # a cell that is not filled yet
    names = getattr(plain, "__globals__", {})
    found.update({f"the global {n}": _mark(names[n]) for n in code.co_names if n in names})
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names whose fingerprints differ."""
    return [name for name, mark in after.items() if before.get(name) != mark]


def _mark(value: Any, depth: int = 0) -> Any:
    if isinstance(value, (int, float, complex, str, bytes, bool, type(None))):
        return repr(value)
    if isinstance(value, Mapping) and len(value) <= _MANY and depth < 3:
        return "map", tuple((str(k), _mark(v, depth + 1)) for k, v in value.items())
    if isinstance(value, (list, tuple, set)) and len(value) <= _MANY and depth < 3:
        return type(value).__name__, len(value), tuple(_mark(v, depth + 1) for v in list(value)[:100])
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        try:
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        except Exception:
            return id(value)
        return array.shape, array.tobytes() if array.size <= _MANY else id(value)
    return id(value)
