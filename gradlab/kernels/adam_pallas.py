"""One step of Adam in one pass over an array, and its pullback, as Pallas kernels."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.kernels.common.rounding_pallas import mixed, random_bits, stochastic
from gradlab.kernels.optimizers.step_pallas import step
from gradlab.kernels.runtime import launch_pallas
from gradlab.kernels.runtime.launch_pallas import accumulator


class Scalars(NamedTuple):
    """Scalars of one step, in the accumulator's dtype; all may change at every step.

    The learning rate is not among them, because it has a derivative. v' is divided by `before` in front of amsgrad's
    maximum, and the maximum by `after`: the bias correction is one of them, the other is 1. Nothing changes if `found`
    is not 0.
    """

    beta1: Any
    one_minus_beta1: Any
    beta2: Any
    one_minus_beta2: Any
    eps: Any
    eps_root: Any
    weight_decay: Any
    correction1: Any
    before: Any
    after: Any
    decay: Any
    scale: Any
    found: Any

    @classmethod
    def read(cls, ref: Any) -> "Scalars":
        """The scalars out of a kernel's ref of [1 13]."""
        return cls(*(ref[0, i] for i in range(len(cls._fields))))


def _share_of_v(q, v, x):
    """The derivative of q = max(v, x) by v: 1 where v > x, 0 where x > v, 1/2 where they are equal."""
    return jnp.where(v == x, jnp.full_like(q, 0.5), jnp.where(v == q, jnp.ones_like(q), jnp.zeros_like(q)))


# fmt: off
def _adam_kernel(s_ref, lr_ref, *refs, with_p, with_x, with_w, update, guarded, keyed, numbers=None):
    """p', m', v', x', w' of p, g, m, v, x, w, or p' - p in place of p'; grid (E/BE); a program owns BE of each.

    x is the largest v so far, w the master weights that p is rounded from.
    """
    s = Scalars.read(s_ref)
    acc = s_ref.dtype
    left = list(refs)
    key: Any = left.pop(0) if keyed else None
    roles = "p" * with_p + "gmv" + "x" * with_x + "w" * with_w
    ins = {name: left.pop(0)[...] for name in roles}
    lr = lr_ref[0, 0]
    p: Any = ins["p"].astype(acc) if with_p else None
    if with_w:
        # A parameter that differs from its rounded master was changed outside of the optimizer, and wins.
        w = ins["w"].astype(acc)
        p = jnp.where(w.astype(ins["p"].dtype).astype(acc) == p, w, p)
    h = s.scale * ins["g"].astype(acc)
    if with_p:
        h = h + s.weight_decay * p
    m = ins["m"].astype(acc)
    m = m + s.one_minus_beta1 * (h - m)
    v = s.beta2 * ins["v"].astype(acc) + s.one_minus_beta2 * h * h
    q = v
    if with_x:
        q = jnp.maximum(ins["x"].astype(acc), v / s.before)
    moved = -lr / s.correction1 * m / (jnp.sqrt(q / s.after + s.eps_root) + s.eps)
    if with_p:
        moved = moved - lr * s.decay * p if update else p - lr * s.decay * p + moved
    new = {"p": moved, "m": m, "v": v, "x": q, "w": moved}
    if keyed:
        low, high = numbers()
        bits = random_bits(low, high, key[0, 0], key[0, 1])
        rounding = {"m": bits, "v": bits >> jnp.uint32(16), "x": mixed(bits)}
    for name in "pmv" + "x" * with_x + "w" * with_w:
        ref = left.pop(0)
        if keyed and name in rounding:
            value = stochastic(new[name].astype(jnp.float32), rounding[name]).astype(ref.dtype)
        else:
            value = new[name].astype(ref.dtype)
        if guarded:
            value = jnp.where(s.found != 0, ins[name], value)
        ref[...] = value


def _adam_pullback_kernel(s_ref, lr_ref, *refs, with_p, with_x, update):
    """dp, dg, dm, dv, dx, and the terms of dlr, of the cotangents cp, cm, cv, cx of p', m', v', x'.

    Grid (E/BE); a program owns BE elements of each, and the sum of its terms.
    """
    s = Scalars.read(s_ref)
    acc = s_ref.dtype
    left = list(refs)
    roles = ["p"] * with_p + ["g", "m", "v"] + ["x"] * with_x + ["cp", "cm", "cv"] + ["cx"] * with_x
    ins = {name: left.pop(0)[...].astype(acc) for name in roles}
    cp, lr = ins["cp"], lr_ref[0, 0]
    h = s.scale * ins["g"]
    if with_p:
        h = h + s.weight_decay * ins["p"]
    m = ins["m"] + s.one_minus_beta1 * (h - ins["m"])
    v = s.beta2 * ins["v"] + s.one_minus_beta2 * h * h
    q = v
    if with_x:
        q = jnp.maximum(ins["x"], v / s.before)
    root = jnp.sqrt(q / s.after + s.eps_root)
    d = root + s.eps
    size = lr / s.correction1
    # The square root has no derivative at 0: no gradient flows there.
    slope = jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, jnp.ones_like(root)), jnp.zeros_like(root))
    dq = size * cp * m / (d * d) * slope / s.after
    out: dict[str, Any] = {}
    if with_x:
        share = _share_of_v(q, v / s.before, ins["x"])
        out["x"] = (ins["cx"] + dq) * (1 - share)
        dv = ins["cv"] + (ins["cx"] + dq) * share / s.before
    else:
        dv = ins["cv"] + dq
    dm = ins["cm"] - size * cp / d
    dh = s.one_minus_beta1 * dm + 2 * s.one_minus_beta2 * h * dv
    u = m / d / s.correction1
    if with_p:
        through = -lr * s.decay * cp + s.weight_decay * dh
        out["p"] = through if update else cp + through
        u = u + s.decay * ins["p"]
    out |= {"g": s.scale * dh, "m": s.beta1 * dm, "v": s.beta2 * dv}
    # A cotangent of 0 adds nothing, also where m' / d is 0 / 0, as in padded elements.
    out["lr"] = jnp.where(cp == 0, jnp.zeros_like(cp), -cp * u)
    for name in [*"p" * with_p, *"gmv", *"x" * with_x, "lr"]:
        ref = left.pop(0)
        ref[...] = out[name].astype(acc if name == "lr" else ref.dtype)
