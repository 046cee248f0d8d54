"""One step of Adam in one pass over an array, and its pullback, as Pallas kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.kernels import launch_pallas
from gradlab.kernels.launch_pallas import accumulator
from gradlab.kernels.step_pallas import step

# Scalars of one step, in this order, in the accumulator's dtype; all of them may change at every step.
SCALARS = ("beta1", "1 - beta1", "beta2", "1 - beta2", "eps", "weight_decay", "step_size", "correction2", "decay")


# fmt: off
def _adam_kernel(s_ref, *refs, with_p, update):
    """p', m', v' of p, g, m, v, or the update p' - p in place of p'; grid (rows/BR); a program owns BR rows of each."""
    _, rest1, beta2, rest2, eps, weight_decay, step_size, correction2, decay = (s_ref[0, i] for i in range(9))
    p_ref: Any = refs[0] if with_p else None
    g_ref, m_ref, v_ref, po_ref, mo_ref, vo_ref = refs[1:] if with_p else refs
    acc = s_ref.dtype
    h = g_ref[...].astype(acc)
    if with_p:
        h = h + weight_decay * p_ref[...].astype(acc)
    m = m_ref[...].astype(acc)
    m = m + rest1 * (h - m)
    v = beta2 * v_ref[...].astype(acc) + rest2 * h * h
    moved = -step_size * m / (jnp.sqrt(v / correction2) + eps)
    if with_p:
        p = p_ref[...].astype(acc)
        moved = moved - decay * p if update else p - decay * p + moved
    po_ref[...] = moved.astype(po_ref.dtype)
    mo_ref[...] = m.astype(mo_ref.dtype)
    vo_ref[...] = v.astype(vo_ref.dtype)


def _adam_pullback_kernel(
    s_ref,
    p_ref, g_ref, m_ref, v_ref,
    cp_ref, cm_ref, cv_ref,
    dp_ref, dg_ref, dm_ref, dv_ref,
):
    """dp, dg, dm, dv of the cotangents cp, cm, cv of p', m', v'; grid (rows/BR); a program owns BR rows of each."""
    beta1, rest1, beta2, rest2, eps, weight_decay, step_size, correction2, decay = (s_ref[0, i] for i in range(9))
    acc = s_ref.dtype
    p, g, m, v = (ref[...].astype(acc) for ref in (p_ref, g_ref, m_ref, v_ref))
    cp, cm, cv = (ref[...].astype(acc) for ref in (cp_ref, cm_ref, cv_ref))
    h = g + weight_decay * p
    m = m + rest1 * (h - m)
    v = beta2 * v + rest2 * h * h
    root = jnp.sqrt(v / correction2)
    d = root + eps
    dm = cm - step_size * cp / d
    # The square root has no derivative at 0, where m' is 0 too: no gradient flows there.
    moving = v > 0
    slope = jnp.where(moving, 0.5 / (jnp.where(moving, root, jnp.ones_like(root)) * correction2), jnp.zeros_like(root))
    dv = cv + step_size * cp * m / (d * d) * slope
    dh = rest1 * dm + 2 * rest2 * h * dv
    dp_ref[...] = (cp - decay * cp + weight_decay * dh).astype(dp_ref.dtype)
    dg_ref[...] = dh.astype(dg_ref.dtype)
    dm_ref[...] = (beta1 * dm).astype(dm_ref.dtype)
    dv_ref[...] = (beta2 * dv).astype(dv_ref.dtype)
# fmt: on


def adam(p: jax.Array | None, g: jax.Array, m: jax.Array, v: jax.Array, scalars: jax.Array,
         update: bool) -> list[jax.Array]:  # fmt: skip
    """p', m', v' in one pass: 4 E elements read, 3 E written; `update`: p' - p in place of p', p needed for decay only.

    Each result is declared as its input's own memory, so that a jit that donates them allocates nothing.
    """
    aliases = {2: 1, 3: 2} if p is None else {3: 1, 4: 2} | ({} if update else {1: 0})
    kernel = functools.partial(_adam_kernel, with_p=p is not None, update=update)
    operands = [t for t in (p, g, m, v) if t is not None]
    return step(kernel, scalars, operands, 3, aliases)


def adam_pullback(p: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array,
                  cp: jax.Array, cm: jax.Array, cv: jax.Array, scalars: jax.Array) -> list[jax.Array]:  # fmt: skip
    """dp, dg, dm, dv of one step of one array, for the cotangents of p', m', v'; 7 E elements read, 4 E written."""
    return step(_adam_pullback_kernel, scalars, [p, g, m, v, cp, cm, cv], 4, {})


def scalars(*, lr, step, beta1, beta2, eps, weight_decay, decoupled=False, dtype) -> jax.Array:
    """SCALARS of one step as [1 9]; lr and step may be traced.

    1 - beta^step is written -expm1(step log beta): in float32 the plain difference loses four digits at the first step.
    """
    acc = accumulator(dtype)

    def correction(beta):
        return -jnp.expm1(jnp.asarray(step, acc) * jnp.asarray(_log(beta), acc))

    return launch_pallas.scalars(
        beta1, 1 - beta1, beta2, 1 - beta2, eps, 0.0 if decoupled else weight_decay, lr / correction(beta1),
        correction(beta2), lr * weight_decay if decoupled else 0.0, dtype=acc,
    )  # fmt: skip


def _log(beta):
    """log beta, in float64 where beta is a plain number; beta = 0 gives -inf, whose correction is 1."""
    if isinstance(beta, jax.Array):
        return jnp.log(beta)
    with np.errstate(divide="ignore"):
        return np.log(np.float64(beta))
