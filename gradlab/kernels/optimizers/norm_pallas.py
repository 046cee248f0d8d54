"""Sums of squares and products over all elements of an array, and its product with a number, as Pallas kernels."""

from typing import Any

import jax
import jax.numpy as jnp

from gradlab.kernels.common import reduce_pallas
from gradlab.kernels.optimizers.step_pallas import step
from gradlab.kernels.runtime.sharded_pallas import sharded


# fmt: off
def _scale_kernel(s_ref, x_ref, y_ref):
    """y = x s; grid (E/BE); a program owns BE elements."""
    y_ref[...] = (x_ref[...].astype(s_ref.dtype) * s_ref[0, 0]).astype(y_ref.dtype)
# fmt: on


def _rule(dtype: Any, *arrays: jax.Array) -> str:
    of = [" ".join(f"E{i}_{j}" for j in range(x.ndim)) for i, x in enumerate(arrays)]
    names = [f"x{i}" for i in range(len(arrays))]
    inputs = ", ".join(f"{name}[{axes}]" for name, axes in zip(names, of, strict=True))
    return f"{inputs} -> s[]; sums {' '.join(of)}; adds {' '.join(names)}"


@sharded(_rule)
def squares(dtype: Any, *arrays: jax.Array) -> jax.Array:
    """The sum of x^2 over all arrays, each in float32 or better, all in `dtype`. E read.

    One operation, so that devices that hold parts of the arrays add up one number.
    """
    each = (reduce_pallas.sum_of(lambda x: x * x, "squares", x).astype(dtype) for x in arrays)
    return sum(each, jnp.zeros((), dtype))


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of x y over all elements, in float32 or better; same shape and dtype. 2 E read."""
    return reduce_pallas.sum_of(lambda x, y: x * y, "dot", x, y)


def scale(x: jax.Array, s: jax.Array) -> jax.Array:
    """y = x s for a number s of the accumulator's dtype. E read, E written."""
    return step(_scale_kernel, [s.reshape(1, 1)], [x], [x.dtype], {})[0]
