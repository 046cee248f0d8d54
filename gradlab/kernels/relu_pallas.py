"""relu and the gate that is its pullback, as Pallas kernels."""

import jax
import jax.numpy as jnp

from gradlab.kernels.common.elementwise_pallas import elementwise


# fmt: off
def _gate_kernel(x_ref, g_ref, y_ref):
    """y[m n] = 0 where g[m n] <= 0, else x[m n]; grid (M/BM, 1); a program owns y[BM N]."""
    # Not (g > 0): a NaN passes, as it does in both frameworks' forward.
    y_ref[...] = jnp.where(g_ref[...] <= 0, jnp.zeros_like(x_ref[...]), x_ref[...])
# fmt: on


def gate(x: jax.Array, gate: jax.Array) -> jax.Array:
    """y = 0 where gate <= 0, else x; same shape. gate(x, x) is relu.

    E elements: 2 E read (E when both are one array in cache), E written.
    """
    return elementwise(_gate_kernel, [x.dtype], x, gate)[0]
