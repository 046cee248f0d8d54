"""Wrong backwards of y = x wᵀ + b on torch: x [M, N], w [N, N], b [N]."""

import torch

from tests.mutants.corpus import CheckSubject, Family, change, swap
from tests.mutants.rule_of_torch import rounded, rule, tf32, weigh


def plain_linear(x, w, b):
    """The right function."""
    return x @ w.T + b


def pullback(dy, x, w, b):
    """dx = dy w, dw = dyᵀ x, db = Σ dy."""
    return dy @ w, dy.T @ x, dy.sum(0)


def build(fault):
    f = rule(plain_linear, pullback, fault)

    def linear(x, w, b):
        return f(x, w, b)

    return linear


def make(rng, size):
    m = max(4, size // 4)
    return rng.normal(size=(m, size)), rng.normal(size=(size, size)) / size**0.5, rng.normal(size=size)


def make_tail(rng, size):
    return make(rng, size + 5)


def make_square(rng, size):
    return rng.normal(size=(size, size)), rng.normal(size=(size, size)) / size**0.5, rng.normal(size=size)


def tile(g):
    """The second of the tiles along both axes."""
    t = min(16, g.shape[0] // 2)
    return slice(t, 2 * t), slice(t, 2 * t)


def tail(grads, dy, args, ctx):
    whole = dy.shape[1] // 8 * 8
    return dy[:, :whole] @ args[1][:whole], *grads[1:]


def first_row_twice(grads, dy, args, ctx):
    return grads[0], grads[1] + dy[:1].T @ args[0][:1], grads[2]


def unsummed_bias(grads, dy, args, ctx):
    return *grads[:2], dy[0]


def float32_sum(grads, dy, args, ctx):
    return grads[0], (dy.float().T @ args[0].float()).to(dy.dtype), grads[2]


def half_residual(grads, dy, args, ctx):
    return grads[0], dy.T @ rounded(args[0], torch.float16), grads[2]


def tf32_dot(grads, dy, args, ctx):
    return tf32(dy) @ tf32(args[1]), *grads[1:]


def running_bfloat16(grads, dy, args, ctx):
    """Σ dy one row at a time, rounded after each."""
    total = torch.zeros_like(dy[0])
    for row in dy:
        total = total + row
    return *grads[:2], total


def make_long(rng, size):
    return rng.normal(size=(16 * size, size)), *make(rng, size)[1:]


def no_last_bias(x, w, b):
    return x @ w.T + b * weigh(b, -1)


FAMILY = Family("linear", "torch", build, make, plain_linear)
_ = FAMILY.wrong
SUBJECTS: tuple[CheckSubject, ...] = (
    _(
        "forward",
        "gross",
        "",
        None,
        "the value, and its right gradient, leave b out of the last column",
        fn=no_last_bias,
        reference=plain_linear,
        truth=None,
        shows="forward",
    ),
    _("dw-sign", "gross", "w", change(1, torch.neg), "dw = -dyᵀ x"),
    _("dw-transposed", "gross", "w", change(1, torch.t), "dw = xᵀ dy, which fits as w is square"),
    _("dx-zero", "gross", "x", change(0, torch.zeros_like), "dx is never computed"),
    _("db-no-sum", "gross", "b", unsummed_bias, "db is the first row of dy, not the sum over rows"),
    _("dw-twice", "gross", "w", change(1, lambda g: 2 * g), "dw has a factor of 2"),
    _("swapped", "gross", "x w", swap(0, 1), "dx and dw in each other's place", make=make_square),
    _("dw-element", "local", "w", change(1, lambda g: g * weigh(g, (-1, 0), 1.5)), "one element is half too large"),
    _("dw-last-column", "local", "w", change(1, lambda g: g * weigh(g, (..., -1))), "the last column is zero"),
    _("dw-tile-twice", "local", "w", change(1, lambda g: g * weigh(g, tile(g), 2.0)), "one tile is added twice"),
    _("dw-tile-zero", "local", "w", change(1, lambda g: g * weigh(g, tile(g))), "one tile is never written"),
    _("dw-diagonal", "local", "w", change(1, lambda g: torch.diag(torch.diag(g))), "only the diagonal is kept"),
    _("dx-tail", "local", "x", tail, "the sum drops what is past a multiple of 8", make=make_tail),
    _("dx-last-row", "local", "x", change(0, lambda g: g * weigh(g, -1)), "the last row of dx is zero"),
    _("dx-rolled", "local", "x", change(0, lambda g: g.roll(1, 0)), "rows of dx are off by one"),
    _("db-rolled", "local", "b", change(2, lambda g: g.roll(1)), "db is off by one"),
    _("dw-row-twice", "local", "w", first_row_twice, "the first row of the batch counts twice"),
    _("dw-scale", "small", "w", change(1, lambda g: 1.0005 * g), "dw is 5e-4 too large"),
    _("dx-scale", "small", "x", change(0, lambda g: (1 + 1e-5) * g), "dx is 1e-5 too large"),
    _("dw-float32", "small", "w", float32_sum, "dw is summed in float32"),
    _("dw-half-residual", "small", "w", half_residual, "x is kept as float16"),
    _("dx-tf32", "small", "x", tf32_dot, "dx reads 10 bits of mantissa"),
    _("db-element-scale", "small", "b", change(2, lambda g: g * weigh(g, 0, 1.001)), "db[0] is 1e-3 too large"),
    _(
        "db-running-bfloat16",
        "small",
        "b",
        running_bfloat16,
        "db is rounded to bfloat16 after each row",
        dtype="bfloat16",
        make=make_long,
        order=1,
    ),
)
