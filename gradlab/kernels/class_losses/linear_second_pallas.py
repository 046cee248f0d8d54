"""The second derivative of linear_cross_entropy as a Pallas kernel beside linear's products: chunks of classes, too."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses import rows_pallas as formulas
from gradlab.kernels.class_losses.blocks_pallas import (
    Statistics,
    launch_over,
    row_statistics,
    row_tile,
    square_gradient,
)
from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.class_losses.chunks_pallas import chunks
from gradlab.kernels.class_losses.parts_pallas import ROWS, ClassAxes, part_of, with_rows
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.column_sum_pallas import column_sum
from gradlab.kernels.common.matmul_pallas import matmul_add
from gradlab.kernels.runtime.launch_pallas import accumulator, loop
from gradlab.kernels.runtime.sharded_pallas import sharded


# fmt: off
def _second_backward_kernel(*refs, names, o, sums):
    """ddy and P grown by a chunk's sum_v u z' (R p - r) and sum_v u z' p; or, with P known, its dx and the X of u.

    Grid (M/BM); a program owns rows BM.
    """
    ins, (one_ref, other_ref) = dict(zip(names, refs, strict=False)), refs[len(names):]
    rows, P = formulas.Rows.of(ins), ins["P"][...]

    def step(i, carry):
        columns = pl.ds(i * o.BV, o.BV)
        u, tile = ins["u"][:, columns], formulas.logit_tile(ins, i, columns, ins["x"][:, columns], rows, o)
        if sums:
            return formulas.second_sums(carry, u, tile)
        one_ref[:, columns] = formulas.logit_gradient(tile, rows, o).astype(one_ref.dtype)
        other_ref[:, columns] = formulas.second_gradient(u, P, tile, rows, o).astype(other_ref.dtype)
        return carry

    carry = loop(ins["x"].shape[1] // o.BV, step, (ins["ddy"][...], P) if sums else jnp.int32(0))
    if sums:
        one_ref[...], other_ref[...] = (formulas.masked(total, rows.t, o) for total in carry)
# fmt: on


def second_backward(
    u: tuple[jax.Array, jax.Array, jax.Array | None],
    dy: jax.Array,
    dn: jax.Array | None,
    h: jax.Array,
    w: jax.Array,
    t: jax.Array,
    b: jax.Array | None,
    a: jax.Array | None,
    first: jax.Array | None,
    s: Statistics,
    settings: ClassLoss,
    axes: ClassAxes | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array, jax.Array | None]:
    """d(dy)[M], d(dn)[M], dh[M K], dw[K V], db[V]: the backward of `backward` for the cotangents u of its results.

    Twice over the chunks of classes: the rows' sums of <dx, u> first, then dx and X. 20 M K V FLOPs. With `axes` w, b
    and a are this device's part of the classes, d(dy), d(dn) and dh its terms of sums over the parts, and P is
    exchanged between the two, one number a row.
    """
    if axes:
        return _second(u, dy, dn, h, w, t, b, a, first, axes, s, settings)
    return _whole_second(*u, dy, dn, h, w, t, b, a, s, settings)


def _second_of_part(names, uh, uw, ub, dy, dn, h, w, t, b, a, s, settings):
    first, axes = part_of(names, w.shape[1])
    ddy, ddn, dh, dw, db = _second((uh, uw, ub), dy, dn, h, w, t, b, a, first, axes, s, settings)
    return axes.sum(ddy), None if ddn is None else axes.sum(ddn), axes.sum(dh), dw, db


def _rule(uh, uw, ub, dy, dn, h, w, t, b, a, s, settings):
    ddn, db = "" if dn is None else "ddn[M], ", "" if b is None else ", db[V]"
    inputs = f"uh[M K], uw[K V], ub[V], dy[M], dn[M], h[M K], w[K V], t[M], b[V], a[V], {ROWS}"
    return with_rows(f"{inputs} -> ddy[M], {ddn}dh[M K], dw[K V]{db}; sums M V; whole K", h)


@sharded(_rule, own={"V": _second_of_part})
def _whole_second(uh, uw, ub, dy, dn, h, w, t, b, a, s, settings):
    return _second((uh, uw, ub), dy, dn, h, w, t, b, a, None, None, s, settings)


def _second(u, dy, dn, h, w, t, b, a, first, axes, s, settings):
    shape, K, V = h.shape, h.shape[-1], w.shape[1]
    if 0 in shape[:-1]:
        return dy, dn, h, jnp.zeros_like(w), None if b is None else jnp.zeros_like(b)
    acc, dtype, classes = accumulator(h.dtype), h.dtype, axes.V if axes else V
    uh, uw, ub = u
    M = math.prod(shape[:-1])
    h, uh = h.reshape(M, K), uh.reshape(M, K)

    def products(parts, h, uh):
        """The chunk's x, and its u = uh w + h uw + ub."""
        w, b, _, uw, ub = parts

        def line(b):
            return jnp.broadcast_to(jnp.zeros((), acc) if b is None else b.astype(acc), (M, w.shape[1]))

        return matmul_add(line(b), h, w), matmul_add(matmul_add(line(ub), uh, w), h, uw)

    def tiles(chunk, xu, a, rows, sums):
        x, u = xu
        first = chunk if rows["first"] is None else chunk + rows["first"]
        arrays, N = {"x": x, "u": u, "a": a, **rows, "first": first}, x.shape[1]
        results = [("M1", acc) if sums else ("MV", dtype)] * 2
        tile = functools.partial(row_tile, M, N, 256, 4)
        return launch_over(
            "M", _second_backward_kernel, arrays, results, {"M": M, "V": N}, settings, tile, classes, sums=sums
        )

    def row_sums(first, parts, xu, rows, ddy, P):
        return tuple(tiles(first, xu, parts[2], {**rows, "ddy": ddy, "P": P}, True))

    def of_sums(first, parts, sums, h, uh, rows):
        return row_sums(first, parts, products(parts, h, uh), rows, *sums), ()

    def of_rest(first, parts, sums, h, uh, rows):
        return rest(first, parts, products(parts, h, uh), sums[0], h, uh, rows)

    def of_both(first, parts, sums, h, uh, rows):
        # One chunk is all: x and u are there still.
        xu = products(parts, h, uh)
        ddy, P = row_sums(first, parts, xu, rows, *sums[:2])
        (dh,), made = rest(first, parts, xu, sums[2], h, uh, {**rows, "P": P})
        return (ddy, P, dh), made

    def rest(first, parts, xu, dh, h, uh, rows):
        w, b, a, uw, _ = parts
        dx, X = tiles(first, xu, a, rows, False)
        dh = matmul_add(matmul_add(dh, X, w, transposed_b=True), dx, uw, transposed_b=True)
        dw = matmul_add(matmul_add(jnp.zeros(w.shape, acc), h, X, transposed_a=True), uh, dx, transposed_a=True)
        return (dh,), (dw.astype(w.dtype), None if b is None else column_sum(X, None))

    cut, rows = (w, b, a, uw, ub), {"t": t, "dy": dy, "dn": dn, **row_statistics(s), "first": first}
    if chunk(M, K, V) == V and not axes:
        (ddy, P, dh), (dw, db) = chunks(of_both, cut, ((M,), (M,), (M, K)), h, uh, rows)
    else:
        (ddy, P), _ = chunks(of_sums, cut, ((M,), (M,)), h, uh, rows)
        (dh,), (dw, db) = chunks(of_rest, cut, ((M, K),), h, uh, {**rows, "P": axes.sum(P) if axes else P})
    ddn = None if dn is None else square_gradient(P.reshape(t.shape), t, s, settings)
    return ddy.reshape(t.shape), ddn, dh.astype(h.dtype).reshape(shape), dw, db
