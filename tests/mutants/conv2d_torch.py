"""Wrong backwards of a convolution on torch: x [B, C, H, W], w [K, C, 3, 3], b [K]."""

import torch
from torch.nn.functional import conv2d as native
from torch.nn.functional import conv_transpose2d, pad
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_torch import rounded, rule, weigh


def plain_conv2d(x, w, b):
    """The right function: padding 1, stride 1."""
    return native(x, w, b, padding=1)


def pullback(dy, x, w, b):
    return conv2d_input(x.shape, w, dy, padding=1), conv2d_weight(x, w.shape, dy, padding=1), dy.sum((0, 2, 3))


def build(fault):
    f = rule(plain_conv2d, pullback, fault)

    def conv2d(x, w, b):
        return f(x, w, b)

    return conv2d


def plain_strided(x, w, b):
    """The right function: no padding, stride 2."""
    return native(x, w, b, stride=2)


def strided_pullback(dy, x, w, b):
    return conv2d_input(x.shape, w, dy, stride=2), conv2d_weight(x, w.shape, dy, stride=2), dy.sum((0, 2, 3))


def build_strided(fault):
    f = rule(plain_strided, strided_pullback, fault)

    def conv2d_stride_2(x, w, b):
        return f(x, w, b)

    return conv2d_stride_2


def arrays(rng, side):
    return rng.normal(size=(2, 3, side, side)), rng.normal(size=(3, 3, 3, 3)) / 5, rng.normal(size=3)


def make(rng, size):
    return arrays(rng, max(5, round(2 * size**0.5)))


def make_odd(rng, size):
    return arrays(rng, round(size**0.5) * 2 + 1)


def make_even(rng, size):
    return arrays(rng, round(size**0.5) * 2 + 2)


def unflipped(grads, dy, args, ctx):
    return native(dy, args[1].transpose(0, 1), padding=1), *grads[1:]


def first_image(grads, dy, args, ctx):
    return grads[0], conv2d_weight(args[0][:-1], args[1].shape, dy[:-1], padding=1), grads[2]


def replicated(grads, dy, args, ctx):
    """What stride 2 does not reach is filled with the last row and column, not with zeros."""
    dx = conv_transpose2d(dy, args[1], stride=2)
    short = [have - got for have, got in zip(args[0].shape[2:], dx.shape[2:], strict=True)]
    return pad(dx, (0, short[1], 0, short[0]), mode="replicate"), *grads[1:]


def half_weight(grads, dy, args, ctx):
    return conv2d_input(args[0].shape, rounded(args[1], torch.float16), dy, padding=1), *grads[1:]


def wrapped(grads, dy, args, ctx):
    """dw where the border of x is circular, not zero."""
    around = pad(args[0], (1, 1, 1, 1), mode="circular")
    return grads[0], conv2d_weight(around, args[1].shape, dy), grads[2]


FAMILY = Family("conv2d", "torch", build, make, plain_conv2d)
STRIDED = Family("conv2d-stride-2", "torch", build_strided, make_odd, plain_strided)
_ = FAMILY.wrong
SUBJECTS: tuple[CheckSubject, ...] = (
    _("dw-flipped", "gross", "w", change(1, lambda g: g.flip(2, 3)), "the taps of dw are mirrored"),
    _("dw-axes", "gross", "w", change(1, lambda g: g.transpose(2, 3)), "height and width of dw are exchanged"),
    _("dx-unflipped", "gross", "x", unflipped, "dx reads the kernel without mirroring it"),
    _("db-mean", "gross", "b", change(2, lambda g: g / 2), "db is the mean over images"),
    _("dw-tap", "local", "w", change(1, lambda g: g * weigh(g, (..., 0, 2))), "one tap of dw is zero"),
    _("dw-last-filter", "local", "w", change(1, lambda g: g * weigh(g, -1)), "the last filter gets no gradient"),
    _("dx-channel", "local", "x", change(0, lambda g: g * weigh(g, (0, 1), 2.0)), "one channel counts twice"),
    _("dx-border", "local", "x", change(0, lambda g: g * weigh(g, (..., 0, slice(None)))), "the first row is zero"),
    _("dx-corner", "local", "x", change(0, lambda g: g * weigh(g, (..., -1, -1), 4 / 9)), "one corner is scaled"),
    _("dw-last-image", "local", "w", first_image, "the last image is left out of dw"),
    _("dw-circular", "local", "w", wrapped, "dw reads a circular border"),
    _("dx-half-weight", "small", "x", half_weight, "dx reads w as float16"),
    _("dw-tap-scale", "small", "w", change(1, lambda g: g * weigh(g, (..., 1, 1), 1.0005)), "one tap is 5e-4 off"),
    STRIDED.wrong(
        "unreached",
        "input-dependent",
        "x",
        replicated,
        "what stride 2 does not reach gets its neighbour's gradient; the given sides are odd, all is reached",
        trigger=make_even,
        shows="trigger",
    ),
)
