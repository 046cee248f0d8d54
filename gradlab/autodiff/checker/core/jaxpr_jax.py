"""Walks the operations of a jaxpr and of the jaxprs nested in it."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(program: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of the jaxprs in its parameters: loops, branches, custom rules, kernels."""
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(value):
                yield from equations(getattr(value, "jaxpr", value))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
