"""The sum of a matrix over its rows as a Pallas kernel, in two passes where it is tall."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.runtime.launch_pallas import accumulator, block, launch, loop, pad, pallas
from gradlab.kernels.runtime.sharded_pallas import axes, sharded


# fmt: off
def _column_sum_kernel(*refs, M, BM, masked):
    """s[z n] = sum_m a[m n], 0 where mask <= 0, over the z-th M rows; grid (Z, N/BN); a program owns s[z BN]."""
    a_ref, *others, s_ref = refs
    acc = accumulator(a_ref.dtype)

    def step(i, total):
        m = pl.ds(i * BM, BM)
        a = a_ref[m, :].astype(acc)
        if masked:
            a = jnp.where(others[0][m, :] <= 0, jnp.zeros_like(a), a)
        return total + jnp.sum(a, axis=0, keepdims=True)

    s_ref[...] = loop(M // BM, step, jnp.zeros(s_ref.shape, acc)).astype(s_ref.dtype)
# fmt: on


def _rule(a: jax.Array, mask: jax.Array | None) -> str:
    rows = axes("M", a.ndim - 1)
    return f"a[{rows} N], mask[{rows} N] -> s[N]; sums {rows}"


@sharded(_rule)
def column_sum(a: jax.Array, mask: jax.Array | None) -> jax.Array:
    """s[N] = sum over M, all axes but the last, of a[M N], zeros where mask <= 0; M * N * (1 or 2) elements read.

    A tall matrix is summed in two passes, Z partial rows first: no atomics, so the same bits each time.
    """
    M, N, dtype, acc = math.prod(a.shape[:-1]), a.shape[-1], a.dtype, accumulator(a.dtype)
    if 0 in (M, N):
        return jnp.zeros(N, dtype)

    def call(platform: str, *operands: jax.Array) -> jax.Array:
        M = operands[0].shape[0]
        Z = max(1, min(256, M // 512)) if platform == "cuda" else 1
        BM, BN = block(platform, -(-M // Z), 64), block(platform, N, 128, least=128)
        rows = -(-M // (Z * BM)) * BM
        padded = [pad(t, Z * rows, BN) for t in operands]
        spec = pl.BlockSpec((rows, BN), lambda z, j: (z, j))
        kernel = functools.partial(_column_sum_kernel, M=rows, BM=BM, masked=len(operands) > 1)
        shape = jax.ShapeDtypeStruct((Z, padded[0].shape[1]), acc if Z > 1 else dtype)
        out = pl.BlockSpec((1, BN), lambda z, j: (z, j))
        grid = (Z, padded[0].shape[1] // BN)
        partial = pallas(kernel, platform, grid, [spec] * len(padded), out, shape)(*padded)[:, :N]
        return partial[0] if Z == 1 else call(platform, partial).astype(dtype)

    return launch(call, *(t.reshape(M, N) for t in (a, mask) if t is not None))
