"""Wrong backwards of one AdamW step on jax: p, g, m, v [N] to the new p, m, v."""

import jax
import jax.numpy as jnp

from tests.mutants.corpus import CheckSubject, Family, change, swap
from tests.mutants.rule_of_jax import rule

LR, B1, B2, EPS, DECAY, T = 0.1, 0.9, 0.999, 1e-6, 0.01, 100
C1, C2 = 1 - B1**T, 1 - B2**T


def root_of(x):
    """The square root, 0 with a slope of 0 at 0: native rules give NaN there."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def plain_adam(p, g, m, v):
    """The right function, step 100."""
    m = B1 * m + (1 - B1) * g
    v = B2 * v + (1 - B2) * g * g
    return p - LR * (m / C1 / (root_of(v / C2) + EPS) + DECAY * p), m, v


def pulled(dy, p, g, m, v, root=root_of, c2=C2, through_v=1.0, through_p=1.0):
    """The right pullback by default; each argument is a place for a fault."""
    dp, dm, dv = dy
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    std = root(v / c2)
    step = -LR * dp / (std + EPS)
    dm = dm + step / C1
    slope = jnp.where(std > 0, 1 / (2 * jnp.where(std > 0, std, 1.0) * c2), 0.0)
    dv = dv - through_p * step * m / C1 / (std + EPS) * slope
    return (1 - LR * DECAY) * dp, (1 - B1) * dm + through_v * 2 * (1 - B2) * g * dv, B1 * dm, B2 * dv


def build(fault):
    f = rule(plain_adam, pulled, fault)

    def adam(p, g, m, v):
        return f(p, g, m, v)

    return adam


def make(rng, size):
    return *rng.normal(size=(3, size)), rng.uniform(1e-3, 2e-2, size)


def make_no_momentum(rng, size):
    p, g, m, v = make(rng, size)
    g[0] = m[0] = 0.0
    return p, g, m, v


def other(**places):
    return lambda grads, dy, args, ctx: pulled(dy, *args, **places)


def ratio(grads, dy, args, ctx):
    """dm through p as (update / m), which is 0/0 where the new m is 0."""
    _, g, m, v = args
    new = B1 * m + (1 - B1) * g
    update = LR * new / C1 / (jnp.sqrt((B2 * v + (1 - B2) * g * g) / C2) + EPS)
    return *grads[:2], B1 * (dy[1] - dy[0] * (update / new)), grads[3]


FAMILY = Family("adam", "jax", build, make, plain_adam)
_ = FAMILY.wrong
SUBJECTS: tuple[CheckSubject, ...] = (
    _("moments-swapped", "gross", "m v", swap(2, 3), "dm and dv in each other's place"),
    _("no-std", "gross", "g v", other(through_p=0.0), "v's effect on p is left out"),
    _("dg-last", "local", "g", change(1, lambda g: g.at[-1].set(0)), "the last element of dg is never written"),
    _("dg-no-v", "small", "g", other(through_v=0.0), "g's path through v is dropped"),
    _("step-before", "small", "g m v", other(c2=1 - B2 ** (T - 1)), "v's bias correction is that of the step before"),
    _("dp-no-decay", "small", "p", lambda grads, dy, args, ctx: (dy[0], *grads[1:]), "lr times decay is dropped"),
    _(
        "root-fixed",
        "order-2",
        "g m v",
        other(root=lambda x: jax.lax.stop_gradient(jnp.sqrt(x))),
        "the root is a constant to the second derivative",
        shows="second",
    ),
    _(
        "zero-over-zero",
        "input-dependent",
        "m",
        ratio,
        "NaN where the new m is 0; no given m and g are both 0",
        trigger=make_no_momentum,
        shows="trigger",
    ),
)
