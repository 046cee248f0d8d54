"""Wrong backwards of a convolution on jax: x [B, C, H, W], w [K, C, 3, 3], b [K]."""

import jax.numpy as jnp
from jax.lax import conv_general_dilated

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_jax import rounded, rule, weigh


def slide(x, w, padding=1):
    return conv_general_dilated(x, w, (1, 1), [(padding, padding)] * 2)


def plain_conv2d(x, w, b):
    """The right function: padding 1, stride 1."""
    return slide(x, w) + b[:, None, None]


def pull_x(dy, w):
    return slide(dy, jnp.flip(w, (2, 3)).swapaxes(0, 1))


def pull_w(dy, x, padding=1):
    return slide(x.swapaxes(0, 1), dy.swapaxes(0, 1), padding).swapaxes(0, 1)


def pullback(dy, x, w, b):
    return pull_x(dy, w), pull_w(dy, x), dy.sum((0, 2, 3))


def build(fault):
    f = rule(plain_conv2d, pullback, fault)

    def conv2d(x, w, b):
        return f(x, w, b)

    return conv2d


def make(rng, size):
    side = max(5, round(2 * size**0.5))
    return rng.normal(size=(2, 3, side, side)), rng.normal(size=(3, 3, 3, 3)) / 5, rng.normal(size=3)


def unflipped(grads, dy, args, ctx):
    return slide(dy, args[1].swapaxes(0, 1)), *grads[1:]


def channels_kept(grads, dy, args, ctx):
    """As many filters as channels, so that not exchanging them fits."""
    return slide(dy, jnp.flip(args[1], (2, 3))), *grads[1:]


def edge_padded(grads, dy, args, ctx):
    return grads[0], pull_w(dy, jnp.pad(args[0], [(0, 0), (0, 0), (1, 1), (1, 1)], mode="edge"), 0), grads[2]


def half_input(grads, dy, args, ctx):
    return grads[0], pull_w(dy, rounded(args[0], jnp.float16)), grads[2]


FAMILY = Family("conv2d", "jax", build, make, plain_conv2d)
_ = FAMILY.wrong
SUBJECTS: tuple[CheckSubject, ...] = (
    _("dx-unflipped", "gross", "x", unflipped, "dx reads the kernel without mirroring it"),
    _("dx-channels", "gross", "x", channels_kept, "filters and channels of w are not exchanged"),
    _("dw-tap", "local", "w", change(1, lambda g: g * weigh(g, (..., 0, 2))), "one tap of dw is zero"),
    _("dx-border", "local", "x", change(0, lambda g: g * weigh(g, (..., -1))), "the last column of dx is zero"),
    _("dw-edge", "local", "w", edge_padded, "dw reads the edge repeated, not zeros, outside"),
    _("dw-half-input", "small", "w", half_input, "dw reads x as float16"),
)
