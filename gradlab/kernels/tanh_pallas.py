"""tanh and the slopes that its pullbacks of every order need, as Pallas kernels."""

import functools

import jax
import jax.numpy as jnp

from gradlab.kernels.common.elementwise_pallas import elementwise
from gradlab.kernels.common.softcap_pallas import rational, tanh_of
from gradlab.kernels.runtime.launch_pallas import accumulator


# fmt: off
def _tanh_kernel(x_ref, y_ref, *, interpreted):
    """y[m n] = tanh(x[m n]); grid (M/BM, 1); a program owns y[BM N]."""
    x = x_ref[...].astype(accumulator(x_ref.dtype))
    y = rational(x) if interpreted and x.dtype == jnp.float32 else tanh_of(x)
    y_ref[...] = y.astype(y_ref.dtype)


def _slope_kernel(a_ref, y_ref, d_ref, *, k):
    """d[m n] = a[m n] s_k(y[m n]); grid (M/BM, 1); a program owns d[BM N]."""
    acc = accumulator(y_ref.dtype)
    a, y = a_ref[...].astype(acc), y_ref[...].astype(acc)
    s = ((1 - y) * (1 + y), -2 * y, y * 0 - 2)[k]
    d_ref[...] = (a * s).astype(d_ref.dtype)
# fmt: on


def tanh(x: jax.Array) -> jax.Array:
    """y = tanh(x), same shape. E read, E written."""
    return elementwise(_tanh_kernel, [x.dtype], x, pass_interpreted=True)[0]


def slope(a: jax.Array, y: jax.Array, k: int) -> jax.Array:
    """d = a s_k(y): s_0 = 1 - y^2, s_1 = -2 y, s_2 = -2; same shape. 2 E read, E written."""
    return elementwise(functools.partial(_slope_kernel, k=k), [y.dtype], a, y)[0]
