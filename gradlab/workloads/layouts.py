"""Converts weights between torch and jax: names change and axes are transposed, values do not. NumPy only.

torch (state_dict)          jax (pytree, flax's names)
conv.weight [F C R S]       conv.kernel [R S C F]
linear.weight [N K]         linear.kernel [K N]
norm.weight [C]             norm.scale [C]
anything else               the same
"""

from typing import Any

import numpy as np

# Of NumPy or of jax: only shapes are looked at.
Arrays = dict[str, Any]


def to_jax(weights: Arrays) -> Arrays:
    """torch's names and layout -> jax's."""
    return dict(_kernel(name, array) for name, array in weights.items())


def to_torch(weights: Arrays) -> Arrays:
    """jax's names and layout -> torch's."""
    return dict(_weight(name, array) for name, array in weights.items())


def side_of(weights: Arrays) -> str:
    """Which side's names these are.

    Raises:
        ValueError: neither's, or both.
    """
    torch = any(_last(name) == "weight" for name in weights)
    jax = any(_last(name) in ("kernel", "scale") for name in weights)
    if torch == jax:
        names = "both" if torch else "none"
        raise ValueError(
            f"weights: names are {names} of torch's (.weight) and jax's (.kernel, .scale), wanted those of one "
            "framework"
        )
    return "torch" if torch else "jax"


def nested(weights: Arrays) -> dict:
    """The pytree of names with dots: {"conv1.kernel": k} -> {"conv1": {"kernel": k}}."""
    tree: dict = {}
    for name, array in weights.items():
        *path, leaf = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = array
    return tree


def flat(tree: dict, prefix: str = "") -> Arrays:
    """The inverse of `nested`."""
    found: Arrays = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _kernel(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if _last(name) != "weight":
        return name, array
    stem = name.removesuffix("weight")
    if array.ndim < 2:
        return f"{stem}scale", array
    # (out, in, window ...) -> (window ..., in, out)
    return f"{stem}kernel", np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0))


def _weight(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if _last(name) == "scale":
        return f"{name.removesuffix('scale')}weight", array
    if _last(name) != "kernel":
        return name, array
    # (window ..., in, out) -> (out, in, window ...)
    transposed = array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    return f"{name.removesuffix('kernel')}weight", np.ascontiguousarray(transposed)
