"""Complex arrays as pairs of real ones: a derivative is taken of real and imaginary parts.

A function of complex arrays need not be holomorphic, and torch and jax give gradients that are each other's conjugates.
Of the parts there is one gradient only: each framework's own rules for joining and parting carry its convention.
"""

from collections.abc import Callable, Sequence
from typing import Any

from gradlab.autodiff.frameworks.side import Side

# Each with the dtype of its parts.
PARTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
NAMES = (".real", ".imag")

Rebuild = Callable[[Sequence[Any]], Any]


def is_complex(side: Side, value: Any) -> bool:
    """Whether a value is a complex array that NumPy has one for."""
    return side.dtype(value) in PARTS and not side.foreign(value)


def in_parts(
    side: Side, leaves: Sequence[Any], names: Sequence[str], rebuild: Rebuild
) -> tuple[list[Any], list[str], Rebuild]:
    """Leaves and their names with both parts in place of each complex one, and what joins and rebuilds them."""
    held = [is_complex(side, leaf) for leaf in leaves]
    if not any(held):
        return list(leaves), list(names), rebuild
    parted: list[Any] = []
    named: list[str] = []
    for leaf, name, is_pair in zip(leaves, names, held, strict=True):
        parted += side.parts(leaf) if is_pair else (leaf,)
        named += [name + part for part in NAMES] if is_pair else [name]

    def joined(given: Sequence[Any]) -> Any:
        rest = iter(given)
        return rebuild([side.joined(next(rest), next(rest)) if is_pair else next(rest) for is_pair in held])

    return parted, named, joined


def parted(side: Side, results: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Results with both parts in place of each complex one, and their names; none where none is complex."""
    held = [is_complex(side, y) for y in results]
    if not any(held):
        return list(results), []
    found: list[Any] = []
    names: list[str] = []
    for k, (y, is_pair) in enumerate(zip(results, held, strict=True)):
        name = "result" if len(results) == 1 else f"result {k}"
        found += side.parts(y) if is_pair else (y,)
        names += [name + part for part in NAMES] if is_pair else [name]
    return found, names