# fmt: on


def adam(
    p: jax.Array | None,
    g: jax.Array,
    m: jax.Array,
    v: jax.Array,
    x: jax.Array | None,
    w: jax.Array | None,
    lr: jax.Array,
    scalars: jax.Array,
    update: bool,
    guarded: bool = False,
    key: jax.Array | None = None,
) -> list[jax.Array]:
    """p', m', v' and, where there is one, x', w' in one pass.

    4 E elements are read, 3 E written, and E more each for these.

    Results alias their inputs, so that a jit that donates those allocates nothing.

    Args:
        p: may be None with `update`, which returns p' - p in place of p', if there is no decay.
        lr: a scalar array, read by the kernel.
        guarded: whether the kernel checks `found`.
        key: [1 2] of 32 bits, for moments that are rounded stochastically to bfloat16.
    """
    given = {"p": p, "g": g, "m": m, "v": v, "x": x, "w": w}
    operands = {name: t for name, t in given.items() if t is not None}
    written = [name for name in "pmvxw" if name in operands or name == "p"]
    places = {name: i for i, name in enumerate(operands)}
    aliases = {places[name]: k for k, name in enumerate(written) if name in places and not (update and name == "p")}
    kernel = functools.partial(
        _adam_kernel,
        with_p=p is not None,
        with_x=x is not None,
        with_w=w is not None,
        update=update,
        guarded=guarded,
        keyed=key is not None,
    )
    shared = [scalars, _as_block(lr, scalars)] + ([] if key is None else [key])
    results = [(g if name == "p" and p is None else operands[name]).dtype for name in written]
    arrays = list(operands.values())
    return step(kernel, shared, arrays, results, aliases, numbered=key is not None, gradient=places["g"])


def adam_pullback(
    p: jax.Array | None,
    g: jax.Array,
    m: jax.Array,
    v: jax.Array,
    x: jax.Array | None,
    lr: jax.Array,
    cp: jax.Array,
    cm: jax.Array,
    cv: jax.Array,
    cx: jax.Array | None,
    scalars: jax.Array,
    update: bool,
) -> list[jax.Array]:
    """dp, dg, dm, dv, dx, dlr of one step of one array, for the cotangents of p', m', v', x'.

    No dp or dx without p or x.

    7 E elements read, 4 E written; with x 9 E and 5 E. dlr is a sum in two passes, in the accumulator's dtype.
    """
    kernel = functools.partial(_adam_pullback_kernel, with_p=p is not None, with_x=x is not None, update=update)
    given = [t for t in (p, g, m, v, x) if t is not None]
    cotangents = [t for t in (cp, cm, cv, cx) if t is not None]
    return step(
        kernel, [scalars, _as_block(lr, scalars)], given + cotangents, [t.dtype for t in given], {}, scalars.dtype
    )


def scalars(*, step, beta1, beta2, eps, weight_decay, decoupled=False, maximize=False, eps_root=0.0, grad_scale=None,
            found=None, corrected_max=False, correct_mu=True, correct_nu=True, dtype) -> jax.Array:  # fmt: skip
    """The `Scalars` of one step as [1 13]; the numbers may be traced.

    1 - beta^step is -expm1(step log beta): in float32 the plain difference loses four digits at the first step.

    Args:
        corrected_max: whether the bias is corrected before amsgrad's maximum, as in optax, or after it, as in torch.
        correct_mu, correct_nu: whether the bias of m', v' is corrected.
    """
    acc = accumulator(dtype)

    def correction(beta):
        return -jnp.expm1(jnp.asarray(step, acc) * jnp.asarray(_log(beta), acc))

    second = correction(beta2) if correct_nu else 1.0
    scale = -1.0 if maximize else 1.0
    values = Scalars(
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=0.0 if decoupled else weight_decay,
        correction1=correction(beta1) if correct_mu else 1.0,
        before=second if corrected_max else 1.0,
        after=1.0 if corrected_max else second,
        decay=weight_decay if decoupled else 0.0,
        scale=scale if grad_scale is None else scale / jnp.asarray(grad_scale, acc),
        found=0.0 if found is None else found,
    )
    return launch_pallas.scalars(*values, dtype=acc)


def _as_block(lr: jax.Array, scalars: jax.Array) -> jax.Array:
    """The learning rate as [1 1], in the scalars' dtype."""
    return lr.astype(scalars.dtype).reshape(1, 1)


def _log(beta):
    """log beta, in float64 if beta is a plain number; beta = 0 gives -inf, and so a correction of 1."""
    if isinstance(beta, jax.Array):
        return jnp.log(beta)
    with np.errstate(divide="ignore"):
        return np.log(np.float64(beta))
