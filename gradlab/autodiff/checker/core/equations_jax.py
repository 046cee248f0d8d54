"""The operations of a jax program, those of the programs inside of it too."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(program: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, and of the jaxprs among the parameters of each: loops, branches, rules, kernels."""
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(value):
                yield from equations(getattr(value, "jaxpr", value))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
