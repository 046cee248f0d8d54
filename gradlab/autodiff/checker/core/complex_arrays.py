"""Complex arrays as pairs of real ones: derivatives are taken for the real and imaginary parts.

A function of complex arrays need not be holomorphic, and the gradients of torch and jax are conjugates of each other.
The gradient for the two parts is unique: each framework's own rules for building a complex array and splitting it carry
its convention.
"""

from collections.abc import Callable, Sequence
from typing import Any

from gradlab.autodiff.frameworks.side import Side

# Complex dtype -> dtype of its parts.
PARTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
NAMES = (".real", ".imag")

Rebuild = Callable[[Sequence[Any]], Any]


def is_complex(side: Side, value: Any) -> bool:
    """Whether a value is a complex array of a dtype that NumPy has."""
    return side.dtype(value) in PARTS and not side.foreign(value)


def in_parts(
    side: Side, leaves: Sequence[Any], names: Sequence[str], rebuild: Rebuild
) -> tuple[list[Any], list[str], Rebuild]:
    """Leaves and names with each complex leaf split into its parts, and the function that rebuilds the arguments."""
    complex_leaves = [is_complex(side, leaf) for leaf in leaves]
    if not any(complex_leaves):
        return list(leaves), list(names), rebuild
    split_complex: list[Any] = []
    split_names: list[str] = []
    for leaf, name, is_pair in zip(leaves, names, complex_leaves, strict=True):
        split_complex += side.parts(leaf) if is_pair else (leaf,)
        split_names += [name + part for part in NAMES] if is_pair else [name]

    def joined(given: Sequence[Any]) -> Any:
        rest = iter(given)
        return rebuild([side.joined(next(rest), next(rest)) if is_pair else next(rest) for is_pair in complex_leaves])

    return split_complex, split_names, joined


def split_complex(side: Side, results: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Results with each complex one split into its parts, and their names; no names if none is complex."""
    complex_leaves = [is_complex(side, y) for y in results]
    if not any(complex_leaves):
        return list(results), []
    found: list[Any] = []
    names: list[str] = []
    for k, (y, is_pair) in enumerate(zip(results, complex_leaves, strict=True)):
        name = "result" if len(results) == 1 else f"result {k}"
        found += side.parts(y) if is_pair else (y,)
        names += [name + part for part in NAMES] if is_pair else [name]
    return found, names
