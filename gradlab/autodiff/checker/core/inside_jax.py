"""What a jax function works in: the dtypes of all arrays that its program makes, and whether it draws numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.autodiff.checker.core.equations_jax import equations
from gradlab.autodiff.checker.core.inside import Inside

# What draws random bits: how many, and so which, depends on the dtype that is drawn.
DRAWS = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")


def inside(fn: Callable[..., Any], args: Sequence[Any]) -> Inside:
    """The largest rounding unit among the dtypes of a program, 0 where it makes no float array."""
    units, draws = [0.0], False
    for equation in equations(jax.make_jaxpr(fn)(*args).jaxpr):
        draws = draws or equation.primitive.name in DRAWS
        for out in equation.outvars:
            dtype = getattr(out.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                units.append(float(jnp.finfo(dtype).eps) / 2)
    return Inside(max(units), draws)
