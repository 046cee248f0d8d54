"""Cross-entropy of rows of logits, forward, backward and second backward, as Pallas kernels."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses import rows_pallas as formulas
from gradlab.kernels.class_losses.backward_pallas import logit_gradients
from gradlab.kernels.class_losses.blocks_pallas import (
    Statistics,
    launch_over,
    row_statistics,
    row_tile,
    square_gradient,
)
from gradlab.kernels.class_losses.parts_pallas import ROWS, ClassAxes, merged, part_of, with_rows
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.softcap_pallas import capped
from gradlab.kernels.runtime.launch_pallas import accumulator, loop
from gradlab.kernels.runtime.sharded_pallas import sharded


# fmt: off
def _loss_kernel(*refs, names, o):
    """y[m] = sum_v r[m v] (l[m] - z[m v]), n[m] = l[m]^2, s[m]; grid (M/BM); a program owns BM of y, n and s.

    Of a part of the classes, from `first` on, the four sums that are merged with those of the others.
    """
    ins, outs = dict(zip(names, refs, strict=False)), refs[len(names):]
    acc, M = outs[0].dtype, outs[0].shape[0]
    t = ins["t"][...] if "t" in ins else None

    # A class alone has a probability: its logit is read where it lies, not found among all of them.
    alone = (o.gathers or o.group) and t is not None and not o.settings.label_smoothing
    grouped = alone and o.group

    def add(i, sums, x_ref, columns):
        z = capped(x_ref[:, columns].astype(acc), o.settings.softcap)
        v, inside = formulas.lanes(i, ins, M, o)
        # Where there is a tail, it alone has classes that are none.
        inside = None if "tail" in ins and x_ref is ins["x"] else inside
        if grouped:
            return formulas.grouped_softmax(sums, z, inside, o)
        r = None if alone else formulas.target_probabilities(t, ins, columns, v, inside, o, acc)
        return formulas.online_softmax(sums, z, r, inside)

    def step(i, sums):
        return add(i, sums, ins["x"], pl.ds(i * o.BV, o.BV))

    full, zero = ins["x"].shape[1] // o.BV, jnp.zeros((M, 1), acc)
    sums = loop(full, step, formulas.no_groups(zero, o) if grouped else formulas.no_sums(zero))
    if "tail" in ins:
        sums = add(full, sums, ins["tail"], slice(None))
    if grouped:
        sums = formulas.of_groups(sums)
    if alone:
        v = t - ins["first"][...] if "first" in ins else t
        at = jnp.clip(v, 0, o.N - 1)
        z = capped(_taken(ins["x"], at, o).astype(acc), o.settings.softcap)
        a = _taken(ins["a"], at, o).astype(acc) if "a" in ins else jnp.ones_like(z)
        # Another part has the class of the row.
        a = jnp.where(v == at, a, jnp.zeros_like(a)) if "first" in ins else a
        sums = formulas.of_class(sums, a, z)
    formulas.store_rows(outs, sums, t, o)


def _taken(ref, at, o):
    """The element of each row m of ref[M V], or of the one row of ref[1 V], at the class at[m]."""
    if o.gathers and ref.shape[0] == 1:
        return jnp.take(ref[...][0], at)
    if o.gathers:
        return jnp.take_along_axis(ref[...], at, axis=1)
    rows = jax.lax.broadcasted_iota(jnp.int32, at.shape, 0)
    return ref[rows if ref.shape[0] > 1 else jnp.zeros_like(rows), at]


def _target_backward_kernel(*refs, names, o):
    """dq[m v] = dy[m] a[v] (1 - eps) (l[m] - z[m v]); grid (M/BM, V/BV); a program owns dq[BM BV]."""
    ins, dq_ref = dict(zip(names, refs, strict=False)), refs[-1]
    row_max, log_sum = ins["row_max"][...], ins["log_sum"][...]
    z = capped(ins["x"][...].astype(row_max.dtype), o.settings.softcap)
    dq = ins["dy"][...] * (1 - o.settings.label_smoothing) * ((row_max - z) + log_sum)
    dq_ref[...] = (dq * ins["a"][...].astype(dq.dtype) if "a" in ins else dq).astype(dq_ref.dtype)


def _second_backward_kernel(*refs, names, o, part):
    """d(dy)[m], d(dn)[m], dx[m v], dq[m v] of `_backward_kernel` for u[m v]; grid (M/BM); a program owns rows BM.

    `part`: "" or, of a part of the classes, "sums", which are d(dy)[m] and P[m], or "rest" where P is an operand.
    """
    ins, outs = dict(zip(names, refs, strict=False)), list(refs[len(names):])
    rows, acc = formulas.Rows.of(ins), ins["row_max"].dtype
    steps = ins["x"].shape[1] // o.BV

    def tile(i):
        columns = pl.ds(i * o.BV, o.BV)
        x, u = (ins[name][:, columns].astype(acc) for name in ("x", "u"))
        return columns, u, formulas.logit_tile(ins, i, columns, x, rows, o)

    def gather(i, sums):
        _, u, logit = tile(i)
        return formulas.second_sums(sums, u, logit)

    if part == "rest":
        P = ins["P"][...]
    else:
        zero = jnp.zeros_like(rows.row_max)
        ddy, P = loop(steps, gather, (zero, zero))
        outs.pop(0)[...] = formulas.masked(ddy, rows.t, o)
    if part == "sums":
        outs.pop(0)[...] = formulas.masked(P, rows.t, o)
        return
    if rows.dn is not None and not part:
        outs.pop(0)[...] = formulas.masked(2 * rows.lse * P, rows.t, o)
    dx_ref, *dq_ref = outs

    def spread(i, carry):
        columns, u, logit = tile(i)
        dx_ref[:, columns] = formulas.second_gradient(u, P, logit, rows, o).astype(dx_ref.dtype)
        for ref in dq_ref:
            dq = rows.dy * (1 - o.settings.label_smoothing) * (P - u * logit.slope)
            ref[:, columns] = (dq * ins["a"][:, columns].astype(acc) if "a" in ins else dq).astype(ref.dtype)
        return carry

    loop(steps, spread, jnp.int32(0))
# fmt: on


def _launch(
    grid: str,
    kernel: Any,
    arrays: dict,
    results: list,
    settings: ClassLoss,
    warps: int = 4,
    axes: ClassAxes | None = None,
    **constants: Any,
) -> list[jax.Array]:
    *rows, V = arrays["x"].shape
    M = math.prod(rows)
    tile = functools.partial(row_tile, M, V, 512, warps)
    sizes, classes = {"M": M, "V": V}, axes.V if axes else V
    found = launch_over(grid, kernel, arrays, results, sizes, settings, tile, classes, **constants)
    return [
        y.reshape(*rows, V) if over == "MV" else y.reshape(rows) for y, (over, _) in zip(found, results, strict=True)
    ]


def loss(
    x: jax.Array,
    t: jax.Array | None,
    q: jax.Array | None,
    a: jax.Array | None,
    first: jax.Array | None,
    settings: ClassLoss,
    axes: ClassAxes | None = None,
) -> tuple[jax.Array, jax.Array, Statistics]:
    """Loss y[M] and n[M] = l^2 of logits x[M V], and the row statistics; M V elements read once.

    All in the accumulator's dtype. Targets are classes t[M] or probabilities q[M V]; weights a[V]. A class outside
    [0, V) gives NaN. With `axes` x, q and a are this device's part of the classes, from `first` on, and the results
    those of all parts.
    """
    return _loss(x, t, q, a, first, axes, settings) if axes else _whole_loss(x, t, q, a, settings)


def _loss(x, t, q, a, first, axes, settings):
    acc = accumulator(x.dtype)
    if 0 in x.shape:
        empty = jnp.zeros(x.shape[:-1], acc)
        return empty, empty, (empty,) * 3
    arrays = {"x": x, "t": t, "q": q, "a": a, "first": first}
    # The cap's tanh beside all that is carried takes more registers than four warps have.
    warps = 8 if settings.softcap else 4
    # Soft targets and label smoothing have something to do for every class, in tiles of several arrays.
    tailed = t is not None and not settings.label_smoothing
    found = _launch("M", _loss_kernel, arrays, [("M1", acc)] * (4 if axes else 5), settings, warps, axes, tailed=tailed)
    if axes:
        return merged(tuple(found), t, axes, settings)
    y, n, *s = found
    return y, n, (s[0], s[1], s[2])


def _loss_of_part(names, x, t, q, a, settings):
    return _loss(x, t, q, a, *part_of(names, x.shape[-1]), settings)


def _loss_rule(x, t, q, a, settings):
    return with_rows(f"x[M V], t[M], q[M V], a[V] -> y[M], n[M], {ROWS}; sums V", x)


@sharded(_loss_rule, own={"V": _loss_of_part})
def _whole_loss(x, t, q, a, settings):
    return _loss(x, t, q, a, None, None, settings)


def backward(
    dy: jax.Array,
    dn: jax.Array | None,
    x: jax.Array,
    t: jax.Array | None,
    q: jax.Array | None,
    a: jax.Array | None,
    first: jax.Array | None,
    s: Statistics,
    settings: ClassLoss,
    axes: ClassAxes | None = None,
    *,
    inplace: bool = False,
) -> jax.Array:
    """dx[M V] for the cotangents dy[M] of y and dn[M] of n, 0 in ignored rows; M V read, M V written.

    `inplace` declares dx as the logits' own memory: each is read by the program that writes it.
    """
    if axes:
        return _backward(dy, dn, x, t, q, a, first, axes, s, settings, inplace)
    return _whole_backward(dy, dn, x, t, q, a, s, settings, inplace)


def _backward_of_part(names, dy, dn, x, t, q, a, s, settings, inplace):
    return _backward(dy, dn, x, t, q, a, *part_of(names, x.shape[-1]), s, settings, inplace)


def _backward_rule(dy, dn, x, t, q, a, s, settings, inplace):
    return with_rows(f"dy[M], dn[M], x[M V], t[M], q[M V], a[V], {ROWS} -> dx[M V]", x)


@sharded(_backward_rule, own={"V": _backward_of_part})
def _whole_backward(dy, dn, x, t, q, a, s, settings, inplace):
    return _backward(dy, dn, x, t, q, a, None, None, s, settings, inplace)


def _backward(dy, dn, x, t, q, a, first, axes, s, settings, inplace):
    *rows, V = x.shape
    if 0 in rows:
        return x
    M = math.prod(rows)
    arrays = {"x": x, "dy": dy, "dn": dn, **row_statistics(s), "t": t, "q": q, "a": a, "first": first}
    tile = functools.partial(row_tile, M, V, 512, 4)
    classes = axes.V if axes else V
    return logit_gradients(arrays, {"M": M, "V": V}, x.dtype, settings, tile, classes, inplace).reshape(x.shape)


def _target_rule(dy, x, a, s, settings):
    return with_rows(f"dy[M], x[M V], a[V], {ROWS} -> dq[M V]", x)


@sharded(_target_rule)
def target_backward(dy: jax.Array, x: jax.Array, a: jax.Array | None, s: Statistics, settings: ClassLoss) -> jax.Array:
    """dq[M V] of soft targets for the cotangent dy[M] of y; M V read, M V written."""
    if 0 in x.shape:
        return x
    arrays = {"x": x, "dy": dy, **row_statistics(s), "a": a}
    return _launch("MV", _target_backward_kernel, arrays, [("MV", x.dtype)], settings)[0]


def second_backward(
    u: jax.Array,
    dy: jax.Array,
    dn: jax.Array | None,
    x: jax.Array,
    t: jax.Array | None,
    q: jax.Array | None,
    a: jax.Array | None,
    first: jax.Array | None,
    s: Statistics,
    settings: ClassLoss,
    axes: ClassAxes | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array | None]:
    """The backward of `backward` for the cotangent u[M V]: d(dy)[M], d(dn)[M], dx[M V], and dq of soft targets.

    x and u are read twice, dx is written once: 5 M V elements. With `axes` d(dy) and d(dn) are this part's term of a
    sum over the parts, and P is exchanged, one number a row.
    """
    if axes:
        return _second_backward(u, dy, dn, x, t, q, a, first, axes, s, settings)
    return _whole_second_backward(u, dy, dn, x, t, q, a, s, settings)


def _second_backward_of_part(names, u, dy, dn, x, t, q, a, s, settings):
    first, axes = part_of(names, x.shape[-1])
    ddy, ddn, dx, dq = _second_backward(u, dy, dn, x, t, q, a, first, axes, s, settings)
    return axes.sum(ddy), None if ddn is None else axes.sum(ddn), dx, dq


def _second_rule(u, dy, dn, x, t, q, a, s, settings):
    results = ["ddy[M]"] + ["ddn[M]"] * (dn is not None) + ["dx[M V]"] + ["dq[M V]"] * (q is not None)
    inputs = f"u[M V], dy[M], dn[M], x[M V], t[M], q[M V], a[V], {ROWS}"
    return with_rows(f"{inputs} -> {', '.join(results)}; sums V", x)


@sharded(_second_rule, own={"V": _second_backward_of_part})
def _whole_second_backward(u, dy, dn, x, t, q, a, s, settings):
    return _second_backward(u, dy, dn, x, t, q, a, None, None, s, settings)


def _second_backward(u, dy, dn, x, t, q, a, first, axes, s, settings):
    if 0 in x.shape:
        return dy, dn, x, q
    arrays = {"x": x, "u": u, "dy": dy, "dn": dn, **row_statistics(s), "t": t, "q": q, "a": a, "first": first}
    each, whole = [("M1", s[0].dtype)], [("MV", x.dtype)] * (1 if q is None else 2)
    run = functools.partial(_launch, "M", _second_backward_kernel, settings=settings, warps=8, axes=axes)
    if axes:
        ddy, P = run(arrays, each * 2, part="sums")
        rest = run({**arrays, "P": axes.sum(P)}, whole, part="rest")
        ddn = None if dn is None else square_gradient(P, t, s, settings)
        return ddy, ddn, rest[0], None if q is None else rest[1]
    found = iter(run(arrays, each * (1 if dn is None else 2) + whole, part=""))
    return next(found), None if dn is None else next(found), next(found), None if q is None else next(found)
