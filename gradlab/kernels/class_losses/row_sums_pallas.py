"""Sums over the rows of a loss: what they weigh together, and what they cost together, as a Pallas kernel."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses.parts_pallas import ClassAxes
from gradlab.kernels.runtime.launch_pallas import block, launch, loop, pad, pallas


# fmt: off
def _sum_rows_kernel(y_ref, s_ref, *, BM):
    """s = sum_m y[m]; grid (1); one program owns s."""
    def step(i, total):
        return total + y_ref[pl.ds(i * BM, BM), :]

    total = loop(y_ref.shape[0] // BM, step, jnp.zeros((BM, 1), y_ref.dtype))
    s_ref[...] = jnp.sum(total, axis=0, keepdims=True)
# fmt: on


def mean_divisors(
    t: jax.Array,
    a: jax.Array | None,
    V: int,
    ignore_index: int,
    dtype: jnp.dtype,
    first: jax.Array | None = None,
    axes: ClassAxes | None = None,
) -> jax.Array:
    """d[2] = (sum of a[t[m]] over the rows that are not ignored, their number), in `dtype`. M read.

    With `axes` a has the V classes from `first` on, and one number is exchanged; without a, none.
    """
    valid = t != ignore_index
    one = valid.astype(dtype)
    number = sum_rows(one)
    if a is None:
        return jnp.stack([number, number])
    t = t if first is None else t - first
    weight = jnp.where(valid & (t >= 0) & (t < V), a[jnp.clip(t, 0, V - 1)].astype(dtype), 0)
    total = sum_rows(weight)
    return jnp.stack([axes.sum(total) if axes else total, number])


def sum_rows(y: jax.Array) -> jax.Array:
    """The sum of y[M]. M read."""
    (M,) = y.shape
    if M == 0:
        return jnp.zeros((), y.dtype)

    def call(platform: str, y: jax.Array) -> jax.Array:
        BM = block(platform, M, 1024)
        y = pad(y.reshape(M, 1), BM, 1)
        column = pl.BlockSpec(y.shape, lambda i: (0, 0))
        one = pl.BlockSpec((1, 1), lambda i: (0, 0))
        kernel = functools.partial(_sum_rows_kernel, BM=BM)
        return pallas(kernel, platform, [1], [column], one, jax.ShapeDtypeStruct((1, 1), y.dtype))(y)[0, 0]

    return launch(call, y)
