"""relu and the gate that is its pullback, as Pallas kernels."""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.launch_pallas import block, launch, pad, pallas


# fmt: off
def _gate_kernel(x_ref, g_ref, y_ref):
    """y[m n] = 0 where g[m n] <= 0, else x[m n]; grid (M/BM, N/BN); a program owns y[BM BN]."""
    # Not (g > 0): a NaN passes, as it does in both frameworks' forward.
    y_ref[...] = jnp.where(g_ref[...] <= 0, jnp.zeros_like(x_ref[...]), x_ref[...])
# fmt: on


def gate(x: jax.Array, gate: jax.Array) -> jax.Array:
    """y = 0 where gate <= 0, else x; same shape. gate(x, x) is relu.

    E elements: 2 E read (E when both are one array in cache), E written.
    """
    if x.size == 0:
        return x

    def call(platform: str, *operands: jax.Array) -> jax.Array:
        M, N = math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1
        BM, BN = block(platform, M, 8, least=8), block(platform, N, 256, least=128)
        padded = [pad(t.reshape(M, N), BM, BN) for t in operands]
        spec = pl.BlockSpec((BM, BN), lambda i, j: (i, j))
        shape = jax.ShapeDtypeStruct(padded[0].shape, x.dtype)
        grid = (shape.shape[0] // BM, shape.shape[1] // BN)
        y = pallas(_gate_kernel, platform, grid, [spec, spec], spec, shape)(*padded)
        return y[:M, :N].reshape(x.shape)

    return launch(call, x, gate)
