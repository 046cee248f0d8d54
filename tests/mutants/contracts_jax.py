"""Backwards on jax that are right on one eager call and break what its transformations promise."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.mutants.corpus import CheckSubject, Family
from tests.mutants.linear_jax import FAMILY, plain_linear
from tests.mutants.rule_of_jax import rule


def traced(*arrays):
    return any(isinstance(a, jax.core.Tracer) for a in arrays)


def float32_gradient(grads, dy, args, ctx):
    return grads[0], grads[1].astype(jnp.float32), grads[2]


def first_row_starts(grads, dy, args, ctx):
    return *grads[:2], dy[0] + dy[1:].sum(0)


def eager_only(grads, dy, args, ctx):
    """A scale that is measured, or taken for 1 where it cannot be."""
    scale = 1.0 if traced(args[0]) else float(jnp.abs(args[0]).max())
    small = jnp.clip(args[0] / scale, -1, 1) * scale
    return grads[0], dy.T @ small, grads[2]


def asks_the_value(grads, dy, args, ctx):
    """A short cut for a cotangent of zeros."""
    return grads if float(jnp.abs(dy).max()) > 0 else tuple(jnp.zeros_like(g) for g in grads)


def plain_share(x):
    """The right function: x [N] as shares of its sum."""
    return x / x.sum()


def share_pullback(dy, x):
    return ((dy - (dy * x).sum() / x.sum()) / x.sum(),)


def by_callback(grads, dy, args, ctx):
    """By NumPy, with sums over every axis there is, the mapped one too."""

    def run(dy, x):
        return np.asarray((dy - (dy * x).sum() / x.sum()) / x.sum(), x.dtype)

    shape = jax.ShapeDtypeStruct(dy.shape, dy.dtype)
    return (jax.pure_callback(run, shape, dy, args[0], vmap_method="broadcast_all"),)


@jax.custom_batching.custom_vmap
def share_gradient(dy, x):
    return share_pullback(dy, x)[0]


@share_gradient.def_vmap
def _first_of_batch(axis_size, batched, dy, x):
    """The rule takes x for the same in every example."""
    x = x[0] if batched[1] else x
    return jax.vmap(share_pullback, (0 if batched[0] else None, None), axis_size=axis_size)(dy, x)[0], True


def by_batching_rule(grads, dy, args, ctx):
    return (share_gradient(dy, args[0]),)


def build_share(fault):
    f = rule(plain_share, share_pullback, fault)

    def share(x):
        return f(x)

    return share


SHARE = Family("share", "jax", build_share, lambda rng, size: (rng.uniform(0.5, 1.5, size),), plain_share)


def plain_wave(x, w):
    """The right function, of x's shape."""
    return jnp.sin(x) * w


def remembering():
    """The residual in a variable of the module: the last forward's, whichever backward runs."""
    last = []

    @jax.custom_vjp
    def f(x, w):
        return plain_wave(x, w)

    def fwd(x, w):
        last[:] = [x]
        return f(x, w), (x, w)

    def bwd(kept, dy):
        x, w = kept
        return dy * jnp.cos(last[0]) * w, dy * jnp.sin(x)

    f.defvjp(fwd, bwd)
    return lambda x, w: f(x, w)


def flags_exchanged():
    """`perturbed` of x decides over w, and that of w over x."""

    @jax.custom_vjp
    def f(x, w):
        return plain_wave(x, w)

    def fwd(x, w):
        return plain_wave(x.value, w.value), (x.value, w.value, w.perturbed, x.perturbed)

    def bwd(kept, dy):
        x, w, for_x, for_w = kept
        if not isinstance(dy, jax.Array):
            return jnp.zeros_like(x), jnp.zeros_like(w)
        return (
            dy * jnp.cos(x) * w if for_x else jnp.zeros_like(x),
            dy * jnp.sin(x) if for_w else jnp.zeros_like(w),
        )

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return lambda x, w: f(x, w)


def plain_two(x, w):
    """The right function of two outputs."""
    return x * w, jnp.sin(x) + w


def symbolic(missing):
    """Two outputs with symbolic zeros; `missing(cotangents)` fills in for those that are not there."""

    @jax.custom_vjp
    def f(x, w):
        return plain_two(x, w)

    def fwd(x, w):
        return plain_two(x.value, w.value), (x.value, w.value)

    def bwd(kept, dys):
        x, w = kept
        first, second = missing(dys, x)
        return first * w + second * jnp.cos(x), first * x + second

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return lambda x, w: f(x, w)


def there(dy):
    return not isinstance(dy, jax.custom_derivatives.SymbolicZero)


def both_or_none(dys, x):
    return dys if all(map(there, dys)) else (jnp.zeros_like(x),) * 2


def first_for_second(dys, x):
    first = dys[0] if there(dys[0]) else jnp.zeros_like(x)
    return first, dys[1] if there(dys[1]) else first


def ones_for_missing(dys, x):
    return tuple(dy if there(dy) else jnp.ones_like(x) for dy in dys)


def pair(rng, size):
    return tuple(rng.normal(size=(2, size)))


def make_empty(rng, size):
    return rng.normal(size=(0, size)), *FAMILY.make(rng, size)[1:]


def two(name, fn, truth, shows, blames, note, **fields):
    return CheckSubject(
        name + "-jax", "contract", "jax", fn, pair, blames, truth=truth, shows=shows, note=note, **fields
    )


SUBJECTS: tuple[CheckSubject, ...] = (
    FAMILY.wrong("float32-gradient", "contract", "w", float32_gradient, "dw is handed over in float32"),
    FAMILY.wrong("empty", "contract", "", first_row_starts, "an empty batch raises", trigger=make_empty, shows="empty"),
    FAMILY.wrong(
        "eager-only",
        "contract",
        "w",
        eager_only,
        "under jit x is clipped to 1",
        shows="jit",
        order=1,
        truth=plain_linear,
    ),
    FAMILY.wrong(
        "asks-the-value", "contract", "", asks_the_value, "raises under jit: it branches on dy", shows="jit", order=1
    ),
    SHARE.wrong("callback", "contract", "x", by_callback, "under vmap sums over the batch", shows="vmap", order=1),
    SHARE.wrong("batching", "contract", "x", by_batching_rule, "vmap takes the first x for all", shows="vmap", order=1),
    two("wave-last-residual", remembering(), plain_wave, "composed", ("x",), "the last call's residual", order=1),
    two("wave-flags-exchanged", flags_exchanged(), plain_wave, "subset", ("x", "w"), "x's flag decides over w"),
    two("two-both-or-none", symbolic(both_or_none), plain_two, "one-output", ("x", "w"), "zero unless both are used"),
    two(
        "two-first-for-second", symbolic(first_for_second), plain_two, "one-output", ("x", "w"), "the other's cotangent"
    ),
    two("two-ones", symbolic(ones_for_missing), plain_two, "one-output", ("x", "w"), "1 for a missing cotangent"),
)
