"""The lowest float dtype in a jax function's program, and whether it draws random numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.autodiff.checker.core.internals import Internals
from gradlab.autodiff.checker.core.jaxpr_jax import equations

# Primitives that draw random bits; which bits depends on the dtype that is drawn.
DRAWS = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")


def internals(fn: Callable[..., Any], args: Sequence[Any]) -> Internals:
    """The largest rounding unit among the float dtypes of the program; 0 if it has no float array."""
    units, draws = [0.0], False
    for equation in equations(jax.make_jaxpr(fn)(*args).jaxpr):
        draws = draws or equation.primitive.name in DRAWS
        for out in equation.outvars:
            dtype = getattr(out.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                units.append(float(jnp.finfo(dtype).eps) / 2)
    return Internals(max(units), draws)
