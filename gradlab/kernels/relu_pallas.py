"""relu and the mask that is its pullback, as Pallas kernels."""

import jax
import jax.numpy as jnp

from gradlab.kernels.common.elementwise_pallas import elementwise


# fmt: off
def _relu_mask_kernel(x_ref, mask_ref, y_ref):
    """y[m n] = 0 where mask[m n] <= 0, else x[m n]; grid (M/BM, 1); a program owns y[BM N]."""
    # Not `where(mask > 0, x, 0)`: a NaN passes, as it does in both frameworks' forward.
    y_ref[...] = jnp.where(mask_ref[...] <= 0, jnp.zeros_like(x_ref[...]), x_ref[...])
# fmt: on


def relu_mask(x: jax.Array, mask: jax.Array) -> jax.Array:
    """y = 0 where mask <= 0, else x; same shape. relu_mask(x, x) is relu.

    E elements: 2 E read (E when both are one array in cache), E written.
    """
    return elementwise(_relu_mask_kernel, [x.dtype], x, mask)[0]
