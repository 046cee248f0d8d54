"""Sums of squares and products over all elements of an array, and its product with a number, as Pallas kernels."""

import jax

from gradlab.kernels.common import reduce_pallas
from gradlab.kernels.optimizers.step_pallas import step


# fmt: off
def _scale_kernel(s_ref, x_ref, y_ref):
    """y = x s; grid (E/BE); a program owns BE elements."""
    y_ref[...] = (x_ref[...].astype(s_ref.dtype) * s_ref[0, 0]).astype(y_ref.dtype)
# fmt: on


def squares(x: jax.Array) -> jax.Array:
    """The sum of x^2, in float32 or better. E read."""
    return reduce_pallas.sum_of(lambda x: x * x, "squares", x)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of x y over all elements, in float32 or better; same shape and dtype. 2 E read."""
    return reduce_pallas.sum_of(lambda x, y: x * y, "dot", x, y)


def scale(x: jax.Array, s: jax.Array) -> jax.Array:
    """y = x s for a number s of the accumulator's dtype. E read, E written."""
    return step(_scale_kernel, [s.reshape(1, 1)], [x], [x.dtype], {})[0]
