"""One step of stochastic gradient descent in one pass over an array, and its pullback, as Pallas kernels."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.kernels.optimizers.step_pallas import step
from gradlab.kernels.runtime import launch_pallas
from gradlab.kernels.runtime.launch_pallas import accumulator


class Scalars(NamedTuple):
    """Scalars of one step, in the accumulator's dtype; all may change at every step.

    The last four are r, q, n, t of gradlab/kernels/sgd.py, b' = r b + q h and p' = p - lr (n h + t b'): r = 0 where the
    buffer is ignored, t = 0 where there is none.
    """

    lr: Any
    sign: Any
    weight_decay: Any
    b_of_b: Any
    b_of_h: Any
    p_of_h: Any
    p_of_b: Any

    @classmethod
    def read(cls, ref: Any) -> "Scalars":
        """The scalars out of a kernel's ref of [1 7]."""
        return cls(*(ref[0, i] for i in range(len(cls._fields))))


def _times(factor, x):
    """factor x; 0 where the factor is 0, also for an x that is not finite."""
    return jnp.where(factor == 0, jnp.zeros_like(x), factor * x)


# fmt: off
def _sgd_kernel(s_ref, *refs, with_p, with_b):
    """p', b' of p, g, b, or without p the update p' - p in place of p'.

    Grid (rows/BR); a program owns BR rows of each.
    """
    lr, sign, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b = Scalars.read(s_ref)
    left = list(refs)
    p_ref: Any = left.pop(0) if with_p else None
    g_ref: Any = left.pop(0)
    b_ref: Any = left.pop(0) if with_b else None
    acc = s_ref.dtype
    h = sign * g_ref[...].astype(acc)
    if with_p:
        p = p_ref[...].astype(acc)
        h = h + _times(weight_decay, p)
    d = h
    if with_b:
        b = _times(b_of_b, b_ref[...].astype(acc)) + b_of_h * h
        left[1][...] = b.astype(left[1].dtype)
        d = _times(p_of_h, h) + p_of_b * b
    moved = p - lr * d if with_p else -lr * d
    left[0][...] = moved.astype(left[0].dtype)


def _sgd_pullback_kernel(s_ref, *refs, with_p, with_b):
    """dp, dg, db of the cotangents cp, cb of p', b'; grid (rows/BR); a program owns BR rows of each."""
    lr, sign, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b = Scalars.read(s_ref)
    left = list(refs)
    cp_ref: Any = left.pop(0)
    cb_ref: Any = left.pop(0) if with_b else None
    acc = s_ref.dtype
    cp = cp_ref[...].astype(acc)
    u = -lr * cp
    dh = _times(p_of_h, u)
    if with_b:
        db = cb_ref[...].astype(acc) + p_of_b * u
        dh = dh + b_of_h * db
        left[-1][...] = _times(b_of_b, db).astype(left[-1].dtype)
    if with_p:
        dp_ref = left.pop(0)
        dp_ref[...] = (cp + _times(weight_decay, dh)).astype(dp_ref.dtype)
    left[0][...] = (sign * dh).astype(left[0].dtype)
# fmt: on


def sgd(p: jax.Array | None, g: jax.Array, b: jax.Array | None, scalars: jax.Array) -> list[jax.Array]:
    """p' and, where there is a buffer, b' in one pass: 3 E elements read, 2 E written; without p: p' - p in its place.

    Results alias their inputs, so that a jit that donates those allocates nothing.
    """
    operands = {name: t for name, t in (("p", p), ("g", g), ("b", b)) if t is not None}
    places = {name: i for i, name in enumerate(operands)}
    aliases = {places[name]: k for k, name in enumerate(("p", "b")) if name in places}
    kernel = functools.partial(_sgd_kernel, with_p=p is not None, with_b=b is not None)
    dtypes = [g.dtype] * (1 if b is None else 2)
    return step(kernel, [scalars], list(operands.values()), dtypes, aliases, gradient=places["g"])


def sgd_pullback(cp: jax.Array, cb: jax.Array | None, scalars: jax.Array, with_p: bool) -> list[jax.Array]:
    """dp, dg and, where there is a buffer, db of one array's step, for the cotangents of p' and b'; dp only `with_p`.

    2 E elements read, 3 E written.
    """
    kernel = functools.partial(_sgd_pullback_kernel, with_p=with_p, with_b=cb is not None)
    operands = [cp] if cb is None else [cp, cb]
    return step(kernel, [scalars], operands, [cp.dtype] * (with_p + len(operands)), {})


def scalars(
    *, lr, momentum=None, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, first=False, dtype
) -> jax.Array:
    """The `Scalars` of one step as [1 7]; the numbers and `first` may be traced. No buffer where momentum is None."""
    b_of_b: Any = 0.0
    b_of_h: Any = 0.0
    p_of_h, p_of_b = 1.0, 0.0
    if momentum is not None:
        b_of_b, b_of_h = jnp.where(first, 0.0, momentum), jnp.where(first, 1.0, 1 - dampening)
        p_of_h, p_of_b = (1.0, momentum) if nesterov else (0.0, 1.0)
    found = Scalars(lr, -1.0 if maximize else 1.0, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b)
    return launch_pallas.scalars(*found, dtype=accumulator(dtype))
