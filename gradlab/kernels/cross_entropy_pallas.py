"""Cross-entropy of rows of logits, forward, backward and second backward, as Pallas kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses import rows_pallas as formulas
from gradlab.kernels.class_losses.backward_pallas import logit_gradients
from gradlab.kernels.class_losses.blocks_pallas import Statistics, launch_over, row_statistics, row_tile
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.softcap_pallas import capped
from gradlab.kernels.runtime.launch_pallas import accumulator, loop


# fmt: off
def _loss_kernel(*refs, names, o):
    """y[m] = sum_v r[m v] (l[m] - z[m v]), n[m] = l[m]^2, s[m]; grid (M/BM); a program owns BM of y, n and s."""
    ins, outs = dict(zip(names, refs, strict=False)), refs[len(names):]
    acc, M = outs[0].dtype, outs[0].shape[0]
    t = ins["t"][...] if "t" in ins else None

    # A class alone has a probability: its logit is read where it lies, not found among all of them.
    alone = o.gathers and t is not None and not o.settings.label_smoothing

    def step(i, sums):
        columns = pl.ds(i * o.BV, o.BV)
        z = capped(ins["x"][:, columns].astype(acc), o.settings.softcap)
        v, inside = formulas.lanes(i, ins, M, o)
        r = None if alone else formulas.target_probabilities(t, ins, columns, v, inside, o, acc)
        return formulas.online_softmax(sums, z, r, inside)

    sums = loop(ins["x"].shape[1] // o.BV, step, formulas.no_sums(jnp.zeros((M, 1), acc)))
    if alone:
        at = jnp.clip(t, 0, o.V - 1)
        z = capped(jnp.take_along_axis(ins["x"][...], at, axis=1).astype(acc), o.settings.softcap)
        a = jnp.take(ins["a"][...][0], at).astype(acc) if "a" in ins else jnp.ones_like(z)
        sums = formulas.of_class(sums, a, z)
    formulas.store_rows(outs, sums, t, o)


def _target_backward_kernel(*refs, names, o):
    """dq[m v] = dy[m] a[v] (1 - eps) (l[m] - z[m v]); grid (M/BM, V/BV); a program owns dq[BM BV]."""
    ins, dq_ref = dict(zip(names, refs, strict=False)), refs[-1]
    row_max, log_sum = ins["row_max"][...], ins["log_sum"][...]
    z = capped(ins["x"][...].astype(row_max.dtype), o.settings.softcap)
    dq = ins["dy"][...] * (1 - o.settings.label_smoothing) * ((row_max - z) + log_sum)
    dq_ref[...] = (dq * ins["a"][...].astype(dq.dtype) if "a" in ins else dq).astype(dq_ref.dtype)


def _second_backward_kernel(*refs, names, o):
    """d(dy)[m], d(dn)[m], dx[m v], dq[m v] of `_backward_kernel` for u[m v]; grid (M/BM); a program owns rows BM."""
    ins, (ddy_ref, *outs) = dict(zip(names, refs, strict=False)), refs[len(names):]
    rows, acc = formulas.Rows.of(ins), ddy_ref.dtype
    ddn_ref = None if rows.dn is None else outs.pop(0)
    dx_ref, *dq_ref = outs
    steps = ins["x"].shape[1] // o.BV

    def tile(i):
        columns = pl.ds(i * o.BV, o.BV)
        x, u = (ins[name][:, columns].astype(acc) for name in ("x", "u"))
        return columns, u, formulas.logit_tile(ins, i, columns, x, rows, o)

    def gather(i, sums):
        _, u, logit = tile(i)
        return formulas.second_sums(sums, u, logit)

    zero = jnp.zeros_like(rows.row_max)
    ddy, P = loop(steps, gather, (zero, zero))
    ddy_ref[...] = formulas.masked(ddy, rows.t, o)
    if ddn_ref is not None:
        ddn_ref[...] = formulas.masked(2 * rows.lse * P, rows.t, o)

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
    grid: str, kernel: Any, arrays: dict, results: list, settings: ClassLoss, warps: int = 4
) -> list[jax.Array]:
    M, V = arrays["x"].shape
    tile = functools.partial(row_tile, M, V, 512, warps)
    return launch_over(grid, kernel, arrays, results, {"M": M, "V": V}, settings, tile, V)


def loss(
    x: jax.Array, t: jax.Array | None, q: jax.Array | None, a: jax.Array | None, settings: ClassLoss
) -> tuple[jax.Array, jax.Array, Statistics]:
    """Loss y[M] and n[M] = l^2 of logits x[M V], and the row statistics; M V elements read once.

    All in the accumulator's dtype. Targets are classes t[M] or probabilities q[M V]; weights a[V]. A class outside
    [0, V) gives NaN.
    """
    acc = accumulator(x.dtype)
    if x.shape[0] == 0:
        empty = jnp.zeros(0, acc)
        return empty, empty, (empty,) * 3
    arrays = {"x": x, "t": t, "q": q, "a": a}
    # The cap's tanh beside all that is carried takes more registers than four warps have.
    y, n, *s = _launch("M", _loss_kernel, arrays, [("M1", acc)] * 5, settings, 8 if settings.softcap else 4)
    return y, n, (s[0], s[1], s[2])


def backward(
    dy: jax.Array,
    dn: jax.Array | None,
    x: jax.Array,
    t: jax.Array | None,
    q: jax.Array | None,
    a: jax.Array | None,
    s: Statistics,
    settings: ClassLoss,
    *,
    inplace: bool = False,
) -> jax.Array:
    """dx[M V] for the cotangents dy[M] of y and dn[M] of n, 0 in ignored rows; M V read, M V written.

    `inplace` declares dx as the logits' own memory: each is read by the program that writes it.
    """
    M, V = x.shape
    if M == 0:
        return x
    arrays = {"x": x, "dy": dy, "dn": dn, **row_statistics(s), "t": t, "q": q, "a": a}
    tile = functools.partial(row_tile, M, V, 512, 4)
    return logit_gradients(arrays, {"M": M, "V": V}, x.dtype, settings, tile, V, inplace)


def target_backward(dy: jax.Array, x: jax.Array, a: jax.Array | None, s: Statistics, settings: ClassLoss) -> jax.Array:
    """dq[M V] of soft targets for the cotangent dy[M] of y; M V read, M V written."""
    if x.shape[0] == 0:
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
    s: Statistics,
    settings: ClassLoss,
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array | None]:
    """The backward of `backward` for the cotangent u[M V]: d(dy)[M], d(dn)[M], dx[M V], and dq of soft targets.

    x and u are read twice, dx is written once: 5 M V elements.
    """
    if x.shape[0] == 0:
        return dy, dn, x, q
    arrays = {"x": x, "u": u, "dy": dy, "dn": dn, **row_statistics(s), "t": t, "q": q, "a": a}
    results = [("M1", s[0].dtype)] * (1 if dn is None else 2) + [("MV", x.dtype)] * (1 if q is None else 2)
    found = iter(_launch("M", _second_backward_kernel, arrays, results, settings, warps=8))
    return next(found), None if dn is None else next(found), next(found), None if q is None else next(found)
