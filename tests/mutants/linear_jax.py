"""Wrong backwards of y = x wᵀ + b on jax: x [M, N], w [N, N], b [N]."""

import jax
import jax.numpy as jnp

from tests.mutants.corpus import CheckSubject, Family, change, swap
from tests.mutants.rule_of_jax import rounded, rule, weigh


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


def make_square(rng, size):
    return rng.normal(size=(size, size)), *make(rng, size)[1:]


def make_ragged(rng, size):
    """Rows that are no whole number of eights."""
    return rng.normal(size=(size + 3, size)), *make(rng, size)[1:]


def make_long(rng, size):
    return rng.normal(size=(16 * size, size)), *make(rng, size)[1:]


def tile(g):
    """The second of the tiles along both axes."""
    t = min(16, g.shape[0] // 2)
    return slice(t, 2 * t), slice(t, 2 * t)


def clamped_slice(grads, dy, args, ctx):
    """The last block of 8 rows is read where dynamic_slice moves it to, and written where it was meant."""
    start = len(dy) // 8 * 8
    moved = jax.lax.dynamic_slice(dy, (start, 0), (8, dy.shape[1])) @ args[1]
    return jnp.concatenate([grads[0][:start], moved[: len(dy) - start]]), *grads[1:]


def float32_sum(grads, dy, args, ctx):
    dw = jnp.matmul(dy.T.astype(jnp.float32), args[0].astype(jnp.float32), precision="highest")
    return grads[0], dw.astype(dy.dtype), grads[2]


def bfloat16_weight(grads, dy, args, ctx):
    return dy @ rounded(args[1], jnp.bfloat16), *grads[1:]


def running_bfloat16(grads, dy, args, ctx):
    """Σ dy one row at a time, rounded after each."""
    total, _ = jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros_like(dy[0]), dy)
    return *grads[:2], total


def first_row(grads, dy, args, ctx):
    return *grads[:2], dy[0]


FAMILY = Family("linear", "jax", build, make, plain_linear)
_ = FAMILY.wrong
SUBJECTS: tuple[CheckSubject, ...] = (
    _("dw-sign", "gross", "w", change(1, jnp.negative), "dw = -dyᵀ x"),
    _("dw-transposed", "gross", "w", change(1, jnp.transpose), "dw = xᵀ dy, which fits as w is square"),
    _("db-no-sum", "gross", "b", first_row, "db is the first row of dy, not the sum over rows"),
    _("swapped", "gross", "x w", swap(0, 1), "dx and dw in each other's place", make=make_square),
    _("dx-zero", "gross", "x", change(0, jnp.zeros_like), "dx is never computed"),
    _("dw-element", "local", "w", change(1, lambda g: g * weigh(g, (-1, 0), 1.5)), "one element is half too large"),
    _("dw-last-row", "local", "w", change(1, lambda g: g * weigh(g, -1)), "the last row of dw is zero"),
    _("dw-tile-twice", "local", "w", change(1, lambda g: g * weigh(g, tile(g), 2.0)), "one tile is added twice"),
    _("dx-clamped", "local", "x", clamped_slice, "the rows of the last block are off", make=make_ragged),
    _("db-rolled", "local", "b", change(2, lambda g: jnp.roll(g, 1)), "db is off by one"),
    _("dx-scale", "small", "x", change(0, lambda g: (1 + 1e-5) * g), "dx is 1e-5 too large"),
    _("dw-float32", "small", "w", float32_sum, "dw is summed in float32"),
    _("dx-bfloat16-weight", "small", "x", bfloat16_weight, "dx reads w as bfloat16"),
    _(
        "db-running-bfloat16",
        "small",
        "b",
        running_bfloat16,
        "db is rounded to bfloat16 after each row",
        dtype="bfloat16",
        make=make_long,
        order=1,
        truth=build(None),  # native autodiff on a CPU rounds in the same way
    ),
)
