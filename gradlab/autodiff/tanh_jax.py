"""tanh for jax: y is saved, and every derivative is a polynomial of y."""

import functools

import jax

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import want_floats
from gradlab.autodiff.common.elementwise_jax import times
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import tanh_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled


@jax.custom_vjp
def _tanh_rule(x):
    """y = tanh(x)."""
    return kernels.tanh(x)


def _tanh_fwd(x):
    y = _tanh(x)
    return y, y


def _tanh_bwd(y, dy):
    return (slope(dy, y, 0),)


_tanh_rule.defvjp(_tanh_fwd, _tanh_bwd)
_tanh = compiled(_tanh_rule)


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


@public("tanh")
def tanh(x: jax.Array) -> jax.Array:
    """y[...] = tanh(x); as `jnp.tanh`.

    Args:
        x: any shape; float64, float32, float16 or bfloat16.

    Returns:
        A new array. Reverse-mode derivatives of every order are exact.

    Raises:
        TypeError: not an array of one of these dtypes.
    """
    arrays = as_arrays("tanh", {"x": x})
    want_floats("tanh", arrays)
    return _tanh(arrays["x"])


by_spec = tanh
