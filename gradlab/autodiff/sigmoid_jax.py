"""sigmoid for jax: y is saved, and every derivative is a polynomial of y."""

import functools

import jax

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import want_floats
from gradlab.autodiff.common.elementwise_jax import times
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import sigmoid_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled


@jax.custom_vjp
def _sigmoid_rule(x):
    """y = sigmoid(x)."""
    return kernels.sigmoid(x)


def _sigmoid_fwd(x):
    y = _sigmoid(x)
    return y, y


def _sigmoid_bwd(y, dy):
    return (slope(dy, y, 0),)


_sigmoid_rule.defvjp(_sigmoid_fwd, _sigmoid_bwd)
_sigmoid = compiled(_sigmoid_rule)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _slope_rule(a, y, k):
    """d = a s_k(y). Linear in a; in y its slope is s_(k+1), and s_3 is 0."""
    return kernels.slope(a, y, k)


def _slope_fwd(a, y, k):
    return slope(a, y, k), (a, y)


def _slope_bwd(k, saved, u):
    a, y = saved
    return slope(u, y, k), slope(times(u, a), y, k + 1) if k < 2 else None


_slope_rule.defvjp(_slope_fwd, _slope_bwd)
slope = compiled(_slope_rule, static_argnums=(2,))


@public("sigmoid")
def sigmoid(x: jax.Array) -> jax.Array:
    """y[...] = 1 / (1 + exp(-x)); as `jax.nn.sigmoid`.

    Args:
        x: any shape; float64, float32, float16 or bfloat16.

    Returns:
        A new array. Reverse-mode derivatives of every order are exact.

    Raises:
        TypeError: not an array of one of these dtypes.
    """
    arrays = as_arrays("sigmoid", {"x": x})
    want_floats("sigmoid", arrays)
    return _sigmoid(arrays["x"])


by_spec = sigmoid
