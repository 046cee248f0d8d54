"""Cross-entropy of rows of logits, forward, backward and second backward, as Pallas kernels."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses.backward_pallas import _backward_kernel
from gradlab.kernels.class_losses.rows_pallas import ROWS, lanes, run, shares, standing, statistics
from gradlab.kernels.common.softcap_pallas import cap_slope, capped
from gradlab.kernels.runtime.launch_pallas import accumulator, loop

Rows = tuple[jax.Array, jax.Array, jax.Array]


# fmt: off
def _loss_kernel(*refs, names, o):
    """y[m] = sum_v r[m v] (l[m] - h[m v]), z[m] = l[m]^2; grid (M/BM); a program owns BM of y, z, max, log sum exp(h - max) and sum r."""
    ins, (y_ref, z_ref, *s_refs) = dict(zip(names, refs, strict=False)), refs[len(names):]
    top, log_sum, mass, y = statistics(ins, o, y_ref.dtype)
    known, valid = standing((ins["t"][...] if "t" in ins else None), top, o)
    for ref, value in ((y_ref, y), (z_ref, (top + log_sum) * (top + log_sum))):
        value = jnp.where(known, value, jnp.full_like(value, jnp.nan))
        ref[...] = jnp.where(valid, value, jnp.zeros_like(value))
    for ref, value in zip(s_refs, (top, log_sum, mass), strict=True):
        ref[...] = value


def _target_backward_kernel(*refs, names, o):
    """d[m v] = c[m] w[v] (1 - EPS) (l[m] - h[m v]); grid (M/BM, V/BV); a program owns d[BM BV]."""
    ins, d_ref = dict(zip(names, refs, strict=False)), refs[-1]
    top, log_sum = ins["s0"][...], ins["s1"][...]
    h = capped(ins["x"][...].astype(top.dtype), o.cap)
    d = ins["c"][...].astype(top.dtype) * (1 - o.eps) * ((top - h) + log_sum)
    if "w" in ins:
        d = d * ins["w"][...].astype(top.dtype)
    d_ref[...] = d.astype(d_ref.dtype)


def _second_backward_kernel(*refs, names, o):
    """a[m], b[m], d[m v], f[m v] = the pullback of `_backward_kernel` by c, e, x, q for u[m v]; grid (M/BM); a program owns rows BM."""
    ins, (a_ref, b_ref, d_ref, *f_ref) = dict(zip(names, refs, strict=False)), refs[len(names):]
    acc = a_ref.dtype
    top, log_sum, mass = (ins[k][...] for k in ROWS)
    lse = top + log_sum
    c = ins["c"][...].astype(acc)
    e = ins["e"][...].astype(acc) if "e" in ins else jnp.zeros_like(c)
    t = (ins["t"][...] if "t" in ins else None)
    known, valid = standing(t, top, o)

    def chunk(i):
        tile = {name: ins[name][:, pl.ds(i * o.BV, o.BV)] for name in ("x", "u", "q", "w") if name in ins}
        x, u = tile["x"].astype(acc), tile["u"].astype(acc)
        v = lanes(i * o.BV, x.shape)
        h = capped(x, o.cap)
        slope = cap_slope(x, o.cap) if o.cap > 0 else jnp.ones_like(x)
        r = shares(v, t, tile.get("q"), tile.get("w"), acc, o)
        # A lane that is not there reads 0, which may stand far above the maximum.
        p = jnp.where(v < o.V, jnp.exp((h - top) - log_sum), jnp.zeros_like(x))
        return u, h, slope, r, p, tile.get("w")

    def gather(i, carry):
        by_p, by_r = carry
        u, _, slope, r, p, _ = chunk(i)
        at_h = u * slope
        return by_p + jnp.sum(at_h * p, axis=1, keepdims=True), by_r + jnp.sum(at_h * r, axis=1, keepdims=True)

    steps = ins["x"].shape[1] // o.BV
    by_p, by_r = loop(steps, gather, (jnp.zeros_like(c), jnp.zeros_like(c)))
    for ref, value in ((a_ref, mass * by_p - by_r), (b_ref, 2 * lse * by_p)):
        value = jnp.where(known, value, jnp.full_like(value, jnp.nan))
        ref[...] = jnp.where(valid, value, jnp.zeros_like(value))

    def spread(i, carry):
        u, h, slope, r, p, w = chunk(i)
        at_h = u * slope
        d = (c * mass + 2 * e * lse) * p * (at_h - by_p) + 2 * e * by_p * p
        if o.cap > 0:
            bent = c * (mass * p - r) + 2 * e * lse * p
            # The slope's own derivative is -2 h slope / cap^2.
            d = slope * (d - u * bent * (2 * h / (o.cap * o.cap)))
        d = jnp.where(known, d, jnp.full_like(d, jnp.nan))
        d_ref[:, pl.ds(i * o.BV, o.BV)] = jnp.where(valid, d, jnp.zeros_like(d)).astype(d_ref.dtype)
        if f_ref:
            f = c * (1 - o.eps) * (by_p - at_h)
            f = f if w is None else f * w.astype(acc)
            f_ref[0][:, pl.ds(i * o.BV, o.BV)] = f.astype(f_ref[0].dtype)
        return carry

    loop(steps, spread, jnp.int32(0))
# fmt: on


def loss(
    x: jax.Array,
    t: jax.Array | None,
    q: jax.Array | None,
    w: jax.Array | None,
    ignore_index: int,
    eps: float,
    cap: float,
) -> tuple[jax.Array, jax.Array, Rows]:
    """Loss y[M] and z[M] = l^2 of logits x[M V], and s: each row's maximum, log sum of exp and sum of r.

    All in the accumulator's dtype. Targets are classes t[M] or shares q[M V]; weights w[V]. M V elements read once.
    A class outside [0, V) gives NaN.
    """
    acc = accumulator(x.dtype)
    if x.shape[0] == 0:
        empty = jnp.zeros(0, acc)
        return empty, empty, (empty,) * 3
    arrays = {"x": x, "t": t, "q": q, "w": w}
    # The cap's tanh beside all that is carried takes more registers than four warps have.
    options, warps = (ignore_index, eps, cap), 8 if cap else 4
    y, z, *s = run(_loss_kernel, arrays, ("rows",) * 5, x, options, False, warps=warps)
    return y, z, (s[0], s[1], s[2])


def backward(
    c: jax.Array,
    e: jax.Array | None,
    x: jax.Array,
    s: Rows,
    t: jax.Array | None,
    q: jax.Array | None,
    w: jax.Array | None,
    ignore_index: int,
    eps: float,
    cap: float,
    *,
    inplace: bool = False,
) -> jax.Array:
    """dx[M V] for the cotangents c[M] of y and e[M] of z, 0 in ignored rows; M V read, M V written.

    `inplace` declares dx as the logits' own memory: each is read by the program that writes it.
    """
    if x.shape[0] == 0:
        return x
    arrays = {"x": x, "c": c, "e": e, **dict(zip(ROWS, s, strict=True)), "t": t, "q": q, "w": w}
    aliases = {0: 0} if inplace else {}
    options = (ignore_index, eps, cap)
    (d,) = run(_backward_kernel, arrays, ("table",), x, options, True, input_output_aliases=aliases)
    return d


def target_backward(c: jax.Array, x: jax.Array, s: Rows, w: jax.Array | None, eps: float, cap: float) -> jax.Array:
    """dq[M V] of soft targets for the cotangent c[M] of y; M V read, M V written."""
    if x.shape[0] == 0:
        return x
    arrays = {"c": c, "x": x, **dict(zip(ROWS, s, strict=True)), "w": w}
    (d,) = run(_target_backward_kernel, arrays, ("table",), x, (0, eps, cap), True)
    return d


def second_backward(
    u: jax.Array,
    c: jax.Array,
    e: jax.Array | None,
    x: jax.Array,
    s: Rows,
    t: jax.Array | None,
    q: jax.Array | None,
    w: jax.Array | None,
    ignore_index: int,
    eps: float,
    cap: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Pullback of `backward` for the cotangent u[M V]: dc[M], de[M], dx[M V], and dq of soft targets.

    x and u are read twice, dx is written once: 5 M V elements.
    """
    if x.shape[0] == 0:
        return c, c, x, q
    arrays = {"u": u, "c": c, "e": e, "x": x, **dict(zip(ROWS, s, strict=True)), "t": t, "q": q, "w": w}
    wanted = ("rows", "rows", "table") + (() if q is None else ("table",))
    a, b, d, *f = run(_second_backward_kernel, arrays, wanted, x, (ignore_index, eps, cap), False, warps=8)
    return a, b, d, f[0] if f else None
