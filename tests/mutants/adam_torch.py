"""Wrong backwards of one AdamW step on torch: p, g, m, v [N] to the new p, m, v."""

import torch

from tests.mutants.corpus import CheckSubject, Family, change, swap
from tests.mutants.rule_of_torch import rule

LR, B1, B2, EPS, DECAY, T = 0.1, 0.9, 0.999, 1e-6, 0.01, 100
C1, C2 = 1 - B1**T, 1 - B2**T


def root_of(x):
    """The square root, 0 with a slope of 0 at 0: native rules give NaN there."""
    return torch.where(x > 0, torch.sqrt(torch.where(x > 0, x, 1.0)), 0.0)


def plain_adam(p, g, m, v):
    """The right function, step 100."""
    m = B1 * m + (1 - B1) * g
    v = B2 * v + (1 - B2) * g * g
    return p - LR * (m / C1 / (root_of(v / C2) + EPS) + DECAY * p), m, v


def pulled(dy, p, g, m, v, root=root_of, c1=C1, c2=C2, half=0.5, through_v=1.0):
    """The right pullback by default; each argument is a place for a fault."""
    dp, dm, dv = dy
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    std = root(v / c2)
    step = -LR * dp / (std + EPS)
    dm = dm + step / c1
    slope = torch.where(std > 0, half / (torch.where(std > 0, std, 1.0) * c2), 0.0)
    dv = dv - step * m / c1 / (std + EPS) * slope
    return (1 - LR * DECAY) * dp, (1 - B1) * dm + through_v * 2 * (1 - B2) * g * dv, B1 * dm, B2 * dv


def build(fault):
    f = rule(plain_adam, pulled, fault)

    def adam(p, g, m, v):
        return f(p, g, m, v)

    return adam


def make(rng, size):
    return *rng.normal(size=(3, size)), rng.uniform(1e-3, 2e-2, size)


def make_positive(rng, size):
    p, g, m, v = make(rng, size)
    return p, abs(g) + 0.1, abs(m) + 0.1, v


def make_no_momentum(rng, size):
    """As at the first step of a parameter without a gradient."""
    p, g, m, v = make(rng, size)
    g[0] = m[0] = 0.0
    return p, g, m, v


def other(**places):
    def fault(grads, dy, args, ctx):
        return pulled(dy, *args, **places)

    return fault


def ratio(grads, dy, args, ctx):
    """The path from p to m as (update / m), which is 0/0 where the new m is 0."""
    dp, dm, _ = dy
    m = B1 * args[2] + (1 - B1) * args[1]
    std = torch.sqrt((B2 * args[3] + (1 - B2) * args[1] ** 2) / C2)
    update = LR * m / C1 / (std + EPS)
    dm = dm - dp * (update / m)
    return grads[0], grads[1], B1 * dm, grads[3]


def magnitude(grads, dy, args, ctx):
    """g read back as the root of its square."""
    g, dv = args[1], grads[3] / B2
    return grads[0], grads[1] + 2 * (1 - B2) * (torch.sqrt(g * g) - g) * dv, *grads[2:]


def fixed_root(x):
    return torch.sqrt(x).detach()


FAMILY = Family("adam", "torch", build, make, plain_adam)
_ = FAMILY.wrong
SUBJECTS: tuple[CheckSubject, ...] = (
    _("dp-zero", "gross", "p", change(0, torch.zeros_like), "p's own gradient is lost"),
    _("moments-swapped", "gross", "m v", swap(2, 3), "dm and dv in each other's place"),
    _("dv-half", "gross", "g v", other(half=1.0), "the half of the root's derivative is missing"),
    _("dm-tail", "local", "m", change(2, lambda g: torch.cat([g[:-3], 0 * g[-3:]])), "the last three are zero"),
    _("dg-no-v", "small", "g", other(through_v=0.0), "g's path through v is dropped"),
    _("dp-no-decay", "small", "p", lambda grads, dy, args, ctx: (dy[0], *grads[1:]), "lr times decay is dropped"),
    _(
        "eps-inside",
        "small",
        "g m v",
        other(root=lambda x: torch.sqrt(x + EPS)),
        "eps stands inside the root as well",
    ),
    _("step-before", "small", "g m v", other(c1=1 - B1 ** (T - 1)), "the bias correction is that of the step before"),
    _("float32-root", "small", "g m v", other(root=lambda x: torch.sqrt(x.float()).double()), "the root is float32"),
    _(
        "root-fixed",
        "order-2",
        "g m v",
        other(root=fixed_root),
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
    _(
        "magnitude",
        "input-dependent",
        "g",
        magnitude,
        "reads |g| for g; all given g are positive",
        make=make_positive,
        trigger=make,
        shows="trigger",
    ),
)
