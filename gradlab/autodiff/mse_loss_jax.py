"""mse_loss for jax: x and t are saved; the pullbacks of a product of differences are such products again."""

import functools

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import refuse, want_floats
from gradlab.autodiff.arguments.reduction import divisor
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import mse_loss_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _squares_rule(x, t, den):
    """y = the sum of (x - t)^2, over den."""
    return kernels.squares(x, t, den)


def _squares_fwd(x, t, den):
    return squares(x, t, den), (x, t)


def _squares_bwd(den, saved, dy):
    x, t = saved
    spread = jnp.broadcast_to(dy, x.shape)
    return differences(spread, None, x, t, 2, den), differences(spread, None, x, t, -2, den)


_squares_rule.defvjp(_squares_fwd, _squares_bwd)
squares = compiled(_squares_rule, static_argnums=(2,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _differences_rule(a, b, x, t, num, den):
    """y = num / den (a - b) (x - t), zeros for b or t that is None. Bilinear: its pullbacks are of its kind."""
    return kernels.differences(a, b, x, t, num, den)


def _differences_fwd(a, b, x, t, num, den):
    return differences(a, b, x, t, num, den), (a, b, x, t)


def _differences_bwd(num, den, saved, u):
    a, b, x, t = saved
    da, dx = differences(u, None, x, t, num, den), differences(u, None, a, b, num, den)
    db = None if b is None else differences(u, None, x, t, -num, den)
    dt = None if t is None else differences(u, None, a, b, -num, den)
    return da, db, dx, dt


_differences_rule.defvjp(_differences_fwd, _differences_bwd)
differences = compiled(_differences_rule, static_argnums=(4, 5))


@public("mse_loss")
def mse_loss(predictions: jax.Array, targets: jax.Array, *, reduction: str = "mean") -> jax.Array:
    """The mean of (predictions[...] - targets[...])^2; `optax.squared_error`, reduced.

    Args:
        predictions, targets: any one shape; both of float64, float32, float16 or bfloat16.
        reduction: "mean" (NaN when empty), "sum", or "none" for one loss an element.

    Returns:
        A scalar, or a new array of the inputs' shape, in their dtype. Reverse-mode derivatives of every order, for
        both inputs, are exact.

    Raises:
        ValueError: shapes that differ, an unknown reduction.
        TypeError: not arrays of one such dtype.
    """
    arrays = as_arrays("mse_loss", {"predictions": predictions, "targets": targets})
    want_floats("mse_loss", arrays)
    x, t = arrays.values()
    if x.shape != t.shape:
        refuse("mse_loss", "shape of targets", list(t.shape), f"{list(x.shape)} like predictions")
    den = divisor("mse_loss", reduction, x.size)
    if reduction == "none":
        return differences(x, t, x, t, 1, 1)
    return squares(x, t, den)


by_spec = mse_loss
