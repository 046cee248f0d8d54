"""The second derivative of linear_cross_entropy as a Pallas kernel beside linear's products: chunks of classes, too."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.class_losses.chunks_pallas import chunks, cotangent
from gradlab.kernels.common.column_sum_pallas import column_sum
from gradlab.kernels.common.matmul_pallas import matmul_into
from gradlab.kernels.common.softcap_pallas import cap_slope, capped
from gradlab.kernels.runtime.launch_pallas import accumulator, block, interpreted, launch, loop, pad, pallas


# fmt: off
def _second_kernel(*refs, V, BV, weights, ignore, hard, spread, cap, sums):
    """Of a chunk: e[m] += (sum_v u z' (R p - r), sum_v u z' p), or d = dx and q = X with that sum known; grid (M/BM); a program owns rows BM."""
    x_ref, u_ref, first_ref, *rows = refs[:11]
    c_ref = refs[11] if weights else None
    one_ref, other_ref = refs[-2:]
    *rows, sum_y, sum_l = (ref[...] for ref in rows)

    def step(i, carry):
        sum_y, sum_l = carry
        columns = pl.ds(i * BV, BV)
        x, u = x_ref[:, columns], u_ref[:, columns]
        z, slope = capped(x, cap), cap_slope(x, cap) if cap else jnp.ones_like(x)
        v = first_ref[...] + i * BV + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        c = None if c_ref is None else c_ref[:, columns].astype(x.dtype)
        p, r, g, a, R = cotangent(z, v, rows, c, V=V, ignore=ignore, hard=hard, spread=spread)
        if sums:
            sum_y = sum_y + jnp.sum(u * slope * (R * p - r), axis=1, keepdims=True)
            return sum_y, sum_l + jnp.sum(u * slope * p, axis=1, keepdims=True)
        q = slope * a * p * (u * slope - sum_l)
        one_ref[:, columns] = (g * slope).astype(one_ref.dtype)
        other_ref[:, columns] = (q - g * u * 2 * z * slope / cap**2 if cap else q).astype(other_ref.dtype)
        return carry

    carry = loop(x_ref.shape[1] // BV, step, (sum_y, sum_l))
    if sums:
        one_ref[...], other_ref[...] = carry
# fmt: on


def second(
    u: tuple[jax.Array, jax.Array, jax.Array | None],
    g: tuple[jax.Array, ...],
    h: jax.Array,
    w: jax.Array,
    t: jax.Array,
    b: jax.Array | None,
    c: jax.Array | None,
    s: tuple[jax.Array, ...],
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
) -> tuple[tuple, jax.Array, jax.Array, jax.Array | None]:
    """dg = (ddy, ddl)[M], dh[M K], dw[K V], db[V]: the pullback of `pullback` for the cotangents u of its results.

    Twice over the chunks of classes: the rows' sums of <dx, u> first, then dx and X. 20 M K V FLOPs.
    """
    (M, K), V = h.shape, w.shape[1]
    if M == 0:
        return g, h, jnp.zeros_like(w), None if b is None else jnp.zeros_like(b)
    acc = accumulator(h.dtype)
    uh, uw, ub = u
    numbers = {
        "V": V,
        "ignore": ignore_index,
        "hard": 1 - label_smoothing,
        "spread": label_smoothing / V,
        "cap": softcap,
    }

    def tiles(w, b, uw, ub, h, uh):
        """The chunk's x, and its u = uh w + h uw + ub."""

        def line(a):
            return jnp.broadcast_to(jnp.zeros((), acc) if a is None else a.astype(acc), (M, w.shape[1]))

        return matmul_into(line(b), h, w), matmul_into(matmul_into(line(ub), uh, w), h, uw)

    def of_sums(first, parts, grown, h, uh, *rows):
        w, b, c, uw, ub = parts
        x, u = tiles(w, b, uw, ub, h, uh)
        return _chunk(first, x, u, (*rows, *grown), c, h.dtype, True, numbers), ()

    def of_rest(first, parts, grown, h, uh, *rows):
        w, b, c, uw, ub = parts
        x, u = tiles(w, b, uw, ub, h, uh)
        return rest(first, x, u, rows, c, grown[0], h, uh, w, uw)

    def of_both(first, parts, grown, h, uh, *rows):
        # One chunk is all: x and u are there still.
        (*e, dh), (w, b, c, uw, ub) = grown, parts
        x, u = tiles(w, b, uw, ub, h, uh)
        e = _chunk(first, x, u, (*rows, *e), c, h.dtype, True, numbers)
        (dh,), made = rest(first, x, u, (*rows, *e), c, dh, h, uh, w, uw)
        return (*e, dh), made

    def rest(first, x, u, rows, c, dh, h, uh, w, uw):
        d, q = _chunk(first, x, u, rows, c, h.dtype, False, numbers)
        dh = matmul_into(matmul_into(dh, q, w, transposed_b=True), d, uw, transposed_b=True)
        dw = matmul_into(matmul_into(jnp.zeros(w.shape, acc), h, q, transposed_a=True), uh, d, transposed_a=True)
        dw = dw.astype(w.dtype)
        return (dh,), (dw, None if b is None else column_sum(q, None))

    cut, rows = (w, b, c, uw, ub), (t, *g, *s)
    if chunk(M, K, V) == V:
        (ddy, ddl, dh), (dw, db) = chunks(of_both, cut, ((M,), (M,), (M, K)), h, uh, *rows)
    else:
        (ddy, ddl), _ = chunks(of_sums, cut, ((M,), (M,)), h, uh, *rows)
        (dh,), (dw, db) = chunks(of_rest, cut, ((M, K),), h, uh, *rows, ddy, ddl)
    return (ddy, ddl), dh.astype(h.dtype), dw, db


def _chunk(
    first: jax.Array,
    x: jax.Array,
    u: jax.Array,
    rows: tuple[jax.Array, ...],
    c: jax.Array | None,
    dtype: Any,
    sums: bool,
    numbers: dict[str, Any],
) -> tuple[jax.Array, jax.Array]:
    """The rows' sums, grown by a chunk's, or dx and X[M N] of it; rows are t, dy, dl, s and the sums so far."""
    (M, N), weighted, count = x.shape, c is not None, 2 + len(rows)

    def call(platform: str, first: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        BM, BV = (M, N) if interpreted(platform) else (8, block(platform, N, 256, least=128))
        x, u = (pad(a, BM, BV) for a in operands[:2])
        columns = [pad(a.reshape(M, 1), BM, 1) for a in operands[2:count]]
        lines = [pad(a.reshape(1, N), 1, BV) for a in operands[count:]]
        column, whole = pl.BlockSpec((BM, 1), lambda i: (i, 0)), pl.BlockSpec((BM, x.shape[1]), lambda i: (i, 0))
        one, line = pl.BlockSpec((1, 1), lambda i: (0, 0)), pl.BlockSpec((1, x.shape[1]), lambda i: (0, 0))
        kernel = functools.partial(_second_kernel, BV=BV, weights=weighted, sums=sums, **numbers)
        specs = [whole, whole, one, *[column] * len(columns), *[line] * len(lines)]
        shape = jax.ShapeDtypeStruct(columns[-1].shape, x.dtype) if sums else jax.ShapeDtypeStruct(x.shape, dtype)
        results = pallas(kernel, platform, [x.shape[0] // BM], specs, [column if sums else whole] * 2, [shape] * 2)(
            x, u, first.reshape(1, 1), *columns, *lines
        )
        return [r[:M, 0] if sums else r[:M, :N] for r in results]

    one, other = launch(call, first, x, u, *rows, *([] if c is None else [c]))
    return one, other
