"""Cross-entropy of rows of logits, there, back and back again, as Pallas kernels."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.launch_pallas import accumulator, block, interpreted, launch, loop, pad, pallas


# fmt: off
def _loss_kernel(x_ref, t_ref, y_ref, top_ref, log_sum_ref, *, V, BV, ignore):
    """y[m] = log sum_v exp x[m v] - x[m t[m]]; grid (M/BM); a program owns BM of y, max and log sum exp(x - max)."""
    acc = y_ref.dtype
    t = t_ref[...]
    known = (t >= 0) & (t < V)

    def step(i, carry):
        top, total, x_t = carry
        x = x_ref[:, pl.ds(i * BV, BV)].astype(acc)
        v = i * BV + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        higher = jnp.maximum(top, jnp.max(x, axis=1, keepdims=True))
        # A row that is -inf so far has no maximum to subtract: -inf - -inf would be NaN.
        shift = jnp.where(higher == -jnp.inf, jnp.zeros_like(higher), higher)
        total = total * jnp.exp(top - shift) + jnp.sum(jnp.exp(x - shift), axis=1, keepdims=True)
        x_t = x_t + jnp.sum(jnp.where(v == t, x, jnp.zeros_like(x)), axis=1, keepdims=True)
        return higher, total, x_t

    zero = jnp.zeros(t.shape, acc)
    top, total, x_t = loop(x_ref.shape[1] // BV, step, (zero - jnp.inf, zero, zero))
    log_sum = jnp.log(total)
    # (max - x_t) first: logits far from zero cancel exactly.
    y = jnp.where(known, log_sum + (top - x_t), zero + jnp.nan)
    y_ref[...] = jnp.where(t != ignore, y, zero)
    top_ref[...] = top
    log_sum_ref[...] = log_sum


def _total_kernel(y_ref, t_ref, r_ref, n_ref, *, M, BM, ignore, mean):
    """r = sum_m y[m], or the mean over the n rows not ignored; grid (1); one program owns r and n."""
    acc = y_ref.dtype

    def step(i, carry):
        total, count = carry
        m = i * BM + jax.lax.broadcasted_iota(jnp.int32, (BM, 1), 0)
        valid = (t_ref[pl.ds(i * BM, BM), :] != ignore) & (m < M)
        one = jnp.where(valid, jnp.ones_like(total), jnp.zeros_like(total))
        return total + y_ref[pl.ds(i * BM, BM), :], count + one

    zero = jnp.zeros((BM, 1), acc)
    total, count = loop(y_ref.shape[0] // BM, step, (zero, zero))
    r = jnp.sum(total, axis=0, keepdims=True)
    n = jnp.sum(count, axis=0, keepdims=True)
    r_ref[...] = r / n if mean else r
    n_ref[...] = n


def _pullback_kernel(c_ref, x_ref, top_ref, log_sum_ref, t_ref, d_ref, *, V, BV, ignore):
    """d[m v] = c[m] (p[m v] - [v = t[m]]), p = softmax x; grid (M/BM, V/BV); a program owns d[BM BV]."""
    t = t_ref[...]
    x = x_ref[...].astype(c_ref.dtype)
    v = pl.program_id(1) * BV + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    p = jnp.exp((x - top_ref[...]) - log_sum_ref[...])
    d = c_ref[...] * (p - jnp.where(v == t, jnp.ones_like(p), jnp.zeros_like(p)))
    d = jnp.where((t >= 0) & (t < V), d, jnp.zeros_like(d) + jnp.nan)
    d_ref[...] = jnp.where(t != ignore, d, jnp.zeros_like(d)).astype(d_ref.dtype)


def _second_kernel(u_ref, c_ref, x_ref, top_ref, log_sum_ref, t_ref, e_ref, d_ref, *, V, BV, ignore):
    """e[m] = sum_v u[m v] (p[m v] - [v = t[m]]), d[m v] = c[m] p[m v] (u[m v] - sum_j u[m j] p[m j]); grid (M/BM); a program owns rows BM."""
    acc = e_ref.dtype
    t = t_ref[...]
    known = (t >= 0) & (t < V)

    def chunk(i):
        x = x_ref[:, pl.ds(i * BV, BV)].astype(acc)
        u = u_ref[:, pl.ds(i * BV, BV)].astype(acc)
        return u, jnp.exp((x - top_ref[...]) - log_sum_ref[...])

    def gather(i, carry):
        mean_u, u_t = carry
        u, p = chunk(i)
        v = i * BV + jax.lax.broadcasted_iota(jnp.int32, u.shape, 1)
        u_t = u_t + jnp.sum(jnp.where(v == t, u, jnp.zeros_like(u)), axis=1, keepdims=True)
        return mean_u + jnp.sum(u * p, axis=1, keepdims=True), u_t

    zero = jnp.zeros(t.shape, acc)
    steps = x_ref.shape[1] // BV
    mean_u, u_t = loop(steps, gather, (zero, zero))
    e = jnp.where(known, mean_u - u_t, zero + jnp.nan)
    e_ref[...] = jnp.where(t != ignore, e, zero)

    def spread(i, carry):
        u, p = chunk(i)
        d = c_ref[...] * p * (u - mean_u)
        d = jnp.where(known, d, jnp.zeros_like(d) + jnp.nan)
        d_ref[:, pl.ds(i * BV, BV)] = jnp.where(t != ignore, d, jnp.zeros_like(d)).astype(d_ref.dtype)
        return carry

    loop(steps, spread, jnp.int32(0))
# fmt: on


def loss(x: jax.Array, t: jax.Array, ignore_index: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Loss y[M] of logits x[M V] and classes t[M], and each row's maximum and log of its sum of exponentials.

    All in the accumulator's dtype. M V elements read once. A class outside [0, V) gives NaN.
    """
    M, V = x.shape
    acc = accumulator(x.dtype)
    if M == 0:
        empty = jnp.zeros(0, acc)
        return empty, (empty, empty)

    def call(platform: str, x: jax.Array, t: jax.Array) -> list[jax.Array]:
        BM, BV = _tile(platform, M, V)
        x, t = pad(x, BM, BV, value=-jnp.inf), pad(t.reshape(M, 1), BM, 1)
        row = pl.BlockSpec((BM, 1), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct(t.shape, acc)
        kernel = functools.partial(_loss_kernel, V=V, BV=BV, ignore=ignore_index)
        specs = [pl.BlockSpec((BM, x.shape[1]), lambda i: (i, 0)), row]
        results = pallas(kernel, platform, [t.shape[0] // BM], specs, [row] * 3, [shape] * 3)(x, t)
        return [r[:M, 0] for r in results]

    y, top, log_sum = launch(call, x, t)
    return y, (top, log_sum)


def total(y: jax.Array, t: jax.Array, ignore_index: int, mean: bool) -> tuple[jax.Array, jax.Array]:
    """(sum or mean of y[M] over rows not ignored, their number n), in y's dtype; 0 / 0 is NaN."""
    (M,) = y.shape
    if M == 0:
        zero = jnp.zeros((), y.dtype)
        return zero + jnp.nan if mean else zero, zero

    def call(platform: str, y: jax.Array, t: jax.Array) -> list[jax.Array]:
        BM = block(platform, M, 1024)
        y, t = pad(y.reshape(M, 1), BM, 1), pad(t.reshape(M, 1), BM, 1)
        column = pl.BlockSpec(y.shape, lambda i: (0, 0))
        one = pl.BlockSpec((1, 1), lambda i: (0, 0))
        shape = jax.ShapeDtypeStruct((1, 1), y.dtype)
        kernel = functools.partial(_total_kernel, M=M, BM=BM, ignore=ignore_index, mean=mean)
        results = pallas(kernel, platform, [1], [column] * 2, [one] * 2, [shape] * 2)(y, t)
        return [r[0, 0] for r in results]

    r, n = launch(call, y, t)
    return r, n


def pullback(c: jax.Array, x: jax.Array, s: tuple[jax.Array, jax.Array], t: jax.Array,
             ignore_index: int) -> jax.Array:  # fmt: skip
    """dx[M V] = c[M] (softmax(x) - onehot(t)), 0 in ignored rows, in new memory; M V read, M V written."""
    M, V = x.shape
    if M == 0:
        return x

    def call(platform: str, *operands: jax.Array) -> jax.Array:
        BM, BV = _tile(platform, M, V)
        c, x, top, log_sum, t = _padded(operands, M, BM, BV)
        row = pl.BlockSpec((BM, 1), lambda i, j: (i, 0))
        tile = pl.BlockSpec((BM, BV), lambda i, j: (i, j))
        kernel = functools.partial(_pullback_kernel, V=V, BV=BV, ignore=ignore_index)
        grid = (x.shape[0] // BM, x.shape[1] // BV)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        specs = [row, tile, row, row, row]
        return pallas(kernel, platform, grid, specs, tile, shape)(c, x, top, log_sum, t)[:M, :V]

    return launch(call, c, x, *s, t)


def second(u: jax.Array, c: jax.Array, x: jax.Array, s: tuple[jax.Array, jax.Array], t: jax.Array,
           ignore_index: int) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Pullback of `pullback` for the cotangent u[M V]: dc[M] and the Hessian-vector product dx[M V].

    x and u are read twice, dx is written once: 5 M V elements.
    """
    M, V = x.shape
    if M == 0:
        return c, x

    def call(platform: str, u: jax.Array, *operands: jax.Array) -> tuple[jax.Array, jax.Array]:
        BM, BV = _tile(platform, M, V)
        u = pad(u, BM, BV)
        c, x, top, log_sum, t = _padded(operands, M, BM, BV)
        row = pl.BlockSpec((BM, 1), lambda i: (i, 0))
        rows = pl.BlockSpec((BM, x.shape[1]), lambda i: (i, 0))
        kernel = functools.partial(_second_kernel, V=V, BV=BV, ignore=ignore_index)
        shapes = [jax.ShapeDtypeStruct(c.shape, c.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype)]
        specs = [rows, row, rows, row, row, row]
        e, d = pallas(kernel, platform, [c.shape[0] // BM], specs, [row, rows], shapes, warps=8)(
            u, c, x, top, log_sum, t
        )
        return e[:M, 0], d[:M, :V]

    return launch(call, u, c, x, *s, t)


def _padded(operands: tuple[jax.Array, ...], M: int, BM: int, BV: int) -> list[jax.Array]:
    """c, x, max, log sum, t in whole blocks: logits filled with -inf, which the softmax does not see."""
    c, x, *rows = operands
    column = [pad(r.reshape(M, 1), BM, 1) for r in (c, *rows)]
    return [column[0], pad(x, BM, BV, value=-jnp.inf), *column[1:]]


def _tile(platform: str, M: int, V: int) -> tuple[int, int]:
    """BM, BV: one block when interpreted; about 4096 logits at a time when compiled."""
    if interpreted(platform):
        return M, V
    return 8, block(platform, V, 512, least=128)
