"""Sums over the rows of a loss: what they weigh together, and what they cost together, as a Pallas kernel."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses.parts_pallas import ClassAxes, part_of
from gradlab.kernels.runtime.launch_pallas import block, launch, loop, pad, pallas
from gradlab.kernels.runtime.sharded_pallas import axes as axes_of
from gradlab.kernels.runtime.sharded_pallas import sharded


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
    if axes or a is None:
        return _divisors(t, a, V, ignore_index, dtype, first, axes)
    return _whole_divisors(t, a, V, ignore_index, dtype)


def _divisors_of_part(names, t, a, V, ignore_index, dtype):
    first, axes = part_of(names, a.shape[0])
    return _divisors(t, a, a.shape[0], ignore_index, dtype, first, axes)


def _divisors_rule(t, a, V, ignore_index, dtype):
    rows = axes_of("M", t.ndim)
    return f"t[{rows}], a[V] -> d[2]; sums V {rows}"


@sharded(_divisors_rule, own={"V": _divisors_of_part})
def _whole_divisors(t, a, V, ignore_index, dtype):
    return _divisors(t, a, V, ignore_index, dtype, None, None)


def _divisors(t, a, V, ignore_index, dtype, first, axes):
    valid = t != ignore_index
    one = valid.astype(dtype)
    number = sum_rows(one)
    if a is None:
        return jnp.stack([number, number])
    t = t if first is None else t - first
    weight = jnp.where(valid & (t >= 0) & (t < V), a[jnp.clip(t, 0, V - 1)].astype(dtype), 0)
    total = sum_rows(weight)
    return jnp.stack([axes.sum(total) if axes else total, number])


def _sum_rule(y):
    rows = axes_of("M", y.ndim)
    return f"y[{rows}] -> s[]; sums {rows}"


@sharded(_sum_rule)
def sum_rows(y: jax.Array) -> jax.Array:
    """The sum of y[M], whose M may be several axes. M read."""
    M = math.prod(y.shape)
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
